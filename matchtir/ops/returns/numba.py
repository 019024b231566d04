"""Both advantage levels on the CPU: plain loops in the order of the NumPy stage's sums.

One thread: the whole batch of 4,096 rollouts with 24,576 turns takes 1.6 ms on an AMD EPYC.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from ...types import FloatArray, IntArray
from .reference import integrate, needs_local

# Dividing by zero gives an infinity, as in NumPy; no contraction of a multiply and an add.
_jit: Any = numba.njit(error_model="numpy", nogil=True)


@_jit  # type: ignore[untyped-decorator]
def _returns(rewards: FloatArray, offsets: IntArray, gamma: float) -> tuple[FloatArray, FloatArray]:
    """R_i (B,) and R_{i,t} (N,)."""
    total = np.zeros(len(offsets) - 1)
    turn_returns = np.full(len(rewards), np.nan)
    for b in range(len(total)):
        for k in range(offsets[b], offsets[b + 1]):
            total[b] += rewards[k]
        later = 0.0
        for k in range(offsets[b + 1] - 1, offsets[b] - 1, -1):
            later = rewards[k] + gamma * later
            turn_returns[k] = later
    return total, turn_returns


@_jit  # type: ignore[untyped-decorator]
def _turn_cells(offsets: IntArray, ids: IntArray, turns: int) -> IntArray:
    """Number of each turn's cell (group, turn index), (N,), below N; `ids` (B,) are below B."""
    rollouts = len(ids)
    longest = np.zeros(rollouts + 1, dtype=np.int64)
    for b in range(rollouts):
        longest[ids[b] + 1] = max(longest[ids[b] + 1], offsets[b + 1] - offsets[b])
    first = np.cumsum(longest)
    cells = np.empty(turns, dtype=np.int64)
    for b in range(rollouts):
        for k in range(offsets[b], offsets[b + 1]):
            cells[k] = first[ids[b]] + k - offsets[b]
    return cells


@_jit  # type: ignore[untyped-decorator]
def _moments(values: FloatArray, cells: IntArray, most: int) -> tuple[IntArray, FloatArray, IntArray]:
    """Entries and sum of each cell, and whether it holds two different values, each (most,)."""
    count = np.zeros(most, dtype=np.int64)
    total = np.zeros(most)
    first = np.zeros(most)
    unequal = np.zeros(most, dtype=np.int64)
    for k in range(len(values)):
        c = cells[k]
        if count[c] == 0:
            first[c] = values[k]
        elif values[k] != first[c]:
            unequal[c] = 1
        count[c] += 1
        total[c] += values[k]
    return count, total, unequal


@_jit  # type: ignore[untyped-decorator]
def _normalize(
    values: FloatArray, cells: IntArray, most: int, by_std: bool, eps: float, keep_alone: bool
) -> FloatArray:
    """(value - mean) / (std + eps) inside each cell (L,); an entry alone is 0, or its value / (1 + eps)."""
    count, total, unequal = _moments(values, cells, most)
    out = np.zeros(len(values))
    squares = np.zeros(most)
    for k in range(len(values)):
        c = cells[k]
        if unequal[c]:
            out[k] = values[k] - total[c] / count[c]
            squares[c] += out[k] ** 2
        elif keep_alone and count[c] == 1:
            out[k] = values[k]
            squares[c] = 1.0
    if by_std:
        for k in range(len(values)):
            c = cells[k]
            out[k] /= np.sqrt(squares[c] / max(count[c] - 1, 1)) + eps
    return out


@_jit  # type: ignore[untyped-decorator]
def _leave_one_out(
    values: FloatArray, cells: IntArray, most: int, size: IntArray, by_std: bool, eps: float
) -> FloatArray:
    """Value minus the mean of the group's other rollouts (L,); `size` (L,) is G, those that ended count 0."""
    count, total, unequal = _moments(values, cells, most)
    out = np.zeros(len(values))
    squares = np.zeros(most)
    for k in range(len(values)):
        c = cells[k]
        gap = values[k] - total[c] / size[k]
        squares[c] += gap**2
        if unequal[c] or count[c] != size[k]:
            out[k] = gap * size[k] / max(size[k] - 1, 1)
    if by_std:
        for k in range(len(values)):
            c = cells[k]
            all_squares = squares[c] + (size[k] - count[c]) * (total[c] / size[k]) ** 2
            out[k] /= np.sqrt(all_squares / max(size[k] - 1, 1)) + eps
    return out


def turn_advantages(
    rewards: Tensor,
    offsets: Tensor,
    group_ids: Tensor,
    returns: Tensor | None,
    gamma: float,
    integration: str,
    baseline: str,
    by_std: bool,
    eps: float,
    threads: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """R_i (B,), R_{i,t} (N,), A^g (B,), A^l (N,) and A (N,), float64."""
    r, starts = rewards.numpy(), offsets.numpy()
    total, turn_returns = _returns(r, starts, gamma)
    if returns is not None:
        total = returns.numpy().copy()
    ids = np.unique(group_ids.numpy(), return_inverse=True)[1].reshape(-1)
    most = max(len(ids), len(r))  # cells are numbered below it
    trajectory = _normalize(total, ids, most, by_std, eps, False)
    rollout = np.repeat(np.arange(len(ids)), np.diff(starts))
    cells = ids[rollout] if baseline == "pooled" else _turn_cells(starts, ids, len(r))
    if baseline == "leave_one_out":
        level = _leave_one_out(turn_returns, cells, most, np.bincount(ids)[ids][rollout], by_std, eps)
    else:
        level = _normalize(turn_returns, cells, most, by_std, eps, baseline == "turn_index")
    local = None
    if needs_local(integration):
        local = torch.from_numpy(_normalize(r, rollout, most, True, eps, False))
    found = [torch.from_numpy(x) for x in (total, turn_returns, trajectory, level)]
    integrated = integrate(found[2][torch.from_numpy(rollout)], found[3], local, integration)
    return found[0], found[1], found[2], found[3], integrated
