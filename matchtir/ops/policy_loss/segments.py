"""What all backends share: where the turns lie in flat memory, what a token weighs, terms of a turn.

Everything here has the size of the turns or of the rollouts, runs on the device of the data and never waits
for it. It is in float64: it costs nothing at that size.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._spans import check_offsets, check_spans

SUMS = ("policy", "kl_weighted", "kl", "low", "high", "dual", "ratio", "approx_kl", "weight", "truncated")
"""Columns of the sums that a backend returns for each of its programs; ratio's minimum and maximum follow."""

COLUMNS = len(SUMS) + 2

METRICS = (
    "policy_loss", "kl_loss", "kl", "clip_fraction_low", "clip_fraction_high", "clip_fraction_dual",
    "ratio_mean", "approx_kl_old", "rollout_weight_mean", "rollout_truncated_fraction",
    "ratio_min", "ratio_max",
)  # fmt: skip


class Layout(NamedTuple):
    """Where the turns lie: `bounds` are flat token positions, inside their rollout's row whatever came."""

    rows: Tensor  # (B + 1,)
    offsets: Tensor  # (B + 1,)
    rollout: Tensor  # (N,)
    bounds: Tensor  # (N, 2)
    reach: Tensor  # (N,), end of the tokens of all turns so far; rises
    turn_tokens: Tensor  # (N,)
    rollout_tokens: Tensor  # (B,)


class Turns(NamedTuple):
    """Per turn: the factor of the ratio, between which bounds the ratio moves, the weight of a token."""

    gain: Tensor  # (N,), -advantage * weight
    lower: Tensor  # (N,)
    upper: Tensor  # (N,)
    weight: Tensor  # (N,)


def rows_of(logps: Tensor, batch: int, cu_seqlens: Tensor | None) -> Tensor:
    """Flat start of each row and the end of the last, int64 (B + 1,)."""
    if cu_seqlens is not None:
        return cu_seqlens.to(torch.int64)
    return torch.arange(batch + 1, device=logps.device) * logps.shape[1]


def layout(rows: Tensor, total: int, spans: Tensor, offsets: Tensor) -> Layout:
    """The layout of spans (N, 2) in rows (B + 1,) of `total` tokens; what does not fit is cut off."""
    batch, turns = len(offsets) - 1, len(spans)
    rows, offsets = rows.clamp(0, total).cummax(0).values, offsets.clamp(0, turns).cummax(0).values
    rollout = torch.searchsorted(offsets[1:], torch.arange(turns, device=spans.device), right=True)
    if batch:
        rollout = rollout.clamp(max=batch - 1)
        length = (rows[1:] - rows[:-1])[rollout]
        bounds = rows[rollout][:, None] + torch.minimum(spans.clamp(min=0), length[:, None])
    else:
        bounds = spans
    tokens = (bounds[:, 1] - bounds[:, 0]).clamp(min=0)
    filled = tokens > 0
    reach = torch.where(filled, bounds[:, 1], 0).cummax(0).values if turns else tokens
    # An empty turn may lie anywhere; it moves to where the one before it ends.
    bounds = torch.where(filled[:, None], bounds, reach[:, None]).contiguous()
    before = torch.cat([tokens.new_zeros(1), tokens.cumsum(0)])
    own = before[offsets[1:]] - before[offsets[:-1]]
    return Layout(rows, offsets, rollout, bounds, reach, tokens, own)


def turns_of_blocks(place: Layout, count: int, size: int) -> tuple[Tensor, Tensor]:
    """First turn that touches each of `count` blocks of `size` flat tokens, and the end, (count,) each."""
    edges = torch.arange(count + 1, device=place.reach.device) * size
    starts = place.bounds[:, 0].contiguous()
    first = torch.searchsorted(place.reach, edges[:-1], right=True)
    return first, torch.searchsorted(starts.cummax(0).values if len(starts) else starts, edges[1:])


def check_contents(spans: Tensor, offsets: Tensor, rows: Tensor, total: int) -> None:
    """Refuses what does not describe turns in order, without overlap, inside their rows."""
    span, first, row = (x.cpu().numpy() for x in (spans, offsets, rows))
    check_offsets(first, "offsets", len(span), len(span))
    check_offsets(row, "cu_seqlens", total, total)
    check_spans(span, first, np.diff(row))


def row_weights(own: Tensor, aggregation: str, max_tokens: float | None, normalizer: Tensor | None) -> Tensor:
    """What a token of each rollout weighs in the loss, float64 (B,); 0 where the denominator is 0."""
    count = own.to(torch.float64)
    if aggregation == "token_mean":
        denominator = count.sum() if normalizer is None else normalizer
        denominator = denominator.to(torch.float64).expand(len(own))
    else:
        rollouts = count.new_full((), len(own)) if normalizer is None else normalizer.to(torch.float64)
        denominator = rollouts * (count if max_tokens is None else count.new_full((len(own),), max_tokens))
    return torch.where(denominator == 0, 0.0, 1.0 / denominator)


def power_of_two(weights: Tensor) -> Tensor:
    """The power of two in whose unit the largest weight is 16 to 32; 0-d float64, 1 without weights.

    The gradient waits for the backward pass in this unit, so that it survives float16: only there does the
    loss scale come. A power of two rounds nothing.
    """
    top = weights.amax() if len(weights) else weights.new_ones(())
    mantissa, _ = torch.frexp(top)
    return torch.where(top > 0, top / mantissa / 32.0, 1.0)


def turn_table(
    advantages: Tensor, weights: Tensor, place: Layout, low: float, high: float, dual: float | None
) -> Turns:
    """The loss of a token is ``gain * clamp(ratio, lower, upper)``; float64 (N,) each."""
    a = advantages.to(torch.float64)
    weight = weights[place.rollout] if len(weights) else a
    lower = torch.full_like(a, -torch.inf).masked_fill(a < 0, 1.0 - low)
    upper = torch.full_like(a, torch.inf).masked_fill(a > 0, 1.0 + high)
    if dual is not None:
        upper = upper.masked_fill(a < 0, dual)
    return Turns(-a * weight, lower, upper, weight)


def shared_ratio(sums: Tensor, turns: Turns, place: Layout, ratio: str) -> tuple[Tensor, Tensor]:
    """For one ratio a turn or a rollout: the gradient of a token, (N,), and the COLUMNS of the policy term.

    `sums` (N, 4) holds of each turn the sums of log ratio, importance weight, k3 and truncated tokens.
    With W the turn's sum of weights, the term is ``gain W clamp(s)``; a log ratio that is the mean of
    n tokens moves by 1 / n with each of them. A rollout's ratio moves the terms of all its turns.
    """
    log_ratio, importance, approx, truncated = sums.to(torch.float64).unbind(1)
    n = place.turn_tokens.to(torch.float64)
    if ratio == "sequence":
        log_ratio = _by_rollout(log_ratio, place)
        size = place.rollout_tokens.to(torch.float64)[place.rollout]
    else:
        size = n
    size = size.clamp(min=1.0)
    s = (log_ratio / size).exp()
    filled = n > 0
    low, up = filled & (s < turns.lower), filled & (s > turns.upper)
    gain = torch.where(filled, turns.gain * importance, 0.0)
    policy = gain * torch.minimum(torch.maximum(s, turns.lower), turns.upper)
    slope = torch.where(low | up | ~filled, 0.0, gain * s)
    if ratio == "sequence":
        slope = _by_rollout(slope, place)
    rising = turns.gain < 0  # the advantage is positive
    zero = torch.zeros_like(n)
    columns = [policy, zero, zero, n * low, n * (up & rising), n * (up & ~rising)]
    columns += [torch.where(filled, n * s, 0.0), approx, importance, truncated]
    columns += [torch.where(filled, s, torch.inf), torch.where(filled, s, -torch.inf)]
    return slope / size, reduce_columns(torch.stack(columns, 1))


def _by_rollout(x: Tensor, place: Layout) -> Tensor:
    """Of each turn the sum of x (N,) over its rollout, (N,); the order of the sum is fixed."""
    if not len(x):
        return x
    total = torch.segment_reduce(x, "sum", offsets=place.offsets, unsafe=True, initial=0.0)
    return total[place.rollout]


def reduce_columns(parts: Tensor) -> Tensor:
    """COLUMNS of the whole from those of the programs, (programs, COLUMNS) to float64 (COLUMNS,)."""
    if not len(parts):
        none = torch.zeros(COLUMNS, dtype=torch.float64, device=parts.device)
        none[-2], none[-1] = torch.inf, -torch.inf  # filled on the device
        return none
    extremes = parts[:, len(SUMS) :].to(torch.float64)
    totals = parts[:, : len(SUMS)].sum(0, dtype=torch.float64)
    return torch.cat([totals, extremes[:, :1].amin(0), extremes[:, 1:].amax(0)])


def loss_and_metrics(columns: Tensor, own: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Loss, float64 0-d, and METRICS, float64, from COLUMNS of sums in units of `scale`."""
    tokens = own.sum()
    means = columns / tokens.clamp(min=1)
    policy, kl = columns[0] * scale, columns[1] * scale
    empty = tokens == 0
    ratios = torch.where(empty, 1.0, torch.stack([means[6], columns[10], columns[11]]))
    metrics = torch.cat(
        [torch.stack([policy, kl]), means[2:6], ratios[:1], means[7:10], ratios[1:]],
    )
    return policy + kl, metrics
