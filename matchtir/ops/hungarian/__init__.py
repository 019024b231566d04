"""Ragged batch of rectangular assignments: maximum-weight, and greedy under its own name."""

from __future__ import annotations

from ...types import Ragged, RaggedMatrix
from .. import _dispatch

__all__ = ["greedy", "hungarian"]


def hungarian(
    scores: RaggedMatrix,
    *,
    partial: bool = False,
    num_threads: int | None = None,
    backend: str | None = None,
) -> Ragged:
    """Maximum-weight assignment of every problem of a batch.

    Maximises ``sum of scores[i, match[i]]`` over assignments in which every row and every column is
    used at most once. With ``partial=False`` exactly ``min(m, n)`` pairs are matched, as by
    `scipy.optimize.linear_sum_assignment`; with ``partial=True`` pairs with a score of 0 or less
    stay unmatched, which makes the result a maximum-weight matching.

    Parameters
    ----------
    scores : RaggedMatrix of float32 or float64
        One block of m x n a problem, finite; m and n may be 0. Solved in float64.
    partial : bool
        Leave pairs with score <= 0 unmatched.
    num_threads : int, optional
        Threads over problems. Default: environment variable ``MATCHTIR_NUM_THREADS``, else 1. The
        result does not depend on it.
    backend : {"native", "reference"}, optional
        Force a backend.

    Returns
    -------
    Ragged of int64
        For each row its column, or -1.

    Raises
    ------
    InputError
        If a score is NaN or infinite; the message names problem and cell.

    Notes
    -----
    Ties. All searches prefer the lowest column. Among assignments of the same weight, an unmatched
    row then takes the column of a later row that scores exactly the same there, and a matched row
    the first unmatched column that scores the same. Of several equal calls the first is matched.
    The result is the same on every run, number of threads and instruction set. Another backend may
    choose another of several assignments of the same weight.

    References
    ----------
    Jonker and Volgenant, Computing 38 (1987), doi:10.1007/BF02278710; Crouse, IEEE Transactions on
    Aerospace and Electronic Systems 52 (2016), doi:10.1109/TAES.2016.140952.

    Examples
    --------
    >>> hungarian(RaggedMatrix.from_blocks([[[0.9, 0.8], [0.8, 0.1]]])).tolist()
    [[1, 0]]
    >>> greedy(RaggedMatrix.from_blocks([[[0.9, 0.8], [0.8, 0.1]]])).tolist()
    [[0, 1]]
    """
    module = _dispatch.load("hungarian", backend)
    return module.hungarian(scores, partial, _dispatch.threads(num_threads))  # type: ignore[no-any-return]


def greedy(
    scores: RaggedMatrix,
    *,
    partial: bool = False,
    num_threads: int | None = None,
    backend: str | None = None,
) -> Ragged:
    """Greedy matching of every problem of a batch: the highest remaining score first.

    Not optimal: its weight is at least half of the maximum (for non-negative scores). It is here
    because the code published with MatchTIR matches so. Parameters, returns and errors as
    :func:`hungarian`; equal scores are taken by row, then by column.
    """
    module = _dispatch.load("hungarian", backend)
    return module.greedy(scores, partial, _dispatch.threads(num_threads))  # type: ignore[no-any-return]
