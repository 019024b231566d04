"""Scatter in plain NumPy and in plain torch, for the reader.

Token x of row b gets ``values[k]`` where a turn k of rollout b has ``start_k <= x < end_k``, and 0 where none
has. Spans do not overlap, so there is at most one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...types import Array, IntArray
from .._spans import check_spans

if TYPE_CHECKING:
    from torch import Tensor


def scatter(values: Array, spans: IntArray, offsets: IntArray, out: Array, threads: int) -> None:
    check_spans(spans, offsets, np.full(len(out), out.shape[1]))
    out[:] = 0
    for b in range(len(offsets) - 1):
        for k in range(offsets[b], offsets[b + 1]):
            out[b, spans[k, 0] : spans[k, 1]] = values[k]


def scatter_tensor(
    values: Tensor, spans: Tensor, offsets: Tensor, out: Tensor, cu_seqlens: Tensor | None, threads: int
) -> None:
    """`values` (N,) of the dtype of `out`, (B, T), or (total,) with `cu_seqlens` (B + 1,)."""
    # No shape depends on data, and nothing waits for a device.
    import torch

    device, total, turns = out.device, out.numel(), len(values)
    if turns == 0 or total == 0:
        out.zero_()
        return
    if cu_seqlens is None:
        row_offsets = torch.arange(len(offsets), device=device) * out.shape[1]
    else:
        row_offsets = cu_seqlens
    rollout = torch.searchsorted(offsets[1:], torch.arange(turns, device=device), right=True)
    rollout = rollout.clamp(max=len(offsets) - 2)
    first, width = row_offsets[rollout], row_offsets.diff()[rollout]
    start = first + torch.minimum(spans[:, 0].clamp(min=0), width)  # (N,), of all tokens
    end = first + torch.minimum(spans[:, 1].clamp(min=0), width)
    # Spans without tokens go behind all others, wherever they stood: the rest rises.
    start, turn = torch.where(start < end, start, total).sort(stable=True)
    token = torch.arange(total, device=device)
    nearest = turn[(torch.searchsorted(start, token, right=True) - 1).clamp(min=0)]  # (total,), a turn each
    inside = (start[0] <= token) & (token < end[nearest])
    out.copy_(torch.where(inside, values[nearest], values.new_zeros(())).view(out.shape))
