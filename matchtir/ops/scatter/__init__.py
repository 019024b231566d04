"""Turn values and token spans to a dense array of tokens."""

from __future__ import annotations

from ...errors import InputError
from ...types import Array, IntArray
from .. import _dispatch

__all__ = ["scatter"]


def scatter(
    values: Array,
    spans: IntArray,
    offsets: IntArray,
    out: Array,
    *,
    num_threads: int | None = None,
    backend: str | None = None,
) -> None:
    """Write ``values[k]`` to the tokens ``spans[k]`` of their rollout's row of `out`, and 0 elsewhere.

    Parameters
    ----------
    values : ndarray of a 2-, 4- or 8-byte type, shape (N,)
        One a turn.
    spans : ndarray of int64, shape (N, 2)
        Half-open token ranges, in order inside a rollout; an empty one writes nothing.
    offsets : ndarray of int64, shape (B + 1,)
        Rollout b has the turns ``offsets[b]`` to ``offsets[b + 1]``.
    out : ndarray of the dtype of `values`, shape (B, T)
        Overwritten whole; rows contiguous.
    num_threads, backend
        As for :func:`matchtir.ops.hungarian`.

    Raises
    ------
    InputError
        If a span leaves its row or overlaps the one before it (the message names rollout and turn), or
        the rows of `out` overlap. Nothing is written then.
    """
    dense = out.shape[1] < 2 or out.strides[1] == out.itemsize
    if len(out) > 1 and dense and abs(out.strides[0]) < out.shape[1] * out.itemsize:
        raise InputError("the rows of out overlap")
    module = _dispatch.load("scatter", backend)
    module.scatter(values, spans, offsets, out, _dispatch.threads(num_threads))
