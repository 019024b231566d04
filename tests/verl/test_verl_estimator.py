"""The advantage estimator `matchtir` through verl's own `compute_advantage`, against `assign_credit`."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

pytest.importorskip("verl.trainer", reason='verl needs pip install "matchtir[verl]"')

import torch
import verl_runs as runs
from omegaconf import OmegaConf
from verl.trainer.ppo.ray_trainer import compute_advantage

import matchtir as mt
from matchtir.errors import ConfigError, InputError
from matchtir.integrations import verl as adapter
from matchtir.integrations.settings import credit_config
from matchtir.integrations.verl_batch import GroupCheck
from matchtir.integrations.verl_rewards import pack, unpack

METHODS = [
    "matchtir-km",
    "matchtir-ot",
    "matchtir-km-trajectory",
    "matchtir-km-turn",
    "matchtir-km-weighted-sum",
    "matchtir-km-weighted-product",
    "grpo",
    "toolrl",
]
GOLD = (mt.ToolCall("find", {"city": "Bern", "n": 1}), mt.ToolCall("open", {"page": "x"}))


def random_rollouts(seed, groups=4, size=5):
    """Rollouts with their masks: 1 to 5 turns of 4 tokens or more, often of reward 0, some cut off."""
    draw = np.random.default_rng(seed)
    found, masks, uids = [], [], []
    for b in draw.permutation(groups * size):
        turns = []
        for _ in range(draw.integers(1, 5)):
            calls = [
                mt.ToolCall(
                    str(draw.choice(["find", "open", "none"])), {"city": str(draw.choice(["Bern", "Ulm"]))}
                )
                for _ in range(draw.integers(0, 3))
            ]
            turns.append(mt.Turn(tuple(calls)))
        if draw.random() < 0.6:
            turns.append(mt.Turn(answer=str(draw.choice(["two stones", "stone", "no"]))))
        uid = f"u{b % groups}"
        found.append(mt.Trajectory(tuple(turns), GOLD, "two stones", uid))
        mask: list[int] = []
        for _ in turns:
            mask += [1] * int(draw.integers(4, 9)) + [0] * int(draw.integers(1, 4))
        masks.append(mask if draw.random() < 0.5 else mask[: mask.index(0)] if len(turns) == 1 else mask[:-1])
        uids.append(uid)
    return found, masks, uids


def written(found, masks, config, bonus=None):
    """Each rollout's row, written by the output of its agent loop."""
    rows = []
    for b, (rollout, mask) in enumerate(zip(found, masks, strict=True)):
        rewards = mt.assign_rewards([rollout], config)
        turns = rewards.turn_rewards[0].tolist()
        if config.reward != "matchtir":
            turns = [0.0] * (len(turns) - 1) + [float(rewards.returns[0])]
        output = adapter.with_turns(runs.output_of(mask), runs.TOKENIZER)
        score = float(rewards.returns[0]) + (0.0 if bonus is None else bonus[b])
        rows.append(adapter.with_turn_rewards(output, turns, score).as_dict()["rm_scores"])
    return rows


def algorithm(method="matchtir-km", *overrides):
    """verl's `algorithm`, alone, so that the size of groups is not known."""
    config = runs.settings(f"+algorithm.matchtir.method={method}", *overrides)
    return OmegaConf.create(OmegaConf.to_container(config.algorithm))


def advantages(rows, masks, uids, config):
    """What verl puts into its batch."""
    data = runs.batch_of(rows, masks, uids)
    return compute_advantage(data, adv_estimator="matchtir", config=config).batch


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("seed", range(3))
def test_advantages_are_those_of_assign_credit(method, seed):
    config = credit_config(method, {"gamma": 0.7})
    found, masks, uids = random_rollouts(seed)
    result = advantages(
        written(found, masks, config), masks, uids, algorithm(method, "+algorithm.matchtir.credit.gamma=0.7")
    )
    spans = mt.spans_from_mask(result["response_mask"].numpy())
    credit = mt.assign_credit(found, config)
    expected = mt.scatter(
        credit.turn_advantages, spans, tuple(result["response_mask"].shape), dtype=np.float64
    )
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(result["advantages"].numpy(), expected, rtol=1e-6, atol=1e-7)
    assert (result["advantages"][result["response_mask"] == 0] == 0).all()
    assert any(0.0 in turns.tolist() for turns in credit.turn_rewards)


def test_rejected_tokens_and_rollouts_leave_the_others_as_they_were():
    config = mt.CreditConfig()
    found, masks, uids = random_rollouts(7)
    rows = written(found, masks, config)
    before = advantages(rows, masks, uids, algorithm())["advantages"]
    draw = np.random.default_rng(0)
    kept = [[int(own and draw.random() < 0.7) for own in mask] for mask in masks]
    for b in (0, 3):
        kept[b] = [0] * len(kept[b])
    ends = mt.spans_from_mask([masks[5]])[0][:, 1] - 1
    kept[5] = [0 if t in ends else own for t, own in enumerate(masks[5])]
    after = advantages(rows, kept, uids, algorithm())
    assert torch.equal(after["advantages"], before * (after["response_mask"] != 0))
    assert (after["advantages"] != 0).any()


def test_other_rewards_count_for_the_trajectory_alone():
    config = mt.CreditConfig()
    found, masks, uids = random_rollouts(3)
    bonus = np.random.default_rng(1).integers(0, 3, len(found)) / 4.0
    result = advantages(written(found, masks, config, bonus), masks, uids, algorithm())
    credit = mt.assign_credit(found, config)
    whole = mt.assign_advantages(credit.turn_rewards, credit.returns + bonus, credit.group_ids, config)
    assert not np.allclose(whole.trajectory, credit.trajectory_advantages)
    assert np.array_equal(whole.turn_level.values, credit.turn_level_advantages.values)
    spans = mt.spans_from_mask(result["response_mask"].numpy())
    expected = mt.scatter(whole.turn, spans, tuple(result["response_mask"].shape))
    np.testing.assert_allclose(result["advantages"].numpy(), expected, rtol=1e-6, atol=1e-7)


def test_returns_are_equal_where_their_sums_are():
    # A third and two thirds are one, though not in float32: a group of equal returns has no signal.
    masks = [[1, 1, 1, 1, 0, 1, 1, 1, 1]] * 2
    outputs = [adapter.with_turns(runs.output_of(mask), runs.TOKENIZER) for mask in masks]
    turns = ([1 / 3, 2 / 3], [1.0, 0.0])
    rows = [
        adapter.with_turn_rewards(output, one).as_dict()["rm_scores"]
        for output, one in zip(outputs, turns, strict=True)
    ]
    result = advantages(rows, masks, ["a", "a"], algorithm("matchtir-km-trajectory"))
    assert result["advantages"].abs().max() < 1e-8


def test_settings_follow_verl_and_its_command_line():
    config = runs.settings(
        "+algorithm.matchtir.method=matchtir-ot",
        "+algorithm.matchtir.credit.gamma=0.5",
        "+algorithm.matchtir.credit.reg=0.2",
        "algorithm.norm_adv_by_std_in_grpo=False",
    )
    credit = adapter.Settings.of(config.algorithm).credit
    assert credit == mt.CreditConfig(matching="sinkhorn", gamma=0.5, reg=0.2, normalize_std=False)
    assert adapter.Settings.of(runs.settings().algorithm).credit == mt.CreditConfig()
    assert adapter.Settings.of(None).credit == mt.CreditConfig()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+algorithm.matchtir.methd=grpo", "methd; expected some of method"),
        ("+algorithm.matchtir.method=matchtir-kn", "did you mean 'matchtir-km'"),
        ("+algorithm.matchtir.credit.gama=1", "gamma"),
        ("+algorithm.matchtir.incomplete_groups=no", "expected 'warn' or 'error'"),
        ("+algorithm.matchtir=matchtir-ot", r"is 'matchtir-ot'; .* \+algorithm.matchtir.method=matchtir-ot"),
        ("+algorithm.matchtir.credit=gamma", r"is 'gamma'; .* \+algorithm.matchtir.credit.gamma=0.9"),
        ("+algorithm.matchtir.method=null", "method is None"),
        ("+algorithm.matchtir.sandbox=4", "sandbox is 4; expected names"),
        ("+algorithm.matchtir.sandbox.worker=2", "sandbox has worker; expected some of workers, timeout"),
        ("+algorithm.matchtir.sandbox.workers=0", "workers is 0; expected a positive integer"),
        ("+algorithm.matchtir.sandbox.timeout=-1", "timeout is -1; expected a positive number of seconds"),
        ("+algorithm.matchtir.sandbox.memory_mb=x", "memory_mb is 'x'; expected a positive integer"),
        ("+algorithm.matchtir.sandbox.modules=json", "modules is 'json'; expected a list"),
        ("+algorithm.matchtir.sandbox.allow_unsafe=1", "allow_unsafe is 1; expected True or False"),
        ("+algorithm.matchtir.tool_format=messages", "tool_format is 'messages'; expected one of hermes"),
        ("algorithm.use_kl_in_reward=True", "use_kl_loss=True"),
    ],
)
def test_impossible_settings_are_refused(override, message):
    rows = [torch.from_numpy(pack([1.0], [3], 4))] * 2
    with pytest.raises(ConfigError, match=message):
        advantages(rows, [[1] * 4] * 2, ["a", "a"], runs.settings(override).algorithm)


def test_rewards_that_are_not_by_turn_are_refused():
    stock = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0])
    mask = [1, 1, 0, 1, 1]
    for row in (stock, torch.zeros(5)):
        with pytest.raises(InputError, match=r"rollout 0 .*uid a.*matchtir_tool_agent"):
            advantages([row, row], [mask, mask], ["a", "a"], algorithm())
    changed = torch.from_numpy(pack([1.0, 0.5], [1, 3], 5))
    with pytest.raises(InputError, match="own tokens after its last turn"):
        advantages([changed], [mask], ["a"], algorithm())


def test_missing_uid_is_refused():
    rewards = torch.from_numpy(pack([1.0], [3], 4))[None]
    with pytest.raises(InputError, match="no uid"):
        adapter.turn_advantages(rewards, torch.ones(1, 4))


def one_turn_rows(count):
    """Rows of rollouts of one turn, of different rewards."""
    return [torch.from_numpy(pack([float(b)], [3], 4)) for b in range(count)]


def test_failed_rollouts_are_told_of_and_the_others_compared(monkeypatch, caplog):
    monkeypatch.setattr(adapter, "_groups", GroupCheck())
    size = "actor_rollout_ref.rollout.n=3"
    rows, masks, uids = one_turn_rows(6), [[1] * 4] * 6, ["a", "b", "a", "a", "b", "c"]
    with pytest.warns(UserWarning, match="3 rollouts are missing from 2 of 3 groups"):
        found = advantages(rows, masks, uids, runs.settings(size).algorithm)["advantages"]
    whole = advantages(rows[:5], masks[:5], uids[:5], algorithm())["advantages"]
    assert torch.equal(found[:5], whole)
    assert whole.abs().max() > 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        advantages(rows[1:], masks[1:], uids[1:], runs.settings(size).algorithm)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert "4 rollouts are missing from 3 of 3 groups" in caplog.messages[1]
    strict = runs.settings(size, "+algorithm.matchtir.incomplete_groups=error").algorithm
    with pytest.raises(InputError, match=r"uid b has 2 rollouts in this batch; expected rollout.n = 3"):
        advantages(rows, masks, uids, strict)


def test_groups_larger_than_rollout_n_are_whole(monkeypatch):
    monkeypatch.setattr(adapter, "_groups", GroupCheck())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = runs.settings("actor_rollout_ref.rollout.n=2").algorithm
        advantages(one_turn_rows(3), [[1] * 4] * 3, ["a"] * 3, config)


def test_groups_split_over_batches_are_refused():
    rows, masks, config = one_turn_rows(6), [[1] * 4] * 6, algorithm()
    before = advantages(rows[:3], masks[:3], ["a", "b", "a"], config)["advantages"]
    again = advantages([*rows[:3], torch.zeros(6)], [*masks[:3], [0] * 6], ["a", "b", "a", "x"], config)
    assert torch.equal(again["advantages"][:3, :4], before)
    with pytest.raises(InputError, match="the group with uid b is split over batches"):
        advantages(rows[3:], masks[3:], ["c", "b", "c"], config)
    advantages(rows[3:], masks[3:], ["c", "d", "c"], config)
    advantages(rows[:2], masks[:2], ["a", "a"], config)  # two batches ago


def test_rollouts_without_own_tokens_have_no_turns():
    outputs = [
        adapter.with_turns(runs.output_of(mask), runs.TOKENIZER) for mask in ([0] * 5, [1] * 5, [1] * 5)
    ]
    turns = ([], [1.0], [0.0])
    rows = [
        adapter.with_turn_rewards(output, one).as_dict()["rm_scores"]
        for output, one in zip(outputs, turns, strict=True)
    ]
    masks = [output.response_mask for output in outputs]
    result = advantages(rows, masks, ["a"] * 3, algorithm("matchtir-km-turn"))["advantages"]
    expected = mt.assign_advantages(
        mt.Ragged.from_lists([[], [1.0], [0.0]]),
        np.array([0.0, 1.0, 0.0]),
        np.zeros(3, dtype=np.int64),
        credit_config("matchtir-km-turn"),
    ).turn
    assert result[0].tolist() == [0.0] * 5
    np.testing.assert_allclose(result[1:, 0].numpy(), expected.values, rtol=1e-6)
    assert result[1, 0] == -result[2, 0] != 0


def test_padding_rows_are_no_rollouts():
    rows = [torch.from_numpy(pack([1.0], [3], 4)), torch.from_numpy(pack([0.0], [3], 4)), torch.zeros(1)]
    config = runs.settings("actor_rollout_ref.rollout.n=2").algorithm
    found = advantages(rows, [[1] * 4, [1] * 4, [0]], ["a", "a", "pad"], config)["advantages"]
    assert found[2].tolist() == [0.0] * 4
    assert found[0].tolist() == (-found[1]).tolist() != [0.0] * 4


def test_rows_survive_what_they_went_through():
    draw = np.random.default_rng(0)
    for _ in range(500):
        length = int(draw.integers(2, 30))
        mask = draw.random(length) < 0.6
        mask[draw.integers(length)] = True
        ends = mt.spans_from_mask(mask[None])[0][:, 1] - 1
        rewards = draw.choice([0.0, 1 / 3, -2 / 3, 1.0], len(ends))
        other = float(draw.choice([0.0, 0.5]))
        row = pack(rewards, ends, length, other)
        assert row.sum() == pytest.approx(rewards.sum() + other, abs=1e-5)
        found = unpack(np.append(row, np.zeros(3, dtype=np.float32)))
        assert found is not None
        assert found[1] == [max(end, 1) for end in ends]
        assert found[2] == other
        exact = np.array(found[1]) > 2
        np.testing.assert_allclose(np.array(found[0])[exact], rewards[exact], rtol=1e-14)
        np.testing.assert_allclose(found[0], rewards, rtol=1e-7)
    assert unpack(pack([0.25], [0], 1, other=0.5)) == ([0.75], [0], 0.0)
    with pytest.raises(InputError, match="2 rewards came for 1 turns"):
        pack([1.0, 1.0], [3], 5)
    with pytest.raises(InputError, match="finite"):
        pack([1e300], [3], 5)
