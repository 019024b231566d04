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

/** Print all of a rollout: what is folded is opened for as long. */
function setUpPrint() {
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("#rollout details:not([open])")];
    folded.forEach((details) => (details.open = true));
    drawLines();
  });
  addEventListener("afterprint", () => folded.forEach((details) => (details.open = false)));
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
