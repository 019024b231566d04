"""The inputs of the benchmark. Each is drawn from its own seed, so that all runs time the same numbers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from matchtir.types import Array, Ragged, RaggedMatrix, ToolCall, Trajectory, Turn

GROUP = 16  # rollouts of a prompt
TURNS = 10

# A call as a model writes it: the tool's name, and its arguments as JSON text.
RawCall = tuple[str, str]


def w1(prompts: int = 256) -> list[Array]:
    """Scores of 16 rollouts a prompt, shapes (m, n) with m in 1..20 and n in 1..10; 60 % are 0."""
    rng = np.random.default_rng(0)
    blocks = []
    for n in rng.integers(1, 11, 256)[:prompts]:
        for m in rng.integers(1, 21, GROUP):
            scores = rng.random((m, n))
            scores[rng.random((m, n)) < 0.6] = 0
            blocks.append(scores)
    return blocks


def w2(count: int = 512) -> Array:
    """Uniform scores, shape (count, 64, 64)."""
    return np.random.default_rng(1).random((512, 64, 64))[:count]


def w3(size: int = 2000) -> Array:
    """One problem of uniform scores, shape (size, size)."""
    return np.ascontiguousarray(np.random.default_rng(2).random((2000, 2000))[:size, :size])


def stack(scores: Array) -> RaggedMatrix:
    """Equal problems, shape (B, m, n), as a ragged batch; the values are shared, not copied."""
    count, m, n = scores.shape
    return RaggedMatrix(scores.reshape(-1), np.full(count, m), np.full(count, n))


def sweep(smoke: bool = False) -> dict[str, Array]:
    """Square problems of other sizes and kinds, each of shape (B, n, n)."""
    rng = np.random.default_rng(4)
    counts = {4: 4096, 16: 1024, 64: 128, 256: 8, 1024: 1}
    if smoke:
        counts = {4: 8, 16: 4, 64: 2}
    cases = {f"uniform {n}": rng.random((count, n, n)) for n, count in counts.items()}
    for n in (64,) if smoke else (64, 256):
        count = counts[n]
        cases[f"integers 0..3, {n}"] = rng.integers(0, 4, (count, n, n)).astype(np.float64)
        product = -np.outer(np.arange(1.0, n + 1), np.arange(1.0, n + 1))
        cases[f"cost i*j, {n}"] = np.tile(product, (count, 1, 1))
    count = counts[64]
    cases["float32 uniform 64"] = rng.random((count, 64, 64), dtype=np.float32)
    cases["rows all equal 64"] = np.repeat(rng.random((count, 64, 1)), 64, axis=2)
    return cases


@dataclass(frozen=True)
class Tools:
    """W1tool: ``predicted[b]`` are the calls of rollout b, ``gold[b // 16]`` those of its prompt."""

    predicted: list[list[RawCall]]
    gold: list[list[RawCall]]

    @property
    def pairs(self) -> int:
        """Pairs of a predicted and a gold call."""
        return sum(len(calls) * len(self.gold[b // GROUP]) for b, calls in enumerate(self.predicted))


_VERBS = ("search", "get", "list", "create", "update", "cancel", "book", "find", "compare", "convert")
# fmt: off
_NOUNS = (
    "flight", "hotel", "order", "invoice", "ticket", "route", "weather", "stock",
    "recipe", "calendar", "contact", "message", "document", "review", "payment", "shipment",
    "product", "account", "event", "playlist",
)
# fmt: on
# fmt: off
_WORDS = (
    "amber", "bridge", "castle", "delta", "ember", "forest", "garden", "harbour",
    "island", "jasmine", "kernel", "lantern", "meadow", "north", "orchard", "prairie",
    "quarry", "river", "summit", "terrace", "union", "valley", "willow", "yonder",
    "zenith",
)
# fmt: on
# fmt: off
_PARAMETERS = (
    "query", "city", "date", "limit", "currency", "user_id", "origin", "destination",
    "passengers", "filters", "tags", "price_range", "sort_by", "language", "include_details", "page",
    "start", "end", "category", "location", "options", "coordinates", "verified", "note",
)
# fmt: on
_KINDS = ("text", "text", "id", "integer", "number", "flag", "null", "words", "point", "object")


def _value(rng: np.random.Generator, kind: str) -> Any:
    """A JSON value of a kind."""
    if kind == "text":
        return " ".join(_WORDS[i] for i in rng.integers(0, len(_WORDS), 3))
    if kind == "id":
        return f"{_WORDS[rng.integers(len(_WORDS))]}-{rng.integers(1000, 9999)}"
    if kind == "integer":
        return int(rng.integers(0, 500))
    if kind == "number":
        return round(float(rng.random()) * 100, 2)
    if kind == "flag":
        return bool(rng.integers(2))
    if kind == "null":
        return None if rng.integers(2) else "any"
    if kind == "words":
        return [_WORDS[i] for i in rng.integers(0, len(_WORDS), rng.integers(1, 5))]
    if kind == "point":
        return [round(float(x), 4) for x in rng.uniform(-90, 90, 2)]
    return {"min": int(rng.integers(0, 50)), "max": int(rng.integers(50, 500)), "unit": "EUR"}


Tool = tuple[str, dict[str, str]]  # name, and the kind of each parameter


def _call(rng: np.random.Generator, tool: Tool) -> tuple[str, dict[str, Any]]:
    name, parameters = tool
    return name, {key: _value(rng, kind) for key, kind in parameters.items()}


def _perturbed(rng: np.random.Generator, arguments: dict[str, Any], kinds: dict[str, str]) -> dict[str, Any]:
    """Arguments in another order and, in three of four, with one of them renamed, dropped or changed."""
    keys = list(arguments)
    copy = {keys[i]: arguments[keys[i]] for i in rng.permutation(len(keys))}
    key = keys[rng.integers(len(keys))]
    change = rng.integers(4)
    if change == 1:
        copy[key] = _value(rng, kinds[key])
    elif change == 2:
        del copy[key]
    elif change == 3:
        copy[f"{key}_name"] = copy.pop(key)
    return copy


def w1tool(prompts: int = 256) -> Tools:
    """Calls that look real: 200 tools of 1 to 6 parameters; half the predictions are perturbed gold calls.

    Sizes follow the law of W1: 1 to 10 gold calls a prompt, 1 to 20 predicted calls a rollout.
    """
    rng = np.random.default_rng(3)
    tools: list[Tool] = []
    for name in [f"{verb}_{noun}" for verb in _VERBS for noun in _NOUNS]:
        keys = rng.choice(_PARAMETERS, rng.integers(1, 7), replace=False).tolist()
        tools.append((name, {key: _KINDS[rng.integers(len(_KINDS))] for key in keys}))
    kinds = dict(tools)
    predicted, gold = [], []
    for n in rng.integers(1, 11, 256)[:prompts]:
        wanted = [_call(rng, tools[i]) for i in rng.integers(0, len(tools), n)]
        gold.append([(name, json.dumps(arguments)) for name, arguments in wanted])
        for m in rng.integers(1, 21, GROUP):
            calls = []
            for copied in rng.random(m) < 0.5:
                if copied:
                    name, arguments = wanted[rng.integers(n)]
                    arguments = _perturbed(rng, arguments, kinds[name])
                else:
                    name, arguments = _call(rng, tools[rng.integers(len(tools))])
                calls.append((name, json.dumps(arguments)))
            predicted.append(calls)
    return Tools(predicted, gold)


def parsed(calls: list[RawCall]) -> tuple[ToolCall, ...]:
    """Calls with their arguments parsed, once each."""
    return tuple([ToolCall(name, json.loads(text)) for name, text in calls])


@dataclass(frozen=True)
class Full:
    """Rollouts of 10 turns, and the token span of each turn in a row of `tokens` tokens."""

    rollouts: list[Trajectory]
    spans: Ragged
    tokens: int

    @property
    def shape(self) -> tuple[int, int]:
        """Of the token advantages."""
        return len(self.rollouts), self.tokens


def full(prompts: int = 256, tokens: int = 23_000) -> Full:
    """The calls of W1tool over nine turns, and a tenth turn that answers in four rollouts of five."""
    tools = w1tool(prompts)
    rng = np.random.default_rng(5)
    gold = [parsed(calls) for calls in tools.gold]
    rollouts = []
    for b, raw in enumerate(tools.predicted):
        turn_of = np.sort(rng.integers(0, TURNS - 1, len(raw)))
        calls = parsed(raw)
        bounds = np.searchsorted(turn_of, np.arange(TURNS))
        turns = [Turn(calls[bounds[t] : bounds[t + 1]]) for t in range(TURNS - 1)]
        words = rng.integers(0, 4, 2)
        answer = f"{_WORDS[words[0]]} {_WORDS[words[1] + 4]}" if rng.random() < 0.8 else None
        turns.append(Turn(answer=answer))
        prompt = b // GROUP
        truth = f"{_WORDS[prompt % 4]} {_WORDS[4 + prompt // 4 % 4]}"
        rollouts.append(Trajectory(tuple(turns), gold[prompt], truth, group=prompt))
    # Twenty cuts of the row: the turns lie between the 1st and 2nd, 3rd and 4th, and so on.
    cuts = np.sort(rng.integers(0, tokens + 1, (len(rollouts), 2 * TURNS)), axis=1)
    spans = Ragged.from_lengths(cuts.reshape(-1, 2), np.full(len(rollouts), TURNS))
    return Full(rollouts, spans, tokens)
