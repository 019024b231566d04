// The list of rollouts: filters, order, and a table of which only the rows near the window exist.

const SPARE_ROWS = 15;

const list = { order: [], columns: [], rowHeight: 34, first: 0, end: 0, drawn: new Map(), scroll: 0 };

const isEmpty = (values) => values.every((value) => value === null || value === "");
const solved = (b) => rows.success[b] !== null && rows.success[b] >= 1 - 1e-9;

/** Name, head, whether larger values come first when it is asked for, and the cell of rollout b. */
const COLUMNS = [
  ["group", "Group and prompt", false, (b) => titleCell(b)],
  ["file", "File", false, (b) => inline(index.files[rows.file[b]])],
  ["step", "Step", false, (b) => number(rows.step[b], 0)],
  ["kind", "Kind", false, (b) => inline(rows.kind[b])],
  ["return", "Return", true, (b) => number(rows.return[b])],
  ["success", "Success", true, (b) => number(rows.success[b], 2)],
  ["advantage", "Mean advantage", true, (b) => advantage(rows.advantage[b], 2)],
  ["gap", "Disagreement", true, (b) => number(rows.gap[b], 2)],
  ["turns", "Turns", true, (b) => number(rows.turns[b], 0)],
  ["calls", "Calls", true, (b) => number(rows.calls[b], 0)],
  ["unmatched", "Unmatched", true, (b) => number(rows.unmatched[b], 0)],
  ["malformed", "Malformed", true, (b) => number(rows.malformed[b], 0)],
  ["finish", "End", false, (b) => inline(rows.finish[b] ?? "–")],
];

const WORDS = new Set(["group", "file", "kind", "finish"]);

const SORT_CHOICES = [
  ["return", "desc", "return, highest first"],
  ["return", "asc", "return, lowest first"],
  ["success", "desc", "success, highest first"],
  ["success", "asc", "success, lowest first"],
  ["malformed", "desc", "malformed calls, most first"],
  ["gap", "desc", "biggest disagreement"],
];

const EXPLAINED = {
  gap: "Biggest difference of a turn's turn-level and trajectory advantage where their signs differ",
  advantage: "Mean of the turns' advantages",
  success: "Outcome: the answer's F1, or what the rollout was given",
};

function titleCell(b) {
  const href = linkTo({ r: keyOf(b), turn: "" });
  const link = el("a", { href }, inline(rows.group[b]), " ", el("span", {}, `#${rows.sample[b]}`));
  return [link, inline(rows.prompt[b], { class: "prompt" })];
}

/** Whether naming the file would say no more than the step does. */
function filesAreSteps() {
  const pairs = new Set(rows.file.map((file, b) => `${file} ${rows.step[b]}`));
  return index.files.length < 2 || pairs.size === new Set(rows.step).size;
}

/** Fill the choices of the filters, and leave out columns and filters without content. */
function setUpList() {
  const none = new Set(["step", "kind", "finish"].filter((name) => isEmpty(rows[name])));
  if (filesAreSteps()) none.add("file");
  list.columns = COLUMNS.filter(([name]) => !none.has(name));
  for (const name of ["kind", "step"]) {
    const values = [...new Set(rows[name])].filter((value) => value !== null && value !== "");
    values.sort((a, b) => (name === "step" ? a - b : a < b ? -1 : 1));
    const filter = byId(`filter-${name}`);
    filter.append(...values.map((value) => el("option", { value: String(value) }, shown(value))));
    filter.parentElement.hidden = values.length < 2;
    filter.addEventListener("input", (event) => go({ [name]: event.target.value }));
  }
  byId("filter-q").addEventListener("input", (event) => go({ q: event.target.value }));
  byId("filter-success").addEventListener("input", (event) => go({ success: event.target.value }));
  byId("filter-malformed").addEventListener("input", (event) => {
    go({ malformed: event.target.checked ? "1" : "" });
  });
  byId("clear").addEventListener("click", () => {
    go({ q: "", kind: "", step: "", success: "", malformed: "" });
    byId("filter-q").focus();
  });
  byId("sort").append(
    ...SORT_CHOICES.map(([name, dir, text]) => el("option", { value: `${name} ${dir}` }, text)),
    el("option", { value: "head", hidden: true }, "as the table's head says"),
  );
  byId("sort").addEventListener("input", (event) => {
    const [sort = "", dir = ""] = event.target.value.split(" ");
    go({ sort, dir });
  });
  drawHead();
  addEventListener("scroll", () => requestAnimationFrame(drawRows), { passive: true });
  addEventListener("resize", () => requestAnimationFrame(() => redrawRows()));
}

function drawHead() {
  const cells = list.columns.map(([name, text, largeFirst]) => {
    const onclick = () => sortBy(name, largeFirst);
    const button = el("button", { type: "button", title: EXPLAINED[name], onclick }, text);
    return el("th", { scope: "col", class: `col-${name}` }, button);
  });
  byId("list").tHead.replaceChildren(el("tr", { "aria-rowindex": "1" }, ...cells));
}

/** First click sorts the useful way round, the second the other, the third not at all. */
function sortBy(name, largeFirst) {
  const state = readState();
  const [first, second] = largeFirst ? ["desc", "asc"] : ["asc", "desc"];
  if (state.sort !== name) go({ sort: name, dir: first });
  else if (state.dir === first) go({ dir: second });
  else go({ sort: "", dir: "" });
}

function filtered(state) {
  const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
  const fits = (b) => {
    if (state.kind && rows.kind[b] !== state.kind) return false;
    if (state.step && String(rows.step[b]) !== state.step) return false;
    if (state.success === "yes" && !solved(b)) return false;
    if (state.success === "no" && (solved(b) || rows.success[b] === null)) return false;
    if (state.malformed && !rows.malformed[b]) return false;
    if (!words.length) return true;
    const text = `${rows.group[b]}\n${rows.prompt[b]}`.toLowerCase();
    return words.every((word) => text.includes(word));
  };
  return Array.from({ length: rowCount }, (_, b) => b).filter(fits);
}

/** Sort in place: rollouts without a value come last either way, equal ones keep their order. */
function sortRows(order, name, dir) {
  const values = name === "file" ? rows.file.map((file) => index.files[file]) : rows[name];
  if (!values || !COLUMNS.some(([column]) => column === name)) return order;
  const sign = dir === "desc" ? -1 : 1;
  const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
  return order.sort((a, b) => {
    const [x, y] = [values[a], values[b]];
    if (x === null || y === null) return (x === null) - (y === null) || a - b;
    return sign * compare(x, y) || a - b;
  });
}

/** Bring filters, order and rows in line with the state. */
function showList(state) {
  for (const name of ["q", "kind", "step", "success"]) {
    if (byId(`filter-${name}`).value !== state[name]) byId(`filter-${name}`).value = state[name];
  }
  byId("filter-malformed").checked = Boolean(state.malformed);
  const choice = state.sort && `${state.sort} ${state.dir}`;
  byId("sort").value = choice;
  if (byId("sort").value !== choice) byId("sort").value = "head";
  list.columns.forEach(([name], i) => {
    const head = byId("list").tHead.rows[0].cells[i];
    const word = state.dir === "desc" ? "descending" : "ascending";
    if (name === state.sort) head.setAttribute("aria-sort", word);
    else head.removeAttribute("aria-sort");
  });
  list.order = sortRows(filtered(state), state.sort, state.dir);
  const found = list.order.length;
  const all = found === rowCount;
  byId("count").textContent = all ? plural(rowCount, "rollout") : `${grouped(found)} of ${grouped(rowCount)}`;
  byId("no-rows").hidden = found > 0 || rowCount === 0;
  byId("list").hidden = list.order.length === 0;
  byId("list").setAttribute("aria-rowcount", String(list.order.length + 1));
  redrawRows();
}

function drawRow(place) {
  const b = list.order[place];
  const cells = list.columns.map(([name, , , cell]) => {
    const content = [cell(b)].flat();
    if (name === "group") return el("th", { scope: "row", class: "col-group" }, ...content);
    const td = el("td", { class: `col-${name}${WORDS.has(name) ? "" : " figure"}` }, ...content);
    return name === "advantage" ? tint(td, rows.advantage[b], fullTint) : td;
  });
  return el("tr", { "aria-rowindex": String(place + 2), "data-place": String(place) }, ...cells);
}

function padding(count) {
  const cell = el("td"); // one column only: wider, it would bring back those that a narrow page leaves out
  cell.style.height = `${count * list.rowHeight}px`;
  return el("tr", { class: "padding", "aria-hidden": "true", hidden: count === 0 }, cell);
}

/** Draw the rows that are near the window; those that stay are not touched, so focus stays with them. */
function drawRows() {
  const body = byId("list").tBodies[0];
  if (byId("overview").hidden || !list.order.length) return;
  const above = -body.getBoundingClientRect().top / list.rowHeight;
  const count = innerHeight / list.rowHeight;
  const clamp = (x) => Math.max(0, Math.min(list.order.length, x));
  const [from, to] = [clamp(Math.floor(above)), clamp(Math.ceil(above + count))];
  if (list.drawn.size && from >= list.first && to <= list.end) return;
  drawRange(clamp(from - SPARE_ROWS), clamp(Math.max(to, from + 1) + SPARE_ROWS));
}

function drawRange(first, end) {
  const body = byId("list").tBodies[0];
  for (const [place, row] of list.drawn) {
    if (place < first || place >= end) {
      row.remove();
      list.drawn.delete(place);
    }
  }
  body.querySelectorAll(".padding").forEach((row) => row.remove());
  let after = null;
  for (let place = end - 1; place >= first; place--) {
    let row = list.drawn.get(place);
    if (!row) {
      row = drawRow(place);
      list.drawn.set(place, row);
      body.insertBefore(row, after);
    }
    after = row;
  }
  body.prepend(padding(first));
  body.append(padding(list.order.length - end));
  [list.first, list.end] = [first, end];
}

/** Draw all anew: the order or the width has changed. The first row tells how high a row is. */
function redrawRows() {
  const body = byId("list").tBodies[0];
  list.drawn.clear();
  body.replaceChildren();
  if (byId("overview").hidden || !list.order.length) return;
  const first = drawRow(0);
  body.append(first);
  list.rowHeight = first.getBoundingClientRect().height || list.rowHeight;
  body.replaceChildren(padding(list.order.length));
  drawRows();
}

/** Bring the row at a place into the window and give it the focus. */
function focusRow(place) {
  if (place < 0 || place >= list.order.length) return;
  const top = byId("list").tBodies[0].getBoundingClientRect().top + place * list.rowHeight;
  const head = byId("list").tHead.getBoundingClientRect().height;
  if (top < head || top + list.rowHeight > innerHeight) scrollBy(0, top - innerHeight / 2);
  drawRows();
  list.drawn.get(place)?.querySelector("a").focus({ preventScroll: true });
}

/** The place of the row that has the focus, or -1. */
function focusedPlace() {
  const row = document.activeElement?.closest?.("tr[data-place]");
  return row ? Number(row.dataset.place) : -1;
}
