// One rollout: its figures, its group, its conversation, its calls beside the gold calls.

const view = { b: -1, detail: null, turn: 0, tokens: false };

const roundsOf = (detail) => detail.gold_answers.length;
const callName = (i) => `call ${i}`;
const goldName = (j) => `gold ${j}`;

/** Show rollout b; `focus` gives its title the focus. */
async function showRollout(b, turn, focus) {
  if (view.b === b) return markTurn(turn);
  Object.assign(view, { b, detail: null, turn: 0, tokens: false });
  const article = byId("rollout");
  article.replaceChildren(rolloutHead(b), el("p", { class: "notice" }, "Unpacking …"));
  if (focus) byId("rollout-title").focus({ preventScroll: true });
  let detail;
  try {
    detail = await detailOf(b);
  } catch (error) {
    if (view.b === b) article.lastChild.textContent = `The rollout could not be unpacked: ${error.message}`;
    return;
  }
  if (view.b !== b) return;
  view.detail = detail;
  article.lastChild.remove();
  article.append(
    figuresOf(b, detail),
    siblingsSection(b),
    el("div", { class: "columns" }, conversationSection(detail), matchSection(detail)),
  );
  if (detail.calls.length) {
    selectPair(Math.max(0, detail.calls.findIndex((call) => call.match !== null)), null);
    byId("pair").classList.remove("docked"); // until somebody chooses, it covers no card
  }
  if (turn > 0) markTurn(turn);
}

/** Way back, neighbours in the list, and the title. */
function rolloutHead(b) {
  const place = list.order.indexOf(b);
  const step = (by, text, key) => {
    const other = place < 0 ? undefined : list.order[place + by];
    if (other === undefined) return el("span", { class: "off" }, text);
    return el("a", { href: linkTo({ r: keyOf(other), turn: "" }), "aria-keyshortcuts": key }, text);
  };
  const among = `${grouped(place + 1)} of ${grouped(list.order.length)}`;
  return el(
    "header",
    { class: "rollout-head" },
    el(
      "nav",
      { "aria-label": "Rollouts" },
      el("a", { href: linkTo({ r: "", turn: "" }), "aria-keyshortcuts": "Escape" }, "List"),
      step(-1, "Previous", "k"),
      step(1, "Next", "j"),
      el("span", {}, place < 0 ? "not in the filtered list" : among),
    ),
    el("h2", { id: "rollout-title", tabindex: "-1" }, inline(rows.group[b]), ` #${rows.sample[b]}`),
    el("p", { class: "where" }, inline(index.files[rows.file[b]]), `, row ${rows.row[b]}`),
  );
}

function figuresOf(b, detail) {
  const matched = detail.calls.filter((call) => call.match !== null).length;
  return el(
    "dl",
    { class: "facts" },
    figure("return", number(detail.return)),
    figure("success", number(detail.outcome), { title: EXPLAINED.success }),
    figure("trajectory advantage", advantage(detail.trajectory_advantage)),
    figure("disagreement", number(rows.gap[b]), { title: EXPLAINED.gap }),
    figure("calls matched", `${matched} of ${detail.calls.length}`),
    figure("gold calls", number(detail.gold.length, 0)),
    figure("malformed", number(rows.malformed[b], 0)),
    rows.step[b] === null ? null : figure("step", number(rows.step[b], 0)),
    rows.kind[b] ? figure("kind", inline(rows.kind[b])) : null,
    rows.finish[b] ? figure("end", inline(rows.finish[b])) : null,
  );
}
