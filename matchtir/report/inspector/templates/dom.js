// Elements, texts and numbers. Data becomes text nodes only; nothing here reads it as markup.

const SVG = "http://www.w3.org/2000/svg";

// What a reader would not see, or what would turn the text around it: controls, zero-width, direction, tags.
// The joiners U+200C and U+200D and the variation selectors are left, since scripts and emoji need them.
const SEEN = "\\t\\n\\u200c\\u200d\\ufe00-\\ufe0f";
const CLASSES = "\\p{Cc}\\p{Cf}\\p{Zl}\\p{Zp}\\p{Default_Ignorable_Code_Point}";
const UNSEEN = new RegExp(`(?![${SEEN}])[${CLASSES}]`, "gu");

function byId(id) {
  return document.getElementById(id);
}

/** An element with attributes, listeners (names that begin with `on`) and children, texts as text nodes. */
function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** An element of the SVG namespace. */
function svg(tag, attributes = {}) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

/** Text of a rollout: text nodes, and its unseen characters by their code points. */
function shown(value) {
  const text = String(value);
  const fragment = document.createDocumentFragment();
  let from = 0;
  for (const match of text.matchAll(UNSEEN)) {
    if (match.index > from) fragment.append(text.slice(from, match.index));
    const code = match[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    fragment.append(el("span", { class: "unseen", title: "unseen character" }, `U+${code}`));
    from = match.index + match[0].length;
  }
  if (from < text.length) fragment.append(text.slice(from));
  return fragment;
}

/** Text of a rollout in a line, apart from the direction of what stands around it. */
function inline(value, properties = {}) {
  return el("bdi", { ...properties, class: `data ${properties.class ?? ""}` }, shown(value));
}

/** A JSON value as text. */
function json(value) {
  return value === undefined ? "" : JSON.stringify(value);
}

function digits(value, places) {
  if (value === null || value === undefined) return "–";
  const text = Number.isInteger(value) && places === 0 ? String(value) : value.toFixed(places);
  const zero = Number(text) === 0;
  return zero ? text.replace("-", "") : text.replace("-", "−");
}

/** A number that carries its full value beside the rounded text. */
function number(value, places = 3) {
  if (value === null || value === undefined) return el("span", { class: "none" }, "–");
  return el("data", { value: String(value), title: String(value) }, digits(value, places));
}

/** An advantage: a sign that is a shape, and the number with its sign. */
function advantage(value, places = 3) {
  if (value === null || value === undefined) return number(null);
  const shape = value > 0 ? "▲" : value < 0 ? "▼" : "";
  const sign = value > 0 ? "+" : "";
  const data = el("data", { value: String(value), title: String(value), class: "advantage" });
  if (shape) data.append(el("span", { class: "shape", "aria-hidden": "true" }, shape), " ");
  data.append(sign + digits(value, places));
  return data;
}

/** Tint an element by an advantage; `limit` is the size that gets the full tint. */
function tint(element, value, limit) {
  element.classList.add("tinted");
  if (!value) return element;
  element.classList.add(value > 0 ? "plus" : "minus");
  element.style.setProperty("--share", Math.min(1, Math.abs(value) / limit).toFixed(3));
  return element;
}

/** One name and value of a list of figures. */
function figure(name, value, properties = {}) {
  return el("div", properties, el("dt", {}, name), el("dd", {}, value));
}

/** A count with its thousands apart. */
function grouped(count) {
  return count.toLocaleString("en");
}

function plural(count, one) {
  return `${grouped(count)} ${count === 1 ? one : `${one}s`}`;
}
