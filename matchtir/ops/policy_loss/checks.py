"""What the arguments must be. Contents of tensors are not looked at here: that would wait for a GPU."""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

from ...errors import ConfigError, InputError

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def tensors(
    logps: Tensor,
    others: dict[str, Tensor | None],
    turn_advantages: Tensor,
    spans: Tensor,
    offsets: Tensor,
    cu_seqlens: Tensor | None,
) -> None:
    """Shapes, dtypes and devices."""
    floats = {"logps": logps, **others, "turn_advantages": turn_advantages}
    whole = {"spans": spans, "offsets": offsets, "cu_seqlens": cu_seqlens}
    for name, x in {**floats, **whole}.items():
        if x is None and name in ("ref_logps", "rollout_logps", "cu_seqlens"):
            continue
        if not isinstance(x, torch.Tensor):
            raise InputError(f"{name} is a {type(x).__name__}; expected a tensor")
        if x.device != logps.device:
            raise InputError(f"{name} is on {x.device}; expected the device of logps, {logps.device}")
        if name in floats and x.dtype not in _FLOATS:
            raise InputError(f"{name} is {x.dtype}; expected float64, float32, bfloat16 or float16")
        if name in whole and x.dtype != torch.int64 and (name != "cu_seqlens" or x.dtype != torch.int32):
            raise InputError(f"{name} is {x.dtype}; expected int64")
    _check_shapes(logps, turn_advantages, spans, offsets, cu_seqlens)
    for name, x in others.items():
        if x is not None and x.shape != logps.shape:
            raise InputError(
                f"{name} has shape {tuple(x.shape)}; expected that of logps, {tuple(logps.shape)}"
            )


def _check_shapes(
    logps: Tensor, turn_advantages: Tensor, spans: Tensor, offsets: Tensor, cu_seqlens: Tensor | None
) -> None:
    """Shapes that belong together."""
    if cu_seqlens is None:
        if logps.dim() != 2:
            raise InputError(
                f"logps has shape {tuple(logps.shape)}; expected (B, T), or cu_seqlens with (total,)"
            )
        batch = logps.shape[0]
    else:
        if logps.dim() != 1:
            raise InputError(f"logps has shape {tuple(logps.shape)}; expected (total,) with cu_seqlens")
        if cu_seqlens.dim() != 1 or len(cu_seqlens) < 1:
            raise InputError(f"cu_seqlens has shape {tuple(cu_seqlens.shape)}; expected (B + 1,)")
        batch = len(cu_seqlens) - 1
    if tuple(offsets.shape) != (batch + 1,):
        raise InputError(
            f"offsets has shape {tuple(offsets.shape)}; expected ({batch + 1},) for {batch} rollouts"
        )
    if spans.dim() != 2 or spans.shape[1] != 2:
        raise InputError(f"spans has shape {tuple(spans.shape)}; expected (N, 2)")
    turns = spans.shape[0]
    if tuple(turn_advantages.shape) != (turns,):
        raise InputError(
            f"turn_advantages has shape {tuple(turn_advantages.shape)}; expected ({turns},), one a span"
        )
    if turns and not batch:
        raise InputError(f"spans has {turns} turns, but there are no rollouts")


def name(argument: str, value: object, known: tuple[str, ...]) -> None:
    """A value that is one of the known names."""
    if value not in known:
        raise ConfigError(f"{argument} is {value!r}; expected one of {', '.join(known)}")


def _number(argument: str, value: object, least: float, *, open_end: bool = False) -> None:
    """A finite number from `least` on, without `least` itself if the end is open."""
    number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < least or (open_end and value == least):  # type: ignore[operator]
        raise ConfigError(
            f"{argument} is {value!r}; expected a number {'above' if open_end else 'from'} {least:g}"
            + ("" if open_end else " on")
        )


def numbers(
    epsilon_low: float, epsilon_high: float, dual_clip: float | None, beta: float, rollout_cap: float | None
) -> None:
    """The ranges of the numbers."""
    _number("epsilon_low", epsilon_low, 0)
    _number("epsilon_high", epsilon_high, 0)
    _number("beta", beta, 0)
    if dual_clip is not None:
        _number("dual_clip", dual_clip, 1, open_end=True)
    if rollout_cap is not None:
        _number("rollout_cap", rollout_cap, 0, open_end=True)


def together(
    beta: float,
    ref_logps: Tensor | None,
    rollout_cap: float | None,
    rollout_logps: Tensor | None,
    aggregation: str,
    max_tokens: float | None,
) -> None:
    """Arguments that need one another."""
    if beta > 0 and ref_logps is None:
        raise ConfigError(f"beta is {beta!r} but ref_logps was not given; expected both, or beta = 0")
    if rollout_cap is not None and rollout_logps is None:
        raise ConfigError(f"rollout_cap is {rollout_cap!r} but rollout_logps was not given; expected both")
    if aggregation == "sequence_mean_token_sum":
        if max_tokens is None:
            raise ConfigError(
                "max_tokens is None; aggregation 'sequence_mean_token_sum' needs a number above 0"
            )
        _number("max_tokens", max_tokens, 0, open_end=True)


def normalizer(value: float | Tensor | None, logps: Tensor) -> Tensor | None:
    """The count as a detached 0-d tensor on the device of the data."""
    if value is None:
        return None
    if isinstance(value, torch.Tensor):
        if value.dim() or value.device != logps.device:
            raise InputError(
                f"normalizer has shape {tuple(value.shape)} on {value.device}; "
                f"expected a 0-d tensor on the device of logps, {logps.device}"
            )
        return value.detach()
    _number("normalizer", value, 0)
    return torch.full((), float(value), dtype=torch.float64, device=logps.device)
