"""Similarity of predicted and gold calls, from calls interned to integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ...errors import InputError
from ...types import IntArray, RaggedMatrix, ToolCall
from .. import _dispatch

__all__ = ["InternedCalls", "Interner", "interner", "similarity"]


@dataclass(frozen=True, slots=True)
class InternedCalls:
    """Calls as integers; equal names, keys and values have equal numbers.

    Attributes
    ----------
    names : ndarray of int64, shape (P,)
        -1 for a malformed call, or a name that no gold call has; such a call is similar to nothing.
    starts : ndarray of int64, shape (P + 1,)
        ``keys[starts[c]:starts[c + 1]]`` are the parameters of call c, distinct, in any order.
    keys, values : ndarray of int64, shape (L,)
        Parameter names, and the values beside them; -1 where no gold call has them.
    """

    names: IntArray
    starts: IntArray
    keys: IntArray
    values: IntArray


class Interner(Protocol):
    """Tables that number what gold calls hold, and find it in predicted calls; see :func:`interner`."""

    def intern(self, traces: Sequence[Sequence[ToolCall]], gold: bool) -> InternedCalls:
        """Calls of all traces, one after the other; gold calls first, for they fill the tables.

        A name, key or value that no gold call has is -1, which equals nothing. So is a value that is
        no JSON (NaN, another Python type, nested deeper than 200 levels); in a gold call it is refused
        by InputError, naming trace, argument and call.
        """
        ...


def interner(*, fold_strings: bool = False, fold_names: bool = False, backend: str | None = None) -> Interner:
    """Empty tables, to be filled by gold calls and then looked up by predicted calls.

    Values are numbered alike when they are the same JSON value: objects regardless of key order,
    arrays in order, 1 equal to 1.0, true not equal to 1, strings exactly.

    Parameters
    ----------
    fold_strings : bool
        Strings in values are equal also when they differ in case or surrounding space.
    fold_names : bool
        Tool names are equal also when they differ in case.
    backend : {"native", "reference"}, optional
        Force a backend.

    Returns
    -------
    Interner
    """
    module = _dispatch.load("similarity", backend)
    return module.Interner(fold_strings, fold_names)  # type: ignore[no-any-return]


def similarity(
    predicted: InternedCalls,
    begins: IntArray,
    gold: InternedCalls,
    gold_begins: IntArray,
    gold_counts: IntArray,
    *,
    num_threads: int | None = None,
    backend: str | None = None,
) -> RaggedMatrix:
    """Similarity S of the predicted calls of each problem with its gold calls.

    ``S_ij = 1[names equal] * (1 + |N_p ∩ N_g| / |N_p ∪ N_g| + #{k in N_g : p[k] = g[k]}) / (2 + |N_g|)``

    Parameters
    ----------
    predicted, gold : InternedCalls
        Interned with the same tables.
    begins : ndarray of int64, shape (B + 1,)
        Problem b has the predicted calls ``begins[b]`` to ``begins[b + 1]``.
    gold_begins, gold_counts : ndarray of int64, shape (B,)
        Problem b has the gold calls from ``gold_begins[b]`` on; problems may share them.
    num_threads, backend
        As for :func:`matchtir.ops.hungarian`.

    Returns
    -------
    RaggedMatrix of float64
        One block of P_b x K_b a problem, in [0, 1]. Two empty parameter sets have Jaccard 1, so equal
        calls without parameters score 1.

    Raises
    ------
    InputError
        If offsets do not fit the arrays.

    References
    ----------
    MatchTIR, arXiv:2601.10712, equations 1-4.
    """
    if len(begins) != len(gold_begins) + 1:
        raise InputError(f"begins has {len(begins)} entries; expected {len(gold_begins) + 1}")
    module = _dispatch.load("similarity", backend)
    threads = _dispatch.threads(num_threads)
    return module.similarity(predicted, begins, gold, gold_begins, gold_counts, threads)  # type: ignore[no-any-return]
