// The start, and what the state shows: the list or a rollout. Joined last, since it alone runs at once.

const pageTitle = document.title;
let shownHash = null;

/** Show what the address says. */
function show() {
  if (location.hash === shownHash) return;
  const first = shownHash === null;
  shownHash = location.hash;
  const state = readState();
  const b = placeOfKey.get(state.r);
  const before = view.b;
  if (b === undefined) {
    showOverview(state, before);
  } else {
    if (before < 0) list.scroll = scrollY;
    byId("overview").hidden = true;
    byId("rollout").hidden = false;
    showList(state);
    if (before !== b && !first) scrollTo(0, 0);
    showRollout(b, Number(state.turn) || 0, !first);
  }
  document.title = b === undefined ? pageTitle : `${rows.group[b]} #${rows.sample[b]} · ${pageTitle}`;
}

/** The list, where it was left; the row of the rollout that was left gets the focus. */
function showOverview(state, before) {
  byId("missing").hidden = !state.r;
  byId("missing").firstElementChild.replaceChildren(shown(state.r));
  byId("overview").hidden = false;
  byId("rollout").hidden = true;
  byId("rollout").replaceChildren();
  Object.assign(view, { b: -1, detail: null });
  showList(state);
  if (before < 0) return;
  scrollTo(0, list.scroll);
  drawRows();
  focusRow(list.order.indexOf(before));
}

const PRINTED_ROWS = 1000; // of the list: a browser takes minutes to lay out all of a long one

/** Print all of a rollout, and of the list more than is near the window: opened and drawn for as long. */
function setUpPrint() {
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("#rollout details:not([open])")];
    folded.forEach((details) => (details.open = true));
    if (inRollout()) drawLines();
    else drawRange(0, Math.min(list.order.length, PRINTED_ROWS));
    if (list.order.length > PRINTED_ROWS) byId("count").append(`, the first ${grouped(PRINTED_ROWS)} printed`);
  });
  addEventListener("afterprint", () => {
    folded.forEach((details) => (details.open = false));
    showList(readState());
  });
}

function start() {
  setUpTheme();
  setUpList();
  setUpPrint();
  addEventListener("hashchange", show);
  addEventListener("popstate", show);
  addEventListener("keydown", onKey);
  byId("open-help").addEventListener("click", () => byId("help").showModal());
  byId("skip").addEventListener("click", (event) => {
    event.preventDefault(); // the address holds the state
    const target = inRollout() ? byId("rollout-title") : byId("list-title");
    target.focus();
    target.scrollIntoView({ block: "start", behavior: "instant" });
  });
  show();
  restoreScroll();
  if (index.live) poll();
}

start();
