"""Both advantage levels on the GPU: one kernel for returns, one for comparing values inside cells.

The sort that brings a cell's values together is torch's. There are as many programs as there could be
cells, because only the device knows how many there are; those of empty cells end at once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .reference import Cells, cells_by, integrate, needs_local, rollout_cells, rollout_of_turns, turn_cells

_ROLLOUTS = 64  # a program of `returns_kernel`
_ENTRIES = 64  # a step of `cell_kernel`; groups have a few dozen rollouts

# What a cell's values become: (x - mean) / (std + eps); the same, but a value alone stays; leave one out.
_NORMALIZE, _KEEP_ALONE, _LEAVE_ONE_OUT = 0, 1, 2


@triton.jit  # type: ignore[untyped-decorator]
def returns_kernel(  # type: ignore[no-untyped-def]
    rewards, offsets, gamma, returns, turn_returns, rollouts, turns, BLOCK: tl.constexpr
):
    """R_i (B,) and R_{i,t} (N,), a rollout a lane; `gamma` (1,) is in memory, where it keeps 64 bits."""
    rollout = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    real = rollout < rollouts
    start = tl.maximum(tl.load(offsets + rollout, mask=real, other=0), 0)
    end = tl.minimum(tl.load(offsets + rollout + 1, mask=real, other=0), turns)
    longest = tl.max(end - start, 0)
    discount = tl.load(gamma)
    total = tl.zeros((BLOCK,), dtype=tl.float64)
    later = tl.zeros((BLOCK,), dtype=tl.float64)
    t = tl.zeros_like(longest)
    while t < longest:
        at = start + t
        total += tl.load(rewards + at, mask=at < end, other=0.0)
        at = end - 1 - t
        reached = at >= start
        later = tl.load(rewards + at, mask=reached, other=0.0) + discount * later
        tl.store(turn_returns + at, later, mask=reached)
        t += 1
    tl.store(returns + rollout, total, mask=real)


@triton.jit  # type: ignore[untyped-decorator]
def cell_kernel(  # type: ignore[no-untyped-def]
    values, order, starts, sizes, eps, out, BY_STD: tl.constexpr, RULE: tl.constexpr, BLOCK: tl.constexpr
):
    """Advantage of each entry (L,) over its cell, a cell a program; `sizes` (L,) is G for leave one out."""
    begin = tl.load(starts + tl.program_id(0))
    end = tl.load(starts + tl.program_id(0) + 1)
    if begin < end:
        lane = tl.arange(0, BLOCK)
        count = (end - begin).to(tl.float64)
        first_entry = tl.load(order + begin)
        first = tl.load(values + first_entry)
        size = count
        if RULE == 2:
            size = tl.load(sizes + first_entry).to(tl.float64)

        sums = tl.zeros((BLOCK,), dtype=tl.float64)
        differ = tl.zeros((BLOCK,), dtype=tl.int32)
        at = begin
        while at < end:
            inside = at + lane < end
            entry = tl.load(order + at + lane, mask=inside, other=0)
            x = tl.load(values + entry, mask=inside, other=0.0)
            sums += x
            # Not equal where one is not finite either, so that it is seen.
            differ = tl.where(inside & (x - first != 0), 1, differ)
            at += BLOCK
        mean = tl.sum(sums, 0) / size
        # Where a rollout has ended, equal values are not all that leave one out compares.
        same = (tl.max(differ, 0) == 0) & (count == size)

        scale = count * 0 + 1.0
        others = tl.maximum(size - 1, 1.0)
        if BY_STD:
            squares = tl.zeros((BLOCK,), dtype=tl.float64)
            at = begin
            while at < end:
                inside = at + lane < end
                entry = tl.load(order + at + lane, mask=inside, other=0)
                gap = tl.load(values + entry, mask=inside, other=0.0) - mean
                squares += tl.where(inside, gap * gap, 0.0)
                at += BLOCK
            total = tl.sum(squares, 0)
            if RULE == 2:
                total += (size - count) * (mean * mean)  # of the rollouts that have ended
            std = tl.sqrt(total / others)
            if RULE == 1:
                std = tl.where(count == 1, 1.0, std)
            scale = std + tl.load(eps)

        at = begin
        while at < end:
            inside = at + lane < end
            entry = tl.load(order + at + lane, mask=inside, other=0)
            x = tl.load(values + entry, mask=inside, other=0.0)
            gap = x - mean
            if RULE == 2:
                gap = gap * size / others
            gap = tl.where(same, 0.0, gap)
            if RULE == 1:
                gap = tl.where(count == 1, x, gap)
            tl.store(out + entry, gap / scale, mask=inside)
            at += BLOCK


def _compare(values: Tensor, cells: Cells, by_std: bool, eps: Tensor, rule: int, sizes: Tensor) -> Tensor:
    """Advantages (L,) of values (L,) inside their cells."""
    out = torch.empty_like(values)
    if len(values):
        cell_kernel[(len(cells.starts) - 1,)](
            values, cells.order, cells.starts, sizes, eps, out, by_std, rule, _ENTRIES, enable_fp_fusion=False
        )
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
    turns, rollouts = len(rewards), len(group_ids)
    with torch.cuda.device_of(rewards):
        # Filled on the device: a Python float would reach a kernel with 32 bits.
        discount, least = rewards.new_full((1,), gamma), rewards.new_full((1,), eps)
        total = torch.empty(rollouts, dtype=rewards.dtype, device=rewards.device)
        turn_returns = torch.empty_like(rewards)
        if rollouts:
            returns_kernel[(triton.cdiv(rollouts, _ROLLOUTS),)](
                rewards, offsets, discount, total, turn_returns, rollouts, turns, _ROLLOUTS,
                enable_fp_fusion=False,  # the bits of r + gamma R decide what is equal
            )  # fmt: skip
        if returns is not None:
            total = returns.clone()
        groups = cells_by(group_ids)
        trajectory = _compare(total, groups, by_std, least, _NORMALIZE, groups.cell)
        rollout = rollout_of_turns(offsets, turns)
        cells = turn_cells(offsets, groups.cell, rollout, baseline)
        rule = {"turn_index": _KEEP_ALONE, "pooled": _NORMALIZE, "leave_one_out": _LEAVE_ONE_OUT}[baseline]
        sizes = groups.starts.diff()[groups.cell][rollout]
        level = _compare(turn_returns, cells, by_std, least, rule, sizes)
        local = None
        if needs_local(integration):
            own = rollout_cells(offsets, rollout)
            local = _compare(rewards, own, True, least, _NORMALIZE, sizes)
        advantages = integrate(trajectory[rollout], level, local, integration)
    return total, turn_returns, trajectory, level, advantages


# For compiling without a GPU: argument types and constants of each kernel.
SIGNATURES: dict[str, list[tuple[dict[str, str], dict[str, object]]]] = {
    "returns_kernel": [
        (
            {
                "rewards": "*fp64", "offsets": "*i64", "gamma": "*fp64", "returns": "*fp64",
                "turn_returns": "*fp64", "rollouts": "i32", "turns": "i32", "BLOCK": "constexpr",
            },
            {"BLOCK": _ROLLOUTS},
        )
    ],
    "cell_kernel": [
        (
            {
                "values": "*fp64", "order": "*i64", "starts": "*i64", "sizes": "*i64", "eps": "*fp64",
                "out": "*fp64", "BY_STD": "constexpr", "RULE": "constexpr", "BLOCK": "constexpr",
            },
            {"BY_STD": by_std, "RULE": rule, "BLOCK": _ENTRIES},
        )
        for by_std in (False, True)
        for rule in (_NORMALIZE, _KEEP_ALONE, _LEAVE_ONE_OUT)
    ],
}  # fmt: skip
