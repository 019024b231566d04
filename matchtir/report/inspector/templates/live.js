// A page that is served while the run goes on: ask what it is now, and load it anew when that changed.

const POLL_MS = 3000;

const live = { version: index.version ?? null, changed: false };

function sayLive(text, action = null) {
  byId("live").replaceChildren(text, ...(action ? [" ", action] : []));
}

async function poll() {
  try {
    const answer = await fetch("/version", { cache: "no-store" });
    if (!answer.ok) throw new Error(String(answer.status));
    const version = (await answer.text()).trim();
    live.version ??= version;
    live.changed = version !== live.version;
    if (live.changed) offerReload();
    else sayLive("live");
  } catch {
    sayLive("no longer live: the server does not answer");
  }
  setTimeout(poll, POLL_MS);
}

/** In the list the page is loaded anew at once; who reads a rollout, has something unfolded or types is asked. */
function offerReload() {
  const unfolded = document.querySelector("#overview details[open]");
  const busy = inRollout() || unfolded || byId("help").open || document.activeElement?.matches("input, select");
  if (!busy) return reload();
  if (byId("live").querySelector("button")) return undefined;
  return sayLive("the run went on:", el("button", { type: "button", onclick: reload }, "load it"));
}

function reload() {
  try {
    sessionStorage.setItem("matchtir-scroll", String(scrollY));
  } catch {
    // The page then begins at its top.
  }
  location.reload();
}

/** Scroll to where the page was when it was loaded anew. */
function restoreScroll() {
  try {
    const top = sessionStorage.getItem("matchtir-scroll");
    sessionStorage.removeItem("matchtir-scroll");
    if (top !== null) scrollTo(0, Number(top));
  } catch {
    // Nothing was kept.
  }
}
