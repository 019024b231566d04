"""The C++ core's scatter, which moves bits: the dtype matters only by its size."""

from __future__ import annotations

import numpy as np

import matchtir._core as _core

from ...types import Array, IntArray

_BITS = {2: np.int16, 4: np.int32, 8: np.int64}


def scatter(values: Array, spans: IntArray, offsets: IntArray, out: Array, threads: int) -> None:
    bits = _BITS[out.dtype.itemsize]
    _core.scatter(values.view(bits), spans, offsets, threads, out.view(bits))
