"""Scatter in plain NumPy, for the reader."""

from __future__ import annotations

from ...errors import InputError
from ...types import Array, IntArray


def _check(spans: IntArray, offsets: IntArray, width: int) -> None:
    for b in range(len(offsets) - 1):
        end = 0
        for k in range(offsets[b], offsets[b + 1]):
            start, stop = spans[k]
            where = f"spans[{k}] = [{start}, {stop}) (rollout {b}, turn {k - offsets[b]})"
            if not 0 <= start <= stop <= width:
                raise InputError(f"{where} does not fit; expected 0 <= start <= end <= {width}")
            if start == stop:
                continue
            if start < end:
                raise InputError(
                    f"{where} starts before the span before it ends; expected spans in order, without overlap"
                )
            end = stop


def scatter(values: Array, spans: IntArray, offsets: IntArray, out: Array, threads: int) -> None:
    _check(spans, offsets, out.shape[1])
    out[:] = 0
    for b in range(len(offsets) - 1):
        for k in range(offsets[b], offsets[b + 1]):
            out[b, spans[k, 0] : spans[k, 1]] = values[k]
