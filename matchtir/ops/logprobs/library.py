"""The custom ops of torch: forward and backward, for hidden states and for logits.

They are opaque to ``torch.compile``; which tokens count, and whether the targets are words, is looked at
inside. The backward pass has no derivative of its own.
"""

from __future__ import annotations

import os
from typing import Any, NoReturn

import torch
from torch import Tensor

from ...errors import InputError
from .. import _dispatch
from . import chunked, given

_OPTIONS = (
    "float temperature, SymInt ignore_index, SymInt? chunk_size, bool? skip_ignored, ScalarType compute, "
    "int? num_threads, str? backend"
)
_SAVED = "Tensor targets, Tensor lse, Tensor entropy"
_GRADS = "Tensor? grad_logps, Tensor? grad_entropy"


def _plan(
    device: str,
    temperature: float,
    ignore_index: int,
    chunk_size: int | None,
    skip_ignored: bool | None,
    compute: torch.dtype,
    num_threads: int | None,
    backend: str | None,
) -> chunked.Plan:
    """The options of a custom op, and the backend they come to."""
    module = _dispatch.load("logprobs", backend, device)
    # On a GPU the host would wait for the device to count the tokens.
    skip = device == "cpu" if skip_ignored is None else skip_ignored
    # The products run on torch's threads, so the rows do too, unless somebody says otherwise.
    asked = num_threads is not None or "MATCHTIR_NUM_THREADS" in os.environ
    threads = _dispatch.threads(num_threads if asked else torch.get_num_threads())
    return chunked.Plan(module, temperature, ignore_index, chunk_size, skip, compute, threads)


def _head(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    plan = _plan(hidden.device.type, *options)
    chunked.check_targets(targets, weight.shape[0], plan.ignore_index)
    with torch.autocast(hidden.device.type, enabled=False):  # `compute` says what it would do
        return chunked.forward(hidden, weight, bias, targets, plan)


def _head_backward(
    grad_logps: Tensor | None,
    grad_entropy: Tensor | None,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    lse: Tensor,
    entropy: Tensor,
    needs: list[bool],
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    plan = _plan(hidden.device.type, *options)
    with torch.autocast(hidden.device.type, enabled=False):
        grads = chunked.backward(
            grad_logps, grad_entropy, hidden, weight, bias, targets, lse, entropy, needs, plan
        )
    return tuple(hidden.new_empty(0) if grad is None else grad for grad in grads)


def _given(logits: Tensor, targets: Tensor, *options: Any) -> tuple[Tensor, Tensor, Tensor]:
    plan = _plan(logits.device.type, *options)
    chunked.check_targets(targets, logits.shape[-1], plan.ignore_index)
    return given.forward(logits, targets, plan)


def _given_backward(
    grad_logps: Tensor | None,
    grad_entropy: Tensor | None,
    logits: Tensor,
    targets: Tensor,
    lse: Tensor,
    entropy: Tensor,
    *options: Any,
) -> Tensor:
    plan = _plan(logits.device.type, *options)
    return given.backward(grad_logps, grad_entropy, logits, targets, lse, entropy, plan)


def _op(name: str, function: Any, schema: str) -> Any:
    """A custom op that changes none of its arguments."""
    return torch.library.custom_op(f"matchtir::{name}", function, mutates_args=(), schema=schema)


head = _op(
    "logprobs",
    _head,
    f"(Tensor hidden, Tensor weight, Tensor? bias, Tensor targets, {_OPTIONS}) -> (Tensor, Tensor, Tensor)",
)
head_backward = _op(
    "logprobs_backward",
    _head_backward,
    f"({_GRADS}, Tensor hidden, Tensor weight, Tensor? bias, {_SAVED}, bool[] needs, {_OPTIONS}) "
    "-> (Tensor, Tensor, Tensor)",
)
from_logits = _op(
    "logprobs_from_logits",
    _given,
    f"(Tensor logits, Tensor targets, {_OPTIONS}) -> (Tensor, Tensor, Tensor)",
)
from_logits_backward = _op(
    "logprobs_from_logits_backward",
    _given_backward,
    f"({_GRADS}, Tensor logits, {_SAVED}, {_OPTIONS}) -> Tensor",
)


def _fake(source: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Three vectors, one entry a token."""
    targets = next(x for x in rest[::-1] if isinstance(x, Tensor))
    dtype = chunked.wide(source.dtype)
    return tuple(source.new_empty(targets.shape, dtype=dtype) for _ in range(3))


def _fake_head_backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    hidden, weight, bias = arguments[2:5]
    needs = arguments[8]
    return tuple(
        x.new_empty(x.shape) if need else hidden.new_empty(0)
        for x, need in zip((hidden, weight, bias), needs, strict=True)
    )


head.register_fake(_fake)
from_logits.register_fake(_fake)
head_backward.register_fake(_fake_head_backward)
from_logits_backward.register_fake(lambda *arguments: arguments[2].new_empty(arguments[2].shape))


def _setup_head(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, weight, bias, targets, *ctx.options = inputs
    _, entropy, lse = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(lse)
    # The weight is the caller's own tensor and not a copy: what it holds at backward is what is used.
    ctx.save_for_backward(hidden, weight, bias, targets, lse, entropy)
    ctx.shapes = {"weight": weight.shape} | ({} if bias is None else {"bias": bias.shape})


def _backward_head(
    ctx: Any, grad_logps: Tensor | None, grad_entropy: Tensor | None, _: None
) -> tuple[Tensor | None, ...]:
    hidden, weight, bias, targets, lse, entropy = ctx.saved_tensors
    for name, shape in ctx.shapes.items():
        found = (weight if name == "weight" else bias).shape
        if found != shape:
            raise InputError(
                f"{name} has shape {tuple(found)} at backward; expected {tuple(shape)}, as at forward. A "
                "parameter that was gathered for the forward pass has to be gathered for the backward pass"
            )
    needs = [*ctx.needs_input_grad[:2], bias is not None and ctx.needs_input_grad[2]]
    grads: list[Tensor | None] = [None, None, None]
    if grad_logps is not None or grad_entropy is not None:
        made = head_backward(
            grad_logps, grad_entropy, hidden, weight, bias, targets, lse, entropy, needs, *ctx.options
        )
        grads = [grad if need else None for grad, need in zip(made, needs, strict=True)]
    return (*grads, None, *(None for _ in ctx.options))


def _setup_given(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, targets, *ctx.options = inputs
    _, entropy, lse = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(logits, targets, lse, entropy)


def _backward_given(
    ctx: Any, grad_logps: Tensor | None, grad_entropy: Tensor | None, _: None
) -> tuple[Tensor | None, ...]:
    nothing = (None, *(None for _ in ctx.options))
    if grad_logps is None and grad_entropy is None:
        return (None, *nothing)
    return (from_logits_backward(grad_logps, grad_entropy, *ctx.saved_tensors, *ctx.options), *nothing)


def _no_second_derivative(ctx: Any, *grads: Tensor) -> NoReturn:
    raise NotImplementedError("logprobs can be differentiated once; its gradient has no derivative")


head.register_autograd(_backward_head, setup_context=_setup_head)
from_logits.register_autograd(_backward_given, setup_context=_setup_given)
head_backward.register_autograd(_no_second_derivative)
from_logits_backward.register_autograd(_no_second_derivative)
