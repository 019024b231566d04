"""Advantages of both levels and their integration, against plain loops and by hand."""

from __future__ import annotations

import math
import statistics
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matchtir.advantages import (
    Baseline,
    Integration,
    group_ids,
    integrate,
    trajectory_advantages,
    turn_level_advantages,
    turn_returns,
)
from matchtir.errors import ConfigError, InputError
from matchtir.types import Ragged

EPS = 1e-6
BASELINES: tuple[Baseline, ...] = get_args(Baseline)
INTEGRATIONS: tuple[Integration, ...] = get_args(Integration)


# The oracles: one rollout and one turn at a time, with the standard library's statistics.


def plain_normalize(value: float, values: list[float], by_std: bool) -> float:
    if max(values) == min(values):
        return 0.0
    centred = value - statistics.fmean(values)
    return centred / (statistics.stdev(values) + EPS) if by_std else centred


def plain_trajectory(returns: list[float], groups: list[int], by_std: bool) -> list[float]:
    mates = [[r for r, h in zip(returns, groups, strict=True) if h == g] for g in groups]
    return [plain_normalize(r, m, by_std) for r, m in zip(returns, mates, strict=True)]


def plain_turn_level(
    returns: list[list[float]], groups: list[int], baseline: str, by_std: bool
) -> list[list[float]]:
    out = []
    for i, own in enumerate(returns):
        mates = [j for j in range(len(returns)) if groups[j] == groups[i]]
        row = []
        for t, value in enumerate(own):
            if baseline == "pooled":
                row.append(plain_normalize(value, [r for j in mates for r in returns[j]], by_std))
            elif baseline == "turn_index":
                reach = [returns[j][t] for j in mates if len(returns[j]) > t]
                if len(reach) == 1:
                    row.append(value / (1 + EPS) if by_std else value)
                else:
                    row.append(plain_normalize(value, reach, by_std))
            else:
                padded = {j: returns[j][t] if len(returns[j]) > t else 0.0 for j in mates}
                others = [padded[j] for j in mates if j != i]
                if not others or len(set(padded.values())) == 1:
                    row.append(0.0)
                    continue
                gap = value - statistics.fmean(others)
                row.append(gap / (statistics.stdev(padded.values()) + EPS) if by_std else gap)
        out.append(row)
    return out


def plain_integrate(
    whole: list[float], level: list[list[float]], rewards: list[list[float]], integration: str
) -> list[list[float]]:
    out = []
    for a_g, levels, own in zip(whole, level, rewards, strict=True):
        row = []
        for a_l, r in zip(levels, own, strict=True):
            local = plain_normalize(r, own, True)
            row.append(
                {
                    "sum": a_g + a_l,
                    "mean": (a_g + a_l) / 2,
                    "weighted_product": (1 + 0.1 * ((a_g > 0) - (a_g < 0)) * local) * a_g,
                    "weighted_sum": a_g + local,
                    "trajectory": a_g,
                    "turn": a_l,
                }[integration]
            )
        out.append(row)
    return out


def assert_rows(actual: Ragged, expected: list[list[float]], atol: float = 1e-9) -> None:
    assert actual.lengths.tolist() == [len(row) for row in expected]
    np.testing.assert_allclose(actual.values, [x for row in expected for x in row], rtol=1e-9, atol=atol)


# Few values, so that ties within a group are common.
rewards_in = st.lists(
    st.lists(st.sampled_from([0.0, 0.1, 0.3, 0.1 * 3, 1.0, -0.5, 2.75]), max_size=5), max_size=9
)


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[list[float]], list[int]]:
    rewards = draw(rewards_in)
    return rewards, draw(st.lists(st.integers(0, 3), min_size=len(rewards), max_size=len(rewards)))


def test_group_ids_number_by_first_appearance() -> None:
    assert group_ids(["b", "a", "b", "c", "a"]).tolist() == [0, 1, 0, 2, 1]
    assert group_ids([7, "7", 7]).tolist() == [0, 1, 0]
    assert group_ids([]).shape == (0,)
    with pytest.raises(InputError, match=r"groups\[1\] .*hashable"):
        group_ids(["a", []])  # type: ignore[list-item]


def test_trajectory_advantages_by_hand() -> None:
    # mean 2, sample std sqrt(((-1)² + 0 + 1²) / 2) = 1
    advantages = trajectory_advantages([1.0, 7.0, 2.0, 3.0], [0, 1, 0, 0])
    np.testing.assert_allclose(advantages, [-1 / (1 + EPS), 0, 0, 1 / (1 + EPS)], rtol=1e-14)
    plain = trajectory_advantages([1.0, 7.0, 2.0, 3.0], [0, 1, 0, 0], normalize_std=False)
    assert plain.tolist() == [-1.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("size", [1, 2, 3, 6, 7, 49, 1000])
@pytest.mark.parametrize("value", [0.1, 0.1 * 3, 0.7, 1 / 3, 1e-300, 1e15 / 7])
def test_equal_returns_give_exactly_zero(size: int, value: float) -> None:
    zeros = np.zeros(size)
    for by_std in (True, False):
        same = trajectory_advantages(np.full(size, value), np.zeros(size, int), normalize_std=by_std)
        assert np.array_equal(same, zeros)
        if size > 1:  # turn by turn, a rollout alone is compared with nothing
            for baseline in BASELINES:
                turns = Ragged.from_lists([[value]] * size)
                level = turn_level_advantages(
                    turns, np.zeros(size, int), baseline=baseline, normalize_std=by_std
                )
                assert np.array_equal(level.values, zeros), baseline


def test_equal_returns_would_not_be_zero_by_their_mean() -> None:
    """The case above can fail: 0.1 three times has a mean that is not 0.1."""
    assert sum([0.1] * 3) / 3 != 0.1


def test_tiny_differences_stay_tiny() -> None:
    """Returns that differ in the last bit are no signal: eps stands above their spread."""
    advantages = trajectory_advantages([0.3, 0.1 * 3, 0.3, 0.1 * 3], [0, 0, 0, 0])
    assert 0 < np.abs(advantages).max() < 1e-9


def test_turn_returns_by_hand() -> None:
    returns = turn_returns(Ragged.from_lists([[1.0, 0.0, 4.0], [], [2.0], [0.0, 1.0]]), 0.5)
    assert returns.tolist() == [[1 + 0.25 * 4, 2.0, 4.0], [], [2.0], [0.5, 1.0]]


@given(rewards_in, st.floats(0, 1))
@settings(max_examples=100)
def test_turn_returns_equal_the_backward_loop_bit_for_bit(rewards: list[list[float]], gamma: float) -> None:
    expected = []
    for row in rewards:
        following, out = 0.0, []
        for t, r in reversed(list(enumerate(row))):
            following = r if t == len(row) - 1 else r + gamma * following
            out.append(following)
        expected.append(out[::-1])
    given_rewards = Ragged.from_lists(rewards)
    kept = given_rewards.values.copy()
    assert turn_returns(given_rewards, gamma).tolist() == expected
    assert np.array_equal(given_rewards.values, kept)


def test_turn_returns_equal_the_sum_of_equation_11() -> None:
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=n).tolist() for n in (1, 7, 0, 31)]
    returns = turn_returns(Ragged.from_lists(rows), 0.9)
    expected = [
        [sum(0.9 ** (k - t) * row[k] for k in range(t, len(row))) for t in range(len(row))] for row in rows
    ]
    assert_rows(returns, expected, atol=1e-12)


@pytest.mark.parametrize("gamma", [-0.1, 1.1, math.nan])
def test_turn_returns_refuses_an_impossible_gamma(gamma: float) -> None:
    with pytest.raises(ConfigError, match="gamma"):
        turn_returns(Ragged.from_lists([[1.0]]), gamma)


RETURNS = Ragged.from_lists([[2.0, 1.0, 4.0], [1.0, 3.0], [0.0], [5.0]])
GROUPS = [0, 0, 0, 1]


def test_turn_index_by_hand() -> None:
    # turn 1: mean 1, std 1; turn 2: mean 2, std sqrt(2); turn 3 and the other group: alone
    level = turn_level_advantages(RETURNS, GROUPS)
    root = math.sqrt(2)
    expected = [[1 / (1 + EPS), -1 / (root + EPS), 4 / (1 + EPS)], [0, 1 / (root + EPS)], [-1 / (1 + EPS)]]
    assert_rows(level, [*expected, [5 / (1 + EPS)]], atol=1e-14)
    plain = turn_level_advantages(RETURNS, GROUPS, normalize_std=False)
    assert plain.tolist() == [[1.0, -1.0, 4.0], [0.0, 1.0], [-1.0], [5.0]]


def test_pooled_by_hand() -> None:
    # 2, 1, 4, 1, 3, 0: mean 11/6; squares 31, variance (31 - 121/6) / 5 = 13/6
    plain = turn_level_advantages(RETURNS, GROUPS, baseline="pooled", normalize_std=False)
    assert_rows(plain, [[1 / 6, -5 / 6, 13 / 6], [-5 / 6, 7 / 6], [-11 / 6], [0.0]], atol=1e-14)
    level = turn_level_advantages(RETURNS, GROUPS, baseline="pooled")
    assert level[0][2] == pytest.approx(13 / 6 / (math.sqrt(13 / 6) + EPS), rel=1e-12)


def test_leave_one_out_by_hand() -> None:
    # turn 1: others (1+0)/2, (2+0)/2, (2+1)/2; turn 2: (3+0)/2, (1+0)/2; turn 3: nobody else, 0
    plain = turn_level_advantages(RETURNS, GROUPS, baseline="leave_one_out", normalize_std=False)
    assert_rows(plain, [[1.5, -0.5, 4.0], [0.0, 2.5], [-1.5], [0.0]], atol=1e-14)
    # std of turn 2 over 1, 3 and the ended rollout's 0: mean 4/3, squares 10 - 16/3, / 2
    level = turn_level_advantages(RETURNS, GROUPS, baseline="leave_one_out")
    assert level[1][1] == pytest.approx(2.5 / (math.sqrt((10 - 16 / 3) / 2) + EPS), rel=1e-12)


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("by_std", [True, False])
@given(batches())
@settings(max_examples=60)
def test_turn_level_advantages_equal_a_plain_loop(
    baseline: Baseline, by_std: bool, batch: tuple[list[list[float]], list[int]]
) -> None:
    returns, groups = batch
    level = turn_level_advantages(
        Ragged.from_lists(returns), np.array(groups, int), baseline=baseline, normalize_std=by_std
    )
    assert_rows(level, plain_turn_level(returns, groups, baseline, by_std))


@pytest.mark.parametrize("integration", INTEGRATIONS)
@given(batches())
@settings(max_examples=60)
def test_integration_of_both_levels_equals_a_plain_loop(
    integration: Integration, batch: tuple[list[list[float]], list[int]]
) -> None:
    rewards, groups = batch
    returns = [math.fsum(row) for row in rewards]
    ids = np.array(groups, int)
    whole = trajectory_advantages(returns, ids)
    np.testing.assert_allclose(whole, plain_trajectory(returns, groups, True), rtol=1e-9, atol=1e-9)
    ragged = Ragged.from_lists(rewards)
    level = turn_level_advantages(turn_returns(ragged, 0.9), ids)
    result = integrate(whole, level, ragged, integration=integration)
    assert_rows(result, plain_integrate(whole.tolist(), level.tolist(), rewards, integration))


def test_integrate_by_hand() -> None:
    rewards = Ragged.from_lists([[0.0, 2.0], [5.0], [1.0, 1.0]])  # local: ∓1/sqrt(2); 0; 0, 0
    level = Ragged.from_lists([[0.5, 0.25], [1.0], [-1.0, 0.0]])
    whole = [-2.0, 3.0, 1.0]
    loc = 1 / (math.sqrt(2) + EPS)
    expected: dict[Integration, list[list[float]]] = {
        "sum": [[-1.5, -1.75], [4.0], [0.0, 1.0]],
        "mean": [[-0.75, -0.875], [2.0], [0.0, 0.5]],
        # a bad rollout's bad turn is pushed down harder than its good one
        "weighted_product": [[-2 * (1 + 0.1 * loc), -2 * (1 - 0.1 * loc)], [3.0], [1.0, 1.0]],
        "weighted_sum": [[-2 - loc, -2 + loc], [3.0], [1.0, 1.0]],
        "trajectory": [[-2.0, -2.0], [3.0], [1.0, 1.0]],
        "turn": [[0.5, 0.25], [1.0], [-1.0, 0.0]],
    }
    assert set(expected) == set(INTEGRATIONS)
    for name, rows in expected.items():
        assert_rows(integrate(whole, level, rewards, integration=name), rows, atol=1e-12)


@given(batches(), st.sampled_from(BASELINES), st.booleans())
@settings(max_examples=80)
def test_groups_have_mean_zero(
    batch: tuple[list[list[float]], list[int]], baseline: Baseline, by_std: bool
) -> None:
    returns, groups = batch
    ids = np.array(groups, int)
    whole = trajectory_advantages([sum(row) for row in returns], ids, normalize_std=by_std)
    for g in set(groups):
        assert abs(whole[ids == g].sum()) < 1e-7
    level = turn_level_advantages(
        Ragged.from_lists(returns), ids, baseline=baseline, normalize_std=by_std
    ).tolist()
    for g in set(groups):
        mates = [j for j in range(len(groups)) if groups[j] == g]
        if baseline == "pooled":
            assert abs(sum(a for j in mates for a in level[j])) < 1e-7
            continue
        for t in range(max(len(level[j]) for j in mates)):
            reach = [j for j in mates if len(level[j]) > t]
            # leave-one-out: over all rollouts, so where each of them is still there
            full = len(reach) > 1 if baseline == "turn_index" else len(reach) == len(mates)
            if full:
                assert abs(sum(level[j][t] for j in reach)) < 1e-7


@given(batches(), st.sampled_from(BASELINES), st.randoms(use_true_random=False))
@settings(max_examples=80)
def test_advantages_follow_a_permutation_of_the_rollouts(
    batch: tuple[list[list[float]], list[int]], baseline: Baseline, random: Any
) -> None:
    returns, groups = batch
    order = list(range(len(groups)))
    random.shuffle(order)

    def both(rows: list[list[float]], names: list[int]) -> tuple[Any, list[list[float]]]:
        ids = group_ids(names)
        whole = trajectory_advantages([sum(row) for row in rows], ids)
        return whole, turn_level_advantages(Ragged.from_lists(rows), ids, baseline=baseline).tolist()

    whole, level = both(returns, groups)
    moved, moved_level = both([returns[i] for i in order], [groups[i] for i in order])
    np.testing.assert_allclose(moved, whole[order], atol=1e-9)
    assert_rows(Ragged.from_lists(moved_level), [level[i] for i in order])


@given(batches(), st.sampled_from(BASELINES))
@settings(max_examples=80)
def test_a_batch_equals_its_groups_one_by_one(
    batch: tuple[list[list[float]], list[int]], baseline: Baseline
) -> None:
    returns, groups = batch
    whole = trajectory_advantages([sum(row) for row in returns], group_ids(groups))
    level = turn_level_advantages(Ragged.from_lists(returns), group_ids(groups), baseline=baseline)
    for g in set(groups):
        mates = [j for j in range(len(groups)) if groups[j] == g]
        rows = [returns[j] for j in mates]
        zeros = np.zeros(len(mates), int)
        np.testing.assert_allclose(
            trajectory_advantages([sum(row) for row in rows], zeros), whole[mates], atol=1e-12
        )
        alone = turn_level_advantages(Ragged.from_lists(rows), zeros, baseline=baseline)
        assert_rows(alone, [level[j].tolist() for j in mates], atol=1e-12)


@given(batches(), st.integers(-50, 50))
@settings(max_examples=80)
def test_shifting_all_returns_of_a_group_changes_nothing(
    batch: tuple[list[list[float]], list[int]], shift: int
) -> None:
    returns, groups = batch
    ids = np.array(groups, int)
    moves = shift * (1 + ids)
    totals = np.array([sum(row) for row in returns])
    np.testing.assert_allclose(
        trajectory_advantages(totals + moves, ids), trajectory_advantages(totals, ids), atol=1e-6
    )
    ragged = Ragged.from_lists(returns)
    moved = Ragged(ragged.values + moves[ragged.problem], ragged.offsets)
    pooled = turn_level_advantages(ragged, ids, baseline="pooled")
    np.testing.assert_allclose(
        turn_level_advantages(moved, ids, baseline="pooled").values, pooled.values, atol=1e-6
    )
    # Per turn index it holds wherever two rollouts can be compared.
    here, there = (turn_level_advantages(r, ids).tolist() for r in (ragged, moved))
    for i, row in enumerate(returns):
        for t in range(len(row)):
            if sum(len(r) > t for r, g in zip(returns, groups, strict=True) if g == groups[i]) > 1:
                assert here[i][t] == pytest.approx(there[i][t], abs=1e-6)


def test_leave_one_out_baseline_does_not_depend_on_the_rollouts_own_return() -> None:
    before = turn_level_advantages(RETURNS, GROUPS, baseline="leave_one_out", normalize_std=False)
    changed = Ragged.from_lists([[9.0, 9.0, 9.0], [1.0, 3.0], [0.0], [5.0]])
    after = turn_level_advantages(changed, GROUPS, baseline="leave_one_out", normalize_std=False)
    np.testing.assert_allclose(changed[0] - after[0], RETURNS[0] - before[0], atol=1e-14)


def enumerate_gradient(baseline: Baseline) -> tuple[float, float]:
    """Expected gradient of a two-decision policy, over all outcomes of a group of two.

    Stop at once for 0.2, or go on and be right half of the time for 1. The logits' true gradient
    is (p (1 - p) (q - 0.2), p q (1 - q)) with p = q = 1/2.
    """
    kinds = [([0.2], 0.5, (-0.5, 0.0)), ([1.0, 1.0], 0.25, (0.5, 0.5)), ([0.0, 0.0], 0.25, (0.5, -0.5))]
    gradient = [0.0, 0.0]
    for returns_a, chance_a, scores_a in kinds:
        for returns_b, chance_b, scores_b in kinds:
            pair = Ragged.from_lists([returns_a, returns_b])
            level = turn_level_advantages(pair, [0, 0], baseline=baseline, normalize_std=False)
            for row, scores in zip(level, (scores_a, scores_b), strict=True):
                for t, advantage in enumerate(row):
                    gradient[t] += chance_a * chance_b * scores[t] * advantage / 2
    return gradient[0], gradient[1]


def test_leave_one_out_is_unbiased_and_turn_index_is_not() -> None:
    true = (0.25 * 0.3, 0.5 * 0.25)
    assert enumerate_gradient("leave_one_out") == pytest.approx(true, abs=1e-12)
    # Turn 1 always has two rollouts, hence half; turn 2 has two half of the time.
    assert enumerate_gradient("turn_index") == pytest.approx((true[0] / 2, true[1] * 3 / 4), abs=1e-12)


@pytest.mark.parametrize("baseline", BASELINES)
def test_degenerate_batches(baseline: Baseline) -> None:
    nothing = turn_level_advantages(Ragged.from_lists([]), [], baseline=baseline)
    assert len(nothing) == 0
    assert nothing.values.dtype == np.float64
    assert trajectory_advantages([], []).shape == (0,)
    assert integrate([], nothing, nothing, integration="weighted_product").tolist() == []
    assert turn_returns(nothing, 0.9).tolist() == []
    no_turns = Ragged.from_lists([[], []])
    assert turn_level_advantages(no_turns, [0, 0], baseline=baseline).tolist() == [[], []]
    assert turn_returns(no_turns, 0.9).tolist() == [[], []]


def test_a_group_of_one_rollout() -> None:
    turns = Ragged.from_lists([[2.0, 1.0]])
    assert trajectory_advantages([3.0], [0]).tolist() == [0.0]
    np.testing.assert_allclose(turn_level_advantages(turns, [0])[0], [2 / (1 + EPS), 1 / (1 + EPS)])
    assert turn_level_advantages(turns, [0], baseline="leave_one_out").tolist() == [[0.0, 0.0]]


def test_group_ids_may_be_any_integers() -> None:
    returns = [1.0, 2.0, 4.0, 3.0]
    expected = trajectory_advantages(returns, [0, 1, 0, 1])
    assert np.array_equal(trajectory_advantages(returns, [10**12, -5, 10**12, -5]), expected)
    assert np.array_equal(trajectory_advantages(returns, [-1, 0, -1, 0]), expected)
    assert np.array_equal(trajectory_advantages(returns, [4, 0, 4, 0]), expected)


def test_eps_is_added_to_every_standard_deviation() -> None:
    turns = Ragged.from_lists([[0.0], [1.0]])
    std = math.sqrt(0.5)
    assert trajectory_advantages([0.0, 1.0], [0, 0], eps=1.0)[1] == pytest.approx(0.5 / (std + 1))
    for baseline, gap in (("turn_index", 0.5), ("pooled", 0.5), ("leave_one_out", 1.0)):
        level = turn_level_advantages(turns, [0, 0], baseline=baseline, eps=1.0)  # type: ignore[arg-type]
        assert level[1][0] == pytest.approx(gap / (std + 1))
    alone = turn_level_advantages(Ragged.from_lists([[3.0]]), [0], eps=1.0)
    assert alone.tolist() == [[1.5]]
    rewards = Ragged.from_lists([[0.0, 1.0]])
    local = integrate([2.0], rewards, rewards, integration="weighted_sum", eps=1.0)
    assert local[0][1] == pytest.approx(2 + 0.5 / (std + 1))


def test_memory_does_not_grow_with_groups_times_the_longest_rollout() -> None:
    """20,000 groups and a rollout of 20,000 turns: a table of both would take 3 GB."""
    lengths = np.ones(20_000, dtype=np.int64)
    lengths[7] = 20_000
    turns = Ragged.from_lengths(np.arange(lengths.sum(), dtype=float), lengths)
    level = turn_level_advantages(turns, np.arange(20_000), normalize_std=False)
    assert np.array_equal(level.values, turns.values)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: trajectory_advantages([1.0, math.nan], [0, 0]), InputError, r"returns\[1\] is nan"),
        (lambda: trajectory_advantages([1.0], [0, 0]), InputError, "group_ids has shape"),
        (lambda: trajectory_advantages([1.0], [0.5]), InputError, "expected integers"),
        (lambda: trajectory_advantages([[1.0]], [0]), InputError, "one dimension"),
        (lambda: turn_level_advantages(RETURNS, [0]), InputError, "group_ids has shape"),
        (
            lambda: turn_level_advantages(RETURNS, GROUPS, baseline="mean"),  # type: ignore[arg-type]
            ConfigError,
            "'mean'; expected one of turn_index",
        ),
        (
            lambda: integrate([1.0], RETURNS, RETURNS),
            InputError,
            "describes 1 rollouts, turn_level_advantages 4",
        ),
        (
            lambda: integrate([1.0], Ragged.from_lists([[1.0]]), Ragged.from_lists([[1.0, 2.0]])),
            InputError,
            "the same rollouts and turns",
        ),
        (
            lambda: integrate([], Ragged.from_lists([]), Ragged.from_lists([]), integration="product"),  # type: ignore[arg-type]
            ConfigError,
            "weighted_product",
        ),
    ],
)
def test_refusals_say_what_came(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
