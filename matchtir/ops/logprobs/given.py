"""Logits that are there already: the same row kernels over them, without a copy."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from . import chunked
from .chunked import Plan


def _matrices(logits: Tensor) -> Iterator[Tensor]:
    """Views (R, V) that hold the rows of logits (..., V) in order; as few as their strides allow."""
    if logits.stride(-1) != 1 and logits.shape[-1] > 1:
        logits = logits.contiguous()
    pending = [logits]
    while pending:
        x = pending.pop()
        try:
            yield x.view(-1, x.shape[-1])
        except RuntimeError:  # the rows are not evenly spaced: logits[:, :-1] of more than one rollout
            pending.extend(reversed(x.unbind(0)))


def _pieces(logits: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Views (R, V) and their first row's number; small on the CPU, where some are converted."""
    start = 0
    most = max(1, chunked.TILE_ON_CPU // logits.shape[-1]) if logits.device.type == "cpu" else None
    for matrix in _matrices(logits):
        for piece in matrix.split(most or max(1, len(matrix))):
            yield start, piece
            start += len(piece)


def forward(logits: Tensor, targets: Tensor, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
    """logps, entropy and lse (N,) of logits (..., V) with N rows, and targets (N,)."""
    state = chunked.fresh_state(len(targets), logits)
    scale = chunked.scale_of(plan, logits)
    if len(targets):
        for start, z in _pieces(logits):
            part = slice(start, start + len(z))
            plan.module.forward(z, targets[part], 0, scale, plan.ignore_index, state[:, part], plan.threads)
    return chunked.finish(state, targets, plan.ignore_index)


def backward(
    grad_logps: Tensor | None,
    grad_entropy: Tensor | None,
    logits: Tensor,
    targets: Tensor,
    lse: Tensor,
    entropy: Tensor,
    plan: Plan,
) -> Tensor:
    """Gradient of the logits, new and contiguous."""
    rows = chunked.row_table(plan, targets, lse, entropy, grad_logps, grad_entropy)
    scale = chunked.scale_of(plan, logits)
    out = torch.empty_like(logits, memory_format=torch.contiguous_format)
    if len(targets):
        flat = out.view(-1, logits.shape[-1])
        for start, z in _pieces(logits):
            part = slice(start, start + len(z))
            plan.module.backward(z, flat[part], targets[part], 0, scale, rows[:, part], plan.threads)
    return out
