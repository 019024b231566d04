"""The rows of `logprobs` on the CPU: one pass over each block of words while it is in the cache.

A thread takes whole rows, so the result does not depend on how many there are. See reference.py for what
is computed.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
import torch
from numba.extending import overload

from ...types import Array
from .._threads import share

if TYPE_CHECKING:
    from torch import Tensor

_BLOCK = 2048  # words of a row at a time: 8 KB of float32, read twice from the first-level cache
_ROWS_OF_A_THREAD = 64  # of 2,048 words each take a quarter of a millisecond
_LEAST = -1e4
_LOG2_E = np.float32(1.4426950408889634)
_ROUND = np.float32(12582912.0)  # 1.5 * 2**23: adding it leaves the rounded integer in the low bits
_ROUND_BITS = np.int32(_ROUND.view(np.int32) - 127)
_LN2_HIGH = np.float32(0.693145751953125)  # 16 bits of log 2, so that its product with n is exact
_LN2_LOW = np.float32(math.log(2) - 0.693145751953125)
_SMALLEST = np.float32(-87.3)  # below it exp is taken for 0; it is 1.2e-38 there
_FACTORIALS = tuple(np.float32(1 / math.factorial(k)) for k in range(8))
_C2, _C3, _C4, _C5, _C6, _C7 = _FACTORIALS[2:]
_ONE, _ZERO, _SHIFT = np.float32(1), np.float32(0), np.int32(23)

# No flag lets a NaN pass for a number, save in the maximum: the sums after it show the NaN.
_SUM = {"reassoc", "contract", "nsz", "arcp"}
_MAX = {"reassoc", "nsz", "nnan"}


def _exp(x: Any) -> Any:
    """exp(x) for x of at most about 0."""
    raise NotImplementedError


@overload(_exp, jit_options={"fastmath": {"contract"}})  # type: ignore[untyped-decorator]
def _exp_overload(x: Any) -> Any:
    """Without SVML, LLVM does not vectorise a call of exp; it does this: 4 times as fast, within 1 ulp."""

    def exp64(x: Any) -> Any:
        return math.exp(x)

    def exp32(x: Any) -> Any:
        # x = n log 2 + r with |r| <= 0.35; the Taylor series to r**7 is within 6e-9 of exp(r).
        rounded = np.float32(x * _LOG2_E + _ROUND)
        n = rounded - _ROUND
        r = (x - n * _LN2_HIGH) - n * _LN2_LOW
        series = ((((((_C7 * r + _C6) * r + _C5) * r + _C4) * r + _C3) * r + _C2) * r + _ONE) * r + _ONE
        bits = np.int32((np.float32(rounded).view(np.int32) - _ROUND_BITS) << _SHIFT)
        power = np.int32(bits).view(np.float32)
        return _ZERO if x < _SMALLEST else series * power

    return exp32 if x == numba.float32 else exp64


def _largest(row: Any) -> Any:
    most = row[0]
    for j in range(1, row.size):
        most = max(most, row[j])
    return most


def _sums(row: Any, scale: Any, shift: Any, least: Any) -> Any:
    """sum exp(d) and sum exp(d) d over a row (C,), where d = z scale - shift."""
    total = scale - scale
    weighted = scale - scale
    for j in range(row.size):
        d = row[j] * scale - shift
        if d < least:
            d = least
        e = _exp(d)
        total += e
        weighted += e * d
    return total, weighted


def _slopes(row: Any, scale: Any, lse: Any, plain: Any, slope: Any, least: Any) -> None:
    """-p (plain + slope log p) in place of a row (C,)."""
    for j in range(row.size):
        d = row[j] * scale - lse
        if d < least:
            d = least
        row[j] = -_exp(d) * (plain + slope * d)


def _compiled(function: Any, **options: Any) -> Any:
    """Compiled, and kept on disk where there is a place for it."""
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:
        return numba.njit(**options)(function)


_largest = _compiled(_largest, fastmath=_MAX)
_sums = _compiled(_sums, fastmath=_SUM)
_slopes = _compiled(_slopes, fastmath=_SUM)


def _forward(
    begin: int, end: int, z: Any, stride: int, cols: int, targets: Any, first: int, scales: Any,
    ignore_index: int, state: Any,
) -> None:  # fmt: skip
    """Rows ``z[i * stride:][:cols]``, i from begin to end; targets (R,), scales (1,), state (4, R)."""
    scale = scales[0]
    least = scales.dtype.type(_LEAST)
    for i in range(begin, end):
        if targets[i] != ignore_index:
            most, total, weighted = state[0, i], state[1, i], state[2, i]
            for j in range(0, cols, _BLOCK):
                row = z[i * stride + j : i * stride + min(j + _BLOCK, cols)]
                top = max(most, _largest(row) * scale)
                shift = scale - scale if top == -np.inf else top
                added, added_weighted = _sums(row, scale, shift, least)
                if total > 0:
                    step = most - shift
                    decay = _exp(step)
                    weighted = decay * (weighted + step * total)
                    total = decay * total
                total += added
                weighted += added_weighted
                most = top
            state[0, i], state[1, i], state[2, i] = most, total, weighted
            column = targets[i] - first
            if 0 <= column < cols:
                state[3, i] = z[i * stride + column] * scale


def _backward(
    begin: int, end: int, z: Any, stride: int, out: Any, out_stride: int, in_place: bool, cols: int,
    targets: Any, first: int, scales: Any, rows: Any,
) -> None:  # fmt: skip
    """Rows as in `_forward`, into rows ``out[i * out_stride:][:cols]``; rows (4, R)."""
    scale = scales[0]
    least = scales.dtype.type(_LEAST)
    for i in range(begin, end):
        lse, hit, plain, slope = rows[0, i], rows[1, i], rows[2, i], rows[3, i]
        if hit == 0 and plain == 0 and slope == 0:
            out[i * out_stride : i * out_stride + cols] = 0
        else:
            for j in range(0, cols, _BLOCK):
                stop = min(j + _BLOCK, cols)
                row = out[i * out_stride + j : i * out_stride + stop]
                if not in_place:
                    row[:] = z[i * stride + j : i * stride + stop]
                _slopes(row, scale, lse, plain, slope, least)
            column = targets[i] - first
            if 0 <= column < cols:
                out[i * out_stride + column] += hit


_FORWARD, _BACKWARD = _compiled(_forward, nogil=True), _compiled(_backward, nogil=True)


def _run(kernel: Any, rows: int, threads: int, *arguments: Any) -> None:
    """Call a kernel for all rows, shared out among threads that each have some."""

    def work(begin: int, end: int) -> None:
        kernel(begin, end, *arguments)

    share(work, rows, max(1, min(threads, rows // _ROWS_OF_A_THREAD)))


def _flat(x: Tensor) -> tuple[Array, int]:
    """Memory of a matrix with contiguous rows, from its first element to its last, and the rows' stride."""
    stride = x.stride(0) if x.shape[0] > 1 else x.shape[1]
    return x.as_strided(((x.shape[0] - 1) * stride + x.shape[1],), (1,)).numpy(), stride


def forward(
    logits: Tensor, targets: Tensor, first: int, scale: Tensor, ignore_index: int, state: Tensor, threads: int
) -> None:
    z, stride = _flat(logits.to(state.dtype))
    _run(
        _FORWARD, len(targets), threads, z, stride, logits.shape[1], targets.numpy(), first, scale.numpy(),
        ignore_index, state.numpy(),
    )  # fmt: skip


def backward(
    logits: Tensor, out: Tensor, targets: Tensor, first: int, scale: Tensor, rows: Tensor, threads: int
) -> None:
    wide = logits.to(rows.dtype)
    # Numba knows no bfloat16: a block in low precision is worked on in a copy of it.
    target = out if out.dtype == rows.dtype else torch.empty_like(wide) if wide is logits else wide
    in_place = target.data_ptr() == wide.data_ptr()
    _run(
        _BACKWARD, len(targets), threads, *_flat(wide), *_flat(target), in_place, logits.shape[1],
        targets.numpy(), first, scale.numpy(), rows.numpy(),
    )  # fmt: skip
    if target is not out:
        out.copy_(target)
