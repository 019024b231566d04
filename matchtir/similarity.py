"""Similarity of predicted and gold calls: each call is interned once, then compared as integers.

Two values are equal when they are the same JSON value: objects regardless of key order, arrays in
order, 1 equal to 1.0, true not equal to 1, strings exactly. ``value_match="normalized"`` also
ignores case and surrounding space of strings.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal

import numpy as np

from .errors import ConfigError, InputError
from .ops import InternedCalls
from .ops import similarity as _similarity
from .types import RaggedMatrix, ToolCall, offsets_of

ValueMatch = Literal["exact", "normalized"]
NameMatch = Literal["exact", "casefold"]

# In Python True == 1, in JSON not.
_TRUE, _FALSE = ("true",), ("false",)


class _Interner:
    """Numbers for names, keys and values, the same for predicted and gold calls."""

    def __init__(self, value_match: ValueMatch, name_match: NameMatch) -> None:
        self._names: dict[str, int] = {}
        self._keys: dict[str, int] = {}
        self._values: dict[Hashable, int] = {}
        self._fold_strings = value_match == "normalized"
        self._fold_names = name_match == "casefold"

    def _canonical(self, value: Any) -> Hashable:
        """A hashable that equals another's exactly where the JSON values are equal."""
        if isinstance(value, str):
            return value.strip().casefold() if self._fold_strings else value
        if isinstance(value, bool):
            return _TRUE if value else _FALSE
        if value is None or isinstance(value, int):
            return value
        if isinstance(value, float):
            return value if value == value else object()  # NaN, which is no JSON, equals nothing
        number = self._values
        if isinstance(value, dict):
            items = [(k, number.setdefault(self._canonical(v), len(number))) for k, v in value.items()]
            return ("object", frozenset(items))
        if isinstance(value, (list, tuple)):
            return ("array", *[number.setdefault(self._canonical(v), len(number)) for v in value])
        raise InputError(f"{type(value).__name__} {value!r:.60} is no JSON value")

    def intern(
        self, traces: Sequence[Sequence[ToolCall]], what: Literal["predicted", "gold"]
    ) -> InternedCalls:
        """Calls of all traces, one after the other."""
        names: list[int] = []
        sizes: list[int] = []
        keys: list[int] = []
        values: list[int] = []
        name_number, key_number, value_number = self._names, self._keys, self._values
        fold_names, fold_strings = self._fold_names, self._fold_strings
        for trace, calls in enumerate(traces):
            for call in calls:
                if call.malformed is not None:
                    names.append(-1)
                    sizes.append(0)
                    continue
                name = call.name.casefold() if fold_names else call.name
                names.append(name_number.setdefault(name, len(name_number)))
                arguments = call.arguments
                sizes.append(len(arguments))
                for key, value in arguments.items():
                    keys.append(key_number.setdefault(key, len(key_number)))
                    if type(value) is not str or fold_strings:
                        try:
                            value = self._canonical(value)
                        except (InputError, RecursionError) as error:
                            if what == "gold":
                                raise InputError(
                                    f"argument {key!r} of gold call {call.name!r} (gold trace {trace}): {error}"
                                ) from None
                            value = object()  # what a model may make up equals nothing, and costs no one else
                    values.append(value_number.setdefault(value, len(value_number)))
        return InternedCalls(
            np.array(names, dtype=np.int64),
            offsets_of(sizes),
            np.array(keys, dtype=np.int64),
            np.array(values, dtype=np.int64),
        )


def similarity(
    predicted: Sequence[Sequence[ToolCall]],
    gold: Sequence[Sequence[ToolCall]],
    *,
    value_match: ValueMatch = "exact",
    name_match: NameMatch = "exact",
    num_threads: int | None = None,
) -> RaggedMatrix:
    """Similarity S of each rollout's predicted calls with its gold calls.

    ``S_ij = 1[names equal] * (1 + |N_p ∩ N_g| / |N_p ∪ N_g| + #{k in N_g : p[k] = g[k]}) / (2 + |N_g|)``
    with N_p, N_g the sets of parameter names.

    Parameters
    ----------
    predicted, gold : sequence of B sequences of ToolCall
        Calls of each rollout, and the calls it should have made. Rollouts that hold the same gold
        object share its interned form.
    value_match : {"exact", "normalized"}
        Whether strings are compared exactly, or without regard to case and surrounding space.
    name_match : {"exact", "casefold"}
        Whether tool names are compared exactly or without regard to case.
    num_threads : int, optional
        As for :func:`matchtir.ops.hungarian`.

    Returns
    -------
    RaggedMatrix of float64
        One block of P_b x K_b a rollout, in [0, 1]. The row of a malformed call is 0. Equal calls
        without parameters score 1.

    Raises
    ------
    ConfigError
        For an unknown `value_match` or `name_match`.
    InputError
        If the two sequences differ in length, or a gold argument is no JSON value. A predicted
        argument that is none equals nothing.

    References
    ----------
    MatchTIR, arXiv:2601.10712, equations 1-4; normalised values: its Table 9.

    Examples
    --------
    >>> gold = [ToolCall("add", {"a": 1, "b": 2})]
    >>> similarity([[ToolCall("add", {"a": 1.0, "c": 2}), ToolCall("sub")]], [gold])[0].tolist()
    [[0.5833333333333333], [0.0]]
    """
    if value_match not in ("exact", "normalized"):
        raise ConfigError(f"value_match is {value_match!r}; expected 'exact' or 'normalized'")
    if name_match not in ("exact", "casefold"):
        raise ConfigError(f"name_match is {name_match!r}; expected 'exact' or 'casefold'")
    if len(predicted) != len(gold):
        raise InputError(f"{len(predicted)} rollouts of predicted calls but {len(gold)} of gold calls")
    interner = _Interner(value_match, name_match)
    distinct: dict[int, int] = {}
    gold_lists: list[Sequence[ToolCall]] = []
    which: list[int] = []
    for calls in gold:
        index = distinct.setdefault(id(calls), len(gold_lists))
        if index == len(gold_lists):
            gold_lists.append(calls)
        which.append(index)
    gold_counts = np.array([len(calls) for calls in gold_lists], dtype=np.int64)
    order = np.array(which, dtype=np.int64)
    return _similarity(
        interner.intern(predicted, "predicted"),
        offsets_of([len(calls) for calls in predicted]),
        interner.intern(gold_lists, "gold"),
        offsets_of(gold_counts)[:-1][order],
        gold_counts[order],
        num_threads=num_threads,
    )
