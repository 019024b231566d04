"""Rollouts as the report page shows them: a line of the list each, and everything about one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from ...credit import CreditConfig
from ...dialogues import split
from ...ops import sinkhorn, transport_cost
from ...rewards import outcome_reward
from ...similarity import similarity
from ...types import Array, Credit, ToolCall, Trajectory, Turn

_DIGITS = 6
_PROMPT = 140  # characters of the prompt in the list

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Shown:
    """A rollout and where it is from.

    Parameters
    ----------
    trajectory : Trajectory
    fields : mapping
        Its row: `messages`, and of a run `step`, `sample` and `finish`.
    row : int
        Its index in the file.
    """

    trajectory: Trajectory
    fields: Mapping[str, Any] = field(default_factory=dict)
    row: int = 0


def describe(
    shown: Sequence[Shown],
    credit: Credit,
    config: CreditConfig,
    tokens: Callable[[str], list[str]] | None = None,
) -> tuple[dict[str, list[Any]], list[Json]]:
    """The list's columns and each rollout's details.

    Parameters
    ----------
    shown : sequence of Shown, length B
    credit : Credit
        Of these rollouts.
    config : CreditConfig
        It was assigned with.
    tokens : callable, optional
        From a turn's text to its tokens.

    Returns
    -------
    columns : dict of str to list of length B
        The column `file` is 0: who joins several files counts them there.
    details : list of dict, length B
        JSON values; numbers have six significant digits.
    """
    trajectories = [one.trajectory for one in shown]
    parts = _parts(trajectories, credit, config)
    plans = _plans(trajectories, config) if config.matching == "sinkhorn" else [None] * len(shown)
    samples: dict[Any, int] = {}
    columns: dict[str, list[Any]] = {}
    details = []
    for b, one in enumerate(shown):
        group = one.trajectory.group
        samples[group] = samples.get(group, -1) + 1
        detail = _detail(one, credit, config, b, tokens)
        detail |= {"plan": plans[b], "parts": parts[b]}
        details.append(detail)
        for name, value in _line(one, detail, samples[group]).items():
            columns.setdefault(name, []).append(value)
    if config.baseline == "turn_index":
        _add_group_means(trajectories, details)
    return columns or {name: [] for name in _COLUMNS}, details


def _add_group_means(trajectories: Sequence[Trajectory], details: Sequence[Json]) -> None:
    """What the return of each turn is compared with; None where no other rollout has it."""
    turns: dict[Any, list[Json]] = {}
    for trajectory, detail in zip(trajectories, details, strict=True):
        for t, turn in enumerate(detail["turns"]):
            turns.setdefault((trajectory.group, t), []).append(turn)
    for same in turns.values():
        mean = _short(np.mean([turn["return"] for turn in same])) if len(same) > 1 else None
        for turn in same:
            turn["group_mean"] = mean


_COLUMNS = (
    *("row", "file", "step", "group", "sample", "kind", "return", "success", "malformed", "calls"),
    *("unmatched", "turns", "finish", "gap", "advantage", "prompt"),
)


def _line(one: Shown, detail: Json, sample: int) -> Json:
    """A rollout's line in the list."""
    trajectory, turns = one.trajectory, detail["turns"]
    said = [message for turn in turns for message in turn["before"] if message["role"] == "user"]
    both = detail["trajectory_advantage"]
    differ = [
        abs(turn["turn_level_advantage"] - both) for turn in turns if turn["turn_level_advantage"] * both < 0
    ]
    step, given = one.fields.get("step"), one.fields.get("sample")
    values = (
        *(one.row, 0, step if isinstance(step, int) else None, str(trajectory.group)),
        *(given if isinstance(given, int) else sample, trajectory.kind, detail["return"]),
        *(_success(trajectory), sum(call["malformed"] is not None for call in detail["calls"])),
        *(len(detail["calls"]), sum(call["match"] is None for call in detail["calls"]), len(turns)),
        *(one.fields.get("finish"), _short(max(differ, default=0.0))),
        *(_short(np.mean([turn["advantage"] for turn in turns])) if turns else 0.0,),
        said[0]["content"][:_PROMPT] if said else "",
    )
    return dict(zip(_COLUMNS, values, strict=True))


def _success(trajectory: Trajectory) -> float | None:
    """Outcome of the rollout, the least of its user turns; None if nothing judges it."""
    judged = list(filter(_is_judged, split([trajectory])))
    return _short(min(outcome_reward(part) for part in judged)) if judged else None


def _is_judged(part: Trajectory) -> bool:
    """Whether something says how well a user turn was answered."""
    return part.outcome is not None or part.gold_answer is not None


def _detail(
    one: Shown, credit: Credit, config: CreditConfig, b: int, tokens: Callable[[str], list[str]] | None
) -> Json:
    """Everything about a rollout but what is computed for all at once."""
    trajectory = one.trajectory
    before, after = _between(_messages(one.fields), len(trajectory.turns))
    parts = split([trajectory])
    user_turns = [k for k, part in enumerate(parts) for _ in part.turns]
    matches, call_rewards = credit.matches[b].tolist(), credit.call_rewards[b].tolist()
    calls = [call | {"turn": t} for t, turn in enumerate(trajectory.turns) for call in map(_call, turn.calls)]
    for i, call in enumerate(calls):
        call |= {"reward": _short(call_rewards[i]), "match": matches[i] if matches[i] >= 0 else None}
    ends = np.cumsum([0, *(len(turn.calls) for turn in trajectory.turns)]).tolist()
    rewards = credit.turn_rewards[b].tolist()
    returns = _returns(rewards, config.gamma, user_turns if config.horizon == "user_turn" else [])
    overall = _short(credit.trajectory_advantages[b])
    turns = [
        {
            "before": before[t],
            **_turn(turn),
            "user_turn": user_turns[t],
            "calls": list(range(ends[t], ends[t + 1])),
            "reward": _short(rewards[t]),
            "return": _short(returns[t]),
            "trajectory_advantage": overall,
            "turn_level_advantage": _short(credit.turn_level_advantages[b][t]),
            "advantage": _short(credit.turn_advantages[b][t]),
            "tokens": tokens(turn.text) if tokens is not None and turn.text else None,
        }
        for t, turn in enumerate(trajectory.turns)
    ]
    return {
        "turns": turns,
        "after": after,
        "calls": calls,
        "gold": [
            {"name": call.name, "arguments": _plain(call.arguments), "user_turn": k}
            for k, part in enumerate(parts)
            for call in part.gold_calls
        ],
        "gold_answers": [part.gold_answer for part in parts],
        "outcomes": [_short(outcome_reward(part)) if _is_judged(part) else None for part in parts],
        "outcomes_given": [part.outcome is not None for part in parts],
        "similarity": _matrix(credit.similarity[b]),
        "outcome": _success(trajectory),
        "return": _short(credit.returns[b]),
        "trajectory_advantage": overall,
    }


def _turn(turn: Turn) -> Json:
    return {"text": turn.text, "reasoning": turn.reasoning, "answer": turn.answer}


def _call(call: ToolCall) -> Json:
    return {
        "name": call.name,
        "arguments": _plain(call.arguments),
        "malformed": call.malformed,
        "raw": call.raw,
        "result": call.result,
    }


def _returns(rewards: Sequence[float], gamma: float, user_turns: Sequence[int]) -> list[float]:
    """Discounted return of each turn (equation 11); with user turns it stops at the end of each."""
    found, total = [], 0.0
    for t in reversed(range(len(rewards))):
        if user_turns and t + 1 < len(rewards) and user_turns[t + 1] != user_turns[t]:
            total = 0.0
        total = rewards[t] + gamma * total
        found.append(total)
    return found[::-1]


def _messages(fields: Mapping[str, Any]) -> Any:
    """The messages of a row; of one without them the question, if it has one."""
    question = fields.get("question")
    return fields.get("messages") or ([{"role": "user", "content": question}] if question else [])


def _between(messages: Any, turns: int) -> tuple[list[list[Json]], list[Json]]:
    """The messages before each turn of the model, and those after the last."""
    if isinstance(messages, str):  # a nested field of parquet
        messages = json.loads(messages)
    before: list[list[Json]] = [[] for _ in range(turns + 1)]
    t = 0
    for message in messages if isinstance(messages, list) else []:
        if message.get("role") == "assistant":
            t = min(t + 1, turns)
        else:
            before[t].append({"role": str(message.get("role")), "content": _text(message.get("content"))})
    return before[:turns], before[turns]


def _text(content: Any) -> str:
    """The text of a message, whose content may come in pieces."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(
            str(piece["text"])
            if isinstance(piece, Mapping) and "text" in piece
            else json.dumps(piece, default=str)
            for piece in content
        )
    return "" if content is None else json.dumps(content, ensure_ascii=False, default=str)


def _pairs(trajectory: Trajectory) -> Iterator[tuple[int, int, ToolCall, ToolCall]]:
    """Predicted and gold calls of the same user turn, with their numbers in the rollout."""
    i = j = 0
    for part in split([trajectory]):
        calls = [call for turn in part.turns for call in turn.calls]
        for m, call in enumerate(calls):
            for n, gold in enumerate(part.gold_calls):
                yield i + m, j + n, call, gold
        i, j = i + len(calls), j + len(part.gold_calls)


def _parts(trajectories: Sequence[Trajectory], credit: Credit, config: CreditConfig) -> list[list[Json]]:
    """The similarity of calls of the same tool taken apart, by rollout.

    Whether two values are equal is asked of the similarity itself: calls with this one parameter have 1.
    """
    found: list[list[Json]] = []
    asked: list[tuple[Json, str, ToolCall, ToolCall]] = []
    for b, trajectory in enumerate(trajectories):
        scores = credit.similarity[b]
        found.append([])
        for i, j, call, gold in _pairs(trajectory):
            if scores[i, j] <= 0.0:
                continue
            ours, theirs = set(call.arguments), set(gold.arguments)
            jaccard = len(ours & theirs) / len(ours | theirs) if ours | theirs else 1.0
            values: Json = dict.fromkeys(gold.arguments)
            for name in ours & theirs:
                one, other = (ToolCall("", {name: each.arguments[name]}) for each in (call, gold))
                asked.append((values, name, one, other))
            found[-1].append(
                {
                    "call": i,
                    "gold": j,
                    "name": True,
                    "jaccard": _short(jaccard),
                    "values": values,
                    "similarity": _short(scores[i, j]),
                }
            )
    equal = similarity(
        [[one] for _, _, one, _ in asked], [[other] for *_, other in asked], value_match=config.value_match
    )
    for (values, name, _, _), score in zip(asked, equal.values, strict=True):
        values[name] = bool(score == 1.0)
    return found


def _plans(trajectories: Sequence[Trajectory], config: CreditConfig) -> list[Any]:
    """Transport plans, P x K a rollout; 0 between user turns."""
    pieces = split(trajectories)
    scores = similarity(
        [[call for turn in part.turns for call in turn.calls] for part in pieces],
        [part.gold_calls for part in pieces],
        value_match=config.value_match,
        name_match=config.name_match,
    )
    solved = sinkhorn(
        transport_cost(scores, config.cost), reg=config.reg, tol=config.tol, max_iter=config.max_iter
    ).plan
    counts = [max(1, len(trajectory.rounds)) for trajectory in trajectories]
    starts = np.cumsum([0, *counts]).tolist()
    return [_matrix(_diagonal([solved[k] for k in range(*span)])) for span in pairwise(starts)]


def _diagonal(blocks: Sequence[Array]) -> Array:
    """Blocks along the diagonal of a matrix of zeros."""
    whole = np.zeros((sum(len(one) for one in blocks), sum(one.shape[1] for one in blocks)))
    i = j = 0
    for one in blocks:
        whole[i : i + one.shape[0], j : j + one.shape[1]] = one
        i, j = i + one.shape[0], j + one.shape[1]
    return whole


def _matrix(values: Array) -> list[list[float]]:
    return [[_short(value) for value in row] for row in values.tolist()]


def _plain(arguments: Mapping[str, Any]) -> Any:
    """Arguments as JSON can hold them; what is no number there, NaN say, is text."""
    return json.loads(json.dumps(dict(arguments), default=str), parse_constant=str)


def _short(value: Any) -> float:
    """Six significant digits."""
    return float(f"{float(value):.{_DIGITS}g}") + 0.0
