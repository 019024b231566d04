"""Both advantage levels in plain torch, for the reader; it defines what the other backends compute.

With r_t the reward of turn t of rollout i, R_i the rollout's return, and a cell a set of values that are
compared with each other::

    R_i      = Σ_t r_t                                      (or given)
    R_{i,t}  = r_t + gamma R_{i,t+1}                        from the last turn back
    A^g_i    = normalised R_i, a cell is a group
    A^l_i,t  = normalised R_{i,t}, a cell is a group's turn t (or a whole group: "pooled")
    A_{i,t}  = A^g_i + A^l_{i,t}                            or another integration

    normalised x = (x - mean) / (std + eps), std of a sample; 0 where a cell's values are all equal

R_i and R_{i,t} are summed turn by turn in this very order by every backend, so that two returns are equal
for all of them or for none: whether a cell's values are equal decides between 0 and a signal.
No shape depends on data and nothing waits for a device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Weight of the turn's own quality in the weighted product (MatchTIR, appendix C).
_PRODUCT_WEIGHT = 0.1


class Cells(NamedTuple):
    """Entries sorted by cell: c holds ``order[starts[c]:starts[c + 1]]``; the last cells may be empty."""

    order: Tensor  # (L,)
    starts: Tensor  # (number of cells + 1,)
    cell: Tensor  # (L,), of each entry


def cells_by(key: Tensor) -> Cells:
    """Entries with the same key (L,) are a cell; there are L cells, of which the first hold something."""
    ordered, order = torch.sort(key, stable=True)
    number = torch.zeros_like(key)
    number[1:] = (ordered[1:] != ordered[:-1]).cumsum(0)
    starts = torch.searchsorted(number, torch.arange(len(key) + 1, device=key.device))
    return Cells(order, starts, torch.empty_like(number).scatter_(0, order, number))


def rollout_of_turns(offsets: Tensor, turns: int) -> Tensor:
    """Rollout of each turn (N,)."""
    index = torch.arange(turns, device=offsets.device)
    return torch.searchsorted(offsets[1:], index, right=True).clamp(max=max(len(offsets) - 2, 0))


def rollout_cells(offsets: Tensor, rollout: Tensor) -> Cells:
    """The turns (N,) of each rollout."""
    turns = len(rollout)
    return Cells(torch.arange(turns, device=offsets.device), offsets.clamp(0, turns), rollout)


def turn_cells(offsets: Tensor, group: Tensor, rollout: Tensor, baseline: str) -> Cells:
    """The turns (N,) that are compared: those of a group, or those of a group and a turn index."""
    key = group[rollout]
    if baseline != "pooled":
        index = torch.arange(len(rollout), device=offsets.device) - offsets[rollout]
        key = key * (len(rollout) + 1) + index
    return cells_by(key)


def integrate(whole: Tensor, level: Tensor, local: Tensor | None, integration: str) -> Tensor:
    """What every token of a turn gets (N,), from A^g of its rollout, A^l and A^loc (each N,)."""
    if integration == "sum":
        return whole + level
    if integration == "mean":
        return (whole + level) / 2.0
    if integration == "trajectory":
        return whole
    if local is None:
        return level.clone()  # "turn"
    if integration == "weighted_sum":
        return whole + local
    return (1.0 + _PRODUCT_WEIGHT * whole.sign() * local) * whole


def needs_local(integration: str) -> bool:
    """Whether A^loc, the turn's reward normalised inside its rollout, takes part."""
    return integration in ("weighted_sum", "weighted_product")


def _reduce(values: Tensor, cells: Cells, how: str) -> Tensor:
    """Sum, least or largest value of each cell, for each entry (L,)."""
    # index_add_ would add in any order on a GPU. `unsafe` leaves out checks that would wait for it.
    per_cell = torch.segment_reduce(values[cells.order], how, offsets=cells.starts, unsafe=True)
    return per_cell[cells.cell]


def _unequal(values: Tensor, cells: Cells) -> Tensor:
    """Whether the entry's cell holds two different values (L,); true where one is not finite."""
    return (_reduce(values, cells, "max") - _reduce(values, cells, "min")) != 0


def _count(cells: Cells) -> Tensor:
    """Entries in the entry's cell (L,)."""
    return cells.starts.diff()[cells.cell]


def _normalize(values: Tensor, cells: Cells, by_std: bool, eps: float) -> Tensor:
    """(value - mean) / (std + eps) inside each cell (L,); 0 where a cell's values are all equal."""
    count = _count(cells)
    mean = _reduce(values, cells, "sum") / count
    centred = torch.where(_unequal(values, cells), values - mean, 0.0)
    if not by_std:
        return centred
    std = (_reduce(centred**2, cells, "sum") / (count - 1).clamp(min=1)).sqrt()
    return centred / (std + eps)


def _leave_one_out(values: Tensor, cells: Cells, size: Tensor, by_std: bool, eps: float) -> Tensor:
    """Value minus the mean of the group's other rollouts (L,); `size` (L,) is G, those that ended count 0."""
    count = _count(cells)
    mean = _reduce(values, cells, "sum") / size
    others = (size - 1).clamp(min=1)
    # R - (S - R) / (G - 1) = G / (G - 1) (R - S / G)
    gap = (values - mean) * size / others
    gap = torch.where(_unequal(values, cells) | (count != size), gap, 0.0)
    if not by_std:
        return gap
    squares = _reduce((values - mean) ** 2, cells, "sum") + (size - count) * mean**2
    return gap / ((squares / others).sqrt() + eps)


def _returns(rewards: Tensor, offsets: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """R_i (B,) and R_{i,t} (N,)."""
    turns, (start, end) = len(rewards), (offsets[:-1], offsets[1:])
    # No rollout has more turns than there are; asking a device for the longest would wait for it.
    longest = int((end - start).max()) if rewards.device.type == "cpu" and len(start) else turns
    total = torch.zeros(len(start), dtype=rewards.dtype, device=rewards.device)
    later = torch.zeros_like(total)
    found = torch.zeros(turns + 1, dtype=rewards.dtype, device=rewards.device)  # the last is for no turn
    for t in range(longest):
        at = start + t
        total = total + torch.where(at < end, rewards[at.clamp(max=turns - 1)], 0.0)
        at = end - 1 - t
        later = rewards[at.clamp(min=0)] + gamma * later
        found.scatter_(0, torch.where(at >= start, at, turns), later)
    return total, found[:-1].clone()


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
    total, turn_returns = _returns(rewards, offsets, gamma)
    if returns is not None:
        total = returns.clone()
    groups = cells_by(group_ids)
    trajectory = _normalize(total, groups, by_std, eps)
    rollout = rollout_of_turns(offsets, len(rewards))
    cells = turn_cells(offsets, groups.cell, rollout, baseline)
    if baseline == "leave_one_out":
        level = _leave_one_out(turn_returns, cells, _count(groups)[rollout], by_std, eps)
    else:
        level = _normalize(turn_returns, cells, by_std, eps)
    if baseline == "turn_index":
        alone = turn_returns / (1.0 + eps) if by_std else turn_returns
        level = torch.where(_count(cells) == 1, alone, level)
    local = None
    if needs_local(integration):
        local = _normalize(rewards, rollout_cells(offsets, rollout), True, eps)
    return total, turn_returns, trajectory, level, integrate(trajectory[rollout], level, local, integration)
