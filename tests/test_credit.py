"""The whole way from rollouts to advantages, its configuration, and its refusals."""

from __future__ import annotations

import dataclasses
import math
import statistics
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matchtir.advantages import integrate, trajectory_advantages, turn_level_advantages, turn_returns
from matchtir.baselines import ftrl_reward, toolrl_reward
from matchtir.credit import CreditConfig, assign_advantages, assign_credit, assign_rewards
from matchtir.errors import ConfigError, InputError
from matchtir.types import Credit, Ragged, ToolCall, Trajectory, Turn

EPS = 1e-6


def call(name: str, /, **arguments: Any) -> ToolCall:
    return ToolCall(name, arguments)


# Table 9 of the paper (arXiv 2601.10712).
GOLD = (
    call("valley_hill_analyzer"),
    call(
        "landmark_locator",
        landmark_type="castle",
        geographic_feature="Yosemite Valley",
        position_relation="on the hill",
    ),
    call("architect_inspiration_analyzer", landmark="hearst castle"),
    call("person_locator", name="Lily Chen"),
    call("building_material_analyzer", location="Santa Barbara"),
)
PREDICTED = (
    call(
        "landmark_locator",
        landmark_type="castle",
        geographic_feature="valley",
        position_relation="overlooking",
    ),
    call("valley_hill_analyzer"),
    call(
        "landmark_locator",
        landmark_type="castle",
        geographic_feature="Yosemite Valley",
        position_relation="on the hill",
    ),
    call("architect_inspiration_analyzer", landmark="Hearst Castle"),
    call("person_locator", name="Lily Chen"),
    call("building_material_analyzer", location="Santa Barbara"),
)
TABLE_9 = Trajectory((*(Turn((c,)) for c in PREDICTED), Turn(answer="Stone.")), GOLD, "Stone")


def test_table_9_of_the_paper_with_hard_matching() -> None:
    credit = assign_credit([TABLE_9], CreditConfig(value_match="normalized"))
    assert credit.turn_rewards.tolist() == [[0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]]
    assert credit.matches.tolist() == [[-1, 0, 1, 2, 3, 4]]
    assert credit.returns.tolist() == [6.0]


def test_table_9_of_the_paper_with_soft_matching() -> None:
    config = CreditConfig(matching="sinkhorn", reg=0.1, value_match="normalized")
    rewards = assign_credit([TABLE_9], config).turn_rewards[0]
    # The converged plan pays 0.02517 and 0.16664 where the paper prints 0.025 and 0.1667.
    printed = [0.025, 0.1667, 0.1581, 0.1667, 0.1667, 0.1667, 1.0]
    np.testing.assert_allclose(rewards, printed, rtol=0, atol=2e-4)

    scores = np.zeros((6, 5))
    scores[np.arange(1, 6), np.arange(5)] = 1.0
    scores[0, 1] = (1 + 1 + 1) / 5  # name, parameter names, and the castle
    kernel, u = np.exp(scores / 0.1), np.ones(6)
    for _ in range(1000):
        v = (1 / 5) / (kernel.T @ u)
        u = (1 / 6) / (kernel @ v)
    converged = (u[:, None] * kernel * v * scores).sum(axis=1)
    np.testing.assert_allclose(rewards[:6], converged, rtol=0, atol=1e-7)


def test_table_9_with_exact_values_misses_the_capital_letters() -> None:
    credit = assign_credit([TABLE_9])
    assert credit.turn_rewards[0][3] == pytest.approx(2 / 3)  # name and parameter name of 3


def test_penalty_is_taken_from_unmatched_calls_only() -> None:
    credit = assign_credit([TABLE_9], CreditConfig(value_match="normalized", penalty=0.3))
    assert credit.call_rewards.tolist() == [[-0.3, 1.0, 1.0, 1.0, 1.0, 1.0]]


def rollout(
    *calls: ToolCall, gold: tuple[ToolCall, ...], answer: str | None = None, group: Any = 0
) -> Trajectory:
    """One turn for all calls, and one for the answer if there is one."""
    turns = (Turn(calls),) if answer is None else (Turn(calls), Turn(answer=answer))
    return Trajectory(turns, gold, "yes", group)


def test_a_group_by_hand() -> None:
    gold = (call("f", x=1),)
    good = rollout(call("f", x=1), gold=gold, answer="yes")  # rewards 1, 1
    half = rollout(call("f", x=2), gold=gold, answer="no")  # rewards 2/3, 0
    lone = rollout(call("f", x=3), call("g"), gold=gold, group="other")  # reward (2/3 + 0) / 2
    credit = assign_credit([good, lone, half])

    assert credit.group_ids.tolist() == [0, 1, 0]
    np.testing.assert_allclose(credit.turn_rewards.values, [1, 1, 1 / 3, 2 / 3, 0], atol=1e-15)
    np.testing.assert_allclose(credit.returns, [2, 1 / 3, 2 / 3], atol=1e-15)
    std = statistics.stdev([2, 2 / 3])
    g = (2 - 4 / 3) / (std + EPS)
    np.testing.assert_allclose(credit.trajectory_advantages, [g, 0, -g], rtol=1e-12)
    first = [1 + 0.9 * 1, 2 / 3 + 0.9 * 0]
    l1 = (first[0] - statistics.fmean(first)) / (statistics.stdev(first) + EPS)
    l2 = 0.5 / (statistics.stdev([1, 0]) + EPS)
    alone = (1 / 3) / (1 + EPS)
    np.testing.assert_allclose(credit.turn_level_advantages.values, [l1, l2, alone, -l1, -l2], rtol=1e-12)
    expected = [g + l1, g + l2, alone, -g - l1, -g - l2]
    np.testing.assert_allclose(credit.turn_advantages.values, expected, rtol=1e-12)


def test_presets_differ_where_greedy_is_not_the_best_matching() -> None:
    # f(x, y) fits f(x=1) to (1 + 1/2 + 1)/3 = 0.8333 and f(x=1, y=1, z=1, w=1) to (1 + 1/2 + 2)/6 = 0.5833;
    # f(x) fits the first to (1 + 1 + 0)/3 = 0.6667 and the second to (1 + 1/4)/6 = 0.2083.
    gold = (call("f", x=1), call("f", x=1, y=1, z=1, w=1))
    predicted = (call("f", x=1, y=1), call("f", x=2))
    same = rollout(call("f", x=1), gold=gold)
    paper = assign_credit([rollout(*predicted, gold=gold), same], CreditConfig.preset("paper"))
    reference = assign_credit([rollout(*predicted, gold=gold), same], CreditConfig.preset("reference"))
    assert paper.matches[0].tolist() == [1, 0]
    np.testing.assert_allclose(paper.call_rewards[0], [3.5 / 6, 2 / 3], rtol=1e-14)
    assert reference.matches[0].tolist() == [0, 1]
    np.testing.assert_allclose(reference.call_rewards[0], [2.5 / 3, 1.25 / 6], rtol=1e-14)
    assert paper.call_rewards[0].sum() > reference.call_rewards[0].sum()


def test_presets_differ_in_names_and_in_integration() -> None:
    gold = (call("Search", q=1),)
    pair = [rollout(call("search", q=1), gold=gold, answer="yes"), rollout(gold=gold, answer="yes")]
    paper, reference = (assign_credit(pair, CreditConfig.preset(p)) for p in ("paper", "reference"))
    assert paper.call_rewards[0].tolist() == [0.0]
    assert reference.call_rewards[0].tolist() == [1.0]
    assert paper.turn_advantages.tolist() == [[0.0, 0.0], [0.0, 0.0]]
    whole = reference.trajectory_advantages[[0, 0, 1, 1]]
    level = reference.turn_level_advantages.values
    np.testing.assert_allclose(reference.turn_advantages.values, (whole + level) / 2, rtol=1e-14)
    assert reference.turn_advantages[0][0] > 0 > reference.turn_advantages[1][0]


def test_presets_agree_on_calls_where_neither_matters() -> None:
    paper, reference = (assign_credit([TABLE_9], CreditConfig.preset(p)) for p in ("paper", "reference"))
    assert paper.matches.tolist() == reference.matches.tolist()
    assert paper.call_rewards.tolist() == reference.call_rewards.tolist()


def test_malformed_calls_stay_visible() -> None:
    gold = (call("f", x=1),)
    broken = ToolCall("f", {}, malformed="no JSON")
    credit = assign_credit([rollout(call("f", x=1), broken, gold=gold)], CreditConfig(penalty=0.5))
    assert credit.malformed.tolist() == [1]
    assert credit.call_rewards.tolist() == [[1.0, -0.5]]
    assert credit.turn_rewards.tolist() == [[0.25]]


def test_an_empty_batch_gives_an_empty_credit() -> None:
    credit = assign_credit([])
    assert isinstance(credit, Credit)
    for ragged in (credit.matches, credit.call_rewards, credit.turn_rewards, credit.turn_advantages):
        assert len(ragged) == 0
        assert len(ragged.values) == 0
    for array in (credit.returns, credit.trajectory_advantages, credit.malformed, credit.group_ids):
        assert array.shape == (0,)
    assert len(credit.similarity) == 0


@pytest.mark.parametrize("matching", ["hungarian", "greedy", "sinkhorn"])
def test_rollouts_without_turns_calls_or_gold_are_scored(matching: Any) -> None:
    rollouts = [
        Trajectory(()),
        Trajectory((Turn(),)),
        Trajectory((Turn((call("f"),)),)),
        Trajectory((Turn(answer="a"),), (call("f"),), "a"),
    ]
    credit = assign_credit(rollouts, CreditConfig(matching=matching))
    assert credit.turn_rewards.tolist() == [[], [0.0], [0.0], [1.0]]
    assert credit.matches.tolist() == [[], [], [-1], []]
    assert credit.turn_advantages.lengths.tolist() == [0, 1, 1, 1]
    assert np.isfinite(credit.turn_advantages.values).all()


def test_outcome_measured_elsewhere_replaces_the_f1() -> None:
    trajectory = dataclasses.replace(TABLE_9, outcome=0.25)
    credit = assign_credit([trajectory], CreditConfig(value_match="normalized"))
    assert credit.turn_rewards[0][-1] == 0.25
    last_calls = Trajectory((Turn((call("f"),)),), (call("f"),), outcome=1.0)
    assert assign_credit([last_calls]).turn_rewards.tolist() == [[2.0]]


ROW = {
    "group": "castle",
    "turns": [{"calls": [{"name": "f", "arguments": {"x": 1}}]}, "<answer>Stone.</answer>"],
    "gold_calls": [{"name": "f", "arguments": {"x": 1}}],
    "gold_answer": "stone",
}


def test_rows_and_trajectories_mix() -> None:
    turns = (Turn((call("f", x=1),)), Turn(answer="Stone."))
    same = Trajectory(turns, (call("f", x=1),), "stone", "castle")
    credit = assign_credit([ROW, same])
    assert credit.turn_rewards.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert credit.group_ids.tolist() == [0, 0]
    assert credit.turn_advantages.tolist() == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("rollouts", "message"),
    [
        ([TABLE_9, {"turns": []}], r"rollouts\[1\].*group"),
        ([TABLE_9, None], r"rollouts\[1\] is a NoneType"),
        ([TABLE_9, dataclasses.replace(TABLE_9, outcome=math.nan)], r"rollouts\[1\].*nan"),
        (TABLE_9, "one Trajectory; expected a sequence"),
        (ROW, "one dict; expected a sequence"),
        ("rollouts.jsonl", "one str; expected a sequence"),
    ],
)
def test_refused_rollouts_are_named(rollouts: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        assign_credit(rollouts)


# Rewards of the whole rollout


def test_outcome_reward_is_grpo() -> None:
    gold = (call("f", x=1),)
    right = rollout(call("g"), gold=gold, answer="yes")
    wrong = rollout(call("f", x=1), gold=gold, answer="no")
    credit = assign_credit([right, wrong], CreditConfig(reward="outcome"))
    assert credit.returns.tolist() == [1.0, 0.0]
    a = 0.5 / (math.sqrt(0.5) + EPS)
    assert credit.turn_advantages.lengths.tolist() == [2, 2]
    np.testing.assert_allclose(credit.turn_advantages.values, [a, a, -a, -a], rtol=1e-12)
    assert credit.turn_rewards.tolist() == [[0.0, 1.0], [1.0, 0.0]]  # still MatchTIR's


def test_toolrl_and_ftrl_rewards_become_returns() -> None:
    gold = (call("f", x=1),)
    asked = {"f": ("7",)}
    solved = Trajectory((Turn((ToolCall("f", {"x": 1}, result="7"),)),), gold, sub_answers=asked)
    missed = Trajectory((Turn((ToolCall("f", {"x": 2}, result="8"),)),), gold, sub_answers=asked)
    for reward, function in (("toolrl", toolrl_reward), ("ftrl", ftrl_reward)):
        credit = assign_credit([solved, missed], CreditConfig.preset("paper", reward=reward))
        assert credit.returns.tolist() == [function(solved), function(missed)]
        assert credit.returns[0] > credit.returns[1]
        np.testing.assert_array_equal(credit.turn_advantages.values, credit.trajectory_advantages)


def test_ftrl_reward_needs_sub_answers() -> None:
    with pytest.raises(InputError, match=r"rollouts\[0\].*sub_answers"):
        assign_credit([TABLE_9], CreditConfig(reward="ftrl"))


def test_whole_rollout_rewards_go_with_the_trajectory_integration_only() -> None:
    assert CreditConfig().resolved_integration == "sum"
    assert CreditConfig(reward="outcome").resolved_integration == "trajectory"
    assert CreditConfig(reward="toolrl", integration="trajectory").resolved_integration == "trajectory"
    assert dataclasses.replace(CreditConfig(), reward="ftrl").resolved_integration == "trajectory"
    assert CreditConfig.preset("reference", reward="outcome").resolved_integration == "trajectory"
    for integration in ("sum", "mean", "weighted_product", "weighted_sum", "turn"):
        with pytest.raises(ConfigError, match=rf"integration is '{integration}' .*'trajectory'"):
            CreditConfig(reward="outcome", integration=integration)
    with pytest.raises(ConfigError, match="integration is 'mean'"):
        CreditConfig.preset("reference", reward="outcome", integration="mean")


# Configuration


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("matching", "hungarain", "expected one of hungarian, greedy, sinkhorn"),
        ("matching", None, "matching is None"),
        ("cost", "log", "linear, normalized, exponential"),
        ("value_match", "loose", "exact, normalized"),
        ("name_match", "normalized", "exact, casefold"),
        ("integration", "product", "auto, sum, mean, weighted_product, weighted_sum, trajectory, turn"),
        ("baseline", ["pooled"], "turn_index, pooled, leave_one_out"),
        ("reward", "grpo", "matchtir, outcome, toolrl, ftrl"),
        ("penalty", -0.1, "0 or more"),
        ("penalty", math.inf, "finite"),
        ("penalty", "0", "finite number"),
        ("reg", 0, "above 0"),
        ("reg", math.nan, "reg is nan"),
        ("reg", math.inf, "finite"),
        ("tol", 0.0, "above 0"),
        ("max_iter", 0, "1 or more"),
        ("max_iter", 10.0, "whole number"),
        ("max_iter", None, "whole number"),
        ("gamma", 1.01, r"\[0, 1\]"),
        ("gamma", -0.1, r"\[0, 1\]"),
        ("gamma", math.nan, r"\[0, 1\]"),
        ("gamma", True, "gamma is True"),
        ("gamma", 0.9j, "number"),
        ("normalize_std", 1, "True or False"),
        ("eps", 0.0, "above 0"),
        ("num_threads", 0, "None or a whole number"),
        ("num_threads", True, "num_threads is True"),
        ("num_threads", 2.0, "whole number"),
    ],
)
def test_impossible_values_are_refused_by_name(name: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is .*expected") as error:
        CreditConfig(**{name: value})
    error.match(message)
    assert repr(value) in str(error.value)


def test_every_field_is_checked() -> None:
    for field in dataclasses.fields(CreditConfig):
        with pytest.raises(ConfigError, match=field.name):
            CreditConfig(**{field.name: object()})  # type: ignore[arg-type]


def test_numbers_of_any_kind_are_taken() -> None:
    config = CreditConfig(gamma=1, reg=np.float32(0.5), max_iter=np.int64(7), penalty=0)
    assert (config.gamma, config.reg, config.max_iter) == (1.0, 0.5, 7)
    assert [type(x) for x in (config.gamma, config.reg, config.max_iter)] == [float, float, int]
    assert CreditConfig(gamma=0.0, num_threads=1).num_threads == 1


def test_unknown_settings_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="unknown setting 'gama'; did you mean 'gamma'"):
        CreditConfig.from_dict({"gama": 0.9})
    with pytest.raises(ConfigError, match="unknown setting 'zzz'; known are matching, penalty"):
        CreditConfig.from_dict({"zzz": 1})
    with pytest.raises(ConfigError, match="did you mean 'penalty'"):
        CreditConfig.preset("paper", penality=0.3)
    with pytest.raises(ConfigError, match="gamma is 2"):
        CreditConfig.from_dict({"gamma": 2})


def test_config_survives_a_settings_file() -> None:
    config = CreditConfig.preset("reference", gamma=0.95, num_threads=2)
    assert CreditConfig.from_dict(dataclasses.asdict(config)) == config
    assert hash(config) == hash(CreditConfig.from_dict(dataclasses.asdict(config)))


def test_presets() -> None:
    assert CreditConfig.preset("paper") == CreditConfig()
    reference = CreditConfig.preset("reference")
    assert (reference.matching, reference.integration, reference.name_match) == ("greedy", "mean", "casefold")
    assert CreditConfig.preset("reference", matching="hungarian").matching == "hungarian"
    with pytest.raises(ConfigError, match="preset is 'papers'; expected one of paper, reference"):
        CreditConfig.preset("papers")


def test_config_cannot_be_changed_and_must_be_one() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        CreditConfig().gamma = 0.5  # type: ignore[misc]
    with pytest.raises(ConfigError, match="config is a dict"):
        assign_credit([TABLE_9], {"gamma": 0.9})  # type: ignore[arg-type]


# Properties of the whole

calls = st.builds(
    ToolCall,
    st.sampled_from(["f", "g"]),
    st.dictionaries(st.sampled_from("xy"), st.integers(0, 1), max_size=2),
    malformed=st.sampled_from([None, None, None, "no JSON"]),
)
turns = st.one_of(
    st.builds(Turn, st.lists(calls, max_size=2).map(tuple)),
    st.builds(Turn, answer=st.sampled_from(["red stone", "stone", "brick"])),
)
trajectories = st.builds(
    Trajectory,
    st.lists(turns, max_size=4).map(tuple),
    st.lists(calls.filter(lambda c: c.malformed is None), max_size=3).map(tuple),
    st.just("stone"),
    st.integers(0, 2),
)
configs = st.builds(
    CreditConfig,
    matching=st.sampled_from(["hungarian", "greedy"]),
    penalty=st.sampled_from([0.0, 0.3]),
    integration=st.sampled_from(["sum", "mean", "weighted_product", "weighted_sum", "trajectory", "turn"]),
    baseline=st.sampled_from(["turn_index", "pooled", "leave_one_out"]),
    normalize_std=st.booleans(),
    gamma=st.sampled_from([0.0, 0.9, 1.0]),
    eps=st.sampled_from([1e-6, 0.5]),
)


@given(st.lists(trajectories, max_size=7), configs)
@settings(max_examples=60, deadline=None)
def test_credit_composes_its_stages(batch: list[Trajectory], config: CreditConfig) -> None:
    credit = assign_credit(batch, config)
    for b, trajectory in enumerate(batch):
        assert len(credit.call_rewards[b]) == len(credit.matches[b]) == len(trajectory.calls)
        assert len(credit.turn_rewards[b]) == len(credit.turn_advantages[b]) == len(trajectory.turns)
        block = credit.similarity[b]
        rewards = [
            block[i, j] if j >= 0 else -config.penalty for i, j in enumerate(credit.matches[b].tolist())
        ]
        np.testing.assert_allclose(credit.call_rewards[b], rewards)
        left = iter(rewards)
        for t, turn in enumerate(trajectory.turns):
            own = [next(left) for _ in turn.calls]
            expected = sum(own) / len(own) if own else 0.0
            if t == len(trajectory.turns) - 1:
                expected += {"red stone": 2 / 3, "stone": 1.0}.get(turn.answer or "", 0.0)
            assert credit.turn_rewards[b][t] == pytest.approx(expected, abs=1e-12)
    scale: dict[str, Any] = {"normalize_std": config.normalize_std, "eps": config.eps}
    whole = trajectory_advantages([row.sum() for row in credit.turn_rewards], credit.group_ids, **scale)
    level = turn_level_advantages(
        turn_returns(credit.turn_rewards, config.gamma), credit.group_ids, baseline=config.baseline, **scale
    )
    final = integrate(
        whole, level, credit.turn_rewards, integration=config.resolved_integration, eps=config.eps
    )
    np.testing.assert_allclose(credit.turn_advantages.values, final.values, atol=1e-9)


@given(st.lists(trajectories, min_size=1, max_size=7), configs, st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_credit_follows_a_permutation_and_needs_no_other_group(
    batch: list[Trajectory], config: CreditConfig, random: Any
) -> None:
    credit = assign_credit(batch, config)
    order = list(range(len(batch)))
    random.shuffle(order)
    moved = assign_credit([batch[i] for i in order], config)
    for to, b in enumerate(order):
        np.testing.assert_allclose(moved.turn_advantages[to], credit.turn_advantages[b], atol=1e-9)
    group = batch[0].group
    mates = [b for b, trajectory in enumerate(batch) if trajectory.group == group]
    alone = assign_credit([batch[b] for b in mates], config)
    for to, b in enumerate(mates):
        np.testing.assert_allclose(alone.turn_advantages[to], credit.turn_advantages[b], atol=1e-9)


@given(st.lists(trajectories, max_size=7), configs, st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_parts_of_a_batch_rewarded_apart_are_compared_together(
    batch: list[Trajectory], config: CreditConfig, cut: int
) -> None:
    parts = [assign_rewards(batch[:cut], config), assign_rewards(batch[cut:], config)]
    turns = Ragged.from_lists([one.tolist() for part in parts for one in part.turn_rewards])
    whole = assign_credit(batch, config)
    returns = np.concatenate([part.returns for part in parts])
    found = assign_advantages(turns, returns, whole.group_ids, config)
    np.testing.assert_allclose(found.turn.values, whole.turn_advantages.values, atol=1e-9)
    np.testing.assert_allclose(found.turn_level.values, whole.turn_level_advantages.values, atol=1e-9)
    np.testing.assert_allclose(found.trajectory, whole.trajectory_advantages, atol=1e-9)


def test_rewards_from_elsewhere_reach_the_trajectory_level_alone() -> None:
    turns = Ragged.from_lists([[1.0, 0.0], [0.0, 0.0]])
    plain = assign_advantages(turns, [1.0, 0.0], [0, 0])
    added = assign_advantages(turns, [1.0, 4.0], [0, 0])
    assert plain.trajectory[0] > 0 > added.trajectory[0]
    assert added.turn_level.tolist() == plain.turn_level.tolist()
    assert added.turn.tolist() != plain.turn.tolist()


@pytest.mark.parametrize("outcome", [1e101, -1e160, 10**400, float("inf")])
def test_outcomes_too_large_to_be_squared_are_refused(outcome: float) -> None:
    with pytest.raises(InputError, match=r"rollouts\[1\]: outcome is .*at most 1e100"):
        assign_credit([Trajectory((Turn(),), outcome=1e100), Trajectory((Turn(),), outcome=outcome)])
    largest = [Trajectory((Turn(),), outcome=x) for x in (1e100, -1e100, 0.0)]
    assert np.sign(assign_credit(largest).trajectory_advantages).tolist() == [1.0, -1.0, 0.0]


@pytest.mark.parametrize("change", [{"max_iter": 10**20}, {"reg": 1e-300}, {"penalty": 1e101}])
def test_settings_that_the_core_cannot_take_are_refused_at_once(change: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(change))} is "):
        CreditConfig(**change)  # type: ignore[arg-type]
