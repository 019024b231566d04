"""The embedded calendar: tasks solved by their gold calls, judged by the state that is left."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from dataclasses import asdict
from typing import Any

import pytest

from matchtir.tasks.embedded import (
    CALENDAR,
    EmbeddedConfig,
    embedded_tasks,
    token_pattern,
    tokenize,
    vocabulary,
)
from matchtir.tasks.embedded.phrases import SIBLINGS, SYNONYMS, TOOL_OF, Part, read_request, request
from matchtir.tasks.embedded.week import DAYS, HOURS, Calendar
from matchtir.types import Task, ToolCall, UserTurn

NAME = re.compile(r"\b[A-Z][a-z]{5}\b")
CONFIG = EmbeddedConfig(mix=CALENDAR, train_size=600, test_size=200)
TRAIN = embedded_tasks(CONFIG)
TEST = embedded_tasks(CONFIG, "test")
FAILING = embedded_tasks(EmbeddedConfig(mix=CALENDAR, train_size=200, error_rate=1.0))
SLOTS = {"Balban": ["Tue", "11"], "Cordor": ["Tue", "12"], "Dunfor": ["Tue", "18"], "Felgus": ["Wed", "14"]}


def calendar(*expected: dict[str, Any]) -> Calendar:
    """Four people booked, two not, and one who had another name."""
    return Calendar([*SLOTS, "Garjik", "Holkar"], SLOTS, {"Jarlim": "Felgus"}, list(expected))


def opened(task: Task) -> Any:
    """The object of a task, from its source as the sandbox would make it."""
    assert task.environment is not None
    scope: dict[str, Any] = {}
    exec(task.environment.source, scope)
    return scope[task.environment.name](**json.loads(json.dumps(task.environment.arguments)))


def turns_of(task: Task) -> list[UserTurn]:
    """All user turns of a task."""
    return [UserTurn(task.messages, task.tools, task.gold_calls, task.gold_answer), *task.later]


def shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def said(turn: UserTurn) -> str:
    (message,) = turn.messages
    assert message["role"] == "user"
    return str(message["content"])


# The class


def test_questions_are_answered_from_the_slots() -> None:
    week = calendar()
    assert week.find(person="Cordor") == "Tue at 12"
    assert (week.earliest(day="Tue"), week.latest(day="Tue")) == ("13", "17")
    assert (week.earliest(day="Mon"), week.latest(day="Mon")) == ("11", "18")
    assert (week.opener(day="Tue"), week.closer(day="Tue")) == ("Balban", "Dunfor")


def test_orders_change_the_state() -> None:
    week = calendar()
    assert week.book(person="Garjik", day="Tue", hour="13") == "done"
    assert week.earliest(day="Tue") == "14"
    assert week.move(person="Balban", day="Wed", hour="18") == "done"
    assert (week.opener(day="Tue"), week.closer(day="Wed")) == ("Cordor", "Balban")
    assert week.cancel(person="Balban") == "done"
    assert week.closer(day="Wed") == "Felgus"
    assert week.book(person="Balban", day="Tue", hour="11") == "done"
    # To where it is already: no change.
    assert week.move(person="Balban", day="Tue", hour="11") == "done"
    assert week.find(person="Balban") == "Tue at 11"


@pytest.mark.parametrize(
    ("tool", "arguments", "error"),
    [
        ("find", {"person": "Garjik"}, "not booked"),
        ("cancel", {"person": "Garjik"}, "not booked"),
        ("move", {"person": "Garjik", "day": "Mon", "hour": "11"}, "not booked"),
        ("book", {"person": "Balban", "day": "Mon", "hour": "11"}, "booked; use move"),
        ("book", {"person": "Garjik", "day": "Tue", "hour": "11"}, "occupied; use 13"),
        ("move", {"person": "Balban", "day": "Tue", "hour": "12"}, "occupied; use 13"),
        # Nothing later is free: the first of the day.
        ("book", {"person": "Garjik", "day": "Tue", "hour": "18"}, "occupied; use 13"),
        ("find", {"person": "Jarlim"}, "old name; use Felgus"),
        ("find", {"person": "Balcil"}, "unknown person; did you mean Balban?"),
        ("find", {"person": "Zanzet"}, "unknown person"),
        ("opener", {"day": "Mon"}, "day is empty"),
        ("closer", {"day": "Mon"}, "day is empty"),
        ("earliest", {"day": "Sun"}, "unknown day"),
        ("book", {"person": "Garjik", "day": "Tue", "hour": "19"}, "unknown hour"),
    ],
)
def test_wrong_calls_say_what_is_right_and_change_nothing(
    tool: str, arguments: dict[str, str], error: str
) -> None:
    week = calendar({"slots": SLOTS, "answer": None})
    assert getattr(week, tool)(**arguments) == {"error": error}
    assert week.judge(answer=None) == 1.0


def test_full_day_has_no_free_hour() -> None:
    people = [f"Bal{i}" for i in range(9)]
    week = Calendar(people, {p: ["Mon", hour] for p, hour in zip(people, HOURS, strict=False)}, {}, [])
    full = {"error": "day is full"}
    assert week.earliest(day="Mon") == week.latest(day="Mon") == full
    assert week.book(person="Bal8", day="Mon", hour="11") == full


def test_judge_compares_the_state_and_the_answer_of_each_user_turn() -> None:
    moved = {**SLOTS, "Felgus": ["Wed", "15"]}
    expected = [{"slots": moved, "answer": None}, {"slots": moved, "answer": "Tue at 12"}]
    week = calendar(*expected)
    week.move(person="Felgus", day="Wed", hour="15")
    assert week.judge(answer="whatever") == 1.0
    assert week.judge(answer=" Tue at 12\n") == 1.0
    assert week.judge(answer="Tue at 12") == 0.0  # nobody spoke a third time
    wrong = calendar(*expected)
    assert wrong.judge(answer="done") == 0.0
    assert wrong.judge(answer="Tue at 12") == 0.0
    # A state that was wrong and is right again counts as right, however it came to be so.
    late = calendar(*expected)
    assert late.judge(answer="done") == 0.0
    late.cancel(person="Felgus")
    late.book(person="Felgus", day="Wed", hour="15")
    assert late.judge(answer="Tue at 12") == 1.0
    for answer in ("Tue at 13", "", None, 12):
        week = calendar({"slots": SLOTS, "answer": "Tue at 12"})
        assert week.judge(answer=answer) == 0.0


def test_instances_share_nothing() -> None:
    first, second = opened(TEST[0]), opened(TEST[0])
    who = first.opener(day=next(d for d in DAYS if isinstance(first.opener(day=d), str)))
    first.cancel(person=who)
    assert isinstance(second.find(person=who), str)


# The tasks


@pytest.mark.parametrize("tasks", [TRAIN, TEST, FAILING], ids=["train", "test", "failing"])
def test_gold_calls_give_their_results_and_satisfy_the_judge(tasks: list[Task]) -> None:
    for task in tasks:
        week = opened(task)
        for turn in turns_of(task):
            for call in turn.gold_calls:
                assert shown(getattr(week, call.name)(**call.arguments)) == call.result, task.id
            assert week.judge(answer=turn.gold_answer) == 1.0, task.id


def test_no_gold_call_can_be_left_out() -> None:
    needed = 0
    for task in TEST:
        for turns, k in ((turns_of(task), k) for k in range(len(task.gold_calls))):
            week = opened(task)
            for i, call in enumerate(turns[0].gold_calls):
                if i != k:
                    getattr(week, call.name)(**call.arguments)
            if turns[0].gold_calls[k].name in ("book", "move", "cancel"):
                assert week.judge(answer=turns[0].gold_answer) == 0.0
                needed += 1
    assert needed > 150


def test_arguments_of_gold_calls_stand_in_what_was_heard() -> None:
    """An hour, a person or a slot in a gold call stands in the request or in a result before it."""
    for task in TRAIN + FAILING:
        former = {} if task.environment is None else task.environment.arguments["former"]
        heard: list[str] = []
        for turn in turns_of(task):
            heard.append(said(turn))
            for call in turn.gold_calls:
                for name, value in call.arguments.items():
                    old = [x for x, new in former.items() if new == value]
                    later = name == "hour" and "or later" in said(turn)
                    assert later or any(x in text for x in [value, *old] for text in heard), (task.id, call)
                heard.append(str(call.result))


def test_answer_is_what_the_calls_returned() -> None:
    asked = 0
    for task in TEST:
        for turn in turns_of(task):
            _, parts = read_request(said(turn))
            assert (turn.gold_answer == "done") == (not any(part.asks for part in parts))
            if turn.gold_answer != "done":
                results = [str(call.result) for call in turn.gold_calls]
                assert set(str(turn.gold_answer).split(", ")) <= set(results)
                asked += 1
    assert asked > 60


def test_later_user_turns_depend_on_the_state_that_earlier_ones_left() -> None:
    changed = dialogues = 0
    for task in (task for task in TEST if task.later):
        week, dialogues = opened(task), dialogues + 1
        turns = turns_of(task)
        # Without the first user turn's calls.
        results = [
            shown(getattr(week, call.name)(**call.arguments)) == call.result
            for turn in turns[1:]
            for call in turn.gold_calls
        ]
        changed += not all(results)
    assert dialogues > 100
    assert changed / dialogues > 0.2


def test_set_has_the_shape_that_the_configuration_says() -> None:
    assert {task.kind for task in TRAIN} == {CALENDAR}
    assert TRAIN[0].id == "train-calendar-0000"
    assert len({task.id for task in TRAIN + TEST}) == 800
    turns = Counter(1 + len(task.later) for task in TRAIN)
    assert all(150 < turns[n] < 250 for n in (1, 2, 3))
    calls = [len(turn.gold_calls) for task in TRAIN for turn in turns_of(task)]
    assert (min(calls), max(calls)) == (1, 4)
    for task in TRAIN:
        assert {tool.name for tool in task.tools} == set(SYNONYMS)
        assert all(tool.source is None and tool.function is None for tool in task.tools)
        assert all(not turn.tools for turn in task.later)
        assert task.environment is not None
        assert task.environment.judge == "judge"
    (short,) = embedded_tasks(EmbeddedConfig(mix=CALENDAR, train_size=1, max_turns=3, user_turns=(3, 3)))
    assert [len(turn.gold_calls) for turn in turns_of(short)] == [1, 1, 1]


def test_first_natural_call_fails_at_the_rate() -> None:
    def fails(task: Task) -> bool:
        week, (_, parts) = opened(task), read_request(said(turns_of(task)[0]))
        part = parts[0]
        names = [part.person] if part.person else []
        old = any(name in task.environment.arguments["former"] for name in names if task.environment)
        hour = part.hour is not None and [part.day, part.hour] in week._slots.values()
        return old or hour

    assert all(map(fails, FAILING))
    assert sum(map(fails, TRAIN)) / len(TRAIN) == pytest.approx(0.2, abs=0.05)
    assert not any(map(fails, embedded_tasks(EmbeddedConfig(mix=CALENDAR, error_rate=0.0, train_size=100))))


def test_train_and_test_share_no_name_whatever_the_seeds() -> None:
    def names(tasks: list[Task]) -> set[str]:
        return {x for t in tasks if t.environment for x in NAME.findall(json.dumps(t.environment.arguments))}

    train = names(TRAIN) | names(embedded_tasks(EmbeddedConfig(mix=CALENDAR, seed=5, train_size=100)))
    test = names(TEST) | names(embedded_tasks(EmbeddedConfig(mix=CALENDAR, seed=8, test_size=100), "test"))
    assert train
    assert test
    assert not train & test
    for task in TRAIN[:100]:
        ours = names([task])
        assert len({name[:3] for name in ours}) == len(ours)


DIGEST = "482b68f2dae826229b94f04e074fadbbaf6e76320427aa6fe9477596b0aac1b6"
"""Of 600 training and 200 test tasks, their class included; see the one in test_embedded_tasks.py."""


def test_set_is_pinned_and_a_larger_one_begins_with_it() -> None:
    text = json.dumps([asdict(task) for task in TRAIN + TEST])
    assert hashlib.sha256(text.encode()).hexdigest() == DIGEST
    assert embedded_tasks(EmbeddedConfig(mix=CALENDAR, train_size=20)) == TRAIN[:20]
    other = embedded_tasks(EmbeddedConfig(mix=CALENDAR, seed=1, train_size=20))
    assert not {said(turns_of(t)[0]) for t in other} & {said(turns_of(t)[0]) for t in TRAIN[:20]}


# The phrases


def test_requests_are_read_as_they_were_written() -> None:
    for task in TRAIN:
        for turn in turns_of(task):
            assert request(*read_request(said(turn))) == said(turn)
    parts = [
        Part("book", "Baldor", day="Tue", hour="14", later=True),
        Part("shift", place="opener", of="Mon", free="final", like="Dunfel"),
    ]
    text = (
        "Now book Baldor on Tue at 14 or later and shift the opener of Mon to the final free hour of the day "
    )
    assert request("Now ", parts) == text + "of Dunfel."
    assert read_request(request("Now ", parts)) == ("Now ", parts)
    with pytest.raises(ValueError, match="'sing of Tue' is no part of a request"):
        read_request("Please sing of Tue.")


def test_words_name_one_tool_each() -> None:
    assert len(TOOL_OF) == 16
    assert {SIBLINGS[SIBLINGS[name]] for name in SIBLINGS} == set(SIBLINGS)


# The vocabulary


def test_vocabulary_of_the_calendar_follows_the_old_one_and_is_closed() -> None:
    pieces = vocabulary(calendar=True)
    known, used = set(pieces), set()
    assert pieces[:161] == vocabulary()
    assert len(pieces) == len(known) == 211
    texts = {'{"error": "day is full"}', '{"error": "unknown hour"}', '{"error": "day is empty"}'}
    texts |= {'{"error": "not booked"}', '{"error": "unknown day"}', "<answer>none</answer>"}
    texts |= {'{"error": "booked; use move"}', '{"error": "occupied; use 13"}'}
    for task in TEST + FAILING:
        schemas = [
            {
                "type": "function",
                "function": {"name": t.name, "description": t.description, "parameters": t.parameters},
            }
            for t in task.tools
        ]
        texts |= {json.dumps(schemas), "\n".join(map(json.dumps, schemas))}
        for turn in turns_of(task):
            texts |= {said(turn), f"<answer>{turn.gold_answer}</answer>"}
            texts |= {hermes(call) for call in turn.gold_calls} | {
                str(call.result) for call in turn.gold_calls
            }
    for text in texts:
        cut = tokenize(text, calendar=True)
        assert "".join(cut) == text
        assert set(cut) <= known, (text, set(cut) - known)
        used |= set(cut)
    assert set(pieces[161:]) <= used


def hermes(call: ToolCall) -> str:
    return f"<tool_call>{json.dumps({'name': call.name, 'arguments': dict(call.arguments)})}</tool_call>"


def test_texts_are_cut_as_by_hand() -> None:
    assert tokenize("Please move Baldor to the earliest free hour of the day of Dunfel.", calendar=True) == [
        *("Please ", "move", " ", "Bal", "dor", " to the ", "earliest", " free hour of ", "the day of "),
        *("Dun", "fel", "."),
    ]
    call = ToolCall("book", {"person": "Baldor", "day": "Tue", "hour": "14"})
    assert tokenize(hermes(call), calendar=True) == [
        *("<tool_call>", '{"name": "', "book", '", "arguments": {"', "person", '": "', "Bal", "dor"),
        *('", "day": "', "Tue", '", "hour": "', "14", '"}}', "</tool_call>"),
    ]


def test_old_tasks_are_cut_as_before_by_either_vocabulary() -> None:
    for task in embedded_tasks(EmbeddedConfig(train_size=100)):
        text = str(task.messages[0]["content"])
        assert tokenize(text, calendar=True) == tokenize(text)
    assert re.findall(token_pattern(calendar=True), "Now ") == ["Now "]
    assert re.findall(token_pattern(), "Now ") == []
