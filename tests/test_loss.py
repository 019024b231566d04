"""The loss stage: settings, spans and credit on their way to the ops, and log-probabilities of own tokens."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import matchtir as mt
from matchtir.loss import LossConfig, ModelOutputs, policy_loss, token_logps
from matchtir.types import Ragged

torch = pytest.importorskip("torch")

SPANS = Ragged.from_lists([[(1, 3), (4, 6)], [(2, 5)]], np.int64)
ADVANTAGES = Ragged.from_lists([[1.0, -2.0], [0.5]])


def on_policy(**changes) -> ModelOutputs:
    logps = torch.full((2, 6), -0.5, dtype=torch.float64).requires_grad_()
    return dataclasses.replace(ModelOutputs(logps, SPANS), **changes)


# policy_loss


def test_loss_on_policy_is_worked_by_hand():
    outputs = on_policy()
    found = policy_loss(outputs, ADVANTAGES)
    found.loss.backward()
    # Rollout 0: tokens 1 2 with advantage 1 and 4 5 with -2, mean -0.5; rollout 1: 0.5. Ratio 1 everywhere.
    assert found.loss.item() == pytest.approx(-(-0.5 + 0.5) / 2)
    first = [0, -1 / 8, -1 / 8, 0, 2 / 8, 2 / 8]
    second = [0, 0, -0.5 / 6, -0.5 / 6, -0.5 / 6, 0]
    assert outputs.logps.grad.tolist() == [pytest.approx(first), pytest.approx(second)]
    assert found.metrics["ratio_mean"].item() == 1.0


def test_loss_of_the_reference_preset_averages_over_all_tokens():
    outputs = on_policy()
    policy_loss(outputs, ADVANTAGES, LossConfig.preset("reference")).loss.backward()
    first = [0, -1 / 7, -1 / 7, 0, 2 / 7, 2 / 7]
    second = [0, 0, -0.5 / 7, -0.5 / 7, -0.5 / 7, 0]
    assert outputs.logps.grad.tolist() == [pytest.approx(first), pytest.approx(second)]


def test_loss_settings_reach_the_op():
    shift = torch.tensor([0.6, -0.6, 0.1], dtype=torch.float64)
    old = on_policy().logps.detach() - shift.repeat(2, 2)
    ref = old + 0.3
    config = LossConfig(
        epsilon_low=0.1,
        epsilon_high=0.3,
        dual_clip=1.5,
        beta=0.25,
        kl="k2",
        aggregation="sequence_mean_token_sum",
        max_tokens=10,
        rollout_cap=1.1,
    )
    outputs = on_policy(old_logps=old, ref_logps=ref, rollout_logps=old - 0.2)
    found = policy_loss(outputs, ADVANTAGES, config).loss.item()
    total = 0.0
    for b, (spans, advantages) in enumerate(zip(SPANS, ADVANTAGES, strict=True)):
        for (start, stop), a in zip(spans, advantages, strict=True):
            for t in range(start, stop):
                s = float(torch.exp(-0.5 - old[b, t]))
                policy = -min(s * a, min(max(s, 0.9), 1.3) * a)
                if a < 0:
                    policy = min(policy, 1.5 * -a)
                kl = float(ref[b, t] + 0.5) ** 2 / 2
                total += 1.1 * policy + 0.25 * kl
    assert found == pytest.approx(total / (2 * 10))


@pytest.mark.parametrize("ratio", ["turn", "sequence"])
def test_loss_ratio_level_is_the_mean_over_its_tokens(ratio):
    old = on_policy().logps.detach() - torch.arange(12, dtype=torch.float64).view(2, 6) / 50
    found = policy_loss(on_policy(old_logps=old), ADVANTAGES, LossConfig(ratio=ratio, epsilon_high=9)).metrics
    shift = np.arange(12).reshape(2, 6) / 50
    turns = [shift[0, 1:3], shift[0, 4:6], shift[1, 2:5]]
    if ratio == "sequence":
        turns[0] = turns[1] = np.concatenate(turns[:2])
    means = [np.exp(turn.mean()) for turn in turns]
    assert found["ratio_max"].item() == pytest.approx(max(means))
    assert found["ratio_min"].item() == pytest.approx(min(means))


def test_loss_takes_credit_and_packed_tensors():
    gold = (mt.ToolCall("find", {"city": "Bern"}),)
    wrong = (mt.ToolCall("find", {"city": "Basel"}),)
    rollouts = [
        mt.Trajectory((mt.Turn(calls), mt.Turn(answer="42")), gold, "42", group="q")
        for calls in (gold, wrong)
    ]
    credit = mt.assign_credit(rollouts)
    spans = Ragged.from_lists([[(1, 3), (4, 6)], [(0, 2), (2, 3)]], np.int64)
    padded = torch.randn(2, 6, dtype=torch.float64).requires_grad_()
    packed = torch.cat([padded[0], padded[1, :4]]).detach().requires_grad_()
    by_row = policy_loss(ModelOutputs(padded, spans), credit)
    ends = torch.tensor([0, 6, 10])
    in_one = policy_loss(ModelOutputs(packed, spans, cu_seqlens=ends), credit.turn_advantages)
    by_row.loss.backward()
    in_one.loss.backward()
    assert by_row.loss.item() == pytest.approx(in_one.loss.item())
    assert torch.equal(torch.cat([padded.grad[0], padded.grad[1, :4]]), packed.grad)
    tokens = mt.scatter(credit.turn_advantages, spans, (2, 6), dtype=np.float64)
    own = np.array([4, 3])[:, None]
    assert padded.grad.numpy() == pytest.approx(-tokens / own / 2)


def test_loss_of_micro_batches_adds_up_with_a_normalizer():
    whole = on_policy()
    policy_loss(whole, ADVANTAGES).loss.backward()
    parts = []
    for b in range(2):
        rows = slice(b, b + 1)
        logps = whole.logps.detach()[rows].clone().requires_grad_()
        spans, advantages = (Ragged.from_lists([x[b]]) for x in (SPANS, ADVANTAGES))
        spans = Ragged(spans.values.astype(np.int64), spans.offsets)
        policy_loss(ModelOutputs(logps, spans), advantages, normalizer=2).loss.backward()
        parts.append(logps.grad)
    assert torch.equal(torch.cat(parts), whole.logps.grad)


def test_loss_of_no_rollouts_is_zero():
    logps = torch.zeros(0, 5, requires_grad=True)
    found = policy_loss(ModelOutputs(logps, Ragged.from_lists([])), Ragged.from_lists([]))
    found.loss.backward()
    assert found.loss.item() == 0.0
    assert logps.grad.shape == (0, 5)


def test_loss_refuses_what_does_not_belong_together():
    with pytest.raises(mt.InputError, match="spans of 2 rollouts but turns of 1"):
        policy_loss(on_policy(), Ragged.from_lists([[1.0, 2.0]]))
    with pytest.raises(mt.InputError, match="rollout 1 has 1 spans but 2 turns; expected one span a turn"):
        policy_loss(on_policy(), Ragged.from_lists([[1.0, 2.0], [1.0, 2.0]]))
    with pytest.raises(mt.InputError, match="turns is a list; expected a Ragged"):
        policy_loss(on_policy(), [1.0])
    with pytest.raises(
        mt.InputError, match=r"spans have shape \(3,\) of float64; expected integers \(N, 2\)"
    ):
        policy_loss(on_policy(spans=ADVANTAGES), ADVANTAGES)
    with pytest.raises(mt.ConfigError, match="config is a dict; expected a LossConfig"):
        policy_loss(on_policy(), ADVANTAGES, {"beta": 0.1})
    with pytest.raises(mt.ConfigError, match="ref_logps was not given"):
        policy_loss(on_policy(), ADVANTAGES, LossConfig(beta=0.1))
    far = Ragged.from_lists([[(1, 3), (4, 7)], [(2, 5)]], np.int64)
    with pytest.raises(mt.InputError, match=r"rollout 0, turn 1"):
        policy_loss(on_policy(spans=far), ADVANTAGES)


# LossConfig


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"epsilon_low": 1.5}, r"epsilon_low is 1.5; expected a number in \[0, 1\]"),
        ({"epsilon_high": -0.1}, "epsilon_high is -0.1; expected a number, 0 or more"),
        ({"dual_clip": 1.0}, "dual_clip is 1.0; expected None or a number above 1"),
        ({"beta": float("nan")}, "beta is nan; expected a finite number, 0 or more"),
        ({"beta": True}, "beta is True"),
        ({"kl": "k4"}, "kl is 'k4'; expected one of k1, k2, k3"),
        ({"ratio": "word"}, "ratio is 'word'; expected one of token, turn, sequence"),
        ({"aggregation": "sum"}, "aggregation is 'sum'; expected one of"),
        ({"aggregation": "sequence_mean_token_sum"}, "max_tokens is None and aggregation"),
        ({"max_tokens": 5.0}, "max_tokens is 5.0 and aggregation 'sequence_mean_token_mean'"),
        ({"rollout_cap": 0}, "rollout_cap is 0; expected None or a number above 0"),
        ({"epsilon": 0.2}, "unknown setting 'epsilon'; did you mean 'epsilon_"),
    ],
)
def test_config_refuses_impossible_settings(setting, message):
    with pytest.raises(mt.ConfigError, match=message):
        LossConfig.from_dict(setting)


def test_config_presets():
    assert LossConfig.preset("paper") == LossConfig()
    assert LossConfig.preset("reference", beta=1) == LossConfig(aggregation="token_mean", beta=1.0)
    with pytest.raises(mt.ConfigError, match="preset is 'papre'; expected one of paper, reference"):
        LossConfig.preset("papre")


# token_logps


def test_token_logps_are_those_of_the_whole_softmax():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(7, 5, generator=generator, dtype=torch.float64).requires_grad_()
    bias = torch.randn(7, generator=generator, dtype=torch.float64).requires_grad_()
    tokens = torch.randint(7, (2, 6), generator=generator)
    upstream = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    logps, entropies = token_logps(hidden, weight, tokens, SPANS, bias=bias, temperature=0.7, entropy=True)
    (logps * upstream + entropies).sum().backward()
    found = [x.grad.clone() for x in (hidden, weight, bias)]
    for x in (hidden, weight, bias):
        x.grad = None

    own = torch.tensor([[0, 1, 1, 0, 1, 1], [0, 0, 1, 1, 1, 0]], dtype=torch.bool)
    whole = torch.log_softmax((hidden @ weight.T + bias) / 0.7, -1)[:, :-1]
    expected = torch.zeros(2, 6, dtype=torch.float64)
    expected[:, 1:] = whole.gather(2, tokens[:, 1:, None])[..., 0]
    expected = torch.where(own, expected, 0.0)
    spread = torch.zeros(2, 6, dtype=torch.float64)
    spread[:, 1:] = -(whole.exp() * whole).sum(-1)
    spread = torch.where(own, spread, 0.0)
    (expected * upstream + spread).sum().backward()
    torch.testing.assert_close(logps, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(entropies, spread, rtol=0, atol=1e-12)
    for x, gradient in zip((hidden, weight, bias), found, strict=True):
        torch.testing.assert_close(gradient, x.grad, rtol=0, atol=1e-11)


def test_token_logps_read_nothing_outside_the_spans():
    hidden = torch.full((2, 6, 5), float("nan"), requires_grad=True)
    values = hidden.detach().clone()
    for b, rows in enumerate(SPANS):
        for start, stop in rows:
            values[b, start - 1 : stop - 1] = 0.5
    hidden = values.requires_grad_()
    tokens = torch.full((2, 6), 10**9)  # no word of the vocabulary
    for b, rows in enumerate(SPANS):
        for start, stop in rows:
            tokens[b, start:stop] = 3
    logps, entropies = token_logps(hidden, torch.zeros(7, 5), tokens, SPANS)
    assert entropies is None
    own = torch.tensor([[0, 1, 1, 0, 1, 1], [0, 0, 1, 1, 1, 0]], dtype=torch.bool)
    torch.testing.assert_close(logps, torch.where(own, -torch.tensor(7.0).log(), 0.0))
    assert not logps[~own].any()
    logps.sum().backward()
    assert torch.equal(hidden.grad, torch.zeros_like(hidden))


def test_token_logps_refuses_what_does_not_fit():
    hidden, weight, tokens = torch.zeros(2, 6, 5), torch.zeros(7, 5), torch.zeros(2, 6, dtype=torch.int64)
    with pytest.raises(mt.InputError, match=r"hidden has shape \(2, 5, 5\) and tokens \(2, 6\)"):
        token_logps(hidden[:, :5], weight, tokens, SPANS)
    with pytest.raises(mt.InputError, match="spans of 2 rollouts, but tokens of 1"):
        token_logps(hidden[:1], weight, tokens[:1], SPANS)
    zero = Ragged.from_lists([[(1, 3), (4, 6)], [(0, 5)]], np.int64)
    expected = r"spans\[2\] = \[0, 5\) \(rollout 1, turn 0\) does not fit; expected 1 <= start <= end <= 6"
    with pytest.raises(mt.InputError, match=expected):
        token_logps(hidden, weight, tokens, zero)


def test_token_logps_of_no_own_tokens_are_zero():
    hidden = torch.zeros(2, 6, 5, requires_grad=True)
    spans = Ragged.from_lists([[(0, 0)], []], np.int64)
    logps, _ = token_logps(hidden, torch.zeros(7, 5), torch.zeros(2, 6, dtype=torch.int64), spans)
    assert torch.equal(logps, torch.zeros(2, 6))
    logps.sum().backward()
    assert torch.equal(hidden.grad, torch.zeros_like(hidden))
