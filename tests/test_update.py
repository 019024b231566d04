"""The policy's log-probabilities, and the update's gradient against plain torch on whole logits."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("transformers", reason='the update needs pip install "matchtir[train]"')
pytest.importorskip("deepspeed", reason='the update needs pip install "matchtir[train]"')

import torch
from update_worker import made_up, settings, spoilt, tiny_model, train, with_adapters, zero

from matchtir.errors import ConfigError
from matchtir.ops import policy_loss
from matchtir.train import deepspeed as engines
from matchtir.train.batches import collate
from matchtir.train.policy import PolicyModel, TokenHead
from matchtir.train.update import PATIENCE, Reference, Updater, save_batch
from matchtir.types import Ragged


def batch_of(rollouts, advantages, group, packed):
    return collate(rollouts, advantages, np.ones(len(rollouts)), group, packed)


def by_hand(model, rollout, temperature=1.0):
    """Log-probabilities and entropies of a rollout's tokens from its whole logits, without a batch."""
    tokens = torch.from_numpy(rollout.tokens)
    logits = model(tokens[None]).logits[0, :-1] / temperature
    table = logits.log_softmax(-1)
    entropies = -(table.exp() * table).sum(-1)
    zero = table.new_zeros(1)
    return torch.cat([zero, table.gather(1, tokens[1:, None])[:, 0]]), torch.cat([zero, entropies])


# The policy


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("tied", [True, False])
def test_logps_equal_those_of_whole_logits(packed, tied):
    rollouts, advantages = made_up(count=5)
    plain, policy = tiny_model(tied), PolicyModel(tiny_model(tied))
    batch = batch_of(rollouts, advantages, [3, 0, 4], packed)
    found, entropies = policy(batch, 0.7)
    expected = [by_hand(plain, rollouts[i], 0.7) for i in (3, 0, 4)]
    own = [np.concatenate([np.arange(a, b) for a, b in rollouts[i].spans]) for i in (3, 0, 4)]
    for k, values in enumerate((found, entropies)):
        wanted = torch.cat([pair[k][places] for pair, places in zip(expected, own, strict=True)])
        torch.testing.assert_close(values.flatten()[batch.places], wanted, rtol=1e-4, atol=1e-5)
        outside = torch.ones_like(values.flatten(), dtype=torch.bool)
        outside[batch.places] = False
        assert not values.flatten()[outside].any()


def test_packed_batch_has_no_padding_and_the_same_logps():
    rollouts, advantages = made_up(count=5)
    policy = PolicyModel(tiny_model())
    padded, packed = (batch_of(rollouts, advantages, [0, 1, 2, 4], way) for way in (False, True))
    assert packed.tokens.numel() < padded.tokens.numel()
    a, b = (policy(batch)[0].flatten()[batch.places] for batch in (padded, packed))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_policy_keeps_names_weights_and_logits_of_the_model():
    plain, model = tiny_model(tied=False), tiny_model(tied=False)
    before = model.state_dict()
    policy = PolicyModel(model)
    assert isinstance(model.lm_head, TokenHead)
    assert model.state_dict().keys() == before.keys()
    assert {name for name, _ in policy.named_parameters()} == {
        f"model.{name}" for name, _ in plain.named_parameters()
    }
    tokens = torch.arange(7)[None]
    assert torch.equal(model(tokens).logits, plain(tokens).logits)
    twice = PolicyModel(model)
    assert twice.model.lm_head is model.lm_head


def test_tied_weight_stays_tied():
    policy = PolicyModel(tiny_model(tied=True))
    assert policy.model.lm_head.weight is policy.model.model.embed_tokens.weight
    assert len([1 for name, _ in policy.named_parameters() if "lm_head" in name]) == 0


def test_policy_keeps_the_mode_of_the_model():
    assert PolicyModel(tiny_model().train()).training
    assert not PolicyModel(tiny_model()).eval().training


@pytest.mark.parametrize(
    ("family", "name", "value"),
    [
        ("Gemma2", "final_logit_softcapping", 30.0),
        ("Cohere", "logit_scale", 0.5),
        ("Granite", "logits_scaling", 3.0),
    ],
)
def test_capped_or_scaled_logits_are_refused_by_name(family, name, value):
    import transformers

    config = getattr(transformers, f"{family}Config")(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, pad_token_id=0, bos_token_id=1, eos_token_id=2, **{name: value},
    )  # fmt: skip
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    with pytest.raises(ConfigError, match=f"{family}ForCausalLM has {name}={value}"):
        PolicyModel(model)


def test_logits_that_are_not_the_heads_products_are_refused():
    model = tiny_model()
    whole = model.forward

    def shifted(*args, **kwargs):
        output = whole(*args, **kwargs)
        output.logits = output.logits * 0.5
        return output

    model.forward = shifted
    with pytest.raises(ConfigError, match="are not the products of its output head"):
        PolicyModel(model)


def test_models_without_a_plain_head_are_refused():
    from peft import LoraConfig, get_peft_model

    with pytest.raises(ConfigError, match="Qwen3Model has no output head"):
        PolicyModel(tiny_model().model)
    adapted = get_peft_model(tiny_model(tied=False), LoraConfig(r=2, target_modules=["q_proj", "lm_head"]))
    with pytest.raises(ConfigError, match="Qwen3ForCausalLM has an output head of type Linear"):
        PolicyModel(adapted)


# The gradient


def gradients(config, data, *, model=None):
    """Of every minibatch, by name, what the update hands to the optimiser, which does nothing; metrics."""
    policy = PolicyModel(tiny_model() if model is None else model)
    frozen = Reference(policy, config) if config.loss.beta else None
    engine = engines.initialize(policy, config, 10)
    found = []

    def step():
        found.append({n: p.grad.clone() for n, p in policy.model.named_parameters() if p.grad is not None})
        engine.deepspeed.zero_grad()
        return True

    engine.step = step
    metrics = Updater(engine, config, frozen).update(*data)
    return found, metrics


def expected_gradient(config, rollouts, advantages, model, ref=None):
    """Gradient and metrics of all rollouts as one minibatch, from whole logits, rollout by rollout."""
    loss, count = config.loss, len(rollouts)
    pairs = [by_hand(model, rollout, config.rollout.temperature) for rollout in rollouts]
    width = max(len(rollout) for rollout in rollouts)

    def padded(values):
        return torch.stack([torch.nn.functional.pad(x, (0, width - len(x))) for x in values])

    logps = padded([pair[0] for pair in pairs])
    old = padded([torch.from_numpy(rollout.logps) for rollout in rollouts])
    lengths = [len(rollout.spans) for rollout in rollouts]
    output = policy_loss(
        logps,
        logps.detach() if config.update.old_logps == "recompute" else old,
        torch.from_numpy(advantages.values),
        torch.from_numpy(np.concatenate([rollout.spans for rollout in rollouts])),
        torch.tensor([0, *np.cumsum(lengths)]),
        ref_logps=None if ref is None else padded([by_hand(ref, r)[0].detach() for r in rollouts]),
        beta=loss.beta,
        ratio=loss.ratio,
        aggregation=loss.aggregation,
        max_tokens=loss.max_tokens,
        backend="reference",
    )
    own = [torch.cat([pair[1][a:b] for a, b in r.spans]) for pair, r in zip(pairs, rollouts, strict=True)]
    mean = {
        "token_mean": lambda: torch.cat(own).mean(),
        "sequence_mean_token_mean": lambda: sum(x.mean() for x in own) / count,
        "sequence_mean_token_sum": lambda: sum(x.sum() for x in own) / (count * loss.max_tokens),
    }[loss.aggregation]()
    (output.loss - config.update.entropy * mean).backward()
    parts = {
        "policy_loss": float(output.metrics["policy_loss"]),
        "entropy_loss": -config.update.entropy * float(mean.detach()),
        "entropy": float(torch.cat(own).detach().mean()),
        "approx_kl_old": float(output.metrics["approx_kl_old"]),
    }
    return {name: p.grad for name, p in model.named_parameters()}, parts


def assert_same(found, expected, scale=1e-4):
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        most = float(grad.abs().max())
        torch.testing.assert_close(found[name], grad, rtol=1e-3, atol=max(scale * most, 1e-9), msg=name)


AVERAGES = [
    {"aggregation": "sequence_mean_token_mean"},
    {"aggregation": "token_mean"},
    {"aggregation": "sequence_mean_token_sum", "max_tokens": 40},
]


@pytest.mark.parametrize("loss", AVERAGES, ids=lambda loss: loss["aggregation"])
@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_gradient_equals_that_of_whole_logits(loss, attention):
    # The packing of flash-attn goes through sdpa here, which reads the same positions.
    data = made_up(count=9, zeros=())
    config = settings(
        loss=loss, minibatches=1, entropy=0.02, old_logps="rollout", policy={"attn_implementation": attention}
    )
    (found,), metrics = gradients(config, data)
    grads, parts = expected_gradient(config, *data, tiny_model())
    assert_same(found, grads)
    for name, value in parts.items():
        assert metrics[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize("ratio", ["turn", "sequence"])
def test_gradient_at_other_ratio_levels_equals_that_of_whole_logits(ratio):
    data = made_up(count=7)
    config = settings(loss={"ratio": ratio}, minibatches=1, old_logps="rollout")
    (found,), _ = gradients(config, data)
    assert_same(found, expected_gradient(config, *data, tiny_model())[0])


def test_gradient_with_a_reference_equals_that_of_whole_logits():
    data = made_up(count=7)
    config = settings(loss={"beta": 0.3}, minibatches=1, deepspeed={"offload_reference": True})
    policy, other = PolicyModel(tiny_model()), tiny_model(seed=5)
    reference = Reference(PolicyModel(other), config)
    engine = engines.initialize(policy, config, 10)
    engine.step = lambda: True
    metrics = Updater(engine, config, reference).update(*data)
    found = {name: p.grad for name, p in policy.model.named_parameters()}
    assert_same(found, expected_gradient(config, *data, tiny_model(), ref=other)[0])
    assert metrics["kl"] > 0.1
    assert metrics["kl_loss"] > 0


@pytest.mark.parametrize("tokens", [1, 60, 10_000])
@pytest.mark.parametrize("packed", [False, True])
def test_gradient_does_not_depend_on_micro_batches(tokens, packed):
    data = made_up(count=9)
    policy = {"attn_implementation": "flash_attention_2" if packed else "sdpa"}
    (found,), metrics = gradients(settings(minibatches=1, micro_batch_tokens=tokens, policy=policy), data)
    (whole,), same = gradients(settings(minibatches=1, micro_batch_tokens=150), data)
    assert_same(found, whole)
    for name in ("policy_loss", "entropy", "ratio_mean", "own_tokens", "rollouts_used"):
        assert metrics[name] == pytest.approx(same[name], rel=1e-4, abs=1e-6)


def test_gradient_does_not_depend_on_the_order_of_rollouts():
    rollouts, advantages = made_up(count=9)
    order = np.random.default_rng(0).permutation(9)
    turned = [rollouts[i] for i in order], Ragged.from_lists([advantages[i].tolist() for i in order])
    (found,), _ = gradients(settings(minibatches=1), turned)
    (whole,), _ = gradients(settings(minibatches=1), (rollouts, advantages))
    assert_same(found, whole)


@pytest.mark.parametrize("loss", AVERAGES, ids=lambda loss: loss["aggregation"])
def test_leaving_out_zero_advantages_changes_no_gradient(loss):
    data = made_up(count=12, zeros=(0, 3, 4, 8))
    found, metrics = gradients(settings(loss=loss, minibatches=3), data)
    whole, same = gradients(settings(loss=loss, minibatches=3, skip_zero_advantage=False), data)
    assert (metrics["rollouts_used"], same["rollouts_used"]) == (pytest.approx(8 / 12), 1)
    assert metrics["tokens"] < same["tokens"]
    assert metrics["policy_loss"] == pytest.approx(same["policy_loss"], rel=1e-4, abs=1e-6)
    for a, b in zip(found, whole, strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("changes", [{"entropy": 0.1}, {"loss": {"beta": 0.1}}])
def test_zero_advantages_stay_where_they_have_a_gradient(changes):
    _, metrics = gradients(settings(minibatches=1, **changes), made_up(count=4, zeros=(0, 1, 2, 3)))
    assert metrics["rollouts_used"] == 1
    assert metrics["own_tokens"] > 0


def test_without_any_advantage_the_gradient_is_zero():
    (found,), metrics = gradients(settings(minibatches=1), made_up(count=3, zeros=(0, 1, 2)))
    assert found
    assert not any(grad.any() for grad in found.values())
    assert metrics["rollouts_used"] == 0
    assert math.isnan(metrics["entropy"])
    assert metrics["policy_loss"] == 0


def test_gradient_checkpointing_changes_no_gradient():
    data = made_up(count=5)
    model = tiny_model()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    (found,), _ = gradients(settings(minibatches=1), data, model=model)
    (whole,), _ = gradients(settings(minibatches=1), data)
    assert_same(found, whole, scale=1e-6)


# Training


def test_adapters_alone_are_trained():
    model = with_adapters(tiny_model())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = settings(loss={"beta": 0.1})
    after, metrics, *_ = train(config, model, updates=2, reference=True)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "lora_" in name}
    assert metrics["kl"] > 0


def test_reference_of_adapters_is_the_model_without_them():
    data = made_up(count=5)
    config = settings(loss={"beta": 0.1}, minibatches=1)
    _, metrics = gradients(config, data, model=with_adapters(tiny_model()))
    pairs = []
    for model in (tiny_model(), with_adapters(tiny_model()).eval()):
        with torch.no_grad():
            rows = [torch.cat([by_hand(model, r)[0][a:b] for a, b in r.spans]) for r in data[0]]
        pairs.append(torch.cat(rows))
    d = pairs[0] - pairs[1]
    assert metrics["kl"] == pytest.approx(float((d.exp() - d - 1).mean()), rel=1e-3)


def test_training_raises_the_probability_of_what_was_rewarded():
    rollouts, _ = made_up(count=8)
    advantages = Ragged.from_lists([[(-1.0) ** i] * len(r.spans) for i, r in enumerate(rollouts)])
    policy = PolicyModel(tiny_model())
    config = settings(epochs=3, lr=3e-3)
    engine = engines.initialize(policy, config, 60)
    updater = Updater(engine, config)
    batch = batch_of(rollouts, advantages, list(range(8)), False)

    def gap():
        with torch.no_grad():
            sums = policy.eval()(batch)[0].sum(1)
        return float(sums[::2].sum() - sums[1::2].sum())

    before = gap()
    for _ in range(3):
        updater.update(rollouts, advantages)
    assert gap() > before + 20


def test_old_logps_are_the_rollouts_unless_recomputed():
    rollouts, advantages = made_up(count=4, zeros=())
    with torch.no_grad():
        new = [by_hand(tiny_model(), rollout)[0].numpy() for rollout in rollouts]
    own = [np.concatenate([np.arange(a, b) for a, b in r.spans]) for r in rollouts]
    ratios = [np.exp(x[at] - r.logps[at]) for x, r, at in zip(new, rollouts, own, strict=True)]
    _, sampled = gradients(settings(minibatches=1, old_logps="rollout"), (rollouts, advantages))
    assert sampled["ratio_mean"] == pytest.approx(np.concatenate(ratios).mean(), rel=1e-4)
    assert sampled["ratio_max"] == pytest.approx(np.concatenate(ratios).max(), rel=1e-4)
    assert sampled["ratio_min"] == pytest.approx(np.concatenate(ratios).min(), rel=1e-4)
    _, again = gradients(settings(minibatches=1), (rollouts, advantages))
    assert (again["ratio_min"], again["ratio_max"]) == (
        pytest.approx(1, abs=1e-5),
        pytest.approx(1, abs=1e-5),
    )
    config = settings(minibatches=1, loss={"rollout_cap": 1.1})
    _, weighted = gradients(config, (rollouts, advantages))
    # Here the recomputed log-probabilities are the new ones.
    wanted = np.minimum(np.concatenate(ratios), 1.1).mean()
    assert weighted["rollout_weight_mean"] == pytest.approx(wanted, rel=1e-4)


def test_metrics_that_mean_nothing_are_missing():
    _, metrics = gradients(settings(), made_up())
    assert not {"kl", "kl_loss", "rollout_weight_mean", "rollout_truncated_fraction"} & metrics.keys()


def test_contradictory_settings_are_refused():
    with pytest.raises(ConfigError, match=r"rollout_cap is 2\.0 and update\.old_logps 'rollout'"):
        Updater(None, settings(loss={"rollout_cap": 2.0}, old_logps="rollout"))
    with pytest.raises(ConfigError, match=r"beta is 0\.1 and there is no reference"):
        Updater(None, settings(loss={"beta": 0.1}))


# What is not finite


@pytest.mark.parametrize(
    ("stage", "dtype"),
    [(0, "float32"), (2, "float32"), (3, "float32"), (0, "bfloat16"), (1, "bfloat16"), (2, "bfloat16")],
)
def test_update_that_is_not_finite_changes_nothing(stage, dtype):
    parts = {"deepspeed": zero(stage), "policy": {"dtype": dtype}}
    config = settings(old_logps="rollout", minibatches=1, **parts)
    before, _, engine, updater = train(config, updates=1)
    lr = engine.lr
    metrics = updater.update(*spoilt(1))
    after = engines.full_state_dict(engine)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (metrics["skipped"], metrics["steps"], updater.skipped_in_a_row) == (1, 0, 1)
    assert math.isnan(metrics["policy_loss"])
    assert engine.lr == lr
    metrics = updater.update(*made_up(seed=2))
    assert (metrics["skipped"], metrics["steps"], updater.skipped_in_a_row) == (0, 1, 0)
    assert math.isfinite(metrics["grad_norm"])


def test_good_minibatch_after_a_bad_one_is_done_as_if_alone():
    rollouts, advantages = spoilt(0)
    config = settings(old_logps="rollout")
    _, metrics, *_ = train(config, updates=1, data=lambda seed: (rollouts, advantages))
    assert (metrics["skipped"], metrics["steps"]) == (1, 1)
    assert math.isfinite(metrics["policy_loss"])
    assert math.isfinite(metrics["ratio_max"])


def test_update_ends_early_after_three_in_a_row():
    config = settings(old_logps="rollout", minibatches=1, epochs=PATIENCE + 2)
    *_, updater = train(config, updates=1)
    metrics = updater.update(*spoilt(1))
    assert (metrics["skipped"], metrics["steps"], updater.skipped_in_a_row) == (3, 0, 3)


def test_infinite_gradient_is_left_out():
    rollouts, advantages = made_up(count=3, zeros=())
    low = rollouts[0].logps.copy()
    low[rollouts[0].spans[0, 0]] = -300.0
    rollouts[0] = replace(rollouts[0], logps=low)
    advantages = Ragged.from_lists([[-1.0] * len(r.spans) for r in rollouts])
    config = settings(old_logps="rollout", minibatches=1)
    _, metrics, *_ = train(config, updates=1, data=lambda seed: (rollouts, advantages))
    assert metrics["skipped"] == 1


def test_saved_batch_is_what_was_given(tmp_path):
    rollouts, advantages = spoilt(1)
    save_batch(tmp_path / "batch.npz", rollouts, advantages)
    found = np.load(tmp_path / "batch.npz")
    for b, rollout in enumerate(rollouts):
        tokens = slice(*found["offsets"][b : b + 2])
        turns = slice(*found["turn_offsets"][b : b + 2])
        assert found["tokens"][tokens].tolist() == rollout.tokens.tolist()
        np.testing.assert_array_equal(found["logps"][tokens], rollout.logps)
        assert found["spans"][turns].tolist() == rollout.spans.tolist()
        assert found["advantages"][turns].tolist() == advantages[b].tolist()
        assert str(found["task_ids"][b]) == rollout.task.id
