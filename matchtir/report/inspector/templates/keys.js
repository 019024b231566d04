// The keyboard: one listener, and what each key does in the list and in a rollout.

const KEYS = {
  j: () => stepRollout(1),
  k: () => stepRollout(-1),
  ArrowDown: () => stepRollout(1, true),
  ArrowUp: () => stepRollout(-1, true),
  ArrowRight: () => stepTurn(1),
  ArrowLeft: () => stepTurn(-1),
  c: nextCall,
  Escape: backToList,
  "/": focusFilter,
  s: () => jumpTo("siblings-title"),
  t: () => (byId("tokens") ? byId("tokens").click() : false),
  "?": () => byId("help").showModal(),
};

const inRollout = () => !byId("rollout").hidden;

/** The next rollout, or, in the list, the next row; there arrows scroll as long as no row has the focus. */
function stepRollout(by, arrow = false) {
  if (!inRollout()) {
    const place = focusedPlace();
    if (arrow && place < 0) return false;
    return focusRow(place < 0 ? 0 : place + by);
  }
  const place = list.order.indexOf(view.b);
  const other = place < 0 ? list.order[0] : list.order[place + by];
  return other === undefined ? undefined : go({ r: keyOf(other), turn: "" });
}

function stepTurn(by) {
  if (!inRollout() || !view.detail) return false;
  const turn = Math.max(1, Math.min(view.detail.turns.length, view.turn + by));
  return go({ turn: String(turn) });
}

/** Choose the next call of the turn, after its last one the first; of the first turn before any is chosen. */
function nextCall() {
  const calls = view.detail?.turns[Math.max(1, view.turn) - 1]?.calls ?? [];
  if (!inRollout() || !calls.length) return false;
  selectPair(calls[(calls.indexOf(pair.call) + 1) % calls.length], null);
  const card = document.querySelector("#match [data-call][aria-pressed='true']");
  return card.scrollIntoView({ block: "nearest", behavior: "instant" });
}

function backToList() {
  if (!inRollout()) return document.activeElement === byId("filter-q") ? byId("list-title").focus() : false;
  return go({ r: "", turn: "" }, { push: true });
}

function focusFilter() {
  if (inRollout()) go({ r: "", turn: "" }, { push: true });
  byId("filter-q").focus();
  byId("filter-q").select();
}

function jumpTo(id) {
  if (!inRollout() || !byId(id)) return false;
  byId(id).focus({ preventScroll: true });
  return byId(id).scrollIntoView({ block: "start", behavior: "instant" });
}

function onKey(event) {
  if (event.ctrlKey || event.altKey || event.metaKey || event.defaultPrevented || byId("help").open) return;
  const typing = event.target.matches?.("input:not([type=checkbox]), select, textarea");
  if (typing && event.key !== "Escape") return;
  // Where a region scrolls sideways, the arrows to the sides are its own.
  const sideways = event.target.matches?.(".wide") && event.target.scrollWidth > event.target.clientWidth;
  if (sideways && /^Arrow(Left|Right)$/.test(event.key)) return;
  const act = KEYS[event.key];
  if (act && act() !== false) event.preventDefault();
}
