"""What the embedded task set is made of: sizes, mix of shapes, hops, tools, errors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import ConfigError
from .world import RELATIONS

KINDS = ("single_hop", "parallel_single_hop", "multi_hop", "parallel_multi_hop")
"""The four shapes of a task without a state, by FTRL's names."""

CALENDAR = "calendar"
"""The kind of the stateful tasks, and the mix that is all of it."""

MIXES: Mapping[str, Mapping[str, float]] = {
    "sparse": dict(zip(KINDS, (0.10, 0.15, 0.45, 0.30), strict=True)),
    "easy": dict(zip(KINDS, (0.15, 0.20, 0.40, 0.25), strict=True)),
    CALENDAR: {CALENDAR: 1.0},
}
"""Shares of the kinds, by the name of the mix."""

MOST_BRANCHES = 3
MOST_USER_TURNS = 3
_MOST_TURNS = 10  # more calls would need more names than have first pieces of their own


@dataclass(frozen=True)
class EmbeddedConfig:
    """Settings of :func:`embedded_tasks`.

    Parameters
    ----------
    seed : int, at least 0
        The same seed gives the same tasks, byte for byte, with every Python and on every platform.
    train_size : int, at least 0
        Tasks of the training split. A larger set begins with the smaller one.
    test_size : int, at least 0
        The same of the test split.
    mix : {"sparse", "easy", "calendar"} or mapping of kind to weight
        Shares of the four shapes. They are met as exactly as the size allows, at every prefix of the set.
        "calendar": all tasks are of that kind, which no mapping can hold.
    hops : (int, int), 2 <= least <= most
        Calls that depend on each other, in a multi-hop chain.
    tools : int
        Tools offered with every task. Those that the gold calls do not need are the siblings of needed ones
        first, then unrelated ones. Tasks of the calendar have all of its eight.
    max_turns : int, at most 10
        Turns that suffice when each turn makes one call: the gold calls, one failed attempt and the answer.
        Of a task of the calendar they suffice for each user turn.
    error_rate : float in [0, 1]
        Share of tasks in which the first natural call fails, and the error says how to correct it.
    user_turns : (int, int), 1 <= least <= most <= 3
        How often the user speaks in a task of the calendar.

    Raises
    ------
    ConfigError
        If a value is impossible; the message names the field.

    Examples
    --------
    >>> EmbeddedConfig(mix={"single_hop": 1.0}, tools=2, max_turns=3).mix
    {'single_hop': 1.0}
    >>> EmbeddedConfig(tools=3)
    Traceback (most recent call last):
    matchtir.errors.ConfigError: tools is 3; expected an integer from 5 (the calls of the largest task) to 20
    """

    seed: int = 0
    train_size: int = 2000
    test_size: int = 200
    mix: str | Mapping[str, float] = "sparse"
    hops: tuple[int, int] = (2, 4)
    tools: int = 7
    max_turns: int = 6
    error_rate: float = 0.2
    user_turns: tuple[int, int] = (1, 3)

    def __post_init__(self) -> None:
        for name in ("seed", "train_size", "test_size"):
            _check_integer(name, getattr(self, name), 0)
        kinds = [kind for kind, weight in self.weights.items() if weight > 0]
        _check_pair(self, "hops")
        least, most = self.hops
        _check_integer("hops[0]", least, 2)
        _check_integer("hops[1]", most, least)
        # Calls, one failed attempt, the answer.
        needed = {CALENDAR: 3, "single_hop": 3, "parallel_single_hop": 4, "multi_hop": most + 2}
        turns = max(needed.get(kind, 2 * least + 2) for kind in kinds)
        if turns > _MOST_TURNS:
            raise ConfigError(f"hops is {self.hops}; expected tasks that need at most {_MOST_TURNS} turns")
        _check_integer("max_turns", self.max_turns, turns, _MOST_TURNS, "what the hops need")
        calls = {CALENDAR: 1, "single_hop": 1, "multi_hop": most}
        calls["parallel_single_hop"] = min(MOST_BRANCHES, self.max_turns - 1)
        tools = max(calls.get(kind, min(self.max_turns - 1, 2 * most)) for kind in kinds)
        _check_integer("tools", self.tools, tools, len(RELATIONS), "the calls of the largest task")
        _check_pair(self, "user_turns")
        least, most = self.user_turns
        _check_integer("user_turns[0]", least, 1)
        _check_integer("user_turns[1]", most, least, MOST_USER_TURNS, "the least")
        if not _is_number(self.error_rate) or not 0 <= self.error_rate <= 1:
            raise ConfigError(f"error_rate is {self.error_rate!r}; expected a number in [0, 1]")

    @property
    def weights(self) -> Mapping[str, float]:
        """Share of each kind, summing to 1; raises ConfigError if `mix` says none."""
        if isinstance(self.mix, str):
            if self.mix not in MIXES:
                raise ConfigError(f"mix is {self.mix!r}; expected {', '.join(MIXES)} or weights by kind")
            return MIXES[self.mix]
        if not isinstance(self.mix, Mapping):
            raise ConfigError(f"mix is {self.mix!r}; expected {', '.join(MIXES)} or weights by kind")
        for kind, weight in self.mix.items():
            if kind not in KINDS:
                raise ConfigError(f"mix holds the kind {kind!r}; expected {', '.join(KINDS)}")
            if not _is_number(weight) or weight < 0:
                raise ConfigError(f"mix[{kind!r}] is {weight!r}; expected a number of at least 0")
        total = sum(self.mix.values())
        if total <= 0:
            raise ConfigError(f"mix is {dict(self.mix)}; expected at least one weight above 0")
        return {kind: self.mix.get(kind, 0) / total for kind in KINDS}


def _is_number(value: object) -> bool:
    """Whether a value is a finite number and no boolean."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_pair(config: object, name: str) -> None:
    """Refuse what is no pair; make it a tuple."""
    pair = getattr(config, name)
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise ConfigError(f"{name} is {pair!r}; expected two integers, the least and the most")
    object.__setattr__(config, name, tuple(pair))


def _check_integer(name: str, value: object, least: int, most: int | None = None, why: str = "") -> None:
    """Refuse what is no integer from `least` to `most`."""
    if isinstance(value, int) and not isinstance(value, bool) and least <= value <= (most or value):
        return
    bound = f"of at least {least}" if most is None else f"from {least} ({why}) to {most}"
    raise ConfigError(f"{name} is {value!r}; expected an integer {bound}")
