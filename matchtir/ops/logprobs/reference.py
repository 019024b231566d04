"""The rows of `logprobs` in plain torch, for the reader; this file defines the result.

With logits x_v of one token, z_v = x_v / temperature and target y,

    lse    = log sum_v exp z_v
    p_v    = exp(z_v - lse)
    logp   = z_y - lse
    H      = -sum_v p_v log p_v

and, for gradients g of logp and h of H,

    d x_v  = (g (1[v = y] - p_v) - h p_v (log p_v + H)) / temperature.

A row is met in pieces, a block of words at a time. Four numbers a row carry the sums from piece to piece:

    most      the largest z so far
    total     sum exp(z - most)
    weighted  sum exp(z - most) (z - most)
    target    z_y, NaN until its block has come

from which lse = most + log total and H = log total - weighted / total, a sum of two terms that are not
negative. When the maximum grows by d, total becomes e^-d total and weighted e^-d (weighted - d total).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

# exp of it is 0 in every dtype, and 0 times it is 0: a word at minus infinity adds nothing.
_LEAST = -1e4


def forward(
    logits: Tensor, targets: Tensor, first: int, scale: Tensor, ignore_index: int, state: Tensor, threads: int
) -> None:
    """Add a block of logits (R, C), words `first` on, to the state (4, R); `scale` is 1 / temperature."""
    z = logits.to(state.dtype) * scale
    most, total, weighted, target = state
    top = torch.maximum(most, z.amax(dim=1))
    shift = torch.where(top == -torch.inf, 0.0, top)
    z_less = (z - shift[:, None]).clamp(min=_LEAST)
    e = z_less.exp()
    step = torch.where(total > 0, most - shift, 0.0)  # 0 or less
    decay = step.exp()
    weighted = decay * (weighted + step * total) + (e * z_less).sum(dim=1)
    total = decay * total + e.sum(dim=1)
    here = (targets >= first) & (targets < first + logits.shape[1])
    column = torch.where(here, targets - first, 0)
    target = torch.where(here, z.gather(1, column[:, None])[:, 0], target)
    state.copy_(torch.where(targets == ignore_index, state, torch.stack([top, total, weighted, target])))


def backward(
    logits: Tensor, out: Tensor, targets: Tensor, first: int, scale: Tensor, rows: Tensor, threads: int
) -> None:
    """Gradient of a block of logits (R, C) into `out` (R, C), which may be the block itself.

    `rows` (4, R) holds lse, g / temperature, (g + h H) / temperature and h / temperature. A row whose last
    three are 0 gets 0, whatever its logits.
    """
    lse, hit, plain, slope = rows
    log_p = (logits.to(rows.dtype) * scale - lse[:, None]).clamp(min=_LEAST)
    gradient = -log_p.exp() * (plain[:, None] + slope[:, None] * log_p)
    here = (targets >= first) & (targets < first + logits.shape[1])
    column = torch.where(here, targets - first, 0)
    gradient.scatter_add_(1, column[:, None], torch.where(here, hit, 0.0)[:, None])
    idle = (hit == 0) & (plain == 0) & (slope == 0)
    out.copy_(torch.where(idle[:, None], 0.0, gradient))
