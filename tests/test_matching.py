"""Matches and call rewards: by hand, and against a loop over every call."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linear_sum_assignment

from matchtir import ConfigError, ConvergenceWarning, InputError, Ragged, RaggedMatrix, match
from matchtir.ops import sinkhorn, transport_cost

MATCHINGS = ["hungarian", "greedy", "sinkhorn"]

blocks = st.tuples(st.integers(0, 5), st.integers(0, 5)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]))
)


def one(block, **options) -> tuple[list[int], list[float]]:
    matches, rewards = match(RaggedMatrix.from_blocks([np.asarray(block, dtype=float)]), **options)
    return matches.tolist()[0], rewards.tolist()[0]


def sigma(x: float) -> float:
    return 1 / (1 + np.exp(-x))


# Worked by hand


def test_match_hard_by_hand():
    scores = [[0.9, 0.8], [0.8, 0.1]]
    assert one(scores) == ([1, 0], [0.8, 0.8])
    assert one(scores, matching="greedy") == ([0, 1], [0.9, 0.1])
    for matching in ("hungarian", "greedy"):
        # A pair of score 0 is no match, and a third call has no gold call left.
        assert one([[0.0, 0.5], [0.0, 0.0]], matching=matching) == ([1, -1], [0.5, 0.0])
        assert one([[0.2], [0.9], [0.5]], matching=matching, penalty=0.3) == ([-1, 0, -1], [-0.3, 0.9, -0.3])


def test_match_soft_two_by_two_by_hand():
    # S = 1 on the diagonal. C = -S, so the plan is sigma(1 / reg) / 2 on the diagonal.
    eye = np.eye(2)
    matches, rewards = one(eye, matching="sinkhorn")
    assert matches == [0, 1]
    assert rewards == pytest.approx([sigma(10) / 2] * 2, abs=1e-12)
    _, rewards = one(eye, matching="sinkhorn", reg=1.0)
    assert rewards == pytest.approx([sigma(1) / 2] * 2, abs=1e-12)
    # 1 - S / (1 + 1e-6) off a constant, and -exp(S): 0 and 1 are e - 1 apart.
    _, rewards = one(eye, matching="sinkhorn", cost="normalized", reg=1.0)
    assert rewards == pytest.approx([sigma(1 / (1 + 1e-6)) / 2] * 2, abs=1e-12)
    _, rewards = one(eye, matching="sinkhorn", cost="exponential", reg=1.0)
    assert rewards == pytest.approx([sigma(np.e - 1) / 2] * 2, abs=1e-12)


def test_match_soft_one_gold_call_by_hand():
    # Each of m calls sends 1/m to the only gold call.
    assert one([[0.6], [0.0], [0.9]], matching="sinkhorn") == (
        [0, -1, 0],
        pytest.approx([0.2, 0.0, 0.3], abs=1e-12),
    )
    assert one([[0.6, 0.2]], matching="sinkhorn") == ([0], [pytest.approx(0.4)])


def test_match_soft_names_the_gold_call_that_pays_most():
    # Gold call 0 has the larger score but must go to row 1 by then; what counts is Z_ij S_ij.
    scores = np.array([[0.55, 0.5], [1.0, 0.0]])
    matches, _ = one(scores, matching="sinkhorn", reg=0.05)
    assert matches == [1, 0]
    # Of equal terms the first; without any, none.
    assert one([[0.5, 0.5, 0.5]], matching="sinkhorn")[0] == [0]
    assert one([[0.0, 0.5, 0.5]], matching="sinkhorn")[0] == [1]
    assert one(np.zeros((2, 3)), matching="sinkhorn") == ([-1, -1], [0.0, 0.0])


@pytest.mark.parametrize("matching", MATCHINGS)
def test_match_without_gold_or_without_calls(matching):
    problems = RaggedMatrix.from_blocks(
        [np.zeros((2, 0)), np.zeros((0, 3)), np.zeros((0, 0)), [[1.0]], np.zeros((1, 0))]
    )
    matches, rewards = match(problems, matching=matching, penalty=0.5)
    assert matches.tolist() == [[-1, -1], [], [], [0], [-1]]
    alone = 0.0 if matching == "sinkhorn" else -0.5
    assert rewards.tolist() == [[alone, alone], [], [], [1.0], [alone]]
    assert (matches.values.dtype, rewards.values.dtype) == (np.int64, np.float64)
    matches, rewards = match(RaggedMatrix.from_blocks([]), matching=matching)
    assert matches.tolist() == rewards.tolist() == []
    for empty in (np.zeros((2, 0)), np.zeros((0, 2))):
        matches, rewards = match(RaggedMatrix.from_blocks([empty] * 2), matching=matching)
        assert matches.tolist() == [[-1] * len(empty)] * 2
        assert rewards.tolist() == [[0.0] * len(empty)] * 2


@pytest.mark.parametrize("matching", MATCHINGS)
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_match_never_pays_minus_zero(matching, zero):
    for block in ([[zero, zero]], [[zero], [1.0]], [[zero]], np.zeros((2, 0)), np.full((3, 3), zero)):
        rewards = match(RaggedMatrix.from_blocks([block]), matching=matching, penalty=0.0)[1].values
        assert not np.signbit(rewards).any(), block


@pytest.mark.parametrize("matching", MATCHINGS)
def test_match_takes_float32_scores(matching):
    block = np.array([[0.1, 0.7], [0.2, 0.3]], dtype=np.float32)
    matches, rewards = match(RaggedMatrix.from_blocks([block]), matching=matching)
    assert matches.tolist() == [[1, 0]]
    assert rewards.values.dtype == np.float64
    if matching != "sinkhorn":
        assert rewards.values.tolist() == [float(np.float32(0.7)), float(np.float32(0.2))]


# Against loops


@pytest.mark.parametrize("matching", ["hungarian", "greedy"])
@given(problems=st.lists(blocks, max_size=5), penalty=st.sampled_from([0.0, 0.5, 2.0]))
def test_match_hard_rewards_equal_a_loop(matching, problems, penalty):
    matches, rewards = match(RaggedMatrix.from_blocks(problems), matching=matching, penalty=penalty)
    assert len(matches) == len(rewards) == len(problems)
    for block, js, rs in zip(problems, matches.tolist(), rewards.tolist(), strict=True):
        assert len(js) == len(rs) == len(block)
        used = [j for j in js if j >= 0]
        assert len(set(used)) == len(used)
        for i, (j, r) in enumerate(zip(js, rs, strict=True)):
            assert r == (-penalty if j < 0 else block[i, j])
            assert j < 0 or block[i, j] > 0
        if matching == "hungarian":
            best = block[linear_sum_assignment(block, maximize=True)].sum()
            assert sum(block[i, j] for i, j in enumerate(js) if j >= 0) == pytest.approx(best)
        else:
            # Whatever is left pays nothing: greedy stops only when no pair is.
            assert not any(
                block[i, j] > 0
                for i in range(len(js))
                if js[i] < 0
                for j in set(range(block.shape[1])) - set(used)
            )


@pytest.mark.parametrize("cost", ["linear", "normalized", "exponential"])
@given(problems=st.lists(blocks, max_size=5), reg=st.sampled_from([0.05, 0.1, 1.0]))
def test_match_soft_rewards_equal_a_loop(cost, problems, reg):
    scores = RaggedMatrix.from_blocks(problems)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        matches, rewards = match(scores, matching="sinkhorn", cost=cost, reg=reg)
        plans = sinkhorn(transport_cost(scores, cost), reg=reg).plan
    for block, plan, js, rs in zip(problems, plans, matches.tolist(), rewards.tolist(), strict=True):
        for i in range(len(block)):
            terms = [z * s for z, s in zip(plan[i], block[i], strict=True)]
            assert rs[i] == pytest.approx(sum(terms), abs=1e-15)
            assert js[i] == (terms.index(max(terms)) if terms and max(terms) > 0 else -1)
        if block.size:
            # No more is paid than the columns hold, and no call more than 1/m.
            assert max(rs) <= block.max() / block.shape[1] * min(block.shape[1], 1e9) + 1e-9
            assert sum(rs) <= block.max() + 1e-9


@given(st.lists(blocks, max_size=6), st.sampled_from(MATCHINGS), st.integers(1, 3))
def test_match_batch_equals_loop(problems, matching, threads):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        matches, rewards = match(RaggedMatrix.from_blocks(problems), matching=matching, num_threads=threads)
        alone = [one(block, matching=matching) for block in problems]
    assert matches.tolist() == [x[0] for x in alone]
    assert rewards.tolist() == [x[1] for x in alone]


def test_match_passes_the_transport_settings_on():
    hard = np.random.default_rng(0).random((6, 6))
    with pytest.warns(ConvergenceWarning, match="max_iter=1 before tol=1e-12"):
        match(RaggedMatrix.from_blocks([hard]), matching="sinkhorn", tol=1e-12, max_iter=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        match(RaggedMatrix.from_blocks([hard]), matching="sinkhorn", tol=1.0, max_iter=1)
        match(RaggedMatrix.from_blocks([hard]), matching="hungarian", tol=1e-12, max_iter=1)


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"matching": "optimal"}, "matching is 'optimal'; expected 'hungarian', 'greedy' or 'sinkhorn'"),
        ({"matching": None}, "matching is None; expected"),
        ({"matching": "sinkhorn", "cost": "cosine"}, "cost is 'cosine'; expected 'linear'"),
        ({"matching": "sinkhorn", "reg": 0.0}, "reg is 0.0; expected a positive"),
        ({"matching": "sinkhorn", "tol": -1.0}, "tol is -1.0; expected"),
        ({"matching": "sinkhorn", "max_iter": 0}, "max_iter is 0; expected a positive integer"),
        ({"num_threads": 0}, "num_threads is 0; expected a positive integer"),
        ({"matching": "sinkhorn", "num_threads": True}, "num_threads is True; expected a positive integer"),
        ({"penalty": float("nan")}, "penalty is nan; expected"),
        ({"penalty": float("inf")}, "penalty is inf; expected"),
        ({"penalty": -1.0}, "penalty is -1.0; expected a finite number, 0 or more"),
    ],
)
def test_match_refuses_impossible_settings(options, message):
    with pytest.raises(ConfigError, match=message):
        match(RaggedMatrix.from_blocks([[[1.0]]]), **options)


@pytest.mark.parametrize("matching", MATCHINGS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_match_refuses_scores_that_are_not_finite(matching, value):
    problems = RaggedMatrix.from_blocks([[[1.0]], [[0.0, value]]])
    with pytest.raises(InputError, match=r"(scores|cost)\[1\] holds .* at \(0, 1\)"):
        match(problems, matching=matching)


def test_match_leaves_its_input_alone():
    scores = RaggedMatrix.from_blocks([[[0.5, -0.0], [0.25, 1.0]]])
    before = scores.values.copy()
    for matching in MATCHINGS:
        matches, rewards = match(scores, matching=matching)
        assert isinstance(matches, Ragged)
        assert isinstance(rewards, Ragged)
    np.testing.assert_array_equal(scores.values, before)
