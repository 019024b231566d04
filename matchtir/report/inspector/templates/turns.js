// The conversation, turn by turn, each turn tinted by its advantage.

const LONG_MESSAGE = 400; // characters from which a system's or a tool's message is folded
const LONG_TEXT = 3000; // characters from which any other text is cut until it is asked for in full

function conversationSection(detail) {
  const parts = [];
  detail.turns.forEach((turn, t) => {
    const first = t === 0 || detail.turns[t - 1].user_turn !== turn.user_turn;
    const many = roundsOf(detail) > 1;
    if (many && first) parts.push(el("h4", { class: "round" }, `User turn ${turn.user_turn}`));
    parts.push(...turn.before.map(messageOf), turnOf(detail, turn, t));
    const last = t === detail.turns.length - 1 || detail.turns[t + 1].user_turn !== turn.user_turn;
    if (last) parts.push(goldAnswerOf(detail, turn.user_turn));
  });
  parts.push(...detail.after.map(messageOf));
  const reached = new Set(detail.turns.map((turn) => turn.user_turn));
  detail.gold_answers.forEach((_, round) => {
    if (roundsOf(detail) < 2 || reached.has(round)) return;
    parts.push(el("h4", { class: "round" }, `User turn ${round}, not reached`), goldAnswerOf(detail, round));
  });
  if (!detail.turns.length) parts.push(el("p", { class: "notice" }, "The rollout has no turn."));
  const count = el("small", {}, plural(detail.turns.length, "turn"));
  return el(
    "section",
    { id: "conversation", "aria-labelledby": "conversation-title" },
    el("h3", { id: "conversation-title" }, "Conversation ", count),
    legend(),
    detail.turns.some((turn) => turn.tokens) ? tokensButton() : null,
    ...parts.filter(Boolean),
  );
}

/** How the parts of an advantage become one, by name of the integration. */
const INTEGRATIONS = {
  sum: "trajectory part + turn part",
  mean: "(trajectory part + turn part) / 2",
  weighted_product: "trajectory part, weighted by the turn's reward",
  weighted_sum: "trajectory part + the turn's reward among those of its rollout",
  trajectory: "trajectory part",
  turn: "turn part",
};

/** What the advantage is made of, and what the tints mean. */
function legend() {
  const parts = INTEGRATIONS[index.integration];
  const sample = (share) => tint(el("span", {}, advantage(share * fullTint, 1)), share * fullTint, fullTint);
  return el("p", { class: "legend" }, `advantage${parts ? ` = ${parts}` : ""} `, ...[-1, -0.5, 0, 0.5, 1].map(sample));
}

/** Text that is cut until it is asked for in full. All of it is there, so printing and searching find it. */
function longText(text, properties = {}) {
  const block = el("div", { ...properties, class: `data text ${properties.class ?? ""}` }, shown(text));
  if (text.length <= LONG_TEXT) return block;
  block.classList.add("cut");
  const more = el("button", { type: "button", class: "more" }, `show all ${grouped(text.length)} characters`);
  more.addEventListener("click", () => {
    block.classList.remove("cut");
    more.remove();
  });
  return el("div", {}, block, more);
}

function messageOf(message) {
  const foldable = message.role !== "user" && message.role !== "assistant";
  const text = String(message.content ?? "");
  const role = el("span", { class: "role" }, inline(message.role));
  if (foldable && text.length > LONG_MESSAGE) {
    const start = text.slice(0, 120).replace(/\s+/g, " ");
    const size = el("small", {}, `${grouped(text.length)} characters`);
    const summary = el("summary", {}, role, " ", size, " ", inline(start, { class: "start" }));
    return el("details", { class: "message" }, summary, el("div", { class: "data text" }, shown(text)));
  }
  return el("div", { class: "message" }, role, longText(text));
}

function turnOf(detail, turn, t) {
  const title = el("h4", { id: `turn-${t + 1}`, tabindex: "-1" }, `Turn ${t} `);
  title.append(el("span", { class: "hidden" }, "advantage "), advantage(turn.advantage));
  const figures = el(
    "dl",
    { class: "turn-figures" },
    figure("reward", number(turn.reward)),
    figure("return", number(turn.return), { title: "reward of this turn and of those after it, discounted" }),
    groupMeanOf(turn),
    figure("trajectory part", advantage(turn.trajectory_advantage), { title: "of the whole rollout" }),
    figure("turn part", advantage(turn.turn_level_advantage), { title: "of this turn's return" }),
  );
  const texts = el("div", { class: "texts" }, ...textsOf(turn));
  const calls = turn.calls.map((i) => el("li", {}, callLine(detail, i)));
  const section = el(
    "section",
    { class: "turn", "aria-labelledby": `turn-${t + 1}` },
    el("header", {}, title, figures),
    texts,
    calls.length ? el("ul", { class: "call-lines" }, ...calls) : null,
  );
  return tint(section, turn.advantage, fullTint);
}

/** What the turn's return is compared with, where that is the mean over the group's turns of this index. */
function groupMeanOf(turn) {
  if (turn.group_mean === undefined) return null;
  const alone = "none, as no other rollout has this turn";
  return figure("group mean", turn.group_mean === null ? alone : number(turn.group_mean));
}

/** The turn's text as it came; reasoning and answer apart only where the text does not hold them. */
function textsOf(turn) {
  const labelled = (label, text) => el("div", {}, el("span", { class: "role" }, label), longText(text));
  const parts = [];
  const apart = (text) => text && !turn.text.includes(text);
  if (apart(turn.reasoning)) parts.push(labelled("reasoning", turn.reasoning));
  if (turn.text) parts.push(longText(turn.text));
  if (apart(turn.answer)) parts.push(labelled("answer", turn.answer));
  return parts;
}

/** A call in its turn: what it met, and a way to it in the matching. */
function callLine(detail, i) {
  const call = detail.calls[i];
  const button = el(
    "button",
    { type: "button", class: "call-link", onclick: () => selectPair(i, null, true) },
    callName(i),
    " ",
    inline(call.name || "no name", { class: "tool" }),
  );
  const parts = [button, " ", fateOf(call), ", reward ", number(call.reward)];
  const answered = detail.turns[call.turn + 1]?.before ?? detail.after;
  if (call.result && !answered.some((message) => message.role === "tool")) {
    parts.push(el("div", {}, el("span", { class: "role" }, "result"), longText(call.result)));
  }
  return el("div", {}, ...parts);
}

/** What became of a call, in words. */
function fateOf(call) {
  if (call.malformed) return el("span", { class: "fate bad" }, "malformed: ", inline(call.malformed));
  if (call.match === null) return el("span", { class: "fate bad" }, "unmatched");
  return el("span", { class: "fate" }, `→ ${goldName(call.match)}`);
}

/** What a user turn is judged by: the gold answer, and the outcome. */
function goldAnswerOf(detail, round) {
  const answer = detail.gold_answers[round] ?? null;
  const outcome = detail.outcomes[round] ?? null;
  if (outcome === null) return null;
  const judge = detail.outcomes_given[round] ? "as the file says" : "F1 of the two answers";
  const line = el("p", { class: "outcome" }, "outcome ", number(outcome), `, ${judge}`);
  const role = el("span", { class: "role" }, "gold answer");
  return el("div", { class: "message gold-answer" }, ...(answer === null ? [] : [role, longText(answer)]), line);
}

function tokensButton() {
  const text = () => (view.tokens ? "hide tokens" : "show tokens");
  const pressed = { "aria-pressed": "false", "aria-keyshortcuts": "t" };
  const button = el("button", { type: "button", id: "tokens", ...pressed }, text());
  button.addEventListener("click", () => {
    view.tokens = !view.tokens;
    button.textContent = text();
    button.setAttribute("aria-pressed", String(view.tokens));
    const sections = document.querySelectorAll("#conversation .turn");
    sections.forEach((section, t) => drawTokens(section, view.detail.turns[t]));
  });
  return button;
}

/** Put a turn's tokens, each with the turn's advantage, in the place of its texts, or the texts back. */
function drawTokens(section, turn) {
  const texts = section.querySelector(".texts");
  if (!view.tokens || !turn.tokens) return texts.replaceChildren(...textsOf(turn));
  const properties = { class: "token", title: `advantage ${turn.advantage}` };
  const tokens = turn.tokens.map((token) => el("span", properties, shown(token.replaceAll("\n", "↵\n"))));
  for (const token of tokens) tint(token, turn.advantage, fullTint);
  const count = plural(turn.tokens.length, "token");
  const note = el("p", { class: "role" }, count, ", each with advantage ", advantage(turn.advantage));
  return texts.replaceChildren(note, el("div", { class: "data text tokens" }, ...tokens));
}

/** Mark turn t (from 1), choose its first call, bring it into the window and give it the focus. */
function markTurn(turn) {
  const count = view.detail?.turns.length ?? 0;
  view.turn = Math.max(0, Math.min(count, turn));
  document.querySelectorAll("#conversation .turn").forEach((section, t) => {
    if (t + 1 === view.turn) section.setAttribute("aria-current", "true");
    else section.removeAttribute("aria-current");
  });
  const title = view.turn ? byId(`turn-${view.turn}`) : null;
  if (!title) return;
  const [first] = view.detail.turns[view.turn - 1].calls;
  if (first !== undefined) selectPair(first, null);
  title.focus({ preventScroll: true });
  title.closest(".turn").scrollIntoView({ block: "start", behavior: "instant" });
}
