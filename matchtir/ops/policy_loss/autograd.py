"""The custom ops of torch: one that makes loss and gradient at once, and one that scales the gradient.

`torch.compile` sees them as opaque; the reference goes without them, because autograd differentiates it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _dispatch
from . import reference, segments

METRICS = segments.METRICS
_KL = {"k1": 1, "k2": 2, "k3": 3}


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def choose(backend: str | None, device: str) -> str:
    """Name of the backend that runs on the device."""
    return _dispatch.load("policy_loss", backend, device).__name__.rsplit(".", 1)[1]


@torch.library.custom_op("matchtir::policy_loss_forward", mutates_args=())  # type: ignore[untyped-decorator]
def forward(
    logps: Tensor,
    old_logps: Tensor,
    ref_logps: Tensor | None,
    rollout_logps: Tensor | None,
    turn_advantages: Tensor,
    spans: Tensor,
    offsets: Tensor,
    cu_seqlens: Tensor | None,
    normalizer: Tensor | None,
    *,
    epsilon_low: float,
    epsilon_high: float,
    dual_clip: float | None,
    beta: float,
    kl: str,
    ratio: str,
    aggregation: str,
    max_tokens: float | None,
    rollout_cap: float | None,
    needs_grad: bool,
    validate: bool,
    threads: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, gradient in units of the scale (empty if not needed), the scale, and the metrics."""
    rows = segments.rows_of(logps, len(offsets) - 1, cu_seqlens)
    if validate:
        segments.check_contents(spans, offsets, rows, logps.numel())
    place = segments.layout(rows, logps.numel(), spans, offsets)
    weights = segments.row_weights(place.rollout_tokens, aggregation, max_tokens, normalizer)
    scale = segments.power_of_two(weights)
    turns = segments.turn_table(turn_advantages, weights / scale, place, epsilon_low, epsilon_high, dual_clip)
    module = _dispatch.load("policy_loss", backend, logps.device.type)
    # Threads of a backend do not inherit that autograd is off in here.
    inputs = (logps, old_logps, ref_logps, rollout_logps)
    flat = [None if x is None else x.detach().contiguous().view(-1) for x in inputs]
    grad = torch.empty(logps.shape if needs_grad else (0,), dtype=logps.dtype, device=logps.device)
    columns = None
    per_token = ratio == "token"
    gain = turns.gain
    if not per_token:
        sums = module.turn_sums(flat[0], flat[1], flat[3], place, rollout_cap, threads)
        gain, columns = segments.shared_ratio(sums, turns, place, ratio)
    if per_token or needs_grad or ref_logps is not None:
        table = torch.stack([gain, turns.lower, turns.upper, beta * turns.weight], 1)
        kind = _KL[kl] if ref_logps is not None else 0
        found = module.tokens(
            *flat, place, table, rollout_cap, per_token, kind, beta > 0, grad.view(-1), threads
        )
        columns = found if columns is None else torch.cat([columns[:1], found[1:3], columns[3:]])
    assert columns is not None
    loss, metrics = segments.loss_and_metrics(columns, place.rollout_tokens, scale)
    wide = torch.float64 if logps.dtype == torch.float64 else torch.float32
    return loss.to(wide), grad, scale, metrics.to(wide)


@forward.register_fake  # type: ignore[untyped-decorator]
def _(logps: Tensor, *_: object, needs_grad: bool, **__: object) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = torch.float64 if logps.dtype == torch.float64 else torch.float32
    return (
        logps.new_empty((), dtype=wide),
        logps.new_empty(logps.shape if needs_grad else (0,)),
        logps.new_empty((), dtype=torch.float64),
        logps.new_empty((len(segments.METRICS),), dtype=wide),
    )


@torch.library.custom_op("matchtir::policy_loss_backward", mutates_args=())  # type: ignore[untyped-decorator]
def backward(grad: Tensor, factor: Tensor, backend: str) -> Tensor:
    """The gradient times the 0-d float64 factor, which is not rounded to the gradient's dtype."""
    module = _dispatch.load("policy_loss", backend, grad.device.type)
    scaled: Tensor = module.scale(grad, factor)
    return scaled


@backward.register_fake  # type: ignore[untyped-decorator]
def _(grad: Tensor, factor: Tensor, backend: str) -> Tensor:
    return grad.new_empty(grad.shape)


def _setup(
    ctx: Any, inputs: tuple[object, ...], keyword_only_inputs: dict[str, Any], output: tuple[Tensor, ...]
) -> None:
    """Keeps the gradient; only the loss is differentiable."""
    _, grad, scale, metrics = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(grad, scale, metrics)
    ctx.save_for_backward(grad, scale)
    ctx.backend = keyword_only_inputs["backend"]


def _backward(ctx: Any, grad_loss: Tensor | None, *_: object) -> tuple[Tensor | None, ...]:
    """The gradient of logps; nothing else has one."""
    if grad_loss is None:
        return (None,) * 9
    grad, scale = ctx.saved_tensors
    return backward(grad, grad_loss.to(torch.float64) * scale, ctx.backend), *(None,) * 8


forward.register_autograd(_backward, setup_context=_setup)


def run(
    logps: Tensor,
    old_logps: Tensor,
    ref_logps: Tensor | None,
    rollout_logps: Tensor | None,
    turn_advantages: Tensor,
    spans: Tensor,
    offsets: Tensor,
    cu_seqlens: Tensor | None,
    normalizer: Tensor | None,
    *,
    options: dict[str, Any],
    aggregation: str,
    max_tokens: float | None,
    validate: bool,
    threads: int,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    """Loss and METRICS; arguments have been checked."""
    name = choose(backend, logps.device.type)
    if name != "reference":
        tensors = (logps, old_logps, ref_logps, rollout_logps, turn_advantages, spans, offsets)
        loss, _, _, metrics = forward(
            *tensors,
            cu_seqlens,
            normalizer,
            aggregation=aggregation,
            max_tokens=max_tokens,
            needs_grad=logps.requires_grad and torch.is_grad_enabled(),
            validate=validate,
            threads=threads,
            backend=name,
            **options,
        )
        return loss, metrics.detach()
    rows = segments.rows_of(logps, len(offsets) - 1, cu_seqlens)
    if validate and not torch.compiler.is_compiling():
        segments.check_contents(spans, offsets, rows, logps.numel())
    place = segments.layout(rows, logps.numel(), spans, offsets)
    weights = segments.row_weights(place.rollout_tokens, aggregation, max_tokens, normalizer)
    return reference.policy_loss(
        logps.reshape(-1),
        old_logps.reshape(-1),
        None if ref_logps is None else ref_logps.reshape(-1),
        None if rollout_logps is None else rollout_logps.reshape(-1),
        turn_advantages,
        place,
        weights,
        **options,
    )
