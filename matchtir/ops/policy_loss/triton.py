"""Policy loss on the GPU: one program a block of flat tokens, which belongs to any number of turns and rows.

A program is told which turns touch its block. It first spreads what they say over its tokens, in registers,
then loads the tokens inside spans, all at once, and writes each entry of the gradient once. Sums leave as one
row a program and are added up by torch, so nothing depends on the order in which programs run.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .segments import COLUMNS, Layout, reduce_columns, turns_of_blocks

BLOCK = 512
"""Tokens of a program: four a thread, a load of 16 bytes each; with eight some kernels spill registers."""

WARPS = 4


@triton.jit  # type: ignore[untyped-decorator]
def token_kernel(  # type: ignore[no-untyped-def]
    logps, old_logps, ref_logps, rollout_logps, bounds, table, first, last, cap, grad, sums, total,
    PER_TOKEN: tl.constexpr, KL: tl.constexpr, KL_GRAD: tl.constexpr, ROLLOUT: tl.constexpr,
    GRAD: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A block of tokens: its gradient, and its row of `sums` (programs, COLUMNS)."""
    program = tl.program_id(0).to(tl.int64)
    dtype = sums.dtype.element_ty
    base = program * BLOCK
    lane = tl.arange(0, BLOCK)
    gain = tl.zeros((BLOCK,), dtype)
    weight = tl.zeros((BLOCK,), dtype)
    lower = tl.full((BLOCK,), float("-inf"), dtype)
    upper = tl.full((BLOCK,), float("inf"), dtype)
    own = lane < 0
    for k in range(tl.load(first + program), tl.load(last + program)):
        # Relative to the block, 32 bits do.
        begin = tl.minimum(tl.maximum(tl.load(bounds + 2 * k) - base, 0), BLOCK).to(tl.int32)
        end = tl.minimum(tl.maximum(tl.load(bounds + 2 * k + 1) - base, 0), BLOCK).to(tl.int32)
        here = (lane >= begin) & (lane < end)
        own = own | here
        gain = tl.where(here, tl.load(table + 4 * k), gain)
        lower = tl.where(here, tl.load(table + 4 * k + 1), lower)
        upper = tl.where(here, tl.load(table + 4 * k + 2), upper)
        weight = tl.where(here, tl.load(table + 4 * k + 3), weight)
    own = own & (base + lane < total)
    count = tl.where(own, 1.0, 0.0).to(dtype)
    row = sums + program * COLUMNS
    slope = gain
    if PER_TOKEN or KL > 0:
        x = tl.load(logps + base + lane, mask=own, other=0.0).to(dtype)
    if PER_TOKEN:
        old = tl.load(old_logps + base + lane, mask=own, other=0.0).to(dtype)
        lr = x - old
        s = tl.exp(lr)
        low = s < lower
        up = s > upper
        importance = count
        if ROLLOUT:
            importance = tl.exp(old - tl.load(rollout_logps + base + lane, mask=own, other=0.0).to(dtype))
            limit = tl.load(cap)
            cut = importance > limit
            importance = tl.where(own, tl.where(cut, limit, importance), 0.0)
            tl.store(row + 9, tl.sum(tl.where(cut, count, 0.0)))
        else:
            tl.store(row + 9, 0.0)
        factor = tl.where(own, gain * importance, 0.0)
        policy = factor * tl.where(low, lower, tl.where(up, upper, s))
        slope = tl.where(low | up, 0.0, factor * s)
        rising = gain < 0
        tl.store(row, tl.sum(tl.where(own, policy, 0.0)))
        tl.store(row + 3, tl.sum(tl.where(low, count, 0.0)))
        tl.store(row + 4, tl.sum(tl.where(up & rising, count, 0.0)))
        tl.store(row + 5, tl.sum(tl.where(up & (gain > 0), count, 0.0)))
        tl.store(row + 6, tl.sum(count * s))
        tl.store(row + 7, tl.sum(count * (s - lr - 1.0)))
        tl.store(row + 8, tl.sum(importance))
        tl.store(row + 10, tl.min(tl.where(own, s, float("inf"))))
        tl.store(row + 11, tl.max(tl.where(own, s, float("-inf"))))
    if KL > 0:
        d = tl.load(ref_logps + base + lane, mask=own, other=0.0).to(dtype) - x
        if KL == 1:
            estimate = -d
            rise = count
        elif KL == 2:
            estimate = 0.5 * d * d
            rise = -d
        else:
            e = tl.exp(d)
            estimate = e - d - 1.0
            rise = 1.0 - e
        tl.store(row + 2, tl.sum(estimate))
        if KL_GRAD:
            tl.store(row + 1, tl.sum(weight * estimate))
            slope += weight * rise
    if not KL_GRAD:
        tl.store(row + 1, 0.0)
    if KL == 0:
        tl.store(row + 2, 0.0)
    if GRAD:
        slope = tl.where(own, slope, 0.0)
        tl.store(grad + base + lane, slope.to(grad.dtype.element_ty), mask=base + lane < total)


@triton.jit  # type: ignore[untyped-decorator]
def turn_kernel(  # type: ignore[no-untyped-def]
    logps, old_logps, rollout_logps, bounds, cap, sums, ROLLOUT: tl.constexpr, BLOCK: tl.constexpr
):
    """One turn: its sums of log ratio, importance weight, k3 and truncated tokens, a row of `sums` (N, 4)."""
    turn = tl.program_id(0).to(tl.int64)
    dtype = sums.dtype.element_ty
    lane = tl.arange(0, BLOCK)
    begin = tl.load(bounds + 2 * turn)
    end = tl.load(bounds + 2 * turn + 1)
    ratio = tl.zeros((BLOCK,), dtype)
    weight = tl.zeros((BLOCK,), dtype)
    approx = tl.zeros((BLOCK,), dtype)
    truncated = tl.zeros((BLOCK,), dtype)
    for i in range(begin, end, BLOCK):
        own = i + lane < end
        x = tl.load(logps + i + lane, mask=own, other=0.0).to(dtype)
        old = tl.load(old_logps + i + lane, mask=own, other=0.0).to(dtype)
        ratio += x - old
        approx += tl.exp(x - old) - (x - old) - 1.0
        if ROLLOUT:
            importance = tl.exp(old - tl.load(rollout_logps + i + lane, mask=own, other=0.0).to(dtype))
            limit = tl.load(cap)
            cut = own & (importance > limit)
            weight += tl.where(own, tl.where(cut, limit, importance), 0.0)
            truncated += tl.where(cut, 1.0, 0.0).to(dtype)
        else:
            weight += tl.where(own, 1.0, 0.0).to(dtype)
    tl.store(sums + 4 * turn, tl.sum(ratio))
    tl.store(sums + 4 * turn + 1, tl.sum(weight))
    tl.store(sums + 4 * turn + 2, tl.sum(approx))
    tl.store(sums + 4 * turn + 3, tl.sum(truncated))


@triton.jit  # type: ignore[untyped-decorator]
def scale_kernel(grad, factor, out, total, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """``grad * factor`` for a block of tokens; a factor below the range of float16 is not lost."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(grad + at, mask=at < total, other=0.0)
    if x.dtype != tl.float64:
        x = x.to(tl.float32)
    tl.store(out + at, (x * tl.load(factor).to(x.dtype)).to(out.dtype.element_ty), mask=at < total)


def _wide(logps: Tensor) -> torch.dtype:
    return torch.float64 if logps.dtype == torch.float64 else torch.float32


def _cap(rollout_cap: float | None, logps: Tensor) -> Tensor:
    """The cap as (1,) in the dtype of the computation: as an argument it would be float32."""
    value = float("inf") if rollout_cap is None else rollout_cap
    return torch.full((1,), value, dtype=_wide(logps), device=logps.device)


def tokens(
    logps: Tensor, old_logps: Tensor, ref_logps: Tensor | None, rollout_logps: Tensor | None, place: Layout,
    table: Tensor, rollout_cap: float | None, per_token: bool, kind: int, kl_grad: bool, grad: Tensor,
    threads: int,
) -> Tensor:  # fmt: skip
    """COLUMNS of the whole; the gradient in units of the scale is written to `grad` if that is not empty."""
    total = len(logps)
    count = max(1, triton.cdiv(total, BLOCK))
    first, last = turns_of_blocks(place, count, BLOCK)
    sums = torch.empty(count, COLUMNS, dtype=_wide(logps), device=logps.device)
    with torch.cuda.device_of(logps):
        token_kernel[(count,)](
            logps, old_logps, logps if ref_logps is None else ref_logps,
            logps if rollout_logps is None else rollout_logps, place.bounds, table.to(sums.dtype), first,
            last, _cap(rollout_cap, logps), grad, sums, total, PER_TOKEN=per_token, KL=kind,
            KL_GRAD=kl_grad and kind > 0, ROLLOUT=rollout_logps is not None, GRAD=grad.numel() > 0,
            BLOCK=BLOCK, COLUMNS=COLUMNS, num_warps=WARPS,
        )  # fmt: skip
    return reduce_columns(sums)


def turn_sums(
    logps: Tensor,
    old_logps: Tensor,
    rollout_logps: Tensor | None,
    place: Layout,
    rollout_cap: float | None,
    threads: int,
) -> Tensor:
    """Per turn the sums of log ratio, importance weight, k3 and truncated tokens, (N, 4)."""
    turns = len(place.bounds)
    sums = torch.empty(turns, 4, dtype=_wide(logps), device=logps.device)
    if turns:
        with torch.cuda.device_of(logps):
            turn_kernel[(turns,)](
                logps, old_logps, logps if rollout_logps is None else rollout_logps, place.bounds,
                _cap(rollout_cap, logps), sums, ROLLOUT=rollout_logps is not None, BLOCK=BLOCK,
                num_warps=WARPS,
            )  # fmt: skip
    return sums


def scale(grad: Tensor, factor: Tensor) -> Tensor:
    """``grad * factor``, computed in float32 at least."""
    out = torch.empty_like(grad)
    if grad.numel():
        blocks = triton.cdiv(grad.numel(), BLOCK)
        with torch.cuda.device_of(grad):
            scale_kernel[(blocks,)](grad, factor, out, grad.numel(), BLOCK=BLOCK, num_warps=WARPS)
    return out


_Signature = tuple[dict[str, str], dict[str, object]]


def _signature(kernel: Any, types: dict[str, str], **constants: object) -> _Signature:
    """Types of all arguments of a kernel in their order, and its constants."""
    return {name: types.get(name, "constexpr") for name in kernel.arg_names}, constants


def _token_signature(dtype: str, wide: str, **constants: object) -> _Signature:
    types = dict.fromkeys(("logps", "old_logps", "ref_logps", "rollout_logps", "grad"), f"*{dtype}")
    types |= dict.fromkeys(("table", "cap", "sums"), f"*{wide}")
    types |= {"bounds": "*i64", "first": "*i64", "last": "*i64", "total": "i64"}
    return _signature(token_kernel, types, **constants, BLOCK=BLOCK, COLUMNS=COLUMNS)


def _turn_signature(dtype: str, wide: str, rollout: bool) -> _Signature:
    types = dict.fromkeys(("logps", "old_logps", "rollout_logps"), f"*{dtype}")
    types |= {"bounds": "*i64", "cap": f"*{wide}", "sums": f"*{wide}"}
    return _signature(turn_kernel, types, ROLLOUT=rollout, BLOCK=BLOCK)


def _scale_signature(dtype: str) -> _Signature:
    types = {"grad": f"*{dtype}", "factor": "*fp64", "out": f"*{dtype}", "total": "i64"}
    return _signature(scale_kernel, types, BLOCK=BLOCK)


_DTYPES = {"fp32": "fp32", "bf16": "fp32", "fp16": "fp32", "fp64": "fp64"}

SIGNATURES: dict[str, list[_Signature]] = {
    "token_kernel": [
        _token_signature(d, w, PER_TOKEN=p, KL=kl, KL_GRAD=kl > 0, ROLLOUT=p, GRAD=True)
        for d, w in _DTYPES.items()
        for p, kl in ((True, 0), (True, 3), (False, 1), (False, 2))
    ],
    "turn_kernel": [_turn_signature(d, w, r) for d, w in _DTYPES.items() for r in (False, True)],
    "scale_kernel": [_scale_signature(d) for d in _DTYPES],
}
"""Per kernel what it may be compiled for, to check that it compiles where no GPU is."""
