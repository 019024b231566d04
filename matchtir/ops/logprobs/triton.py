"""The rows of `logprobs` on the GPU: a program a row forward, a program a piece of a row backward.

Sums are in the dtype of the state, float32 unless the logits are float64. See reference.py for what is
computed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096
WARPS = 8


@triton.jit  # type: ignore[untyped-decorator]
def _forward_kernel(  # type: ignore[no-untyped-def]
    logits, targets, state, scale, stride, state_stride, cols, first, ignore_index, BLOCK: tl.constexpr
):
    """Rows of `cols` logits `stride` apart; targets (R,), state (4, R) with rows `state_stride` apart."""
    i = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + i)
    if target != ignore_index:
        most = tl.load(state + i)
        total = tl.load(state + state_stride + i)
        weighted = tl.load(state + 2 * state_stride + i)
        factor = tl.load(scale)
        row = logits + i * stride
        for start in range(0, cols, BLOCK):
            at = start + tl.arange(0, BLOCK)
            z = tl.load(row + at, mask=at < cols, other=float("-inf")).to(most.dtype) * factor
            top = tl.maximum(most, tl.max(z, 0))
            shift = tl.where(top == float("-inf"), 0.0, top)
            d = z - shift
            d = tl.where(d < -1e4, -1e4, d)  # 0 times it is 0; a NaN stays one
            e = tl.exp(d)
            step = tl.where(total > 0, most - shift, 0.0)
            decay = tl.exp(step)
            weighted = decay * (weighted + step * total) + tl.sum(e * d, 0)
            total = decay * total + tl.sum(e, 0)
            most = top
        tl.store(state + i, most)
        tl.store(state + state_stride + i, total)
        tl.store(state + 2 * state_stride + i, weighted)
        column = target - first
        if (column >= 0) & (column < cols):
            tl.store(state + 3 * state_stride + i, tl.load(row + column).to(most.dtype) * factor)


@triton.jit  # type: ignore[untyped-decorator]
def _backward_kernel(  # type: ignore[no-untyped-def]
    logits, out, targets, rows, scale, stride, out_stride, rows_stride, cols, first, BLOCK: tl.constexpr
):
    """A piece of BLOCK logits of a row; `out` may be `logits`; rows (4, R), `rows_stride` apart."""
    i = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    lse = tl.load(rows + i)
    hit = tl.load(rows + rows_stride + i)
    plain = tl.load(rows + 2 * rows_stride + i)
    slope = tl.load(rows + 3 * rows_stride + i)
    place = out + i * out_stride + at
    if (hit == 0.0) & (plain == 0.0) & (slope == 0.0):  # an idle row is not read
        tl.store(place, tl.zeros((BLOCK,), out.dtype.element_ty), mask=at < cols)
    else:
        z = tl.load(logits + i * stride + at, mask=at < cols, other=0.0).to(lse.dtype)
        d = z * tl.load(scale) - lse
        d = tl.where(d < -1e4, -1e4, d)
        gradient = -tl.exp(d) * (plain + slope * d)
        column = tl.load(targets + i) - first
        gradient = tl.where(at == column, gradient + hit, gradient)
        tl.store(place, gradient.to(out.dtype.element_ty), mask=at < cols)


def forward(
    logits: Tensor, targets: Tensor, first: int, scale: Tensor, ignore_index: int, state: Tensor, threads: int
) -> None:
    rows, cols = logits.shape
    with torch.cuda.device_of(logits):
        _forward_kernel[(rows,)](
            logits, targets, state, scale, logits.stride(0), state.stride(0), cols, first, ignore_index,
            BLOCK=min(_BLOCK, triton.next_power_of_2(cols)), num_warps=WARPS,
        )  # fmt: skip


def backward(
    logits: Tensor, out: Tensor, targets: Tensor, first: int, scale: Tensor, rows: Tensor, threads: int
) -> None:
    count, cols = logits.shape
    block = min(_BLOCK, triton.next_power_of_2(cols))
    with torch.cuda.device_of(logits):
        _backward_kernel[(count, triton.cdiv(cols, block))](
            logits, out, targets, rows, scale, logits.stride(0), out.stride(0), rows.stride(0), cols, first,
            BLOCK=block, num_warps=WARPS,
        )  # fmt: skip


def _signature(names: str, logits: str, exact: str) -> dict[str, str]:
    """Types of a kernel's arguments: logits' pointers, exact pointers, integers; BLOCK is a constant."""
    pointers = {"logits": f"*{logits}", "out": f"*{logits}", "targets": "*i64"}
    pointers |= dict.fromkeys(("state", "rows", "scale"), f"*{exact}")
    return {name: pointers.get(name, "i32") for name in names.split()} | {"BLOCK": "constexpr"}


_FORWARD = "logits targets state scale stride state_stride cols first ignore_index"
_BACKWARD = "logits out targets rows scale stride out_stride rows_stride cols first"
_DTYPES = (("bf16", "fp32"), ("fp16", "fp32"), ("fp32", "fp32"), ("fp64", "fp64"))
# For compiling without a GPU: a kernel's name, and pairs of argument types and constants.
SIGNATURES: dict[str, list[tuple[dict[str, str], dict[str, object]]]] = {
    "_forward_kernel": [(_signature(_FORWARD, *dtypes), {"BLOCK": _BLOCK}) for dtypes in _DTYPES],
    "_backward_kernel": [(_signature(_BACKWARD, *dtypes), {"BLOCK": _BLOCK}) for dtypes in _DTYPES],
}
