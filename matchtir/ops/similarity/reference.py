"""Interning and similarity blocks in plain Python, for the reader; equations 1-4 of arXiv:2601.10712."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from ...errors import InputError
from ...types import IntArray, RaggedMatrix, ToolCall, offsets_of
from . import InternedCalls

_DEEPEST = 200


def _number(table: dict[Any, int], key: Hashable, add: bool) -> int:
    """The number of `key`; a new one gets the next number if `add`, and else -1."""
    return table.setdefault(key, len(table)) if add else table.get(key, -1)


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

    def _value(self, value: Any, gold: bool, where: str) -> int:
        try:
            return _number(self._values, self._canonical(value), gold)
        except InputError as error:
            if gold:
                raise InputError(f"{where}: {error}") from None
            return -1

    def intern(self, traces: Sequence[Sequence[ToolCall]], gold: bool) -> InternedCalls:
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
                names.append(_number(self._names, name, gold))
                for key, value in arguments.items():
                    keys.append(_number(self._keys, key, gold))
                    where = f"gold trace {trace}: argument {key!r} of call {call.name!r}"
                    values.append(self._value(value, gold, where))
        return InternedCalls(
            np.array(names, dtype=np.int64),
            offsets_of(sizes),
            np.array(keys, dtype=np.int64),
            np.array(values, dtype=np.int64),
        )


_Parameters = list[tuple[int, int]]  # key and value; no two keys equal but -1, which no gold call has


def _parameters(calls: InternedCalls, c: int) -> _Parameters:
    span = slice(calls.starts[c], calls.starts[c + 1])
    return list(zip(calls.keys[span].tolist(), calls.values[span].tolist(), strict=True))


def _similarity(p_name: int, p: _Parameters, g_name: int, g: _Parameters) -> float:
    if p_name < 0 or p_name != g_name:
        return 0.0
    wanted = dict(g)
    common = sum(key in wanted for key, _ in p)
    union = len(p) + len(g) - common
    jaccard = common / union if union else 1.0
    equal = sum(key in wanted and wanted[key] == value for key, value in p)
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
