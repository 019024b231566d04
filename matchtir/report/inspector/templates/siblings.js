// The rollouts of one prompt side by side: what each advantage was compared with.

const SIBLINGS_SHOWN = 24;

const SIBLING_FIGURES = [
  ["return", "Return", 2],
  ["success", "Success", 2],
  ["calls", "Calls", 0],
  ["unmatched", "Unmatched", 0],
  ["malformed", "Malformed", 0],
];

/** The members of b's group that are shown: all, or those around b. */
function siblingsShown(b) {
  const all = siblingsOf(b);
  const from = Math.max(0, Math.min(all.indexOf(b) - SIBLINGS_SHOWN / 2, all.length - SIBLINGS_SHOWN));
  return all.slice(from, from + SIBLINGS_SHOWN);
}

function siblingsSection(b) {
  const [all, some] = [siblingsOf(b), siblingsShown(b)];
  const headOf = (text, kind = null) => el("th", { scope: "col", class: kind }, text);
  const figures = SIBLING_FIGURES.map(([name, text]) => headOf(text, `col-${name} figure`));
  const head = el("tr", {}, headOf("Rollout"), ...figures, headOf("Advantage by turn"));
  const body = el("tbody", {}, ...some.map((other) => siblingRow(other, b)));
  const part = some.length < all.length;
  const note = part ? `${some.length} of ${grouped(all.length)}` : plural(all.length, "rollout");
  return el(
    "section",
    { id: "siblings", "aria-labelledby": "siblings-title" },
    el("h3", { id: "siblings-title", tabindex: "-1" }, "The group ", el("small", {}, note)),
    el(
      "div",
      { class: "wide", role: "region", tabindex: "0", "aria-label": "Rollouts of the group" },
      el(
        "table",
        { class: "siblings" },
        el("thead", {}, head),
        body,
      ),
    ),
  );
}

function siblingRow(other, b) {
  const here = other === b;
  const href = linkTo({ r: keyOf(other), turn: "" });
  const link = el("a", { href, "aria-current": here ? "true" : null }, `#${rows.sample[other]}`);
  const figures = SIBLING_FIGURES.map(([name, , places]) =>
    el("td", { class: `col-${name} figure` }, number(rows[name][other], places)),
  );
  const turns = el("div", { class: "strip" });
  detailOf(other).then(
    (detail) => turns.append(...detail.turns.map((turn, t) => stripCell(turn, t, other))),
    () => turns.append("–"),
  );
  const head = el("th", { scope: "row" }, link);
  return el("tr", { class: here ? "here" : null }, head, ...figures, el("td", {}, turns));
}

function stripCell(turn, t, other) {
  const link = el(
    "a",
    { href: linkTo({ r: keyOf(other), turn: String(t + 1) }), title: `turn ${t}` },
    el("span", { class: "hidden" }, `turn ${t}: `),
    advantage(turn.advantage, 1),
  );
  return tint(link, turn.advantage, fullTint);
}
