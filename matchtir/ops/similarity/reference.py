"""Interning and similarity blocks in plain Python, for the reader; equations 1-4 of arXiv:2601.10712."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from ...errors import InputError
from ...types import IntArray, RaggedMatrix, ToolCall, offsets_of
from . import InternedCalls

_DEEPEST = 200


class Interner:
    def __init__(self, fold_strings: bool, fold_names: bool) -> None:
        self._fold_strings, self._fold_names = fold_strings, fold_names
        self._names: dict[str, int] = {}
        self._keys: dict[str, int] = {}
        self._values: dict[Hashable, int] = {}

    def _canonical(self, value: Any, depth: int = 0) -> Hashable:
        """A hashable that equals another's exactly where the JSON values are equal."""
        if isinstance(value, str):
            return value.strip().casefold() if self._fold_strings else value
        if isinstance(value, bool):
            return ("true",) if value else ("false",)  # in Python True == 1, in JSON not
        if value is None or isinstance(value, int):
            return value
        if isinstance(value, float):
            return value if value == value else object()  # NaN, which is no JSON, equals nothing
        if depth >= _DEEPEST:
            raise InputError(f"nested deeper than {_DEEPEST} levels")
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, str):
                    raise InputError(f"{type(key).__name__} {key!r:.60} is no JSON object's key")
            return ("object", frozenset((k, self._canonical(v, depth + 1)) for k, v in value.items()))
        if isinstance(value, (list, tuple)):
            return ("array", *[self._canonical(v, depth + 1) for v in value])
        raise InputError(f"{type(value).__name__} {value!r:.60} is no JSON value")

    def _value(self, value: Any, strict: bool, where: str) -> int:
        try:
            canonical = self._canonical(value)
        except InputError as error:
            if strict:
                raise InputError(f"{where}: {error}") from None
            canonical = object()
        return self._values.setdefault(canonical, len(self._values))

    def intern(self, traces: Sequence[Sequence[ToolCall]], strict: bool) -> InternedCalls:
        names: list[int] = []
        sizes: list[int] = []
        keys: list[int] = []
        values: list[int] = []
        for trace, calls in enumerate(traces):
            for call in calls:
                arguments = {} if call.malformed is not None else call.arguments
                if not isinstance(arguments, Mapping):
                    kind = type(arguments).__name__
                    raise InputError(
                        f"trace {trace}: arguments of call {call.name!r} are a {kind}; expected a mapping"
                    )
                sizes.append(len(arguments))
                if call.malformed is not None:
                    names.append(-1)
                    continue
                name = call.name.casefold() if self._fold_names else call.name
                names.append(self._names.setdefault(name, len(self._names)))
                for key, value in arguments.items():
                    keys.append(self._keys.setdefault(key, len(self._keys)))
                    where = f"gold trace {trace}: argument {key!r} of call {call.name!r}"
                    values.append(self._value(value, strict, where))
        return InternedCalls(
            np.array(names, dtype=np.int64),
            offsets_of(sizes),
            np.array(keys, dtype=np.int64),
            np.array(values, dtype=np.int64),
        )


def _parameters(calls: InternedCalls, c: int) -> dict[int, int]:
    span = slice(calls.starts[c], calls.starts[c + 1])
    return dict(zip(calls.keys[span].tolist(), calls.values[span].tolist(), strict=True))


def _similarity(p_name: int, p: dict[int, int], g_name: int, g: dict[int, int]) -> float:
    if p_name < 0 or p_name != g_name:
        return 0.0
    union = len(p.keys() | g.keys())
    jaccard = len(p.keys() & g.keys()) / union if union else 1.0
    equal = sum(k in p and p[k] == g[k] for k in g)
    return (1 + jaccard + equal) / (2 + len(g))


def similarity(
    predicted: InternedCalls,
    begins: IntArray,
    gold: InternedCalls,
    gold_begins: IntArray,
    gold_counts: IntArray,
    threads: int,
) -> RaggedMatrix:
    p = [(int(name), _parameters(predicted, c)) for c, name in enumerate(predicted.names)]
    g = [(int(name), _parameters(gold, c)) for c, name in enumerate(gold.names)]
    cells = [
        _similarity(*p[i], *g[j])
        for b in range(len(gold_begins))
        for i in range(begins[b], begins[b + 1])
        for j in range(gold_begins[b], gold_begins[b] + gold_counts[b])
    ]
    return RaggedMatrix(np.array(cells, dtype=np.float64), np.diff(begins), gold_counts)
