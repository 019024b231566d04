"""The metrics of rollouts: worked by hand, against a plain implementation, and their intervals."""

from __future__ import annotations

import json
import math
import statistics
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matchtir.baselines import ftrl_reward, solved_sub_questions
from matchtir.errors import ConfigError, InputError
from matchtir.evals import METRICS, Bootstrap, Evaluation, bootstrap, evaluate, measure
from matchtir.parse import trajectory_from_row
from matchtir.types import Round, ToolCall, Trajectory, Turn

NONE = Bootstrap(samples=0)


def call(name: str, result: str | None = None, malformed: str | None = None) -> ToolCall:
    return ToolCall(name, malformed=malformed, result=result)


def rollout(*calls: ToolCall, answer: str | None = None, **fields: Any) -> Trajectory:
    """A rollout that makes each call in a turn of its own, and then answers if there is an answer."""
    turns = tuple(Turn((one,)) for one in calls)
    return Trajectory(turns if answer is None else (*turns, Turn(answer=answer)), **fields)


def means(evaluation: Evaluation, level: str = "overall", name: str = "all") -> dict[str, float | None]:
    row = next(row for row in evaluation.rows if (row.level, row.name) == (level, name))
    return {metric: None if found is None else found.mean for metric, found in row.metrics.items()}


# --- one rollout --------------------------------------------------------------------------------------

ASKED = {"population": ("709,037",), "mayor": ("Anne Lindboe", "Eric Adams")}
OSLO = call("population", '{"people": 709037}')
ANNE = call("mayor", "The mayor is ANNE LINDBOE.")


def test_solve_metrics_by_hand() -> None:
    # Four calls, three sub-questions; the first two calls solve one each, the third repeats.
    found = measure(rollout(OSLO, ANNE, ANNE, call("web", "Eric Adams"), sub_answers=ASKED))
    assert found.solve_p == 2 / 4
    assert found.solve_r == pytest.approx(2 / 3)
    assert found.solve_f1 == pytest.approx(2 * 2 / (4 + 3))
    # Nothing solved.
    found = measure(rollout(call("mayor", "nobody"), sub_answers=ASKED))
    assert (found.solve_p, found.solve_r, found.solve_f1) == (0.0, 0.0, 0.0)


def test_solve_metrics_count_a_sub_question_asked_twice_twice() -> None:
    asked = {"f": ("1", "1")}
    found = measure(rollout(call("f", "1"), sub_answers=asked))
    assert (found.solve_p, found.solve_r, found.solve_f1) == (1.0, 1 / 2, pytest.approx(2 / (1 + 2)))
    found = measure(rollout(call("f", "1"), call("f", "1"), sub_answers=asked))
    assert (found.solve_p, found.solve_r, found.solve_f1) == (1.0, 1.0, 1.0)


def test_solve_metrics_where_nothing_is_called_or_asked() -> None:
    found = measure(rollout(answer="x", sub_answers=ASKED))
    assert (found.solve_p, found.solve_r, found.solve_f1) == (1.0, 0.0, 0.0)
    for nothing in ({}, {"f": ()}):
        found = measure(rollout(call("f", "1"), sub_answers=nothing))
        assert (found.solve_p, found.solve_r, found.solve_f1) == (0.0, 1.0, 0.0)
        found = measure(rollout(answer="x", sub_answers=nothing))
        assert (found.solve_p, found.solve_r, found.solve_f1) == (1.0, 1.0, 1.0)


def test_solve_metrics_are_absent_without_sub_answers() -> None:
    found = measure(rollout(OSLO, answer="x"))
    assert (found.solve_p, found.solve_r, found.solve_f1) == (None, None, None)
    assert solved_sub_questions(rollout(OSLO)) == 0


@pytest.mark.parametrize(
    ("answer", "gold", "correct"),
    [
        ("It has 709,037 people.", "709037", 1.0),
        ("709037", "709,037", 1.0),
        ("MILK and celery", "milk", 1.0),
        ("milk, celery", "Milk Celery", 1.0),
        ("celery, milk", "milk, celery", 0.0),  # as a whole, in its order
        ("milk", "milk, celery", 0.0),
        ("170", "70", 1.0),  # contained is enough, which is generous
        ("Oslo", " Oslo ", 1.0),
        ("", "Oslo", 0.0),
        (None, "Oslo", 0.0),
        ("Oslo", None, None),
        (None, None, None),
        ("Oslo", "", None),
        ("Oslo", " , ", None),
    ],
)
def test_an_answer_is_correct_if_it_contains_the_gold_answer(
    answer: str | None, gold: str | None, correct: float | None
) -> None:
    assert measure(rollout(OSLO, answer=answer, gold_answer=gold)).correct == correct


def test_only_a_last_turn_without_calls_answers() -> None:
    early = Trajectory((Turn(answer="yes"), Turn((call("f", "1"),))), gold_answer="yes")
    assert (measure(early).correct, measure(early).unanswered) == (0.0, 1.0)
    both = Trajectory((Turn((call("f", "1"),), answer="yes"),), gold_answer="yes")
    assert (measure(both).correct, measure(both).unanswered) == (0.0, 1.0)
    assert measure(Trajectory((), gold_answer="yes")).unanswered == 1.0
    assert measure(Trajectory((Turn(answer=""),), gold_answer="yes")).unanswered == 0.0


YES, NO, SILENT = Turn(answer="yes"), Turn(answer="no"), Turn((call("f", "1"),))


@pytest.mark.parametrize(
    ("turns", "rounds", "correct", "unanswered"),
    [
        ((YES, YES), (Round(1, 0, "yes"), Round(1, 0, "yes")), 1.0, 0.0),
        ((YES, NO), (Round(1, 0, "yes"), Round(1, 0, "yes")), 0.0, 0.0),
        # The answer of the last turn of each, and no other.
        ((YES, NO, YES), (Round(2, 0, "yes"), Round(1, 0, "yes")), 0.0, 0.0),
        ((YES, SILENT), (Round(1, 0, "yes"), Round(1, 0, "yes")), 0.0, 0.5),
        # One that was not reached is not solved.
        ((YES,), (Round(1, 0, "yes"), Round(0, 0, "yes"), Round(0)), 0.0, 2 / 3),
        # What cannot be judged is passed over.
        ((YES, SILENT), (Round(1, 0, "yes"), Round(1, 0, " , ")), 1.0, 0.5),
        ((YES, NO), (Round(1), Round(1)), None, 0.0),
        ((), (Round(0), Round(0)), None, 1.0),
        # An outcome counts before the answer.
        ((NO, SILENT), (Round(1, 0, "yes", 1.0), Round(1, 0, None, 1 - 1e-12)), 1.0, 0.5),
        ((YES, YES), (Round(1, 0, "yes", 0.999), Round(1, 0, "yes")), 0.0, 0.0),
        ((YES, NO), (Round(1, 0, "yes"), Round(1, 0, None, 0.0)), 0.0, 0.0),
        ((YES,), (Round(1, 0, "yes"),), 1.0, 0.0),
    ],
)
def test_a_dialogue_is_correct_if_all_its_user_turns_are_solved(
    turns: Any, rounds: Any, correct: float | None, unanswered: float
) -> None:
    found = measure(Trajectory(turns, rounds=rounds))
    assert (found.correct, found.unanswered) == (correct, pytest.approx(unanswered))
    assert found.turns == len(turns)


def test_the_rest_of_a_dialogue_is_of_the_whole() -> None:
    golds = (ToolCall("f"), ToolCall("g"), ToolCall("h"))
    one = Trajectory(
        (Turn((OSLO,)), YES, Turn((ANNE,)), YES),
        golds,
        sub_answers=ASKED,
        rounds=(Round(2, 1, "yes"), Round(2, 2, "yes")),
    )
    found = measure(one)
    assert (found.size, found.calls, found.turns) == (3, 2, 4)
    assert (found.solve_p, found.solve_r) == (1.0, pytest.approx(2 / 3))
    with pytest.raises(InputError, match="rounds add up to 2 turns but the rollout has 4"):
        measure(Trajectory(one.turns, golds, rounds=(Round(2, 3),)))


def test_outcome_of_a_rollout_without_rounds_is_no_answer() -> None:
    found = measure(Trajectory((NO,), gold_answer="yes", outcome=1.0))
    assert found.correct == 0.0
    assert measure(Trajectory((NO,), outcome=1.0)).correct is None


def test_effort_by_hand() -> None:
    # Two turns with three calls, one that failed and one malformed; then the answer.
    turns = (Turn((call("f", "1"), call("f", '{"error": "no"}'))), Turn((call("f", malformed="why"),)))
    found = measure(Trajectory((*turns, Turn(answer="x"))))
    assert (found.calls, found.turns, found.failed_calls, found.unanswered) == (3, 3, pytest.approx(2 / 3), 0)
    assert (found.well_formed, found.results) == (2, 2)


def test_failed_share_is_absent_where_nothing_is_known_of_calls() -> None:
    assert measure(rollout(answer="x")).failed_calls is None
    assert measure(rollout(call("f"))).failed_calls is None
    assert measure(rollout(call("f"), call("f", malformed="why"))).failed_calls is None
    assert measure(rollout(call("f"), call("f", "1"))).failed_calls == 0.0
    assert measure(rollout(call("f", malformed="why"))).failed_calls == 1.0


def test_size_is_gold_calls_or_else_sub_questions() -> None:
    gold = (ToolCall("f"), ToolCall("g"))
    assert measure(rollout(gold_calls=gold, sub_answers=ASKED)).size == 2
    assert measure(rollout(sub_answers=ASKED)).size == 3
    assert measure(rollout()).size == 0


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({}, ""),
        ({"kind": None}, ""),
        ({"kind": "multi_hop"}, "multi_hop"),
        ({"data_source": "self/single_hop"}, "single_hop"),
        ({"kind": None, "data_source": "a/b/c"}, "c"),
        ({"kind": "x/y", "data_source": "z"}, "y"),
    ],
)
def test_kind_of_a_row_is_what_follows_the_last_slash(fields: dict[str, Any], kind: str) -> None:
    one = trajectory_from_row({"group": 1, "turns": ["<answer>x</answer>"], **fields})
    assert (one.kind, measure(one).kind) == (kind, kind)


def test_kind_of_a_row_that_is_no_text_is_refused() -> None:
    with pytest.raises(InputError, match=r"data_source is .*\[1\].*; expected a string or null"):
        trajectory_from_row({"group": 1, "turns": ["x"], "data_source": [1]})


# --- means --------------------------------------------------------------------------------------------


def test_means_are_over_rollouts_of_a_task_and_then_over_tasks() -> None:
    asked = {"f": ("1",)}
    right, wrong = call("f", "1"), call("f", "2")
    rollouts = [
        rollout(right, group="a", sub_answers=asked),  # P 1, R 1, F1 1
        rollout(wrong, right, group="a", sub_answers=asked),  # P 1/2, R 1, F1 2/3
        rollout(wrong, group="a", sub_answers=asked),  # P 0, R 0, F1 0
        rollout(right, right, right, group="b", sub_answers=asked),  # P 1/3, R 1, F1 2/4
    ]
    found = means(evaluate(rollouts, NONE))
    # Task a: P 1/2, R 2/3, F1 5/9, calls 4/3. Task b as it is. Each counts one half.
    assert found["solve_p"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert found["solve_r"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["solve_f1"] == pytest.approx((5 / 9 + 1 / 2) / 2)
    assert found["calls"] == pytest.approx((4 / 3 + 3) / 2)
    assert found["turns"] == found["calls"]
    assert (found["failed_calls"], found["unanswered"], found["correct"]) == (0.0, 1.0, None)


def test_means_are_over_the_tasks_that_have_a_metric() -> None:
    rollouts = [
        rollout(call("f", "1"), answer="yes", group=0, gold_answer="yes", sub_answers={"f": ("1",)}),
        rollout(call("f", "Error: no"), answer="no", group=1, gold_answer="yes"),
        rollout(answer="no", group=2, sub_answers={"f": ("1",)}),
    ]
    overall = evaluate(rollouts, NONE).rows[0]
    assert (overall.tasks, overall.rollouts) == (3, 3)
    found = {name: (e.mean, e.tasks) for name, e in overall.metrics.items() if e is not None}
    assert found["solve_p"] == (1.0, 2)
    assert found["solve_r"] == (0.5, 2)
    assert found["correct"] == (0.5, 2)
    assert found["failed_calls"] == (0.5, 2)
    assert found["calls"] == (pytest.approx(2 / 3), 3)


def test_rows_are_overall_then_kinds_then_bands() -> None:
    sizes = {"c": 3, "a": 4, "b": 7, "": 8}
    rollouts = [
        rollout(
            answer="x" * (size % 2),
            group=size,
            kind=kind,
            gold_answer="x",
            gold_calls=(ToolCall("f"),) * size,
        )
        for kind, size in sizes.items()
    ]
    rollouts += [
        rollout(
            answer="x", group=f"{n} sub-questions", kind="c", gold_answer="x", sub_answers={"f": ("1",) * n}
        )
        for n in (0, 1, 11, 12, 30)
    ]
    rows = evaluate(rollouts, NONE).rows
    # Odd sizes answer right. Nothing asked and no gold call: in no band.
    assert [(row.level, row.name, row.tasks) for row in rows] == [
        ("overall", "all", 9),
        ("kind", "", 1),
        ("kind", "a", 1),
        ("kind", "b", 1),
        ("kind", "c", 6),
        ("band", "1-3", 2),
        ("band", "4-7", 2),
        ("band", "8-11", 2),
        ("band", "12+", 2),
    ]
    correct = [row.metrics["correct"] for row in rows]
    assert [found.mean for found in correct if found is not None] == pytest.approx(
        [7 / 9, 0, 0, 1, 1, 1, 1 / 2, 1 / 2, 1]
    )


def test_tasks_without_kinds_have_no_kind_rows() -> None:
    rows = evaluate([rollout(answer="x", gold_answer="x")], NONE).rows
    assert [row.level for row in rows] == ["overall"]


def test_groups_one_and_text_one_are_two_tasks() -> None:
    rollouts = [rollout(answer="x", gold_answer="x", group=group) for group in (1, "1")]
    assert evaluate(rollouts, NONE).rows[0].tasks == 2


def test_empty_input_and_input_without_gold_are_refused() -> None:
    with pytest.raises(InputError, match="there are no rollouts; expected at least one"):
        evaluate([])
    with pytest.raises(InputError, match="in 1 rollouts: expected sub_answers or gold_answer"):
        evaluate([rollout(OSLO, answer="x")])


def test_groups_that_mix_tasks_are_refused() -> None:
    one = rollout(answer="x", gold_answer="x", group="g", kind="a")
    with pytest.raises(InputError, match=r"group 'g' are of different tasks: kind 'a' .* kind 'b'"):
        evaluate([one, rollout(answer="x", gold_answer="x", group="g", kind="b")])
    with pytest.raises(InputError, match=r"of size 0 and .* of size 1; expected one task a group"):
        evaluate(
            [one, rollout(answer="x", gold_answer="x", group="g", kind="a", gold_calls=(ToolCall("f"),))]
        )


def test_results_that_were_not_kept_leave_metrics_out_and_never_zero() -> None:
    asked = rollout(call("mayor"), answer="yes", group=0, sub_answers=ASKED)
    with pytest.raises(InputError, match="the Solve metrics need results, but none of the 1 calls has one"):
        evaluate([asked, rollout(answer="yes", group=1, sub_answers=ASKED)])
    evaluation = evaluate([asked, rollout(answer="yes", group=1, gold_answer="yes", sub_answers=ASKED)], NONE)
    found = means(evaluation)
    assert [found[name] for name in ("solve_p", "solve_r", "solve_f1", "failed_calls")] == [None] * 4
    assert (found["correct"], found["calls"]) == (1.0, 0.5)
    assert evaluation.notes == ("the Solve metrics need results, but none of the 1 calls has one",)


def test_results_of_rollouts_without_sub_answers_do_not_stand_in() -> None:
    asked = rollout(call("mayor"), group=0, sub_answers=ASKED)
    other = rollout(call("mayor", "Error: no"), answer="yes", group=1, gold_answer="yes")
    evaluation = evaluate([asked, other], NONE)
    found = means(evaluation)
    assert (found["solve_p"], found["solve_f1"], found["failed_calls"]) == (None, None, 1.0)
    assert evaluation.notes == ("the Solve metrics need results, but none of the 1 calls has one",)


def test_lost_results_need_no_note_where_nothing_is_asked() -> None:
    rollouts = [
        rollout(call("f"), answer="yes", group=0, gold_answer="yes"),
        rollout(call("f", malformed="why"), answer="yes", group=1, gold_answer="yes"),
    ]
    evaluation = evaluate(rollouts, NONE)
    assert means(evaluation)["failed_calls"] is None
    assert evaluation.notes == ()


def test_calls_without_results_beside_others_are_noted() -> None:
    cut = rollout(call("mayor"), group=0, sub_answers=ASKED)
    whole = rollout(ANNE, group=1, sub_answers=ASKED)
    evaluation = evaluate([cut, whole], NONE)
    assert evaluation.notes == (
        "1 of 2 rollouts make calls but hold no result of any, so they solve nothing",
    )
    assert means(evaluation)["solve_p"] == 0.5
    idle, broken = (
        rollout(group=2, sub_answers=ASKED),
        rollout(call("mayor", malformed="why"), sub_answers=ASKED),
    )
    assert evaluate([whole, idle, broken], NONE).notes == ()


def test_malformed_calls_alone_are_judged() -> None:
    broken = rollout(call("mayor", malformed="why"), sub_answers=ASKED)
    found = means(evaluate([broken], NONE))
    assert (found["solve_p"], found["solve_f1"], found["failed_calls"]) == (0.0, 0.0, 1.0)


def test_to_dict_is_json_of_the_rows() -> None:
    evaluation = evaluate(
        [rollout(ANNE, kind="a", group=g, sub_answers=ASKED) for g in "xy"], Bootstrap(50, 0.9, 3)
    )
    found = json.loads(json.dumps(evaluation.to_dict(), allow_nan=False))
    assert {name: found[name] for name in ("samples", "confidence", "seed", "notes")} == {
        "samples": 50,
        "confidence": 0.9,
        "seed": 3,
        "notes": [],
    }
    assert [(row["level"], row["name"]) for row in found["rows"]] == [
        ("overall", "all"),
        ("kind", "a"),
        ("band", "1-3"),
    ]
    metrics = found["rows"][0]["metrics"]
    assert tuple(metrics) == METRICS
    assert metrics["solve_r"] == {"mean": 1 / 3, "low": 1 / 3, "high": 1 / 3, "tasks": 2}
    assert metrics["correct"] is None


# --- against a plain implementation -------------------------------------------------------------------

RESULTS = (None, "1", "12", "a, b", "Error: no")
tool_calls = st.builds(
    ToolCall,
    st.sampled_from("fg"),
    malformed=st.sampled_from([None, None, None, "why"]),
    result=st.sampled_from(RESULTS),
)
turns = st.one_of(
    st.builds(Turn, st.lists(tool_calls, min_size=1, max_size=3).map(tuple)),
    st.builds(Turn, answer=st.sampled_from([None, "", "yes", "YES, sir"])),
)
asked_answers = st.one_of(
    st.none(),
    st.dictionaries(st.sampled_from("fg"), st.lists(st.sampled_from(["1", "12", "a, b"]), max_size=3)),
)
task_facts = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(["", "k", "l"]),
        "gold_calls": st.integers(0, 13).map(lambda n: (ToolCall("f"),) * n),
        "gold_answer": st.sampled_from([None, "yes", "no"]),
        "sub_answers": asked_answers,
    }
)
attempts = st.lists(st.lists(turns, max_size=4).map(tuple), min_size=1, max_size=3)
task_lists = st.lists(st.tuples(task_facts, attempts), min_size=1, max_size=5)


def plainly(one: Trajectory) -> dict[str, float]:
    """The metrics of a rollout, from their definitions."""
    calls = [c for turn in one.turns for c in turn.calls]
    found: dict[str, float] = {"calls": len(calls), "turns": len(one.turns)}
    answer = one.turns[-1].answer if one.turns and not one.turns[-1].calls else None
    found["unanswered"] = answer is None
    if one.gold_answer is not None:
        found["correct"] = answer is not None and one.gold_answer in answer.lower()
    if one.sub_answers is not None:
        todo = [(tool, answer) for tool, answers in one.sub_answers.items() for answer in answers]
        sub_questions, q = len(todo), 0
        for c in calls:
            said = "" if c.malformed or c.result is None else c.result.replace(",", "")
            hit = next((x for x in todo if x[0] == c.name and said and x[1].replace(",", "") in said), None)
            if hit is not None:
                todo.remove(hit)
                q += 1
        found["solve_p"] = q / len(calls) if calls else 1
        found["solve_r"] = q / sub_questions if sub_questions else 1
        p, r = found["solve_p"], found["solve_r"]
        found["solve_f1"] = 2 * p * r / (p + r) if p + r else 0
    known = [c for c in calls if c.malformed or c.result is not None]
    if calls and (any(c.result is not None for c in calls) or len(known) == len(calls)):
        found["failed_calls"] = sum(bool(c.malformed or c.result == "Error: no") for c in calls) / len(calls)
    return found


@given(task_lists)
def test_evaluation_equals_a_plain_implementation(tasks: list[tuple[dict[str, Any], list[Any]]]) -> None:
    everything = [
        Trajectory(turns, group=group, **facts)
        for group, (facts, all_turns) in enumerate(tasks)
        for turns in all_turns
    ]
    # With a result and a gold answer somewhere, no metric is left out or refused for want of data.
    everything.append(rollout(call("f", "1"), group="recorded", gold_answer="yes", sub_answers={}))
    for row in evaluate(everything, NONE).rows:
        least, most = {"1-3": (1, 3), "4-7": (4, 7), "8-11": (8, 11), "12+": (12, 99)}.get(row.name, (0, 99))
        chosen: dict[Any, list[dict[str, float]]] = {}
        for one in everything:
            size = len(one.gold_calls) or sum(map(len, (one.sub_answers or {}).values()))
            if least <= size <= most and (row.level != "kind" or one.kind == row.name):
                chosen.setdefault(one.group, []).append(plainly(one))
        assert (row.tasks, row.rollouts) == (len(chosen), sum(map(len, chosen.values())))
        for metric in METRICS:
            values = [[found[metric] for found in group if metric in found] for group in chosen.values()]
            of_tasks = [statistics.mean(group) for group in values if group]
            estimate = row.metrics[metric]
            if estimate is None:
                assert of_tasks == []
            else:
                assert estimate.mean == pytest.approx(statistics.mean(of_tasks))
                assert (estimate.tasks, estimate.low, estimate.high) == (len(of_tasks), None, None)


@given(st.lists(turns, max_size=4).map(tuple), asked_answers.filter(lambda asked: asked is not None))
def test_solve_f1_is_the_ftrl_reward(turns: tuple[Turn, ...], asked: dict[str, list[str]]) -> None:
    one = Trajectory(turns, sub_answers={tool: tuple(answers) for tool, answers in asked.items()})
    found = measure(one)
    assert found.solve_f1 == ftrl_reward(one)
    assert found.solve_p is not None
    assert found.solve_r is not None
    assert 0 <= found.solve_p <= 1
    assert 0 <= found.solve_r <= 1


# --- intervals ----------------------------------------------------------------------------------------


def test_interval_of_three_values_is_that_of_all_resamples() -> None:
    # Sums of the 27 resamples of 0, 1, 10: 0 once, 1 three times, ... 21 three times, 30 once. The lowest
    # 10 % end among the 1s (1/27 to 4/27), the highest among the 21s (23/27 to 26/27).
    found = Bootstrap(4000, confidence=0.8).intervals(np.array([[0.0], [1.0], [10.0]]))
    assert found[:, 0].tolist() == pytest.approx([1 / 3, 7.0])


@given(
    st.lists(st.tuples(*[st.sampled_from([0.0, 0.5, 1.0, 3.0, math.nan])] * 2), min_size=2, max_size=4),
    st.sampled_from([0.5, 0.8, 0.95]),
)
@settings(max_examples=30)
def test_interval_agrees_with_all_resamples(values: list[tuple[float, float]], confidence: float) -> None:
    n, tail = len(values), (1 - confidence) / 2
    found = Bootstrap(2000, confidence).intervals(np.array(values))
    for column in range(2):
        known = [row[column] for row in values if not math.isnan(row[column])]
        if len(known) < 2:
            assert np.isnan(found[:, column]).all()
            continue
        drawn = ([values[i][column] for i in chosen] for chosen in product(range(n), repeat=n))
        kept = ([x for x in sample if not math.isnan(x)] for sample in drawn)
        exact = np.array([statistics.mean(sample) for sample in kept if sample])
        for bound, share in zip(found[:, column], (tail, 1 - tail), strict=True):
            # Five standard deviations of a share of 2,000 draws.
            assert (exact < bound - 1e-9).mean() <= share + 0.056
            assert (exact <= bound + 1e-9).mean() >= share - 0.056


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    # 400 samples of 50 tosses of a coin with p = 0.3: the share that covers has standard deviation 0.015.
    tosses = np.random.default_rng(0).random((50, 400)) < 0.3
    low, high = Bootstrap(500, confidence=0.9, seed=1).intervals(tosses.astype(np.float64))
    assert 0.84 <= np.mean((low <= 0.3) & (high >= 0.3)) <= 0.95


def test_interval_resamples_tasks_and_not_rollouts() -> None:
    rng = np.random.default_rng(2)
    once = [
        rollout(answer="yes" if right else "no", group=g, gold_answer="yes")
        for g, right in enumerate(rng.integers(0, 2, 30))
    ]
    one, many = evaluate(once), evaluate([r for r in once for _ in range(7)])
    assert one.rows[0].metrics == many.rows[0].metrics
    estimate = one.rows[0].metrics["correct"]
    assert estimate is not None
    assert estimate.low is not None
    assert estimate.high is not None
    assert estimate.low < estimate.mean < estimate.high


def test_intervals_repeat_with_the_seed_and_not_with_another(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(3).random((40, 3))
    values[::5, 1] = np.nan
    first = Bootstrap(300, seed=7).intervals(values)
    assert np.array_equal(first, Bootstrap(300, seed=7).intervals(values))
    assert not np.array_equal(first, Bootstrap(300, seed=8).intervals(values))
    shuffled = np.random.default_rng(4).permutation(values)
    assert np.array_equal(first, Bootstrap(300, seed=7).intervals(shuffled))
    monkeypatch.setattr(bootstrap, "_DRAWS_AT_ONCE", 100)
    # In portions, as many tasks need; sums are rounded otherwise then.
    assert Bootstrap(300, seed=7).intervals(values) == pytest.approx(first, rel=1e-12)


def test_interval_of_one_task_is_absent() -> None:
    estimate = evaluate([rollout(answer="x", gold_answer="x")]).rows[0].metrics["correct"]
    assert estimate is not None
    assert (estimate.mean, estimate.low, estimate.high, estimate.tasks) == (1.0, None, None, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": -1}, "samples are -1; expected 0 or more"),
        ({"confidence": 0.0}, "confidence is 0.0; expected more than 0 and less than 1"),
        ({"confidence": 1.0}, "confidence is 1.0"),
        ({"confidence": math.nan}, "confidence is nan"),
        ({"seed": -1}, "seed is -1; expected 0 or more"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Bootstrap(**settings)
