// The similarity matrix as a heat map of numbers, with the assignment or the transport plan on it.

function matrixOf(detail) {
  const heads = detail.gold.map((gold, j) => el("th", { scope: "col" }, `g${j} `, inline(gold.name)));
  const bodies = detail.calls.map((call, i) => {
    const cells = detail.gold.map((_, j) => cellOf(detail, i, j));
    return el("tr", {}, el("th", { scope: "row" }, `c${i} `, inline(call.name || "no name")), ...cells);
  });
  const table = el(
    "table",
    { id: "matrix", onkeydown: moveInMatrix },
    el("thead", {}, el("tr", {}, el("td", {}), ...heads)),
    el("tbody", {}, ...bodies),
  );
  const note = detail.plan ? "outlined: the gold call that pays a call most" : "outlined: the assignment";
  return el(
    "div",
    { class: "matrix" },
    el("h4", {}, "Similarity matrix ", el("small", {}, note)),
    detail.plan ? layerButtons(detail) : null,
    el("div", { class: "wide", role: "region", tabindex: "0", "aria-label": "Similarity matrix" }, table),
  );
}

function cellOf(detail, i, j) {
  const onclick = () => selectPair(i, j);
  const button = el("button", { type: "button", tabindex: "-1", "data-cell": `${i} ${j}`, onclick });
  const cell = el("td", { class: detail.calls[i].match === j ? "assigned" : null }, button);
  fillCell(cell, detail, i, j);
  return cell;
}

/** Number and heat of a cell: its similarity, or its share of what a call gives. */
function fillCell(cell, detail, i, j) {
  const plan = pair.layer === "plan";
  const value = (plan ? detail.plan : detail.similarity)[i][j];
  const name = `${callName(i)}, ${goldName(j)}${detail.calls[i].match === j ? ", matched" : ""}: `;
  cell.firstChild.replaceChildren(el("span", { class: "hidden" }, name), number(value, plan ? 3 : 2));
  cell.style.setProperty("--share", Math.min(1, plan ? value * detail.calls.length : value).toFixed(3));
}

function layerButtons(detail) {
  const choose = (layer) => {
    pair.layer = layer;
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.layer === layer));
    for (const button of document.querySelectorAll("#matrix [data-cell]")) {
      fillCell(button.parentElement, detail, ...button.dataset.cell.split(" ").map(Number));
    }
  };
  const layers = [["similarity", "similarity"], ["plan", "transport plan"]];
  const buttons = layers.map(([layer, text]) => {
    const pressed = { "data-layer": layer, "aria-pressed": String(layer === pair.layer) };
    return el("button", { type: "button", ...pressed, onclick: () => choose(layer) }, text);
  });
  return el("div", { class: "layers", role: "group", "aria-label": "What the cells show" }, ...buttons);
}

/** The chosen pair's cell is marked, and is the one that the Tab key reaches. */
function markCell() {
  for (const button of document.querySelectorAll("#matrix [data-cell]")) {
    const chosen = button.dataset.cell === `${pair.call} ${pair.gold}`;
    button.tabIndex = chosen ? 0 : -1;
    button.setAttribute("aria-pressed", String(chosen));
  }
}

function moveInMatrix(event) {
  const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  const [down, right] = moves[event.key] ?? [];
  const from = event.target.dataset.cell?.split(" ").map(Number);
  if (down === undefined || !from || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  event.stopPropagation();
  const to = [from[0] + down, from[1] + right];
  const next = byId("matrix").querySelector(`[data-cell="${to.join(" ")}"]`);
  if (!next) return;
  selectPair(...to);
  next.focus();
}
