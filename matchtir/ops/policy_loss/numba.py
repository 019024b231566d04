"""Policy loss on the CPU: the loops over the tokens, in blocks that stay in the first cache.

The inner loops hold no branch that is not a select, so LLVM makes SIMD code of them; the exponential is
written out for the same reason, since a call of the C library would stop that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import njit
from numba.extending import overload
from torch import Tensor

from . import cpu

Floats = npt.NDArray[Any]

_BLOCK = 1024
_SUMS = {"contract", "reassoc"}  # a sum may be kept in lanes; NaN and infinity stay what they are

_LOG2_E = np.float32(1.4426950408889634)
_LN2_HIGH = np.float32(0.693359375)  # few bits, so that a small integer times it is exact
_LN2_LOW = np.float32(math.log(2.0) - 0.693359375)
_ROUND = np.float32(1.5 * 2**23)  # adding it leaves the nearest integer in the last bits
_ROUND_BITS = np.int32(_ROUND.view(np.int32))
_MOST, _LEAST = np.float32(88.722836), np.float32(-87.336540)
_C2, _C3, _C4, _C5, _C6, _C7 = (np.float32(1.0 / math.factorial(k)) for k in range(2, 8))
_ZERO, _ONE, _INF = np.float32(0.0), np.float32(1.0), np.float32(np.inf)
_SHIFT, _BIAS, _HALF = np.int32(23), np.int32(127), np.int32(1)


def _jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled, without the GIL, and kept on disk where there is a place for it."""
    try:
        compiled: Callable[..., Any] = njit(nogil=True, fastmath=_SUMS, cache=True)(function)
    except RuntimeError:
        compiled = njit(nogil=True, fastmath=_SUMS)(function)
    return compiled


def _exp(x: float) -> tuple[float, float]:
    """``exp(x)`` and ``exp(x) - x - 1``, the latter without cancellation near 0."""
    raise NotImplementedError


# Sums may not be reordered here: the rounding constant would cancel.
@overload(_exp, jit_options={"fastmath": {"contract"}})  # type: ignore[untyped-decorator]
def _exp_of_type(x: Any) -> Callable[[Any], Any]:
    def double(x: Any) -> Any:
        return math.exp(x), math.expm1(x) - x

    def single(x: Any) -> Any:
        y = _MOST if x > _MOST else x
        y = _LEAST if y < _LEAST else y
        shifted = y * _LOG2_E + _ROUND
        n = shifted - _ROUND
        r = (y - n * _LN2_HIGH) - n * _LN2_LOW
        # Taylor to degree 7 is within 6e-9 for |r| <= ln(2) / 2.
        tail = r * r * (_C2 + r * (_C3 + r * (_C4 + r * (_C5 + r * (_C6 + r * _C7)))))
        k = np.int32(np.float32(shifted).view(np.int32) - _ROUND_BITS)
        half = np.int32(k >> _HALF)  # 2^k in two factors, since 2^128 is no float
        up = np.int32((half + _BIAS) << _SHIFT).view(np.float32)
        rest = np.int32((k - half + _BIAS) << _SHIFT).view(np.float32)
        e = (_ONE + (r + tail)) * up * rest
        e = _INF if x > _MOST else e
        e = _ZERO if x < _LEAST else e
        return e, (tail if n == _ZERO else e - _ONE - x)

    return double if x.bitwidth == 64 else single


def _bits(x: float) -> int:
    """Bits as an integer: for numbers that are not negative they have the same order."""
    raise NotImplementedError


@overload(_bits)  # type: ignore[untyped-decorator]
def _bits_of_type(x: Any) -> Callable[[Any], Any]:
    def double(x: Any) -> Any:
        return np.float64(x).view(np.int64)

    def single(x: Any) -> Any:
        return np.float32(x).view(np.int32)

    return double if x.bitwidth == 64 else single


def _number(bits: int) -> float:
    """The number of these bits."""
    raise NotImplementedError


@overload(_number)  # type: ignore[untyped-decorator]
def _number_of_type(bits: Any) -> Callable[[Any], Any]:
    def double(bits: Any) -> Any:
        return np.int64(bits).view(np.float64)

    def single(bits: Any) -> Any:
        return np.int32(bits).view(np.float32)

    return double if bits.bitwidth == 64 else single


@_jit
def _ratios(logps: Floats, old: Floats, importance: Floats, row: Floats, grad: Floats, sums: Floats) -> None:
    """Policy term of a block (n,) of one turn: gradient to `grad`, sums added to `sums` (COLUMNS,)."""
    gain, lower, upper = row[0], row[1], row[2]
    zero, one = grad.dtype.type(0), grad.dtype.type(1)
    policy, lows, ups, total, approx = zero, zero, zero, zero, zero
    least, most = _bits(grad.dtype.type(np.inf)), _bits(zero)
    for i in range(len(logps)):
        s, k3 = _exp(logps[i] - old[i])
        low = s < lower
        up = s > upper
        g = gain * importance[i]
        policy += g * (lower if low else (upper if up else s))
        grad[i] = zero if low or up else g * s
        lows += one if low else zero
        ups += one if up else zero
        total += s
        approx += k3
        least = min(least, _bits(s))
        most = max(most, _bits(s))
    sums[0] += policy
    sums[3] += lows
    sums[4 if gain < zero else 5] += ups
    sums[6] += total
    sums[7] += approx
    sums[10] = min(sums[10], _number(least))
    sums[11] = max(sums[11], _number(most))


@_jit
def _importance(old: Floats, rollout: Floats, cap: Any, out: Floats) -> tuple[Any, Any]:
    """Weights of a block (n,) to `out`; their sum, and how many were cut."""
    zero, one = out.dtype.type(0), out.dtype.type(1)
    total, cut = zero, zero
    for i in range(len(old)):
        w, _ = _exp(old[i] - rollout[i])
        above = w > cap
        out[i] = cap if above else w
        total += cap if above else w
        cut += one if above else zero
    return total, cut


@_jit
def _kl(kind: int, logps: Floats, ref: Floats, weight: Any, grad: Floats) -> Any:
    """Sum of the estimator over a block (n,); its slope times `weight` is added to `grad`."""
    total, one = grad.dtype.type(0), grad.dtype.type(1)
    half = grad.dtype.type(0.5)
    if kind == 1:
        for i in range(len(logps)):
            total += logps[i] - ref[i]
            grad[i] += weight
    elif kind == 2:
        for i in range(len(logps)):
            d = ref[i] - logps[i]
            total += half * d * d
            grad[i] -= weight * d
    else:
        for i in range(len(logps)):
            e, k3 = _exp(ref[i] - logps[i])
            total += k3
            grad[i] += weight * (one - e)
    return total


@_jit
def _windows(
    logps: Floats, old: Floats, ref: Floats, rollout: Floats, bounds: Any, table: Floats, first: Any,
    last: Any, cap: Any, per_token: bool, kind: int, kl_grad: bool, grad: Floats, sums: Floats,
    base: int, total: int, window: int, begin: int, end: int,
) -> None:  # fmt: skip
    """Windows `begin` to `end` of arrays whose entry 0 is the flat token `base`; fills `grad` and `sums`."""
    one = np.ones(_BLOCK, table.dtype)
    weights, scratch = np.empty(_BLOCK, table.dtype), np.empty(_BLOCK, table.dtype)
    for w in range(begin, end):
        here, stop = w * window, min((w + 1) * window, total)
        out = sums[w]
        out[:] = 0.0
        out[10], out[11] = np.inf, -np.inf
        for k in range(first[w], last[w]):
            a, z = max(bounds[k, 0], here), min(bounds[k, 1], stop)
            if z <= a:
                continue
            if len(grad):
                grad[here - base : a - base] = 0
            for i in range(a - base, z - base, _BLOCK):
                j = min(i + _BLOCK, z - base)
                slope = grad[i:j] if len(grad) else scratch[: j - i]
                if per_token:
                    importance = one[: j - i]
                    if len(rollout):
                        importance = weights[: j - i]
                        added, cut = _importance(old[i:j], rollout[i:j], cap, importance)
                        out[8] += added
                        out[9] += cut
                    else:
                        out[8] += j - i
                    _ratios(logps[i:j], old[i:j], importance, table[k], slope, out)
                else:
                    slope[:] = table[k, 0]
                if kind:
                    # A KL that is only reported leaves the gradient alone, also where it is no number.
                    side = slope if kl_grad else scratch[: j - i]
                    found = _kl(kind, logps[i:j], ref[i:j], table[k, 3], side)
                    out[2] += found
                    if kl_grad:
                        out[1] += table[k, 3] * found
            here = z
        if len(grad):
            grad[here - base : stop - base] = 0


@_jit
def _turns(
    logps: Floats,
    old: Floats,
    rollout: Floats,
    bounds: Any,
    cap: Any,
    sums: Floats,
    base: int,
    begin: int,
    end: int,
) -> None:
    """Of the turns `begin` to `end` the sums of log ratio, importance weight, k3 and truncated tokens."""
    weights = np.empty(_BLOCK, logps.dtype)
    for k in range(begin, end):
        sums[k] = 0.0
        for i in range(bounds[k, 0] - base, bounds[k, 1] - base, _BLOCK):
            j = min(i + _BLOCK, bounds[k, 1] - base)
            total, approx = logps.dtype.type(0), logps.dtype.type(0)
            for t in range(i, j):
                total += logps[t] - old[t]
                approx += _exp(logps[t] - old[t])[1]
            sums[k, 0] += total
            sums[k, 2] += approx
            if len(rollout):
                added, cut = _importance(old[i:j], rollout[i:j], cap, weights[: j - i])
                sums[k, 1] += added
                sums[k, 3] += cut
            else:
                sums[k, 1] += j - i


tokens = partial(cpu.tokens, _windows)
turn_sums = partial(cpu.turn_sums, _turns)


def scale(grad: Tensor, factor: Tensor) -> Tensor:
    """``grad * factor``; in float32 for the shorter dtypes, since the factor has no dimension."""
    return torch.mul(grad, factor)
