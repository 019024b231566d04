"""Answers' F1, turn rewards and returns."""

from __future__ import annotations

import math
import sys
import unicodedata
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matchtir.errors import InputError
from matchtir.rewards import outcome_f1, outcome_reward, outcome_rewards, trajectory_returns, turn_rewards
from matchtir.types import Ragged, ToolCall, Trajectory, Turn

CALL = ToolCall("search", {"query": "castle"})


@pytest.mark.parametrize(
    ("predicted", "gold", "expected"),
    [
        ("Stone.", "Stone", 1.0),
        ("the red stone", "red brick", 2 * 1 / (3 + 2)),  # precision 1/3, recall 1/2
        ("red red red", "red", 1.0),  # sets: a word counts once
        ("stone", "brick", 0.0),
        ("wood_and-stone", "stone, and wood!", 1.0),  # punctuation parts words, the underscore too
        ("$5", "5", 1.0),  # symbols are no words
        ("«Straße» — 7€", "straße 7", 1.0),
        ("हिन्दी", "हिन्दी।", 1.0),  # combining marks stay inside the word
        ("O'Hara", "O Hara", 1.0),
        ("", "", 1.0),
        ("?!", "...", 1.0),  # neither has a word
        ("", "stone", 0.0),
        ("stone", "", 0.0),
        (None, "stone", 0.0),
        ("stone", None, 0.0),
        (None, None, 0.0),
    ],
)
def test_outcome_f1_by_hand(predicted: str | None, gold: str | None, expected: float) -> None:
    assert outcome_f1(predicted, gold) == pytest.approx(expected, abs=1e-15)


def test_outcome_f1_parts_words_at_all_punctuation_and_symbols_only() -> None:
    for codepoint in range(0, sys.maxunicode + 1, 7):
        character = chr(codepoint)
        if character.isspace() or unicodedata.category(character) == "Cs":
            continue
        parts = unicodedata.category(character)[0] in "PS"
        assert outcome_f1(f"a{character}b", "a b") == (1.0 if parts else 0.0), hex(codepoint)


words = st.text(alphabet="aB c.-é\n", max_size=12)


@given(words, words)
@settings(max_examples=100)
def test_outcome_f1_is_the_harmonic_mean_of_precision_and_recall(predicted: str, gold: str) -> None:
    p, g = (set(x.lower().replace(".", " ").replace("-", " ").split()) for x in (predicted, gold))
    common = len(p & g)
    if not p and not g:
        expected = 1.0
    elif not common:
        expected = 0.0
    else:
        precision, recall = common / len(p), common / len(g)
        expected = 2 * precision * recall / (precision + recall)
    assert outcome_f1(predicted, gold) == pytest.approx(expected, abs=1e-12)
    assert outcome_f1(predicted, gold) == outcome_f1(gold, predicted)


def test_outcome_reward_takes_the_last_turns_answer_or_the_given_outcome() -> None:
    answered = Trajectory((Turn((CALL,)), Turn(answer="Stone.")), gold_answer="stone")
    assert outcome_reward(answered) == 1.0
    assert outcome_reward(Trajectory((Turn(answer="stone"), Turn((CALL,))), gold_answer="stone")) == 0.0
    assert outcome_reward(Trajectory((), gold_answer="stone")) == 0.0
    assert outcome_reward(Trajectory((Turn(answer="stone"),))) == 0.0  # no gold answer
    assert outcome_reward(Trajectory((Turn(answer="brick"),), gold_answer="stone", outcome=0.75)) == 0.75
    assert outcome_reward(Trajectory((Turn(answer="stone"),), gold_answer="stone", outcome=0)) == 0.0
    assert outcome_reward(Trajectory((Turn((CALL,)),), outcome=np.float32(0.5))) == 0.5


def test_outcome_reward_of_a_turn_that_calls_and_answers_is_zero() -> None:
    both = Trajectory((Turn((CALL,), answer="stone"),), gold_answer="stone")
    assert outcome_reward(both) == 0.0


@pytest.mark.parametrize("outcome", [math.nan, math.inf, -math.inf, "1", [1.0]])
def test_outcome_rewards_refuses_what_is_no_finite_number_and_names_the_rollout(outcome: Any) -> None:
    fine = Trajectory((Turn(answer="x"),), outcome=1.0)
    with pytest.raises(InputError, match=r"rollouts\[1\].*outcome is"):
        outcome_rewards([fine, Trajectory((Turn(answer="x"),), outcome=outcome)])


def test_outcome_rewards_of_nothing_is_empty() -> None:
    assert outcome_rewards([]).shape == (0,)


def test_turn_rewards_by_hand() -> None:
    calls = Ragged.from_lists([[1.0, 0.5, 0.0], [], [0.25, -0.5], []])
    counts = Ragged.from_lists([[2, 0, 1, 0], [0], [0, 2], []], np.int64)
    rewards = turn_rewards(calls, counts, [0.8, 0.4, 0.0, 1.0])
    assert rewards.tolist() == [[0.75, 0.0, 0.0, 0.8], [0.4], [0.0, -0.125], []]


def test_turn_rewards_adds_a_measured_outcome_to_a_last_turn_with_calls() -> None:
    rewards = turn_rewards(Ragged.from_lists([[0.5]]), Ragged.from_lists([[1]], np.int64), [1.0])
    assert rewards.tolist() == [[1.5]]


batches = st.lists(
    st.lists(st.lists(st.floats(-1, 1, allow_subnormal=False), max_size=3), max_size=4), max_size=6
)


@given(batches, st.data())
@settings(max_examples=100)
def test_turn_rewards_and_returns_equal_a_plain_loop(batch: list[Any], data: st.DataObject) -> None:
    outcomes = [data.draw(st.floats(0, 1)) for _ in batch]
    calls = Ragged.from_lists([[r for turn in rollout for r in turn] for rollout in batch])
    counts = Ragged.from_lists([[len(turn) for turn in rollout] for rollout in batch], np.int64)
    rewards = turn_rewards(calls, counts, outcomes)
    returns = trajectory_returns(rewards)
    assert len(rewards) == len(batch) == len(returns)
    for b, rollout in enumerate(batch):
        expected = [sum(turn) / len(turn) if turn else 0.0 for turn in rollout]
        if expected:
            expected[-1] += outcomes[b]
        np.testing.assert_allclose(rewards[b], expected, rtol=0, atol=1e-14)
        assert returns[b] == pytest.approx(sum(expected), abs=1e-13)


def test_turn_rewards_leaves_its_arguments_alone() -> None:
    calls, counts = Ragged.from_lists([[0.5]]), Ragged.from_lists([[1]], np.int64)
    outcomes = np.array([1.0])
    turn_rewards(calls, counts, outcomes)
    assert calls.tolist() == [[0.5]]
    assert counts.tolist() == [[1]]
    assert outcomes.tolist() == [1.0]


@pytest.mark.parametrize(
    ("calls", "counts", "outcomes", "message"),
    [
        ([[1.0]], [[1], [0]], [0.0, 0.0], "as many in each"),
        ([[1.0]], [[1]], [0.0, 0.0], "as many in each"),
        ([[1.0]], [[1]], [math.nan], r"outcomes\[0\]"),
        ([[], [1.0]], [[0], [2]], [0.0, 0.0], r"calls_per_turn\[1\] adds up to 2 .* 1"),
        ([[1.0], []], [[0], [1]], [0.0, 0.0], r"calls_per_turn\[0\]"),  # equal in sum only
        ([[], [1.0]], [[0], [2, -1]], [0.0, 0.0], r"calls_per_turn\[1\] holds a negative"),
    ],
)
def test_turn_rewards_refuses_what_does_not_fit_together(
    calls: list[Any], counts: list[Any], outcomes: list[float], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        turn_rewards(Ragged.from_lists(calls), Ragged.from_lists(counts, np.int64), outcomes)
