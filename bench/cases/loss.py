"""From turn rewards to the policy loss and its gradient, on the CPU, beside plain torch."""

from __future__ import annotations

import numpy as np
import torch
import workloads
from checks import check
from timing import Call, Row, interleave, peak_extra, speedup
from torch import Tensor
from torch.nn import functional

from cases.rows import rounds, seconds_row
from matchtir import ops

_MIB = 2**20


def memory_ratio(case: str, ours: Call, peer: Call, target: float) -> list[Row]:
    """Peak extra memory of ours over the peer's, and both; nothing where the system does not tell."""
    mine, theirs = peak_extra(ours), peak_extra(peer)
    if mine is None or theirs is None:
        return []
    share = mine / max(theirs, 1)  # tiny inputs may fit into what the process holds already
    ratio = Row(case, "extra memory at the peak, of the peer's", share, target, better="lower")
    sides = (("ours", mine), ("peer", theirs))
    return [ratio, *(Row(case, f"extra memory, {x}", round(b / _MIB, 1), unit="MiB") for x, b in sides)]


def close(ours: Tensor, theirs: Tensor, tolerance: float, words: str) -> None:
    """Stop unless two float32 results agree, relative to the largest entry."""
    scale = float(theirs.abs().max()) or 1.0
    worst = float((ours - theirs).abs().max()) / scale
    check(worst <= tolerance, f"{words} differ by {worst:.1e} of the largest")


def eager_policy_loss(
    logps: Tensor, old: Tensor, ref: Tensor, advantages: Tensor, mask: Tensor, beta: float
) -> Tensor:
    """What trainers write: every token has its advantage, masks do the rest, autograd differentiates."""
    ratio = torch.exp(logps - old)
    clipped = torch.clamp(ratio, 0.8, 1.2)
    policy = -torch.min(ratio * advantages, clipped * advantages)
    difference = ref - logps
    policy = policy + beta * (torch.exp(difference) - difference - 1)
    return ((policy * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()


def policy_loss(smoke: bool) -> list[Row]:
    """Loss and gradient of 64 rollouts of 8,192 tokens, five turns each, with a KL term."""
    rows, tokens, turns, beta = (4, 64, 3, 0.04) if smoke else (64, 8192, 5, 0.04)
    case = f"policy loss, {rows} × {tokens:,}, forward and backward"
    rng = np.random.default_rng(0)
    edges = np.sort(rng.integers(0, tokens, (rows, 2 * turns)), axis=1).reshape(-1, 2)
    spans, offsets = torch.from_numpy(edges), torch.arange(rows + 1) * turns
    turn_advantages = torch.from_numpy(rng.standard_normal(rows * turns).astype(np.float32))
    generator = torch.Generator().manual_seed(0)
    logps = (-torch.rand(rows, tokens, generator=generator)).requires_grad_()
    old, ref = (logps.detach() + 0.3 * torch.randn(rows, tokens, generator=generator) for _ in range(2))

    def ours() -> Tensor:
        logps.grad = None
        loss = ops.policy_loss(logps, old, turn_advantages, spans, offsets, ref_logps=ref, beta=beta).loss
        loss.backward()
        return loss.detach()

    def eager() -> Tensor:
        logps.grad = None
        advantages, mask = (torch.zeros(rows, tokens) for _ in range(2))
        ops.scatter_tensor(turn_advantages, spans, offsets, advantages)
        ops.scatter_tensor(torch.ones_like(turn_advantages), spans, offsets, mask)
        loss = eager_policy_loss(logps, old, ref, advantages, mask, beta)
        loss.backward()
        return loss.detach()

    results = []
    for side in (ours, eager):
        loss = side()
        results.append((loss, logps.grad.clone()))  # type: ignore[union-attr]
    close(*(loss for loss, _ in results), 1e-5, "losses")
    close(*(gradient for _, gradient in results), 1e-5, "gradients")
    times = interleave({"ours": ours, "eager": eager}, **rounds(smoke))
    logps.grad = None
    return [
        speedup(case, "plain torch, dense advantages", times["eager"], times["ours"], target=3.0),
        *memory_ratio(case, ours, eager, 0.5),
    ]


def logprobs(smoke: bool) -> list[Row]:
    """Log-probabilities and the gradients of hidden states and weight, without the logits."""
    tokens, words, width = (64, 300, 16) if smoke else (4096, 32_000, 512)
    case = f"logprobs, {tokens:,} × {words:,} × {width}, forward and backward"
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=generator).requires_grad_()
    weight = (torch.randn(words, width, generator=generator) / width**0.5).requires_grad_()
    targets = torch.randint(words, (tokens,), generator=generator)
    upstream = torch.randn(tokens, generator=generator)

    def run(forward: Call) -> Tensor:
        hidden.grad = weight.grad = None
        logps: Tensor = forward()  # type: ignore[assignment]
        logps.backward(upstream)
        return logps.detach()

    def ours() -> Tensor:
        return run(lambda: ops.logprobs(hidden, weight, targets)[0])

    def full() -> Tensor:
        def forward() -> Tensor:
            logits = functional.linear(hidden, weight)
            return torch.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0]

        return run(forward)

    results = []
    for side in (ours, full):
        logps = side()
        results.append((logps, hidden.grad.clone(), weight.grad.clone()))  # type: ignore[union-attr]
    for (a, b), name in zip(zip(*results, strict=True), ("logps", "d hidden", "d weight"), strict=True):
        close(a, b, 1e-4, name)
    del results
    times = interleave({"ours": ours, "full": full}, **rounds(smoke))
    hidden.grad = weight.grad = None
    slower = times["ours"].median / times["full"].median
    return [
        Row(
            *(case, "time, of full logits and log_softmax", slower, 1.15),
            better="lower",
            ours=times["ours"].summary(),
            peer=times["full"].summary(),
        ),
        *memory_ratio(case, ours, full, 0.1),
    ]


def returns_scatter(smoke: bool) -> list[Row]:
    """Turn rewards to advantages to tokens, for the full batch, beside a fill of the result."""
    work = workloads.full(*((2, 64) if smoke else ()))
    rows, tokens = work.shape
    case = f"returns and scatter, {rows:,} × {tokens:,} float32"
    offsets = torch.from_numpy(work.spans.offsets)
    spans = torch.from_numpy(work.spans.values)
    rewards = torch.rand(len(spans), generator=torch.Generator().manual_seed(0))
    groups = torch.arange(rows) // 16
    out = torch.empty(rows, tokens)

    def ours() -> Tensor:
        found = ops.turn_advantages(rewards, offsets, groups, dtype=torch.float32)
        ops.scatter_tensor(found.turn_advantages, spans, offsets, out)
        return found.turn_advantages

    advantages = ours()
    flat = out.numpy()
    for k in np.random.default_rng(0).integers(0, len(spans), 500):
        b = int(np.searchsorted(work.spans.offsets, k, side="right")) - 1
        start, stop = work.spans.values[k]
        check(bool((flat[b, start:stop] == float(advantages[k])).all()), f"turn {k} has another value")
    inside = int((work.spans.values[:, 1] - work.spans.values[:, 0]).sum())
    check(np.count_nonzero(flat) <= inside, "tokens outside of the turns are not 0")
    times = interleave({"ours": ours, "fill": lambda: out.fill_(1.0)}, **rounds(smoke))
    return [
        seconds_row(case, "time", times["ours"]),
        Row(
            *(case, "time, of a fill", times["ours"].median / times["fill"].median, 2.0),
            better="lower",
            ours=times["ours"].summary(),
            peer=times["fill"].summary(),
        ),
    ]
