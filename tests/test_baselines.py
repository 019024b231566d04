"""ToolRL's and FTRL's rewards of a whole rollout, worked by hand and against brute force."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matchtir.baselines import ftrl_reward, ftrl_rewards, toolrl_reward, toolrl_rewards
from matchtir.errors import InputError
from matchtir.types import ToolCall, Trajectory, Turn


def call(name: str, result: str | None = None, malformed: str | None = None, **arguments: Any) -> ToolCall:
    return ToolCall(name, arguments, malformed=malformed, result=result)


def rollout(
    *calls: ToolCall, gold: tuple[ToolCall, ...] = (), answer: str | None = "x", sub: Any = None
) -> Trajectory:
    """A rollout that makes each call in a turn of its own and then answers."""
    turns = (*(Turn((c,)) for c in calls), Turn(answer=answer))
    return Trajectory(turns, gold, sub_answers=sub)


WEATHER = call("weather", city="Paris", unit="C")
ROUTE = call("route", start="A", end="B")


def test_toolrl_by_hand() -> None:
    # most = 1 + 2 + 4 = 7
    gold = (WEATHER, ROUTE)
    assert toolrl_reward(rollout(WEATHER, ROUTE, gold=gold)) == pytest.approx(1 + 3)
    assert toolrl_reward(rollout(ROUTE, WEATHER, gold=gold)) == pytest.approx(1 + 3)
    # names 1/2, parameter names 1, values 2
    assert toolrl_reward(rollout(WEATHER, gold=gold)) == pytest.approx(1 + 6 * 3.5 / 7 - 3)
    # names 2/3; weather: 1/3 and 1 value; route: 1 and 1 value; the third has no gold call
    extra = (call("weather", city="Paris", day=1), call("route", start="A", end="C"), call("clock"))
    assert toolrl_reward(rollout(*extra, gold=gold)) == pytest.approx(
        1 + 6 * (2 / 3 + 1 / 3 + 1 + 1 + 1) / 7 - 3
    )
    assert toolrl_reward(rollout(call("clock"), gold=gold)) == pytest.approx(1 - 3)


def test_toolrl_counts_repeated_names_as_often_as_they_occur() -> None:
    # names: common 1 of 2, though the sets are equal; parameter names 1, values 1; most 1 + 1 + 1
    twice = rollout(call("f", x=1), call("f", x=1), gold=(call("f", x=1),))
    assert toolrl_reward(twice) == pytest.approx(1 + 6 * 2.5 / 3 - 3)


def test_toolrl_takes_the_best_assignment_where_greedy_choices_do_not() -> None:
    gold = (call("f", x=1), call("f", x=1, y=1))
    predicted = (call("f", x=1, y=1), call("f", x=2))
    # p0-g0 1/2 + 1, p0-g1 1 + 2, p1-g0 1 + 0, p1-g1 1/2 + 0: in turn, g0 takes p0 and leaves 1/2 for g1,
    # 2 in all; at best 1 + 3. Names 1, most 1 + 2 + 3.
    assert toolrl_reward(rollout(*predicted, gold=gold)) == pytest.approx(1 + 6 * (1 + 4) / 6 - 3)

    gold = (call("f", x=1, y=0), call("f", z=1))
    predicted = (call("f", x=1, z=1), call("f", z=2))
    # p0-g0 1/3 + 1, p0-g1 1/2 + 1, p1-g0 0, p1-g1 1 + 0: the best pair first leaves 0, 3/2 in all; at best
    # 4/3 + 1. Names 1, most 1 + 2 + 3.
    assert toolrl_reward(rollout(*predicted, gold=gold)) == pytest.approx(1 + 6 * (1 + 7 / 3) / 6 - 3)


@pytest.mark.parametrize(
    ("predicted", "gold", "equal"),
    [
        (1, 1.0, True),
        (True, 1, False),
        (False, 0, False),
        ("Paris", "paris", False),
        ("1", 1, False),
        (None, None, True),
        (None, 0, False),
        ({"a": 1, "b": [1, 2]}, {"b": [1, 2.0], "a": 1}, True),
        ([1, 2], [2, 1], False),
        ([1], [1, 2], False),
        ({"a": None}, {}, False),
        ({"a": [True]}, {"a": [1]}, False),
        ({}, [], False),
        (2**53 + 1, float(2**53), False),
    ],
)
def test_toolrl_compares_values_as_json(predicted: Any, gold: Any, equal: bool) -> None:
    reward = toolrl_reward(rollout(call("f", x=predicted), gold=(call("f", x=gold),)))
    assert reward == pytest.approx(1 + 6 * (2 + equal) / 3 - 3)


def test_toolrl_compares_nested_values() -> None:
    deep: list[Any] = []
    other: list[Any] = []
    for _ in range(150):
        deep, other = [deep], [other]
    assert toolrl_reward(rollout(call("f", x=deep), gold=(call("f", x=other),))) == pytest.approx(4)
    assert toolrl_reward(rollout(call("f", x=[deep]), gold=(call("f", x=other),))) < 4


def test_toolrl_of_a_malformed_call() -> None:
    # No format reward; the call stands among the names and agrees with nothing: names 1/2.
    broken = call("f", malformed="no JSON", x=1)
    both = rollout(call("f", x=1), broken, gold=(call("f", x=1),))
    assert toolrl_reward(both) == pytest.approx(0 + 6 * (1 / 2 + 2) / 3 - 3)
    assert toolrl_reward(rollout(broken, gold=(call("f", x=1),))) == pytest.approx(-3)


def test_toolrl_format_reward() -> None:
    gold = (call("f"),)
    assert toolrl_reward(rollout(call("f"), gold=gold)) == 4.0
    assert toolrl_reward(rollout(call("f"), gold=gold, answer=None)) == 3.0  # ends with neither
    assert toolrl_reward(Trajectory((Turn((call("f"),)),), gold)) == 4.0  # ends with a call
    assert toolrl_reward(Trajectory((), gold)) == -3.0


def test_toolrl_without_gold_or_predicted_calls() -> None:
    assert toolrl_reward(rollout()) == 4.0
    assert toolrl_reward(rollout(call("f"))) == -2.0
    assert toolrl_reward(rollout(gold=(call("f"),))) == -2.0
    assert toolrl_rewards([]).shape == (0,)


arguments = st.dictionaries(st.sampled_from("xyz"), st.sampled_from([1, 1.0, True, "a"]), max_size=3)
call_lists = st.lists(st.builds(ToolCall, st.sampled_from(["f", "g"]), arguments), max_size=4)


def brute_toolrl(predicted: list[ToolCall], gold: list[ToolCall]) -> float:
    """The definition, over every assignment."""

    def pair(p: ToolCall, g: ToolCall) -> float:
        if p.name != g.name:
            return 0.0
        a, b = set(p.arguments), set(g.arguments)
        values = sum(
            p.arguments[k] == g.arguments[k]
            and isinstance(p.arguments[k], bool) == isinstance(g.arguments[k], bool)
            for k in a & b
        )
        return float((len(a & b) / len(a | b) if a | b else 1.0) + values)

    best = 0.0
    columns = list(range(len(gold))) + [None] * len(predicted)
    for chosen in set(itertools.permutations(columns, len(predicted))):
        pairs = [(p, gold[j]) for p, j in zip(predicted, chosen, strict=True) if j is not None]
        best = max(best, sum(pair(p, g) for p, g in pairs))
    common = sum(min(sum(p.name == n for p in predicted), sum(g.name == n for g in gold)) for n in ("f", "g"))
    either = len(predicted) + len(gold) - common
    names = common / either if either else 1.0
    most = 1 + len(gold) + sum(len(g.arguments) for g in gold)
    return float(1 + 6 * (names + best) / most - 3)


@given(call_lists, call_lists.filter(lambda calls: len(calls) <= 3))
@settings(max_examples=60, deadline=None)
def test_toolrl_equals_brute_force_and_stays_in_range(
    predicted: list[ToolCall], gold: list[ToolCall]
) -> None:
    reward = toolrl_reward(rollout(*predicted, gold=tuple(gold)))
    assert reward == pytest.approx(brute_toolrl(predicted, gold), abs=1e-12)
    assert -3 <= reward <= 4
    assert toolrl_reward(rollout(*gold, gold=tuple(gold))) == pytest.approx(4)


def test_toolrl_of_a_batch_equals_one_by_one() -> None:
    rollouts = [
        rollout(WEATHER, ROUTE, gold=(ROUTE,)),
        rollout(),
        Trajectory((), (WEATHER,)),
        rollout(ROUTE, gold=(WEATHER, ROUTE), answer=None),
    ]
    assert toolrl_rewards(rollouts).tolist() == [toolrl_reward(r) for r in rollouts]


def test_ftrl_by_hand() -> None:
    asked = {"population": ("709,037",), "mayor": ("Anne Lindboe", "Eric Adams")}
    population = call("population", '{"people": 709037}')
    lindboe = call("mayor", "The mayor is ANNE LINDBOE.")
    assert ftrl_reward(rollout(population, lindboe, sub=asked)) == pytest.approx(2 * 2 / (2 + 3))
    assert ftrl_reward(rollout(lindboe, lindboe, lindboe, sub=asked)) == pytest.approx(2 * 1 / (3 + 3))
    assert ftrl_reward(rollout(call("mayor", "709037"), sub=asked)) == 0.0  # another tool's answer
    assert ftrl_reward(rollout(sub=asked)) == 0.0


def test_ftrl_lets_a_call_solve_one_sub_question_only() -> None:
    asked = {"mayor": ("Lindboe", "Adams")}
    both = call("mayor", "Lindboe and Adams")
    assert ftrl_reward(rollout(both, sub=asked)) == pytest.approx(2 * 1 / (1 + 2))
    assert ftrl_reward(rollout(both, both, sub=asked)) == pytest.approx(2 * 2 / (2 + 2))


def test_ftrl_takes_calls_in_order_and_the_first_open_answer() -> None:
    # "12" contains "1" and takes it, so that the later "1" finds only "12" open.
    asked = {"f": ("1", "12")}
    assert ftrl_reward(rollout(call("f", "12"), call("f", "1"), sub=asked)) == pytest.approx(2 * 1 / 4)
    assert ftrl_reward(rollout(call("f", "1"), call("f", "12"), sub=asked)) == pytest.approx(2 * 2 / 4)


def test_ftrl_wants_every_part_of_a_listed_answer() -> None:
    asked = {"f": ("Oslo, Norway",)}
    assert ftrl_reward(rollout(call("f", '{"country": "Norway", "city": "Oslo"}'), sub=asked)) == 1.0
    assert ftrl_reward(rollout(call("f", "Oslo, Sweden"), sub=asked)) == 0.0


def test_ftrl_counts_malformed_calls_and_calls_without_result_as_unsolved() -> None:
    asked = {"f": ("1",)}
    broken, silent, good = call("f", "1", malformed="no JSON"), call("f"), call("f", "1")
    assert ftrl_reward(rollout(broken, silent, good, sub=asked)) == pytest.approx(2 * 1 / (3 + 1))
    assert ftrl_reward(rollout(broken, silent, sub=asked)) == 0.0


def test_ftrl_where_nothing_is_asked() -> None:
    assert ftrl_reward(rollout(sub={})) == 1.0
    assert ftrl_reward(rollout(sub={"f": ()})) == 1.0
    assert ftrl_reward(rollout(call("f", "1"), sub={})) == 0.0


@pytest.mark.parametrize("blank", ["", " ", ",", ", "])
def test_ftrl_finds_a_blank_answer_nowhere(blank: str) -> None:
    assert ftrl_reward(rollout(call("f", "anything, at all"), sub={"f": (blank,)})) == 0.0


def test_ftrl_leaves_the_sub_answers_alone() -> None:
    asked = {"f": ("1",)}
    one = rollout(call("f", "1"), sub=asked)
    assert [ftrl_reward(one), ftrl_reward(one)] == [1.0, 1.0]
    assert asked == {"f": ("1",)}


def test_ftrl_refuses_rollouts_without_sub_answers_by_index() -> None:
    with pytest.raises(InputError, match="sub_answers"):
        ftrl_reward(rollout(call("f", "1")))
    with pytest.raises(InputError, match=r"rollouts\[1\].*sub_answers"):
        ftrl_rewards([rollout(sub={}), rollout(call("f", "1"))])


def test_ftrl_refuses_a_batch_whose_results_were_not_kept() -> None:
    asked = {"f": ("1",)}
    with pytest.raises(InputError, match="none of the 2 calls has a result"):
        ftrl_rewards([rollout(call("f"), sub=asked), rollout(call("f"), sub=asked)])
    kept = ftrl_rewards([rollout(call("f"), sub=asked), rollout(call("f", ""), sub=asked), rollout(sub={})])
    assert np.array_equal(kept, [0.0, 0.0, 1.0])
    assert ftrl_rewards([]).shape == (0,)


@given(
    st.lists(st.tuples(st.sampled_from("fg"), st.sampled_from(["", "1", "12", "a, b"])), max_size=5),
    st.dictionaries(st.sampled_from("fg"), st.lists(st.sampled_from(["1", "12", "a, b"]), max_size=3)),
)
@settings(max_examples=100)
def test_ftrl_is_the_f1_of_precision_and_recall(
    calls: list[tuple[str, str]], asked: dict[str, list[str]]
) -> None:
    open_answers = [(tool, answer) for tool, answers in asked.items() for answer in answers]
    total = len(open_answers)
    for tool, result in calls:
        for item in open_answers:
            if item[0] == tool and item[1].replace(",", "") in result.replace(",", ""):
                open_answers.remove(item)
                break
    solved = total - len(open_answers)
    trajectory = rollout(*(call(t, r) for t, r in calls), sub={k: tuple(v) for k, v in asked.items()})
    reward = ftrl_reward(trajectory)
    if solved:
        precision, recall = solved / len(calls), solved / total
        assert reward == pytest.approx(2 * precision * recall / (precision + recall))
    else:
        assert reward == (0.0 if calls or total else 1.0)
    assert math.isfinite(reward)
    assert 0 <= reward <= 1
