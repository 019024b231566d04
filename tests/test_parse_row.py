"""Rows of the documented schema: every field and alias, and what is refused with which words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from matchtir.errors import ConfigError, InputError
from matchtir.parse import trajectory_from_row
from matchtir.types import Round, ToolCall, Turn

CALL = '<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'


def row(**fields: Any) -> dict[str, Any]:
    return {"group": "q1", "turns": [], **fields}


def test_row_reads_every_field() -> None:
    trajectory = trajectory_from_row(
        {
            "group": 3,
            "turns": [
                CALL + "<answer>no</answer>",
                "<answer>not last</answer>",
                {
                    "calls": [{"name": "g", "arguments": {"y": 2}}, {"arguments": {}}],
                    "answer": "no",
                    "text": "t",
                },
                {"calls": [], "answer": "four", "text": "It is four."},
            ],
            "gold_calls": [{"name": "f", "arguments": {"x": 1}}],
            "gold_answer": "4",
            "outcome": 0.5,
            "sub_answers": {"f": ["1", "2"]},
            "extra": object(),
        }
    )
    assert trajectory.group == 3
    assert [[c.name for c in turn.calls] for turn in trajectory.turns] == [["f"], [], ["g", ""], []]
    assert [turn.answer for turn in trajectory.turns] == [None, None, None, "four"]
    assert trajectory.turns[2].calls[1].malformed == 'no "name"'
    assert trajectory.turns[3] == Turn((), "four", "It is four.")
    assert trajectory.gold_calls == (ToolCall("f", {"x": 1}),)
    assert (trajectory.gold_answer, trajectory.outcome) == ("4", 0.5)
    assert trajectory.sub_answers == {"f": ("1", "2")}


def test_row_least_is_a_group_and_turns() -> None:
    trajectory = trajectory_from_row(row())
    assert (trajectory.turns, trajectory.gold_calls, trajectory.gold_answer) == ((), (), None)
    assert (trajectory.outcome, trajectory.sub_answers, trajectory.calls) == (None, None, ())


@pytest.mark.parametrize("key", ["group", "task_id", "prompt_id"])
def test_row_group_aliases(key: str) -> None:
    assert trajectory_from_row({key: 0, "turns": []}).group == 0


@pytest.mark.parametrize("name", ["gold_calls", "ground_truth"])
@pytest.mark.parametrize("key", ["arguments", "parameters", "kwargs"])
@pytest.mark.parametrize("text", ["none", "whole", "arguments"])
def test_row_gold_calls_aliases_and_json_strings(name: str, key: str, text: str) -> None:
    arguments: Any = {"x": [1, None]}
    calls: Any = [
        {"name": "f", key: json.dumps(arguments) if text == "arguments" else arguments},
        {"name": "g"},
    ]
    trajectory = trajectory_from_row(row(**{name: json.dumps(calls) if text == "whole" else calls}))
    assert trajectory.gold_calls == (ToolCall("f", arguments), ToolCall("g", {}))


def test_row_gold_answer_and_sub_answers_aliases() -> None:
    trajectory = trajectory_from_row(row(answer="4", unsolved_set='{"f": ["1"]}', gold_answer=None))
    assert trajectory.gold_answer == "4"
    assert trajectory.sub_answers == {"f": ("1",)}


@pytest.mark.parametrize(
    ("outcome", "expected"), [(1, 1.0), (True, 1.0), (0.25, 0.25), (-3, -3.0), (None, None)]
)
def test_row_outcome_is_a_number(outcome: Any, expected: float | None) -> None:
    assert trajectory_from_row(row(outcome=outcome)).outcome == expected


def test_row_format_comes_from_the_argument_then_the_row_then_hermes() -> None:
    llama = '{"name": "f", "parameters": {}}'
    assert len(trajectory_from_row(row(turns=[llama])).calls) == 0
    assert len(trajectory_from_row(row(turns=[llama], format="llama3")).calls) == 1
    assert len(trajectory_from_row(row(turns=[CALL], format="llama3"), format="hermes").calls) == 1
    messages = [{"role": "assistant", "content": CALL}]
    assert len(trajectory_from_row({"group": 0, "messages": messages}).calls) == 0
    assert len(trajectory_from_row({"group": 0, "messages": messages, "format": "hermes"}).calls) == 1


def test_row_turn_object_without_calls_is_read_from_its_text() -> None:
    trajectory = trajectory_from_row(
        row(turns=[{"text": CALL}, {"text": "x", "answer": "y"}, {"text": CALL, "answer": "z"}])
    )
    assert [c.name for c in trajectory.calls] == ["f", "f"]
    assert [turn.answer for turn in trajectory.turns] == [None, None, None]


def test_row_repair_reaches_calls_but_never_gold() -> None:
    pytest.importorskip("json_repair")
    broken = "<tool_call>{'name': 'f'}</tool_call>"
    assert trajectory_from_row(row(turns=[broken]), repair=True).calls[0].repaired
    with pytest.raises(InputError, match="gold_calls is a string that is no JSON"):
        trajectory_from_row(row(gold_calls="[{'name': 'f'}]"), repair=True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"group": None}, "group is missing; expected a string or an integer"),
        ({"group": 1.5}, "group is a number, 1.5; expected a string or an integer"),
        ({"group": True}, "group is a boolean"),
        ({"turns": None}, "messages or turns: neither is there"),
        ({"messages": []}, "messages or turns: both are there"),
        ({"turns": "x"}, "turns is a string; expected a list"),
        ({"turns": [3]}, r"turns\[0\] is a number; expected a string or an object"),
        ({"turns": [{"text": 3}]}, r"turns\[0\].text is a number; expected a string or null"),
        ({"turns": [{"answer": 3}]}, r"turns\[0\].answer is a number"),
        ({"turns": [{"calls": "x"}]}, r"turns\[0\].calls is a string; expected a list"),
        ({"turns": [{"calls": ["x"]}]}, r"turns\[0\].calls\[0\] is a string; expected an object"),
        ({"turns": None, "messages": [3]}, r"messages\[0\] is a number"),
        ({"gold_calls": 3}, "gold_calls is a number; expected a list"),
        ({"ground_truth": "["}, "ground_truth is a string that is no JSON"),
        ({"gold_calls": "[" * 100_000}, "gold_calls is a string that is no JSON"),
        ({"gold_calls": [{}]}, r'gold_calls\[0\] is no call: no "name"'),
        ({"gold_calls": [{"name": "f", "kwargs": [1]}]}, r'gold_calls\[0\] is no call: "kwargs" is an array'),
        ({"gold_calls": [{"name": "f", "arguments": {"x": float("inf")}}]}, "holds inf"),
        ({"gold_answer": 4}, "gold_answer is a number, 4; expected a string or null"),
        ({"outcome": "1"}, "outcome is a string, '1'; expected a number or null"),
        ({"outcome": float("nan")}, "outcome is nan; expected a finite number"),
        ({"outcome": 10**400}, "outcome is 1000"),
        ({"sub_answers": []}, "sub_answers is an array; expected an object"),
        ({"sub_answers": {"f": "1"}}, "sub_answers.f is a string; expected a list"),
        ({"sub_answers": {"f": [1]}}, "sub_answers.f holds a number; expected strings"),
        ({"sub_answers": {"f": [None]}}, "sub_answers.f holds null; expected strings"),
        ({"format": "xml"}, "format is 'xml'; expected one of"),
        ({"format": 3}, "format is 3; expected one of"),
    ],
)
def test_row_structural_errors_name_the_field_and_what_came(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        trajectory_from_row(row(**fields))


def test_row_unknown_format_argument_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="expected one of"):
        trajectory_from_row(row(), format="xml")


def asked(*roles: str) -> list[dict[str, Any]]:
    """Messages by the first letters of their roles: system, user, assistant (with a call: c), tool."""
    known = {
        "s": {"role": "system", "content": "Be brief."},
        "u": {"role": "user", "content": "?"},
        "a": {"role": "assistant", "content": "yes"},
        "c": {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]},
        "t": {"role": "tool", "tool_call_id": "1", "content": "7"},
    }
    return [known[letter] for letter in "".join(roles)]


F, G = {"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {}}


def test_row_reads_rounds_with_their_aliases() -> None:
    rounds = [
        {"turns": 2, "gold_calls": [F, G], "gold_answer": "one", "outcome": True},
        {"turns": 1, "ground_truth": json.dumps([{"name": "f", "parameters": {"x": 1}}]), "answer": "two"},
        {"turns": 0},
    ]
    turns = [CALL, "<answer>1</answer>", "<answer>2</answer>"]
    for value in (rounds, json.dumps(rounds)):
        trajectory = trajectory_from_row(row(turns=turns, rounds=value, gold_calls=None, outcome=None))
        assert trajectory.rounds == (Round(2, 2, "one", 1.0), Round(1, 1, "two"), Round(0))
        assert trajectory.gold_calls == (ToolCall("f", {"x": 1}), ToolCall("g"), ToolCall("f", {"x": 1}))
        assert (trajectory.gold_answer, trajectory.outcome) == (None, None)
        assert [turn.answer for turn in trajectory.turns] == [None, "1", "2"]


@pytest.mark.parametrize("rounds", [None, [], "[]", "null"])
def test_row_without_rounds_is_one_user_turn(rounds: Any) -> None:
    trajectory = trajectory_from_row(row(turns=["<answer>1</answer>"] * 2, rounds=rounds, gold_calls=[F]))
    assert trajectory.rounds == ()
    assert trajectory.gold_calls == (ToolCall("f", {"x": 1}),)
    assert [turn.answer for turn in trajectory.turns] == [None, "1"]


@pytest.mark.parametrize(
    ("messages", "counts"),
    [
        ("suctca", [3, 0, 0]),
        ("suctauctauca", [2, 2, 2]),
        ("ua" + "uuca" + "sua", [1, 2, 1]),  # several messages of the user in a row are one user turn
        ("uaua", [1, 1, 0]),
        ("uctuau", [1, 1, 0]),  # what the user says may come after a call; the last one got no reply
        ("a", [1, 0, 0]),
    ],
)
def test_row_counts_the_turns_of_rounds_between_messages_of_the_user(
    messages: str, counts: list[int]
) -> None:
    trajectory = trajectory_from_row({"group": 0, "messages": asked(messages), "rounds": [{}, {}, {}]})
    assert [one.turns for one in trajectory.rounds] == counts
    said = {"group": 0, "messages": asked(messages), "rounds": [{"turns": count} for count in counts]}
    assert trajectory_from_row(said) == trajectory


def test_row_the_last_turn_of_each_round_answers() -> None:
    trajectory = trajectory_from_row({"group": 0, "messages": asked("uaaua"), "rounds": [{}, {}]})
    assert [turn.answer for turn in trajectory.turns] == [None, "yes", "yes"]


def test_row_turns_of_rounds_may_cut_elsewhere_than_the_messages() -> None:
    rounds = [{"turns": 3}, {"turns": 1}]
    trajectory = trajectory_from_row({"group": 0, "messages": asked("uauaaua"), "rounds": rounds})
    assert [turn.answer for turn in trajectory.turns] == [None, None, "yes", "yes"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gold_calls": []}, "gold_calls stands beside rounds; expected it in each of the rounds only"),
        ({"answer": "x"}, "answer stands beside rounds"),
        ({"outcome": 0}, "outcome stands beside rounds"),
        ({"rounds": 3}, "rounds is a number; expected a list"),
        ({"rounds": "["}, "rounds is a string that is no JSON"),
        ({"rounds": [3]}, r"rounds\[0\] is a number; expected an object"),
        ({"rounds": [{"turns": 1}, {}]}, r"rounds\[1\].turns is null; expected a whole number, 0 or more"),
        ({"rounds": [{"turns": -1}]}, r"rounds\[0\].turns is a number, -1; expected a whole number"),
        ({"rounds": [{"turns": True}]}, r"rounds\[0\].turns is a boolean, True"),
        ({"rounds": [{"turns": 1.0}]}, r"rounds\[0\].turns is a number, 1.0"),
        ({"rounds": [{"turns": 1}, {"turns": 1}]}, "rounds add up to 2 turns but the rollout has 1"),
        (
            {"rounds": [{"turns": 1, "gold_calls": [{}]}]},
            r'^rounds\[0\].gold_calls\[0\] is no call: no "name"',
        ),
        ({"rounds": [{"turns": 1, "ground_truth": 3}]}, r"^rounds\[0\].ground_truth is a number"),
        ({"rounds": [{"turns": 1, "gold_answer": 4}]}, r"^rounds\[0\].gold_answer is a number, 4"),
        ({"rounds": [{"turns": 1, "outcome": "1"}]}, r"^rounds\[0\].outcome is a string"),
        (
            {"turns": None, "messages": asked("uaua"), "rounds": [{}]},
            "messages hold 2 user turns but rounds holds 1",
        ),
        (
            {"turns": None, "messages": asked("uaua"), "rounds": [{"turns": 2}, {}]},
            r"rounds\[1\].turns is null",
        ),
    ],
)
def test_row_broken_rounds_are_refused_by_place(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        trajectory_from_row({**row(turns=[CALL], rounds=[{"turns": 1}]), **fields})


def test_row_documented_dialogue_is_read() -> None:
    text = (Path(__file__).parents[1] / "docs" / "formats.md").read_text("utf-8")
    block = text.partition("### Dialogues")[2].partition("```json\n")[2].partition("```")[0]
    trajectory = trajectory_from_row(json.loads(block))
    assert trajectory.rounds == (Round(2, 1, "Booked"), Round(1, 1, None, 0.0), Round(0, 0, "Cancelled"))
    assert [turn.answer for turn in trajectory.turns] == [None, "Booked.", "It is on Tuesday now."]


def test_row_shares_gold_calls_of_equal_rounds() -> None:
    golds: dict[str, tuple[ToolCall, ...]] = {}

    def read(*traces: Any) -> tuple[ToolCall, ...]:
        rounds = [{"turns": 0, "gold_calls": trace} for trace in traces]
        return trajectory_from_row(row(rounds=rounds), golds=golds).gold_calls

    one = read([F], [G])
    assert read([F], [G]) is one
    assert read([G], [F]) == one[::-1]
    assert read([F, G], []) == one


def test_row_tau_bench_rollouts_with_their_gold_calls(tau_bench_path: Path) -> None:
    for source in json.loads(tau_bench_path.read_text()):
        actions = source["info"]["task"]["actions"]
        trajectory = trajectory_from_row(
            {
                "task_id": source["task_id"],
                "messages": source["traj"],
                "gold_calls": actions,
                "outcome": source["reward"],
            }
        )
        assert [(c.name, c.arguments) for c in trajectory.gold_calls] == [
            (a["name"], a["kwargs"]) for a in actions
        ]
        assert trajectory.group == source["task_id"]
        assert trajectory.outcome == source["reward"]


def test_row_ftrl_sub_answers_and_answer_are_read(ftrl_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    for task in parquet.read_table(ftrl_path, columns=["unsolved_set", "answer"]).to_pylist():
        trajectory = trajectory_from_row({"group": 0, "turns": [], **task})
        expected = json.loads(task["unsolved_set"])
        assert trajectory.sub_answers is not None
        assert set(trajectory.sub_answers) == set(expected)
        assert trajectory.gold_answer == task["answer"]


def test_row_shares_equal_gold_traces_of_the_same_dict() -> None:
    golds: dict[str, tuple[ToolCall, ...]] = {}
    traces = [[{"name": "f", "arguments": {"x": x}}] for x in (1, 1, True, 1.0)]
    built = [trajectory_from_row(row(gold_calls=trace), golds=golds).gold_calls for trace in traces]
    assert built[0] is built[1]
    assert [type(gold[0].arguments["x"]) for gold in built] == [int, int, bool, float]
    assert trajectory_from_row(row(gold_calls=traces[0])).gold_calls == built[0]


def test_row_gold_trace_of_any_depth_is_refused_by_name() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(InputError, match="gold_calls is nested too deep"):
        trajectory_from_row(row(gold_calls=[{"name": "f", "arguments": {"x": deep}}]))
