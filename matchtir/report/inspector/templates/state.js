// What is shown, as the address has it: rollout, turn, filters, order. Reload, back and links work by it.

const NAMES = ["r", "turn", "q", "kind", "step", "success", "malformed", "sort", "dir"];

function readState() {
  const given = new URLSearchParams(location.hash.slice(1));
  return Object.fromEntries(NAMES.map((name) => [name, given.get(name) ?? ""]));
}

function hashOf(state) {
  return `#${new URLSearchParams(Object.entries(state).filter(([, value]) => value !== ""))}`;
}

/** The address of the present state with some of it changed. */
function linkTo(changes) {
  return hashOf({ ...readState(), ...changes });
}

/** Change the state and show it; `push` makes it a step that the browser's back button undoes. */
function go(changes, { push = false } = {}) {
  const hash = linkTo(changes);
  history[push ? "pushState" : "replaceState"](null, "", hash);
  show();
}
