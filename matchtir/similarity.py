"""Similarity of predicted and gold calls: each call is interned once, then compared as integers.

Two values are equal when they are the same JSON value: objects regardless of key order, arrays in
order, 1 equal to 1.0, true not equal to 1, strings exactly. ``value_match="normalized"`` also
ignores case and surrounding space of strings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from .errors import ConfigError, InputError
from .ops import interner
from .ops import similarity as _similarity
from .types import RaggedMatrix, ToolCall, offsets_of

ValueMatch = Literal["exact", "normalized"]
NameMatch = Literal["exact", "casefold"]


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
    tables = interner(fold_strings=value_match == "normalized", fold_names=name_match == "casefold")
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
    gold_calls = tables.intern(gold_lists, gold=True)
    return _similarity(
        tables.intern(predicted, gold=False),
        offsets_of([len(calls) for calls in predicted]),
        gold_calls,
        offsets_of(gold_counts)[:-1][order],
        gold_counts[order],
        num_threads=num_threads,
    )
