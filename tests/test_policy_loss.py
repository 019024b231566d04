"""Policy loss: by hand, a dense loss in torch and a loop in NumPy as oracles, every backend against both."""

from __future__ import annotations

import itertools
import math
import os
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matchtir import BackendError, ConfigError, InputError
from matchtir.ops import PolicyLossOutput, policy_loss, scatter

torch = pytest.importorskip("torch")
pytest.importorskip("numba")
pytest.importorskip("triton")

from matchtir.ops.policy_loss import autograd, cpu, segments  # noqa: E402
from matchtir.ops.policy_loss import numba as on_cpu  # noqa: E402
from matchtir.ops.policy_loss import triton as on_gpu  # noqa: E402

CUDA = torch.cuda.is_available()
BACKENDS = ["reference", "numba", "triton"]
FUSED = ["numba", "triton"]
RATIOS = ["token", "turn", "sequence"]
AGGREGATIONS = ["token_mean", "sequence_mean_token_mean", "sequence_mean_token_sum"]


def device_of(backend: str) -> str:
    return "cuda" if backend == "triton" and CUDA else "cpu"


class Batch(NamedTuple):
    """Padded (B, T) or packed (total,) tokens; `given` are the arguments in their order."""

    logps: torch.Tensor
    old_logps: torch.Tensor
    turn_advantages: torch.Tensor
    spans: torch.Tensor
    offsets: torch.Tensor
    ref_logps: torch.Tensor
    rollout_logps: torch.Tensor
    cu_seqlens: torch.Tensor | None


def make(spans, width, seed=0, dtype=torch.float64, spread=0.5, lengths=None, advantages=None) -> Batch:
    """`spans` rollout by rollout; rows of `width`, or packed rows of `lengths`."""
    rng = np.random.default_rng(seed)
    shape = (len(spans), width) if lengths is None else (sum(lengths),)
    flat = [span for rollout in spans for span in rollout]
    offsets = np.concatenate([[0], np.cumsum([len(x) for x in spans])]).astype(np.int64)
    base = -rng.exponential(size=shape)
    near = [torch.tensor(base + spread * rng.normal(size=shape)).to(dtype) for _ in range(4)]
    a = rng.normal(size=len(flat)) if advantages is None else advantages
    return Batch(
        near[0],
        near[1],
        torch.tensor(np.asarray(a, dtype=float)),
        torch.tensor(np.array(flat, dtype=np.int64).reshape(-1, 2)),
        torch.tensor(offsets),
        near[2],
        near[3],
        None if lengths is None else torch.tensor(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)),
    )


# One rollout without turns, one whose turns have no tokens, empty turns among others, spans at both ends.
RAGGED = [
    [(0, 5), (5, 5), (9, 17), (40, 64)],
    [],
    [(3, 3), (64, 64)],
    [(0, 64)],
    [(7, 8), (8, 30), (0, 0), (30, 63)],
    [(63, 64)],
]


def run(batch: Batch, backend: str, *, ref=True, rollout=False, grad_of_loss=1.0, **options):
    """Output and gradient of one call; both on the CPU."""
    device = device_of(backend)
    b = Batch(*(None if x is None else x.to(device) for x in batch))
    x = b.logps.clone().requires_grad_()
    found = policy_loss(
        x, b.old_logps, b.turn_advantages, b.spans, b.offsets, cu_seqlens=b.cu_seqlens,
        ref_logps=b.ref_logps if ref else None, rollout_logps=b.rollout_logps if rollout else None,
        backend=backend, **options,
    )  # fmt: skip
    (found.loss * grad_of_loss).backward()
    metrics = {name: value.cpu() for name, value in found.metrics.items()}
    return PolicyLossOutput(found.loss.detach().cpu(), metrics), x.grad.cpu()


def dense(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Advantages and turn numbers (-1 outside) of padded tokens, (B, T), by the stage for dense arrays."""
    arrays = []
    numbers = np.arange(1, len(batch.spans) + 1, dtype=np.float64)
    for values in (batch.turn_advantages.double().numpy(), numbers):
        out = np.empty(tuple(batch.logps.shape))
        scatter(values, batch.spans.numpy(), batch.offsets.numpy(), out, backend="reference")
        arrays.append(out)
    return arrays[0], arrays[1].astype(int) - 1


def plain_torch(batch: Batch, x, *, dtype, beta=0.04, low=0.2, high=0.2):
    """What a trainer writes: dense advantages, exp, clamp, min, masked means. Padded, token level, k3."""
    advantages, turn = (torch.tensor(v) for v in dense(batch))
    a, mask = advantages.to(dtype), (turn >= 0).to(dtype)
    s = torch.exp(x - batch.old_logps)
    policy = -torch.min(s * a, torch.clamp(s, 1 - low, 1 + high) * a)
    d = batch.ref_logps - x
    per_token = policy + beta * (torch.exp(d) - d - 1)
    return ((per_token * mask).sum(-1) / mask.sum(-1).clamp(min=1)).mean()


def loop(batch: Batch, *, ratio="token", aggregation="sequence_mean_token_mean", kl="k3", beta=0.0, low=0.2,
         high=0.2, dual=None, cap=None, rollout=False, max_tokens=None):  # fmt: skip
    """Loss and metrics, token by token in Python floats, by min and clip as the papers write them."""
    x, old = batch.logps.tolist(), batch.old_logps.tolist()
    per_rollout, tokens = [], []
    for b in range(len(batch.offsets) - 1):
        turns = range(int(batch.offsets[b]), int(batch.offsets[b + 1]))
        own = [(k, t) for k in turns for t in range(*batch.spans[k].tolist())]
        lr = {t: x[b][t] - old[b][t] for _, t in own}
        total = 0.0
        for k, t in own:
            group = {"token": [(k, t)], "turn": [(j, u) for j, u in own if j == k], "sequence": own}[ratio]
            same = [u for _, u in group]
            s = math.exp(math.fsum(lr[u] for u in same) / len(same))
            a = float(batch.turn_advantages[k])
            clipped = min(max(s, 1 - low), 1 + high)
            policy = -min(s * a, clipped * a)
            cut = dual is not None and a < 0 and policy > dual * abs(a)
            if cut:
                policy = dual * abs(a)
            raw = math.exp(old[b][t] - float(batch.rollout_logps[b, t])) if rollout else 1.0
            w = min(raw, cap) if cap is not None else raw
            d = float(batch.ref_logps[b, t]) - x[b][t]
            estimate = {"k1": -d, "k2": d * d / 2, "k3": math.exp(d) - d - 1}[kl]
            total += w * policy + beta * estimate
            r = lr[t]
            below, above = a < 0 and s < 1 - low, a > 0 and s > 1 + high
            truncated = cap is not None and raw > cap
            tokens.append((below, above, cut, s, math.exp(r) - r - 1, estimate, w, truncated))
        per_rollout.append((total, len(own)))
    count = sum(n for _, n in per_rollout)
    if aggregation == "token_mean":
        loss = sum(v for v, _ in per_rollout) / count
    elif aggregation == "sequence_mean_token_mean":
        loss = sum(v / max(n, 1) for v, n in per_rollout) / len(per_rollout)
    else:
        loss = sum(v for v, _ in per_rollout) / (len(per_rollout) * max_tokens)
    mean = [math.fsum(column) / count for column in zip(*tokens, strict=True)]
    s = [row[3] for row in tokens]
    names = [
        "clip_fraction_low",
        "clip_fraction_high",
        "clip_fraction_dual",
        "ratio_mean",
        "approx_kl_old",
        "kl",
    ]
    metrics = dict(zip(names, mean, strict=False)) | {"ratio_min": min(s), "ratio_max": max(s)}
    if rollout:
        metrics |= {"rollout_weight_mean": mean[6], "rollout_truncated_fraction": mean[7]}
    return loss, metrics


def assert_close(found, expected, tol=1e-12):
    """Outputs and gradients of two runs."""
    (a, grad_a), (b, grad_b) = found, expected
    torch.testing.assert_close(a.loss, b.loss, rtol=tol, atol=tol)
    torch.testing.assert_close(grad_a, grad_b, rtol=tol, atol=tol)
    assert a.metrics.keys() == b.metrics.keys()
    for name, value in a.metrics.items():
        torch.testing.assert_close(
            value, b.metrics[name], rtol=tol, atol=tol, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of 32 tokens and windows of 40: rows of 64 cross many of both. Threads for few tokens."""
    monkeypatch.setattr(on_gpu, "BLOCK", 32)
    monkeypatch.setattr(cpu, "WINDOW", 40)
    monkeypatch.setattr(cpu, "PER_THREAD", 1)
    monkeypatch.delenv("MATCHTIR_BACKEND", raising=False)


@pytest.fixture
def poisoned(monkeypatch):
    """What torch.empty returns holds NaN, or the most a number can be, until it is written."""

    def poison(make_empty):
        def empty(*arguments, **options):
            out = make_empty(*arguments, **options)
            return out.fill_(float("nan") if out.is_floating_point() else torch.iinfo(out.dtype).max)

        return empty

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poison(getattr(torch, name)))


# Worked by hand


@pytest.mark.parametrize("backend", BACKENDS)
def test_policy_loss_by_hand(backend):
    # One rollout of two turns: ratios 1.5 and 0.5 with advantage 1, then 2 and 0.5 with advantage -1.
    ratios = torch.tensor([[9.0, 1.5, 0.5, 9.0, 2.0, 0.5, 9.0]], dtype=torch.float64)
    zero = torch.zeros_like(ratios)
    batch = Batch(ratios.log(), zero, torch.tensor([1.0, -1.0]), torch.tensor([[1, 3], [4, 6]]),
                  torch.tensor([0, 2]), zero, zero, None)  # fmt: skip
    (found, grad) = run(batch, backend, ref=False)
    # -min(1.5, 1.2), -0.5, 2, -min(-0.5, -0.8): the sum is 1.1, the mean of four 0.275.
    assert found.loss.item() == pytest.approx((-1.2 - 0.5 + 2.0 + 0.8) / 4, abs=1e-15)
    # The slope of s in log s is s; clipped tokens have none.
    expected = torch.tensor([[0, 0, -0.5, 0, 2.0, 0, 0]], dtype=torch.float64) / 4
    torch.testing.assert_close(grad, expected, rtol=1e-14, atol=0)
    assert {k: v.item() for k, v in found.metrics.items()} == pytest.approx(
        {
            "policy_loss": 0.275,
            "clip_fraction_low": 0.25,
            "clip_fraction_high": 0.25,
            "clip_fraction_dual": 0.0,
            "ratio_mean": 4.5 / 4,
            "ratio_min": 0.5,
            "ratio_max": 2.0,
            "approx_kl_old": (4.5 - 4 - math.log(1.5 * 0.5 * 2 * 0.5)) / 4,
        },
        abs=1e-14,
    )
    # A dual clip of 1.7 holds the third token.
    (found, grad) = run(batch, backend, ref=False, dual_clip=1.7, aggregation="token_mean")
    assert found.loss.item() == pytest.approx((-1.2 - 0.5 + 1.7 + 0.8) / 4, abs=1e-15)
    assert grad.nonzero().tolist() == [[0, 2]]
    assert found.metrics["clip_fraction_dual"].item() == 0.25


@pytest.mark.parametrize("backend", BACKENDS)
def test_policy_loss_turn_and_sequence_ratio_by_hand(backend):
    # Turn ratios: exp((ln 4 + 0) / 2) = 2 and exp(ln 0.5) = 0.5; of the rollout: exp(ln(4 * 0.5) / 3).
    lr = torch.tensor([[4.0, 1.0, 0.5]], dtype=torch.float64).log()
    zero = torch.zeros_like(lr)
    batch = Batch(lr, zero, torch.tensor([-1.0, 3.0]), torch.tensor([[0, 2], [2, 3]]), torch.tensor([0, 2]),
                  zero, torch.tensor([[4.0, 2.0, 1.0]], dtype=torch.float64).log().neg(), None)  # fmt: skip
    found, grad = run(
        batch, backend, ref=False, ratio="turn", max_tokens=10, aggregation="sequence_mean_token_sum"
    )
    assert found.loss.item() == pytest.approx((2 + 2 - 1.5) / 10, abs=1e-15)
    torch.testing.assert_close(
        grad, torch.tensor([[0.2, 0.2, -0.15]], dtype=torch.float64), rtol=1e-14, atol=0
    )
    found, grad = run(batch, backend, ref=False, ratio="sequence", epsilon_high=1.0)
    s = 2 ** (1 / 3)
    assert found.loss.item() == pytest.approx((s + s - 3 * s) / 3, abs=1e-15)
    torch.testing.assert_close(grad, torch.full((1, 3), -s / 9, dtype=torch.float64), rtol=1e-14, atol=0)
    # Importance weights 4, 2, 1, at most 3: the turns weigh 5 and 1.
    found, grad = run(batch, backend, ref=False, ratio="turn", rollout=True, rollout_cap=3.0, normalizer=2.0)
    assert found.loss.item() == pytest.approx((5 * 2 - 1.5) / 6, abs=1e-15)
    expected = torch.tensor([[5.0, 5.0, -1.5]], dtype=torch.float64) / 6
    torch.testing.assert_close(grad, expected, rtol=1e-14, atol=0)
    assert found.metrics["rollout_weight_mean"].item() == pytest.approx(2.0)
    assert found.metrics["rollout_truncated_fraction"].item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("kl", "value", "slope"),
    [("k1", -0.5, 1.0), ("k2", 0.125, -0.5), ("k3", math.exp(0.5) - 1.5, 1 - math.exp(0.5))],
)
def test_policy_loss_kl_by_hand(backend, kl, value, slope):
    x = torch.full((2, 3), -1.0, dtype=torch.float64)
    batch = Batch(
        x, x, torch.zeros(2), torch.tensor([[0, 2], [2, 3]]), torch.tensor([0, 1, 2]), x + 0.5, x, None
    )
    found, grad = run(batch, backend, kl=kl, beta=0.3)
    assert found.loss.item() == pytest.approx(0.3 * value, abs=1e-15)
    assert found.metrics["kl"].item() == pytest.approx(value, abs=1e-15)
    assert found.metrics["kl_loss"].item() == pytest.approx(0.3 * value, abs=1e-15)
    assert found.metrics["policy_loss"].item() == 0
    expected = torch.tensor([[0.25, 0.25, 0], [0, 0, 0.5]], dtype=torch.float64) * 0.3 * slope
    torch.testing.assert_close(grad, expected, rtol=1e-13, atol=0)


# The reference against oracles


@pytest.mark.parametrize("backend", BACKENDS)
def test_policy_loss_equals_plain_torch_on_the_scattered_tensor(backend):
    batch = make(RAGGED, 64, seed=1)
    x = batch.logps.clone().requires_grad_()
    loss = plain_torch(batch, x, dtype=torch.float64)
    loss.backward()
    found, grad = run(batch, backend, beta=0.04)
    torch.testing.assert_close(found.loss, loss.detach(), rtol=1e-13, atol=1e-15)
    torch.testing.assert_close(grad, x.grad, rtol=1e-12, atol=1e-16)


OPTIONS = [
    {"ratio": ratio, "aggregation": aggregation, "kl": kl, "rollout": rollout}
    for (ratio, aggregation), (kl, rollout) in itertools.product(
        itertools.product(RATIOS, AGGREGATIONS), (("k1", True), ("k2", False), ("k3", True))
    )
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda x: "-".join(str(v) for v in x.values()))
def test_policy_loss_reference_equals_the_loop(options):
    batch = make(RAGGED, 64, seed=2, spread=0.8)
    cap = 1.4 if options["rollout"] else None
    expected, metrics = loop(batch, beta=0.1, dual=1.5, cap=cap, low=0.1, high=0.3, max_tokens=50, **options)
    found, grad = run(batch, "reference", beta=0.1, dual_clip=1.5, rollout_cap=cap, epsilon_low=0.1,
                      epsilon_high=0.3, max_tokens=50, **options)  # fmt: skip
    assert found.loss.item() == pytest.approx(expected, rel=1e-12)
    for name, value in metrics.items():
        assert found.metrics[name].item() == pytest.approx(value, rel=1e-12, abs=1e-15), name
    # A step along one coordinate moves the loop's loss as the gradient says.
    for b, t in ((0, 2), (3, 30), (4, 8)):
        h, sides = 1e-6, []
        for sign in (1, -1):
            moved = batch.logps.clone()
            moved[b, t] += sign * h
            sides.append(loop(batch._replace(logps=moved), beta=0.1, dual=1.5, cap=cap, low=0.1, high=0.3,
                              max_tokens=50, **options)[0])  # fmt: skip
        assert grad[b, t].item() == pytest.approx((sides[0] - sides[1]) / (2 * h), rel=1e-5, abs=1e-9)


# Every backend against the reference


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda x: "-".join(str(v) for v in x.values()))
def test_policy_loss_backends_equal_the_reference(backend, options, poisoned):
    batch = make(RAGGED, 64, seed=3, spread=0.8)
    cap = 1.4 if options["rollout"] else None
    more = {"beta": 0.1, "dual_clip": 1.5, "rollout_cap": cap, "max_tokens": 50, **options}
    assert_close(run(batch, backend, **more), run(batch, "reference", **more))


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("width", [0, 1, 31, 32, 33, 39, 40, 41, 81])
@pytest.mark.parametrize("ratio", RATIOS)
def test_policy_loss_at_block_edges(backend, width, ratio, poisoned):
    spans = [[(0, width)], [(0, width // 3), (width // 2, width)], [], [(width, width)]]
    batch = make(spans, width, seed=width)
    more = {"beta": 0.1, "ratio": ratio, "rollout": True, "rollout_cap": 1.5}
    found = run(batch, backend, **more)
    assert_close(found, run(batch, "reference", **more))
    assert math.isfinite(found[0].loss)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", [torch.int64, torch.int32])
@pytest.mark.parametrize("ratio", RATIOS)
def test_policy_loss_packed_equals_padded(backend, kind, ratio, poisoned):
    lengths = [64, 5, 0, 64, 63, 64]
    spans = [RAGGED[0], [], [(0, 0)], RAGGED[3], RAGGED[4], RAGGED[5]]
    padded = make(spans, 64, seed=4)
    inside = torch.arange(64)[None] < torch.tensor(lengths)[:, None]
    flat = [x[inside] for x in (padded.logps, padded.old_logps, padded.ref_logps, padded.rollout_logps)]
    rows = torch.tensor(np.concatenate([[0], np.cumsum(lengths)])).to(kind)
    packed = Batch(*flat[:2], *padded[2:5], *flat[2:], rows)
    more = {"beta": 0.1, "ratio": ratio, "rollout": True}
    (a, grad_a), (b, grad_b) = run(packed, backend, **more), run(padded, backend, **more)
    assert (grad_b[~inside] == 0).all()
    assert_close((a, grad_a), (b, grad_b[inside]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("packed", [False, True])
def test_policy_loss_takes_tensors_that_are_not_contiguous(backend, packed):
    batch = make([[(0, 5), (9, 20)]], 20, seed=4, lengths=[20] if packed else None)
    spread = []
    for x in (*batch[:2], *batch[5:7]):
        wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), math.nan, dtype=x.dtype)
        wide[..., ::2] = x
        spread.append(wide[..., ::2])
    loose = Batch(*spread[:2], *batch[2:5], *spread[2:], batch.cu_seqlens)
    assert not loose.old_logps.is_contiguous()
    assert_close(
        run(loose, backend, beta=0.1, rollout=True), run(batch, backend, beta=0.1, rollout=True), tol=0
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("spans", [[], [[]], [[], []], [[(2, 2)], [(0, 0), (5, 5)]]])
def test_policy_loss_without_own_tokens_is_zero(backend, ratio, spans, poisoned):
    for aggregation, normalizer in itertools.product(AGGREGATIONS, (None, 0.0, 7.0)):
        batch = make(spans, 5, advantages=[math.nan] * sum(len(x) for x in spans))
        more = {"aggregation": aggregation, "normalizer": normalizer, "max_tokens": 9, "rollout_cap": 2.0}
        found, grad = run(batch, backend, ratio=ratio, beta=0.1, rollout=True, **more)
        assert found.loss.item() == 0
        assert grad.shape == batch.logps.shape
        assert (grad == 0).all()
        ones = {"ratio_mean", "ratio_min", "ratio_max"}
        assert {k: v.item() for k, v in found.metrics.items()} == {k: float(k in ones) for k in found.metrics}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_policy_loss_outside_spans_counts_for_nothing(backend, ratio, bad, poisoned):
    batch = make(RAGGED, 64, seed=5)
    outside = torch.tensor(dense(batch)[1] < 0)
    spoilt = [x.masked_fill(outside, bad) for x in (batch.logps, batch.old_logps, *batch[5:7])]
    other = batch._replace(logps=spoilt[0], old_logps=spoilt[1], ref_logps=spoilt[2], rollout_logps=spoilt[3])
    more = {"beta": 0.1, "ratio": ratio, "rollout": True, "rollout_cap": 1.5}
    clean, found = run(batch, backend, **more), run(other, backend, **more)
    assert_close(found, clean, tol=0)
    assert (found[1][outside] == 0).all()
    assert (found[1][~outside] != 0).any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ratio", RATIOS)
def test_policy_loss_nan_in_an_own_token_is_not_hidden(backend, ratio):
    batch = make([[(0, 4)], [(1, 3)]], 6, seed=6, spread=0.01)
    batch.logps[0, 2] = math.nan
    found, grad = run(batch, backend, ratio=ratio, ref=False)
    assert math.isnan(found.loss)
    assert math.isnan(found.metrics["ratio_mean"])
    assert math.isnan(grad[0, 2])
    assert torch.isfinite(grad[1]).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_policy_loss_of_an_infinite_ratio_is_its_limit(backend, dtype):
    # Clipped on its side it has a bounded term and no slope; the other way round it is infinite.
    far = torch.tensor([[1000.0, -1000.0]], dtype=dtype)
    batch = make([[(0, 2)]], 2, dtype=dtype)._replace(logps=far, old_logps=torch.zeros_like(far))
    for a, options, loss in ((1.0, {}, -0.6), (-1.0, {"dual_clip": 3.0}, 1.9), (-1.0, {}, math.inf)):
        found, grad = run(batch._replace(turn_advantages=torch.tensor([a])), backend, ref=False, **options)
        assert found.loss.item() == pytest.approx(loss, rel=1e-6)
        assert grad.tolist() == ([[0.0, 0.0]] if math.isfinite(loss) else [[math.inf, 0.0]])
        assert found.metrics["ratio_max"].item() == math.inf
        assert found.metrics["ratio_min"].item() == 0


# Options


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ratio", RATIOS)
def test_policy_loss_without_beta_equals_no_reference_model(backend, ratio):
    batch = make(RAGGED, 64, seed=7)
    expected, grad = run(batch, backend, ratio=ratio, ref=False)
    broken = batch._replace(ref_logps=torch.full_like(batch.logps, math.nan))
    found, other = run(broken, backend, ratio=ratio)
    assert torch.equal(found.loss, expected.loss)
    assert torch.equal(other, grad)
    assert "kl" not in expected.metrics
    assert math.isnan(found.metrics["kl"])
    watched, _ = run(batch, backend, ratio=ratio)
    assert watched.metrics["kl"].item() == pytest.approx(loop(batch)[1]["kl"], rel=1e-12)
    assert watched.metrics["kl_loss"].item() == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_policy_loss_micro_batches_add_up_with_a_normalizer(backend, aggregation):
    batch = make(RAGGED, 64, seed=8)
    more = {"aggregation": aggregation, "beta": 0.1, "max_tokens": 30}
    whole, grad = run(batch, backend, **more)
    own = sum(z - a for rollout in RAGGED for a, z in rollout)
    count = own if aggregation == "token_mean" else len(RAGGED)
    losses, grads = [], []
    for k, rows in enumerate((slice(0, 2), slice(2, 3), slice(3, 6))):
        turns = slice(int(batch.offsets[rows.start]), int(batch.offsets[rows.stop]))
        part = Batch(
            batch.logps[rows], batch.old_logps[rows], batch.turn_advantages[turns], batch.spans[turns],
            batch.offsets[rows.start : rows.stop + 1] - batch.offsets[rows.start],
            batch.ref_logps[rows], batch.rollout_logps[rows], None,
        )  # fmt: skip
        given_count = float(count) if k else torch.tensor(count, device=device_of(backend))
        found, g = run(part, backend, normalizer=given_count, **more)
        losses.append(found.loss)
        grads.append(g)
    torch.testing.assert_close(sum(losses), whole.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.cat(grads), grad, rtol=1e-12, atol=1e-18)


@pytest.mark.parametrize("backend", BACKENDS)
def test_policy_loss_multiplies_the_gradient_by_that_of_the_loss(backend):
    batch = make(RAGGED, 64, seed=9)
    _, one = run(batch, backend)
    _, three = run(batch, backend, grad_of_loss=3.0)
    torch.testing.assert_close(three, 3 * one, rtol=1e-15, atol=0)
    assert (one != 0).any()
    x = batch.logps.to(device_of(backend))
    moved = Batch(*(v if v is None else v.to(x.device) for v in batch))
    found = policy_loss(x, *moved[1:5], backend=backend)
    assert not found.loss.requires_grad
    assert not any(v.requires_grad for v in found.metrics.values())


@pytest.mark.parametrize("backend", FUSED)
def test_policy_loss_backward_twice_gives_the_same(backend):
    batch = Batch(*(v if v is None else v.to(device_of(backend)) for v in make(RAGGED, 64, seed=9)))
    x = batch.logps.clone().requires_grad_()
    loss = policy_loss(x, *batch[1:5], backend=backend).loss
    first, second = (torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, torch.zeros_like(first))


# Properties


@st.composite
def batches(draw):
    """A padded batch of few rollouts, with gaps, empty turns and turns that touch."""
    width = draw(st.integers(1, 50))
    spans = []
    for _ in range(draw(st.integers(1, 4))):
        edges = sorted(draw(st.lists(st.integers(0, width), max_size=8)))
        spans.append(list(zip(edges[::2], edges[1::2], strict=False)))
    turns = sum(len(x) for x in spans)
    values = draw(st.lists(st.sampled_from([-2.0, -0.5, 0.0, 1.0, 3.0]), min_size=turns, max_size=turns))
    return make(spans, width, seed=draw(st.integers(0, 99)), advantages=values)


options = st.fixed_dictionaries(
    {
        "ratio": st.sampled_from(RATIOS),
        "aggregation": st.sampled_from(AGGREGATIONS),
        "kl": st.sampled_from(["k1", "k2", "k3"]),
        "beta": st.sampled_from([0.0, 0.2]),
        "dual_clip": st.sampled_from([None, 1.3]),
        "epsilon_low": st.sampled_from([0.0, 0.2, 1.0]),
        "epsilon_high": st.sampled_from([0.0, 0.28]),
        "rollout": st.booleans(),
        "max_tokens": st.just(20),
    }
)


@pytest.mark.parametrize("backend", FUSED)
@given(batch=batches(), options=options)
def test_policy_loss_backends_equal_the_reference_anywhere(backend, batch, options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(on_gpu, "BLOCK", 16)
        patch.setattr(cpu, "WINDOW", 24)
        assert_close(run(batch, backend, **options), run(batch, "reference", **options))


@given(batch=batches(), options=options, random=st.randoms(use_true_random=False))
def test_policy_loss_follows_a_permutation_of_the_rollouts(batch, options, random):
    order = list(range(len(batch.offsets) - 1))
    random.shuffle(order)
    turns = [k for b in order for k in range(int(batch.offsets[b]), int(batch.offsets[b + 1]))]
    counts = (batch.offsets[1:] - batch.offsets[:-1])[order]
    moved = Batch(
        batch.logps[order], batch.old_logps[order], batch.turn_advantages[turns], batch.spans[turns],
        torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]),
        batch.ref_logps[order], batch.rollout_logps[order], None,
    )  # fmt: skip
    (a, grad_a), b = run(batch, "numba", **options), run(moved, "numba", **options)
    assert_close(b, (a, grad_a[order]))


@given(batch=batches(), options=options)
def test_policy_loss_of_one_ratio_a_token_each_is_all_levels(batch, options):
    # Where a turn is one token, and a rollout one turn, the levels are the same thing.
    single = [[(b, b + 1)] for b in range(min(3, batch.logps.shape[1]))]
    small = make(single, batch.logps.shape[1], seed=int(batch.offsets[-1]))
    options = {k: v for k, v in options.items() if k != "ratio"}
    for backend in ("numba", "reference"):
        token, turn, sequence = (run(small, backend, ratio=ratio, **options) for ratio in RATIOS)
        assert_close(turn, token)
        assert_close(sequence, token)


# Determinism


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_policy_loss_does_not_depend_on_threads(ratio, dtype):
    batch = make(RAGGED * 5, 64, seed=10, dtype=dtype)
    more = {"ratio": ratio, "beta": 0.1, "rollout": True}
    one = run(batch, "numba", num_threads=1, **more)
    for threads in (2, 3, 64):
        assert_close(run(batch, "numba", num_threads=threads, **more), one, tol=0)


@pytest.mark.parametrize("backend", FUSED)
def test_policy_loss_is_the_same_each_time(backend):
    batch = make(RAGGED, 64, seed=11, dtype=torch.float32)
    assert_close(run(batch, backend, beta=0.1), run(batch, backend, beta=0.1), tol=0)


# Derivatives, torch.compile, checkpointing


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ratio", RATIOS)
def test_policy_loss_gradcheck(backend, ratio):
    batch = make([[(0, 3), (4, 7)], [(1, 2)], []], 8, seed=12)
    batch = Batch(*(v if v is None else v.to(device_of(backend)) for v in batch))

    def loss(x):
        return policy_loss(
            x, *batch[1:5], ref_logps=batch.ref_logps, rollout_logps=batch.rollout_logps, rollout_cap=1.5,
            beta=0.2, ratio=ratio, dual_clip=1.5, backend=backend,
        ).loss  # fmt: skip

    assert torch.autograd.gradcheck(loss, (batch.logps.clone().requires_grad_(),), atol=1e-7)


@pytest.mark.parametrize("needs_grad", [True, False])
@pytest.mark.parametrize("ratio", RATIOS)
def test_policy_loss_ops_are_registered_soundly(needs_grad, ratio):
    batch = make(RAGGED, 64, seed=13, dtype=torch.float32)
    values = {
        "epsilon_low": 0.2, "epsilon_high": 0.2, "dual_clip": None, "beta": 0.1, "kl": "k3", "ratio": ratio,
        "aggregation": "token_mean", "max_tokens": None, "rollout_cap": None, "needs_grad": needs_grad,
        "validate": True, "threads": 1, "backend": "numba",
    }  # fmt: skip
    x = batch.logps.clone().requires_grad_(needs_grad)
    tensors = (x, batch.old_logps, batch.ref_logps, None, batch.turn_advantages, batch.spans, batch.offsets)
    torch.library.opcheck(autograd.forward, (*tensors, None, None), values)
    factor = torch.tensor(2.0, dtype=torch.float64)
    torch.library.opcheck(autograd.backward, (batch.logps, factor, "numba"))


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_policy_loss_compiles_as_one_graph(backend):
    batch = make(RAGGED, 64, seed=14, dtype=torch.float32)

    def loss(x):
        found = policy_loss(x * 1.5, *batch[1:5], ref_logps=batch.ref_logps, beta=0.1, backend=backend)
        return found.loss, found.metrics["kl"]

    x, y = (batch.logps.clone().requires_grad_() for _ in range(2))
    plain, kl = loss(x)
    plain.backward()
    torch._dynamo.reset()
    compiled, kl_compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(y)
    compiled.backward()
    torch.testing.assert_close(compiled, plain)
    torch.testing.assert_close(kl_compiled, kl)
    torch.testing.assert_close(y.grad, x.grad, rtol=1e-5, atol=1e-7)
    assert (y.grad != 0).any()


@pytest.mark.parametrize("reentrant", [True, False])
def test_policy_loss_can_be_checkpointed_under_autocast(reentrant):
    from torch.utils.checkpoint import checkpoint

    batch = make(RAGGED, 64, seed=15, dtype=torch.float32)

    def loss(x):
        return policy_loss(torch.log_softmax(x, -1), *batch[1:5], ref_logps=batch.ref_logps, beta=0.1).loss

    grads = []
    for wrapped in (loss, lambda x: checkpoint(loss, x, use_reentrant=reentrant)):
        x = batch.logps.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            found = wrapped(x)
        found.backward()
        assert found.dtype == torch.float32
        grads.append(x.grad)
    assert torch.equal(*grads)
    assert (grads[0] != 0).any()


def test_policy_loss_runs_in_inference_mode():
    batch = make(RAGGED, 64, seed=15, dtype=torch.bfloat16)
    with torch.inference_mode():
        found = policy_loss(*batch[:5], num_threads=2)
    assert found.loss.item() == pytest.approx(run(batch, "numba")[0].loss.item())


# Low precision


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_policy_loss_error_is_at_most_twice_that_of_plain_torch(backend, dtype):
    batch = make([[(3, 30), (31, 200)], [(0, 150)], [(100, 200)]], 200, seed=16, dtype=dtype, spread=0.1)
    truth_of = Batch(*(v.double() if v is not None and v.is_floating_point() else v for v in batch))
    exact, exact_grad = run(truth_of, "reference", beta=0.04)
    x = batch.logps.clone().requires_grad_()
    plain = plain_torch(batch, x, dtype=dtype)
    plain.backward()
    found, grad = run(batch, backend, beta=0.04)
    assert found.loss.dtype == torch.float32
    assert grad.dtype == dtype
    # Rounding the result alone costs up to half of this.
    rounding = torch.finfo(dtype).eps * exact_grad.abs().max()
    for norm in (lambda e: e.abs().max(), lambda e: e.abs().mean()):
        ours, theirs = norm(grad.double() - exact_grad), norm(x.grad.double() - exact_grad)
        assert ours <= 2 * theirs
        assert ours <= rounding
    assert (found.loss.double() - exact.loss).abs() <= 2 * (plain.detach().double() - exact.loss).abs() + 1e-8


@pytest.mark.parametrize("backend", FUSED)
def test_policy_loss_float16_gradient_survives_until_the_loss_scale(backend):
    # A hundredth over 256,000 tokens is 4e-8: float16 has no number between it and 0.
    count = 256_000.0
    batch = make([[(0, 40)]], 40, seed=17, dtype=torch.float16, spread=0.1, advantages=[0.01])
    wide = Batch(*(v.double() if v is not None and v.is_floating_point() else v for v in batch))
    more = {"aggregation": "token_mean", "normalizer": count, "ref": False, "grad_of_loss": 65536.0}
    (_, found), (_, exact) = run(batch, backend, **more), run(wide, "reference", **more)
    torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=0)
    assert (found != 0).sum() > 30


@pytest.mark.parametrize("backend", FUSED)
def test_policy_loss_takes_mixed_dtypes(backend):
    batch = make(RAGGED, 64, seed=18, dtype=torch.float32)
    mixed = batch._replace(ref_logps=batch.ref_logps.bfloat16(), old_logps=batch.old_logps.double())
    rounded = batch._replace(ref_logps=batch.ref_logps.bfloat16().float())
    for ratio in RATIOS:
        assert_close(
            run(mixed, backend, beta=0.1, ratio=ratio), run(rounded, backend, beta=0.1, ratio=ratio), 0
        )


def test_numba_exp_is_exact_to_two_units():
    from numba import njit

    function = on_cpu._exp

    @njit
    def values(x):
        out = np.empty((2, len(x)), x.dtype)
        for i in range(len(x)):
            out[0, i], out[1, i] = function(x[i])
        return out

    x = np.concatenate([np.linspace(-87, 88.5, 40_001), np.linspace(-0.5, 0.5, 10_001)]).astype(np.float32)
    e, k3 = values(x).astype(np.float64)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(e, np.exp(wide), rtol=2 * 2.0**-23)
    np.testing.assert_allclose(k3, np.expm1(wide) - wide, rtol=1e-5, atol=1e-20)
    special = values(np.array([np.nan, np.inf, -np.inf, 89, -88, 0], np.float32))[0]
    np.testing.assert_array_equal(special, np.array([np.nan, np.inf, 0, np.inf, 0, 1], np.float32))
    np.testing.assert_array_equal(values(np.array([0.25, np.nan]))[0], [math.exp(0.25), np.nan])


# Which backend runs


@pytest.mark.parametrize(("name", "module"), [("numba", on_cpu), ("triton", on_gpu)])
def test_policy_loss_runs_on_the_backend_that_was_asked_for(name, module, monkeypatch):
    seen = []
    for part in ("tokens", "turn_sums", "scale"):
        call = getattr(module, part)

        def spy(*arguments, part=part, call=call):
            seen.append(part)
            return call(*arguments)

        monkeypatch.setattr(module, part, spy)
    batch = make(RAGGED, 64)
    run(batch, name)
    run(batch, name, ratio="turn")
    assert seen == ["tokens", "scale", "turn_sums", "tokens", "scale"]
    run(batch, "reference")
    assert len(seen) == 5
    monkeypatch.setenv("MATCHTIR_BACKEND", name)
    run(batch, None) if device_of(name) == "cpu" else run(batch, name)
    assert len(seen) == 7


def test_policy_loss_runs_on_numba_for_cpu_tensors_by_itself(monkeypatch):
    assert autograd.choose(None, "cpu") == "numba"
    seen = []
    monkeypatch.setattr(on_cpu, "tokens", lambda *a, run=on_cpu.tokens: seen.append(1) or run(*a))
    run(make(RAGGED, 64), None)
    assert seen == [1]


def test_policy_loss_refuses_backends_that_are_not_there(monkeypatch):
    batch = make(RAGGED, 64)
    with pytest.raises(ConfigError, match="op policy_loss has no backend 'native'"):
        run(batch, "native")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    if not CUDA:
        with pytest.raises(BackendError, match="'triton' of op policy_loss does not take data on cpu"):
            run(batch, "triton")


def test_triton_kernels_name_their_types():
    assert set(on_gpu.SIGNATURES) == {"token_kernel", "turn_kernel", "scale_kernel"}
    for name, variants in on_gpu.SIGNATURES.items():
        for types, constants in variants:
            assert list(types) == getattr(on_gpu, name).arg_names
            assert {k for k, v in types.items() if v == "constexpr"} == set(constants)
    assert os.environ.get("TRITON_INTERPRET") == "1" or CUDA


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon_low": -0.1}, "epsilon_low is -0.1; expected a number from 0 on"),
        ({"epsilon_high": math.nan}, "epsilon_high is nan; expected"),
        ({"epsilon_high": True}, "epsilon_high is True; expected"),
        ({"dual_clip": 1.0}, "dual_clip is 1.0; expected a number above 1"),
        ({"beta": -1}, "beta is -1; expected"),
        ({"beta": 0.1, "ref": False}, "beta is 0.1 but ref_logps was not given"),
        ({"rollout_cap": 2.0}, "rollout_cap is 2.0 but rollout_logps was not given"),
        ({"rollout_cap": 0, "rollout": True}, "rollout_cap is 0; expected a number above 0"),
        ({"kl": "k4"}, "kl is 'k4'; expected one of k1, k2, k3"),
        ({"ratio": "tokens"}, "ratio is 'tokens'; expected one of token, turn, sequence"),
        ({"aggregation": "mean"}, "aggregation is 'mean'; expected one of token_mean, sequence"),
        ({"aggregation": "sequence_mean_token_sum"}, "max_tokens is None; aggregation"),
        (
            {"aggregation": "sequence_mean_token_sum", "max_tokens": 0},
            "max_tokens is 0; expected a number above",
        ),
        ({"normalizer": -1.0}, "normalizer is -1.0; expected"),
        ({"num_threads": 0}, "num_threads is 0; expected"),
    ],
)
def test_policy_loss_refuses_impossible_settings(options, message):
    with pytest.raises(ConfigError, match=message):
        run(make(RAGGED, 64), "numba", **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logps": torch.zeros(6, 64, dtype=torch.int64)}, "logps is torch.int64; expected float64"),
        ({"logps": torch.zeros(6)}, r"logps has shape \(6,\); expected \(B, T\), or cu_seqlens"),
        (
            {"old_logps": torch.zeros(6, 63)},
            r"old_logps has shape \(6, 63\); expected that of logps, \(6, 64\)",
        ),
        ({"ref_logps": torch.zeros(384)}, r"ref_logps has shape \(384,\)"),
        ({"rollout_logps": np.zeros((6, 64))}, "rollout_logps is a ndarray; expected a tensor"),
        ({"old_logps": None}, "old_logps is a NoneType; expected a tensor"),
        ({"turn_advantages": torch.zeros(3)}, r"turn_advantages has shape \(3,\); expected \(12,\)"),
        ({"spans": torch.zeros(12, 2)}, "spans is torch.float32; expected int64"),
        ({"spans": torch.zeros(12, 3, dtype=torch.int64)}, r"spans has shape \(12, 3\); expected \(N, 2\)"),
        (
            {"offsets": torch.zeros(6, dtype=torch.int64)},
            r"offsets has shape \(6,\); expected \(7,\) for 6 rollo",
        ),
        ({"offsets": torch.zeros(7, dtype=torch.int32)}, "offsets is torch.int32; expected int64"),
        (
            {"offsets": torch.tensor([0, 4, 4, 6, 7, 11, 11])},
            r"offsets must rise from 0 to 12; got \[0, 4",
        ),
        ({"offsets": torch.tensor([0, 4, 3, 6, 7, 11, 12])}, "offsets must rise from 0 to 12"),
        ({"cu_seqlens": torch.zeros(7, dtype=torch.int64)}, r"expected \(total,\) with cu_seqlens"),
    ],
)
def test_policy_loss_refuses_tensors_that_do_not_fit(change, message):
    b = make(RAGGED, 64)._replace(**change)
    for backend in ("numba", "reference"):
        with pytest.raises(InputError, match=message):
            policy_loss(*b[:5], cu_seqlens=b.cu_seqlens, ref_logps=b.ref_logps, rollout_logps=b.rollout_logps,
                        backend=backend)  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("spans", "message"),
    [
        (
            [[(0, 4)], [(2, 9)]],
            r"spans\[1\] = \[2, 9\) \(rollout 1, turn 0\) does not fit; expected 0 <= start <= end <= 8",
        ),
        ([[(0, 4), (-1, 3)]], r"spans\[1\] = \[-1, 3\) \(rollout 0, turn 1\)"),
        ([[(5, 4)]], r"spans\[0\] = \[5, 4\)"),
        ([[(0, 4), (5, 5), (3, 6)]], r"spans\[2\] = \[3, 6\) \(rollout 0, turn 2\) starts before"),
    ],
)
def test_policy_loss_refuses_spans_that_do_not_fit(backend, spans, message):
    with pytest.raises(InputError, match=message):
        run(make(spans, 8), backend, validate=True)


@pytest.mark.parametrize("rows", [[0, 4, 9], [1, 4, 8], [0, 9, 8]])
def test_policy_loss_refuses_cu_seqlens_that_do_not_fit(rows):
    batch = make([[(0, 2)], [(0, 2)]], 0, lengths=[4, 4])._replace(cu_seqlens=torch.tensor(rows))
    with pytest.raises(InputError, match="cu_seqlens must rise from 0 to 8"):
        run(batch, "numba")


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("ratio", RATIOS)
def test_policy_loss_unchecked_spans_stay_inside_their_rows(backend, ratio, poisoned):
    big = 2**62
    for spans in (
        [[(-5, 30)], [(12, 99)]],
        [[(-big, big)], [(big, -big), (30, 40)]],
        [[(8, 20)], [(-3, -1)]],
    ):
        batch = make(spans, 16, seed=19)
        cut = [[(min(max(a, 0), 16), min(max(z, 0), 16)) for a, z in rollout] for rollout in spans]
        cut = [[(a, max(a, z)) for a, z in rollout] for rollout in cut]
        expected = run(make(cut, 16, seed=19), "reference", ratio=ratio)
        assert_close(run(batch, backend, ratio=ratio, validate=False), expected)
    # Offsets and rows that make no sense: whatever comes out, nothing is written elsewhere.
    batch = make([[(0, 9), (4, 6)], [(3, 16)]], 0, lengths=[16, 16], seed=20)
    for offsets, rows in (
        ([0, big, -big], [0, 16, 32]),
        ([2, 1, 3], [-big, 40, 5]),
        ([0, 2, 3], [0, big, 32]),
    ):
        wild = batch._replace(offsets=torch.tensor(offsets), cu_seqlens=torch.tensor(rows))
        _, grad = run(wild, backend, ratio=ratio, validate=False)
        assert grad.shape == (32,)
        assert torch.isfinite(grad).all()


def test_layout_moves_empty_turns_to_the_end_of_the_one_before():
    spans = torch.tensor([[9, 9], [1, 3], [0, 0], [3, 3], [5, 8]])
    place = segments.layout(torch.tensor([0, 10, 20]), 20, spans, torch.tensor([0, 2, 5]))
    assert place.bounds.tolist() == [[0, 0], [1, 3], [3, 3], [3, 3], [15, 18]]
    assert place.rollout_tokens.tolist() == [2, 3]
    first, last = segments.turns_of_blocks(place, 5, 4)
    touched = [
        [k for k in range(a, z) if k in (1, 4)] for a, z in zip(first.tolist(), last.tolist(), strict=True)
    ]
    assert touched == [[1], [], [], [4], [4]]
