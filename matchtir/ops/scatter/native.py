"""The C++ core's scatter, which moves bits: the dtype matters only by its size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

import matchtir._core as _core

from ...types import Array, IntArray

if TYPE_CHECKING:
    from torch import Tensor

_BITS = {2: np.int16, 4: np.int32, 8: np.int64}


def scatter(values: Array, spans: IntArray, offsets: IntArray, out: Array, threads: int) -> None:
    bits = _BITS[out.dtype.itemsize]
    _core.scatter(values.view(bits), spans, offsets, threads, out.view(bits))


def scatter_tensor(
    values: Tensor, spans: Tensor, offsets: Tensor, out: Tensor, cu_seqlens: Tensor | None, threads: int
) -> None:
    """`values` (N,) of the dtype of `out`, (B, T), or (total,) with `cu_seqlens` (B + 1,)."""
    import torch

    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[out.dtype.itemsize]
    bits, target = values.view(integer).numpy(), out.view(integer).numpy()
    ranges, turns = spans.numpy(), offsets.numpy()
    if cu_seqlens is not None:
        # One long row: what is beyond the last rollout gets 0 as well.
        starts = np.repeat(cu_seqlens.numpy()[:-1], np.diff(turns))
        ranges, turns, target = ranges + starts[:, None], np.array([0, len(bits)]), target[None]
    _core.scatter(bits, ranges, turns, threads, target)
