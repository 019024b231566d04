"""Policy loss in plain torch, for the reader: every turn's advantage scattered to its tokens, then autograd.

Of the tokens t inside spans, with A the advantage of the token's turn and lr = logp - old_logp:

    s_t = exp(lr_t), or exp(mean of lr over the turn), or exp(mean of lr over the rollout's own tokens)
    A > 0:  policy_t = -A min(s_t, 1 + epsilon_high)
    A < 0:  policy_t = -A min(max(s_t, 1 - epsilon_low), dual_clip)
    w_t = min(exp(old_logp - rollout_logp), rollout_cap), a constant; 1 without rollout_logps
    kl_t = -d (k1), d^2 / 2 (k2) or exp(d) - d - 1 (k3), with d = ref_logp - logp
    loss = sum over own tokens of  c_b (w_t policy_t + beta kl_t)

c_b is 1 / all own tokens, 1 / (B n_b) or 1 / (B max_tokens). The two lines with A are
``-min(s A, clip(s, 1 - epsilon_low, 1 + epsilon_high) A)`` and its minimum with ``dual_clip |A|``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import segments
from .segments import Layout


def _turn_of_token(place: Layout, total: int) -> tuple[Tensor, Tensor]:
    """Of each flat token whether it lies in a turn, and in which (0 outside), (total,) each."""
    start, stop = place.bounds.unbind(1)
    edge = place.bounds.new_zeros(total + 1)
    inside = edge.index_add(0, start, torch.ones_like(start)).index_add(0, stop, -torch.ones_like(stop))
    own = inside.cumsum(0)[:total] > 0
    # Empty turns mark the place behind the last token, which nobody reads.
    numbers = torch.arange(len(start), device=start.device)
    marks = edge.index_put((torch.where(stop > start, start, total),), numbers)
    turn = marks[:total].cummax(0).values if total else marks[:0]
    return own, torch.where(own, turn, 0)


def _mean_over(lr: Tensor, own: Tensor, group: Tensor, groups: int) -> Tensor:
    """Of each token the mean of lr over the own tokens of its group, (total,)."""
    groups = max(groups, 1)  # tokens outside count as of group 0
    total = lr.new_zeros(groups).index_add(0, group, torch.where(own, lr, 0.0))
    count = lr.new_zeros(groups).index_add(0, group, own.to(lr.dtype))
    return (total / count.clamp(min=1.0))[group]


def _kl(kind: str, logps: Tensor, ref: Tensor, own: Tensor) -> Tensor:
    """The estimator of each own token, 0 elsewhere, (total,)."""
    d = torch.where(own, ref - logps, 0.0)
    return {"k1": -d, "k2": d * d / 2, "k3": d.exp() - d - 1}[kind]


def policy_loss(
    logps: Tensor,
    old_logps: Tensor,
    ref_logps: Tensor | None,
    rollout_logps: Tensor | None,
    turn_advantages: Tensor,
    place: Layout,
    weights: Tensor,
    *,
    ratio: str,
    kl: str,
    beta: float,
    epsilon_low: float,
    epsilon_high: float,
    dual_clip: float | None,
    rollout_cap: float | None,
) -> tuple[Tensor, Tensor]:
    """Loss and METRICS of flat tokens, (total,) each; the loss is differentiable with respect to logps.

    `weights` (B,) are the c_b. bfloat16 and float16 are computed in float32, other dtypes in their own.
    """
    dtype = torch.float64 if logps.dtype == torch.float64 else torch.float32
    x, old = logps.to(dtype), old_logps.to(dtype)
    own, turn = _turn_of_token(place, len(x))
    row = place.rollout[turn] if len(place.rollout) else turn
    nothing = x.new_zeros(1)
    advantage = torch.where(own, (turn_advantages.to(dtype) if len(turn_advantages) else nothing)[turn], 0.0)
    weight = torch.where(own, (weights.to(dtype) if len(weights) else nothing)[row], 0.0)

    lr = torch.where(own, x - old, 0.0)
    token_lr = lr.detach()
    if ratio != "token":
        lr = _mean_over(lr, own, *((turn, len(place.bounds)) if ratio == "turn" else (row, len(weights))))
    s = lr.detach().exp()
    low = (advantage < 0) & (s < 1 - epsilon_low)
    high = (advantage > 0) & (s > 1 + epsilon_high)
    dual = torch.zeros_like(own) if dual_clip is None else (advantage < 0) & (s > dual_clip)
    # A clipped ratio is a constant. Its exp is left out, because 0 times the slope of an infinite exp is NaN.
    moving = torch.where(low | high | dual, 0.0, lr).exp()
    held = moving.masked_fill(low, 1 - epsilon_low).masked_fill(high, 1 + epsilon_high)
    policy = -advantage * (held if dual_clip is None else held.masked_fill(dual, dual_clip))

    count = own.sum().clamp(min=1)
    importance, truncated = torch.ones_like(s), torch.zeros_like(own)
    if rollout_logps is not None:
        importance = torch.where(own, old - rollout_logps.to(dtype), 0.0).exp()
        if rollout_cap is not None:
            truncated = importance > rollout_cap
            importance = importance.clamp(max=rollout_cap)
    policy_sum = torch.where(own, weight * importance * policy, 0.0).sum()
    kl_sum = kl_mean = policy_sum.new_zeros(())
    if ref_logps is not None:
        estimate = _kl(kl, x, ref_logps.to(dtype), own)
        kl_mean = estimate.detach().sum() / count
        if beta:
            kl_sum = (weight * beta * estimate).sum()

    def mean(values: Tensor) -> Tensor:
        return torch.where(own, values.to(dtype), 0.0).sum() / count

    some = own.any()
    approx = token_lr.exp() - token_lr - 1
    extremes = [torch.where(own, s, torch.inf), torch.where(own, s, -torch.inf)]
    if len(x):
        extremes = [extremes[0].amin(), extremes[1].amax()]
    ratios = [torch.where(some, v, 1.0) if len(x) else x.new_ones(()) for v in (mean(s), *extremes)]
    values = [policy_sum.detach(), kl_sum.detach(), kl_mean, mean(low), mean(high), mean(dual), ratios[0]]
    values += [mean(approx), mean(importance), mean(truncated), ratios[1], ratios[2]]
    assert len(values) == len(segments.METRICS)
    return policy_sum + kl_sum, torch.stack([v.to(dtype) for v in values])
