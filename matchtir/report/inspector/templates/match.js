// The calls beside the gold calls, what joins them, and the similarity of a pair taken apart.

const MOVED_MASS = 0.02; // share of a call's mass from which a transport plan's entry is drawn as a line

const CARD = { type: "button", class: "card", "aria-pressed": "false" };

const pair = { call: null, gold: null, layer: "similarity" };

function matchSection(detail) {
  Object.assign(pair, { call: null, gold: null, layer: "similarity" });
  const title = el("h3", { id: "match-title", tabindex: "-1" }, "Calls and gold calls");
  const section = el("section", { id: "match", "aria-labelledby": "match-title" }, title);
  if (!detail.calls.length && !detail.gold.length) {
    section.append(el("p", { class: "notice" }, "No call was made, and none is known."));
    return section;
  }
  section.append(matchBoard(detail));
  if (detail.calls.length && detail.gold.length) section.append(matrixOf(detail));
  section.append(el("div", { id: "pair", "aria-live": "polite", hidden: true }));
  return section;
}

/** The two columns of calls with room for the lines between them. */
function matchBoard(detail) {
  const column = (name, cards) => {
    const items = cards.map((card) => el("li", {}, card));
    const content = items.length ? el("ol", {}, ...items) : el("p", { class: "notice" }, "none");
    return el("div", {}, el("h4", {}, name), content);
  };
  const board = el(
    "div",
    { class: "board" },
    column("Calls", detail.calls.map((call, i) => callCard(detail, call, i))),
    column("Gold calls", detail.gold.map((gold, j) => goldCard(detail, gold, j))),
  );
  board.append(svg("svg", { class: "lines", "aria-hidden": "true" }));
  new ResizeObserver(drawLines).observe(board);
  return board;
}

function callCard(detail, call, i) {
  const where = `, turn ${call.turn}${roundName(detail, detail.turns[call.turn].user_turn)}`;
  const card = el(
    "button",
    { ...CARD, "data-call": String(i), onclick: () => selectPair(i, null) },
    el("span", { class: "card-head" }, callName(i) + where),
    inline(call.name || "no name", { class: "tool" }),
    argumentsOf(call.arguments),
    call.malformed && call.raw ? inline(call.raw, { class: "raw" }) : null,
    el("span", { class: "card-foot" }, fateOf(call), ", reward ", number(call.reward)),
  );
  if (call.match === null) card.classList.add("alone");
  return card;
}

function goldCard(detail, gold, j) {
  const met = detail.calls.flatMap((call, i) => (call.match === j ? [callName(i)] : []));
  const by = met.length ? `← ${met.join(", ")}` : "not met";
  const card = el(
    "button",
    { ...CARD, "data-gold": String(j), onclick: () => selectPair(null, j) },
    el("span", { class: "card-head" }, goldName(j) + roundName(detail, gold.user_turn)),
    inline(gold.name, { class: "tool" }),
    argumentsOf(gold.arguments),
    el("span", { class: `card-foot${met.length ? "" : " bad"}` }, by),
  );
  if (!met.length) card.classList.add("alone");
  return card;
}

/** Where there are several user turns, which one it is. */
function roundName(detail, round) {
  return roundsOf(detail) > 1 ? `, user turn ${round}` : "";
}

function argumentsOf(values) {
  const lines = Object.entries(values).map(([name, value]) =>
    el("span", { class: "argument" }, inline(name, { class: "parameter" }), " ", valueOf(value)),
  );
  return el("span", { class: "arguments" }, ...lines);
}

/** What each call gave to each gold call, from 0 to 1: the assignment, or the transport plan where it pays. */
function joined(detail) {
  const { plan, calls, similarity } = detail;
  if (!plan) return calls.flatMap((call, i) => (call.match === null ? [] : [[i, call.match, 1]]));
  return plan.flatMap((row, i) => {
    const mass = row.reduce((sum, x) => sum + x, 0);
    const shares = row.map((x, j) => [i, j, mass ? x / mass : 0]);
    return shares.filter(([, j, share]) => share >= MOVED_MASS && similarity[i][j] > 0);
  });
}

/** Draw the lines between the cards where these now are. */
function drawLines() {
  const lines = document.querySelector("#match .lines");
  if (!lines || !view.detail) return;
  const box = lines.getBoundingClientRect();
  const end = (selector, side) => {
    const at = lines.parentElement.querySelector(selector).getBoundingClientRect();
    return [at[side] - box.left, at.top - box.top + Math.min(at.height / 2, 40)];
  };
  const paths = joined(view.detail).map(([i, j, share]) => {
    const [x1, y1] = end(`[data-call="${i}"]`, "right");
    const [x2, y2] = end(`[data-gold="${j}"]`, "left");
    const middle = (x1 + x2) / 2;
    const path = svg("path", { d: `M${x1} ${y1}C${middle} ${y1} ${middle} ${y2} ${x2} ${y2}` });
    path.style.strokeWidth = `${1 + 3 * share}px`;
    path.style.strokeOpacity = (0.25 + 0.75 * share).toFixed(2);
    if (pair.call === i && pair.gold === j) path.classList.add("chosen");
    return path;
  });
  lines.replaceChildren(...paths);
}

/** Choose a pair to take apart; of a call or a gold call alone its partner, or else the most similar one. */
function selectPair(i, j, bringIntoView = false) {
  const { calls, gold, similarity } = view.detail;
  const best = (values) => values.reduce((top, value, k) => (value > values[top] ? k : top), 0);
  if (j === null && gold.length) j = calls[i].match ?? best(similarity[i]);
  if (i === null && calls.length) {
    const met = calls.findIndex((call) => call.match === j);
    i = met >= 0 ? met : best(similarity.map((row) => row[j]));
  }
  Object.assign(pair, { call: i, gold: j });
  press(document.querySelectorAll("#match [data-call]"), i);
  press(document.querySelectorAll("#match [data-gold]"), j);
  byId("pair").replaceChildren(...(i === null || j === null ? [] : pairOf(view.detail, i, j)));
  byId("pair").hidden = !byId("pair").hasChildNodes();
  byId("pair").classList.add("docked");
  markCell();
  drawLines();
  if (bringIntoView) byId("pair").scrollIntoView({ block: "nearest", behavior: "instant" });
}

function press(cards, chosen) {
  cards.forEach((card, k) => card.setAttribute("aria-pressed", String(k === chosen)));
}

/** The similarity of call i and gold call j, taken apart. */
function pairOf(detail, i, j) {
  const [call, gold] = [detail.calls[i], detail.gold[j]];
  const title = el("h4", {}, `${callName(i)} and ${goldName(j)}: similarity `);
  title.append(number(detail.similarity[i][j]));
  const part = detail.parts.find((one) => one.call === i && one.gold === j);
  if (!part) return [title, el("p", {}, whyNone(detail, call, gold))];
  if (!detail.plan && call.match !== j) title.append(", not matched", takenBy(detail, i, j));
  const region = { class: "wide", role: "region", tabindex: "0", "aria-label": "Parameters of the pair" };
  const paid = detail.plan ? paidOf(detail, i, j) : null;
  return [title, formulaOf(part), paid, el("div", region, pairTable(part, call, gold))].filter(Boolean);
}

/** The similarity with its numbers put in. */
function formulaOf(part) {
  const verdicts = Object.values(part.values);
  const equal = verdicts.filter((same) => same === true).length;
  return el(
    "p",
    { class: "formula" },
    "(name 1 + parameter names ",
    number(part.jaccard),
    ` + equal values ${equal}) / (2 + ${verdicts.length}) = `,
    number(part.similarity),
  );
}

/** What a pair adds to the call's reward by the transport plan. */
function paidOf(detail, i, j) {
  const [plan, similarity] = [detail.plan[i][j], detail.similarity[i][j]];
  const reward = [" of the call's reward ", number(detail.calls[i].reward)];
  return el("p", { class: "formula" }, "plan ", number(plan), " × similarity = ", number(plan * similarity), ...reward);
}

/** Names and values of the two calls, one parameter a line, and whether they are equal. */
function pairTable(part, call, gold) {
  const lines = Object.entries(part.values).map(([name, same]) => {
    if (same === null) return pairLine(inline(name), "missing", "–", valueOf(gold.arguments[name]));
    const verdict = same ? "equal" : "not equal";
    return pairLine(inline(name), verdict, valueOf(call.arguments[name]), valueOf(gold.arguments[name]));
  });
  const more = Object.keys(call.arguments).filter((name) => !Object.hasOwn(part.values, name));
  const extra = (name) => pairLine(inline(name), "not in gold", valueOf(call.arguments[name]), "–");
  const names = [call.name, gold.name].map((name) => inline(name, { class: "value" }));
  const heads = ["Parameter", "Value", "Call", "Gold call"].map((text) => el("th", { scope: "col" }, text));
  return el(
    "table",
    { class: "pair" },
    el("thead", {}, el("tr", {}, ...heads)),
    el("tbody", {}, pairLine("name of the tool", "equal", ...names), ...lines, ...more.map(extra)),
  );
}

function pairLine(name, verdict, ours, theirs) {
  const cells = [verdict, ours, theirs].map((content) => el("td", {}, content));
  const head = el("th", { scope: "row" }, name);
  return el("tr", { class: verdict === "equal" ? "same" : "differs" }, head, ...cells);
}

function valueOf(value) {
  return inline(json(value), { class: "value" });
}

/** Which partners a similar pair that was not matched has instead. */
function takenBy(detail, i, j) {
  const other = detail.calls.findIndex((call) => call.match === j);
  const partners = [];
  if (detail.calls[i].match !== null) partners.push(`${callName(i)} has ${goldName(detail.calls[i].match)}`);
  if (other >= 0) partners.push(`${goldName(j)} has ${callName(other)}`);
  return partners.length ? `: ${partners.join(", ")}` : "";
}

function whyNone(detail, call, gold) {
  if (call.malformed) return "The call is malformed: it meets nothing.";
  const apart = detail.turns[call.turn].user_turn !== gold.user_turn;
  if (apart) return "They belong to different user turns and are not compared.";
  if (roundsOf(detail) < 2 && detail.similarity[detail.calls.indexOf(call)].every((value) => value === 0)) {
    return "No gold call has this name.";
  }
  return "The names of the tools differ.";
}
