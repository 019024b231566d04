"""Sets of tasks: every format in, our own out, and what is said of broken ones."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matchtir.errors import InputError, RowError
from matchtir.tasks import TASK_FORMATS, TaskFile, TaskRow, read_tasks, task_record, write_tasks
from matchtir.types import Environment, Task, Tool, ToolCall, UserTurn

MAYOR = {
    "name": "mayor_finder",
    "description": "Finds the mayor of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
AGE = {
    "name": "age_finder",
    "description": "Finds the age of a person.",
    "parameters": {"type": "object", "properties": {"person": {"type": "string"}}},
}
MAYOR_SOURCE = 'def mayor_finder(city):\n    return {"Bern": "Ada"}.get(city)\n'
AGE_SOURCE = "import math\n\ndef age_finder(person):\n    return 51\n"
QUESTION = "How old is the mayor of Bern?"
PROMPT = [{"role": "user", "content": QUESTION}]

FTRL: dict[str, Any] = {
    "messages": PROMPT,
    "tools": json.dumps([{"type": "function", "function": MAYOR}, {"type": "function", "function": AGE}]),
    "codes": json.dumps({"mayor_finder": MAYOR_SOURCE, "age_finder": AGE_SOURCE}),
    "unsolved_set": json.dumps({"mayor_finder": ["Ada"], "age_finder": ["51"]}),
    "ground_truth": json.dumps(
        [
            {"name": "mayor_finder", "parameters": {"city": "Bern"}},
            {"name": "age_finder", "parameters": {"person": "Ada"}},
        ]
    ),
    "solve_rate": 0.5,
    "data_source": "self/multi_hop",
    "split": "train",
    "answer": "51",
}
SUB_TASK = {"Who is the mayor of Bern?": "Ada", "How old is Ada?": "51"}
TOOLHOP: dict[str, Any] = {
    "id": 7,
    "question": QUESTION,
    "answer": "51",
    "sub_task": SUB_TASK,
    "tools": dict(zip(SUB_TASK, (MAYOR, AGE), strict=True)),
    "functions": [AGE_SOURCE, MAYOR_SOURCE],
}
OWN: dict[str, Any] = {
    "id": "age",
    "question": QUESTION,
    "tools": [{"type": "function", "function": MAYOR, "source": MAYOR_SOURCE}, AGE],
    "gold_calls": [{"name": "mayor_finder", "arguments": {"city": "Bern"}}],
    "gold_answer": "51",
    "sub_answers": {"mayor_finder": ["Ada"]},
    "kind": "multi_hop",
}

TOOLS = (
    Tool("mayor_finder", MAYOR["description"], MAYOR["parameters"], MAYOR_SOURCE),
    Tool("age_finder", AGE["description"], AGE["parameters"], AGE_SOURCE),
)
SUB_ANSWERS = {"mayor_finder": ("Ada",), "age_finder": ("51",)}
FTRL_TASK = Task(
    id="ftrl-train-0",
    messages=tuple(PROMPT),
    tools=TOOLS,
    gold_calls=(ToolCall("mayor_finder", {"city": "Bern"}), ToolCall("age_finder", {"person": "Ada"})),
    gold_answer="51",
    sub_answers=SUB_ANSWERS,
    kind="multi_hop",
)
TOOLHOP_TASK = Task("7", tuple(PROMPT), TOOLS, (), "51", SUB_ANSWERS, "multi_hop")
OWN_TASK = Task(
    id="age",
    messages=tuple(PROMPT),
    tools=(TOOLS[0], Tool("age_finder", AGE["description"], AGE["parameters"])),
    gold_calls=FTRL_TASK.gold_calls[:1],
    gold_answer="51",
    sub_answers={"mayor_finder": ("Ada",)},
    kind="multi_hop",
)
WORLD = "class City:\n    def mayor_finder(self, city): ...\n    def judge(self, answer): return 1\n"
DIALOGUE: dict[str, Any] = {
    "id": "talk",
    "question": QUESTION,
    "tools": [{"type": "function", "function": MAYOR}],
    "gold_calls": [{"name": "mayor_finder", "arguments": {"city": "Bern"}, "result": "Ada"}],
    "environment": {"source": WORLD, "name": "City", "arguments": {"seed": 1}, "judge": "judge"},
    "later": [
        {"question": "And her age?", "tools": [{**AGE, "source": AGE_SOURCE}], "gold_answer": "51"},
        {
            "messages": [{"role": "system", "content": "Hurry."}, {"role": "user", "content": "Basel?"}],
            "ground_truth": json.dumps([{"name": "age_finder", "kwargs": {"person": "Eva"}, "result": "7"}]),
            "answer": "7",
        },
    ],
}
DIALOGUE_TASK = Task(
    id="talk",
    messages=tuple(PROMPT),
    tools=(Tool("mayor_finder", MAYOR["description"], MAYOR["parameters"]),),
    gold_calls=(ToolCall("mayor_finder", {"city": "Bern"}, result="Ada"),),
    environment=Environment(WORLD, "City", {"seed": 1}, "judge"),
    later=(
        UserTurn(
            ({"role": "user", "content": "And her age?"},),
            (Tool("age_finder", AGE["description"], AGE["parameters"], AGE_SOURCE),),
            gold_answer="51",
        ),
        UserTurn(
            ({"role": "system", "content": "Hurry."}, {"role": "user", "content": "Basel?"}),
            gold_calls=(ToolCall("age_finder", {"person": "Eva"}, result="7"),),
            gold_answer="7",
        ),
    ),
)
ROWS = {"ftrl": (FTRL, FTRL_TASK), "toolhop": (TOOLHOP, TOOLHOP_TASK), "matchtir": (OWN, OWN_TASK)}


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), "utf-8")
    return path


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def read(source: Any, **options: Any) -> tuple[TaskFile, list[TaskRow]]:
    with read_tasks(source, **options) as tasks:
        return tasks, list(tasks)


def tasks_of(rows: list[TaskRow]) -> list[Task]:
    assert [str(row.error) for row in rows if row.error] == []
    return [row.task for row in rows if row.task is not None]


def without(row: dict[str, Any], *names: str, **changed: Any) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in names} | changed


def only_task(path: Path, row: dict[str, Any]) -> Task:
    (task,) = tasks_of(read(write_lines(path / "one.jsonl", [row]))[1])
    return task


# The real test set


def test_ftrl_real_rows_are_all_read(ftrl_path: Path) -> None:
    pytest.importorskip("pyarrow")
    found, rows = read(ftrl_path)
    tasks = tasks_of(rows)
    assert found.format == "ftrl"
    assert [row.row for row in rows] == list(range(200))
    assert [task.id for task in tasks] == [f"ftrl-test-{i}" for i in range(200)]
    shapes = ("single_hop", "parallel_single_hop", "multi_hop", "parallel_multi_hop")
    assert Counter(task.kind for task in tasks) == dict.fromkeys(shapes, 50)
    assert sum(len(task.tools) for task in tasks) == 1852
    assert found.progress == (200, 200)


def test_ftrl_real_rows_keep_what_the_columns_say(ftrl_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    for row, task in zip(
        parquet.read_table(ftrl_path).to_pylist(), tasks_of(read(ftrl_path)[1]), strict=True
    ):
        schemas = [tool["function"] for tool in json.loads(row["tools"])]
        codes = json.loads(row["codes"])
        assert [(t.name, t.description, t.parameters, t.source) for t in task.tools] == [
            (s["name"], s["description"], s["parameters"], codes[s["name"]]) for s in schemas
        ]
        assert list(task.messages) == row["messages"]
        assert task.gold_answer == row["answer"]
        assert task.gold_calls == ()
        assert {name: list(answers) for name, answers in (task.sub_answers or {}).items()} == json.loads(
            row["unsolved_set"]
        )


def test_ftrl_real_rows_round_trip_as_ours(ftrl_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    tasks = tasks_of(read(ftrl_path)[1])
    assert write_tasks(tmp_path / "tasks.jsonl", tasks) == 200
    found, rows = read(tmp_path / "tasks.jsonl")
    assert found.format == "matchtir"
    assert tasks_of(rows) == tasks


# Formats and containers


@pytest.mark.parametrize("container", ["lines", "array", "gzip", "parquet"])
@pytest.mark.parametrize("format", TASK_FORMATS)
def test_read_recognises_format_and_container(tmp_path: Path, format: str, container: str) -> None:
    row, task = ROWS[format]
    path = tmp_path / "tasks.dat"
    if container == "parquet":
        pytest.importorskip("pyarrow")
        write_table(path, [row])
    elif container == "array":
        path.write_text(json.dumps([row], indent=1), "utf-8")
    elif container == "gzip":
        path.write_bytes(gzip.compress(json.dumps(row).encode()))
    else:
        write_lines(path, [row])
    for forced in (None, format):
        found, rows = read(path, format=forced)
        assert found.format == format
        assert tasks_of(rows) == [task]
        assert rows == [TaskRow(0, task)]


def test_read_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.TextIOWrapper(io.BufferedReader(io.BytesIO(json.dumps(OWN).encode())))  # type: ignore[arg-type]
    monkeypatch.setattr(sys, "stdin", text)
    found, rows = read("-")
    assert (found.name, tasks_of(rows)) == ("<stdin>", [OWN_TASK])


def test_ftrl_row_without_gold_calls_and_split(tmp_path: Path) -> None:
    task = only_task(tmp_path, without(FTRL, "ground_truth", "split", "data_source", "unsolved_set"))
    assert task == Task("ftrl-0", tuple(PROMPT), TOOLS, (), "51", None, "")


@pytest.mark.parametrize(
    ("data_source", "kind"),
    [("self/single_hop", "single_hop"), ("a/b/multi_hop", "multi_hop"), ("parallel", "parallel"), (None, "")],
)
def test_ftrl_kind_is_the_last_part_of_the_source(tmp_path: Path, data_source: Any, kind: str) -> None:
    assert only_task(tmp_path, without(FTRL, data_source=data_source)).kind == kind


def test_ftrl_columns_may_be_json_values(tmp_path: Path) -> None:
    row = FTRL | {key: json.loads(FTRL[key]) for key in ("tools", "codes", "unsolved_set", "ground_truth")}
    assert only_task(tmp_path, row) == FTRL_TASK


def test_ftrl_sources_of_other_functions_are_passed_over(tmp_path: Path) -> None:
    codes = {"helper": "def helper(): pass", "mayor_finder": MAYOR_SOURCE, "age_finder": AGE_SOURCE}
    assert only_task(tmp_path, without(FTRL, codes=codes)) == FTRL_TASK


@pytest.mark.parametrize(
    "tools",
    [
        dict(zip(SUB_TASK, (MAYOR, AGE), strict=True)),
        {"mayor_finder": MAYOR, "age_finder": AGE},
        {"mayor_finder": without(MAYOR, "name"), "age_finder": without(AGE, "name")},
        [MAYOR, AGE],
        [{"type": "function", "function": MAYOR}, {"type": "function", "function": AGE}],
    ],
    ids=["by question", "by name", "name in the key", "list", "list of OpenAI's"],
)
@pytest.mark.parametrize(
    "functions",
    [
        [AGE_SOURCE, MAYOR_SOURCE],
        {"mayor_finder": MAYOR_SOURCE, "age_finder": AGE_SOURCE},
        {"mayor_finder": [MAYOR_SOURCE], "age_finder": [AGE_SOURCE]},
        {"a": MAYOR_SOURCE, "b": AGE_SOURCE},
    ],
    ids=["list", "by name", "lists by name", "by other keys"],
)
def test_toolhop_tools_and_functions_in_every_shape(tmp_path: Path, tools: Any, functions: Any) -> None:
    tied = isinstance(tools, dict) and set(tools) == set(SUB_TASK)
    expected = Task("7", tuple(PROMPT), TOOLS, (), "51", SUB_ANSWERS if tied else None, "multi_hop")
    for dumped in (False, True):
        row = without(TOOLHOP, tools=tools, functions=functions)
        if dumped:
            row |= {key: json.dumps(row[key]) for key in ("tools", "functions", "sub_task")}
        assert only_task(tmp_path, row) == expected


def test_toolhop_functions_by_sub_question(tmp_path: Path) -> None:
    functions = dict(zip(SUB_TASK, (MAYOR_SOURCE, AGE_SOURCE), strict=True))
    assert only_task(tmp_path, without(TOOLHOP, functions=functions)) == TOOLHOP_TASK


def test_toolhop_schema_may_be_that_of_the_arguments(tmp_path: Path) -> None:
    row = without(TOOLHOP, "sub_task", tools={"mayor_finder": MAYOR["parameters"]}, functions=[MAYOR_SOURCE])
    assert only_task(tmp_path, row).tools == (Tool("mayor_finder", "", MAYOR["parameters"], MAYOR_SOURCE),)


def test_toolhop_hops_may_share_a_tool(tmp_path: Path) -> None:
    sub_task = {"Mayor of Bern?": "Ada", "Mayor of Basel?": 7, "Same?": "no"}
    tools = {"Mayor of Bern?": MAYOR, "Mayor of Basel?": MAYOR, "Same?": AGE}
    task = only_task(tmp_path, without(TOOLHOP, sub_task=sub_task, tools=tools))
    assert task.tools == TOOLS
    assert task.sub_answers == {"mayor_finder": ("Ada", "7"), "age_finder": ("no",)}


def test_toolhop_source_is_that_of_its_first_function(tmp_path: Path) -> None:
    both = "def age_finder(person):\n    return mayor_finder(person)\n\n" + MAYOR_SOURCE
    for functions in ([both, MAYOR_SOURCE], [MAYOR_SOURCE, both]):
        task = only_task(tmp_path, without(TOOLHOP, functions=functions))
        assert [tool.source for tool in task.tools] == [MAYOR_SOURCE, both]
    # A helper's source serves where there is no other.
    task = only_task(tmp_path, without(TOOLHOP, functions=[both]))
    assert [tool.source for tool in task.tools] == [both, both]


def test_toolhop_of_two_sources_of_a_tool_the_later_counts(tmp_path: Path) -> None:
    other = MAYOR_SOURCE.replace("Ada", "Eva")
    task = only_task(tmp_path, without(TOOLHOP, functions=[MAYOR_SOURCE, AGE_SOURCE, other]))
    assert task.tools[0].source == other


def test_own_row_needs_a_question_only(tmp_path: Path) -> None:
    assert only_task(tmp_path, {"question": "Why?"}) == Task("task-0", ({"role": "user", "content": "Why?"},))


def test_own_row_takes_the_other_names_of_rollout_files(tmp_path: Path) -> None:
    row = {"messages": PROMPT, "tools": [MAYOR], "ground_truth": [{"name": "mayor_finder"}], "answer": "yes"}
    task = only_task(tmp_path, row)
    assert (task.gold_calls, task.gold_answer) == ((ToolCall("mayor_finder", {}),), "yes")


@pytest.mark.parametrize("dumped", [False, True])
def test_own_row_of_a_dialogue(tmp_path: Path, dumped: bool) -> None:
    row = DIALOGUE
    if dumped:
        row = DIALOGUE | {key: json.dumps(DIALOGUE[key]) for key in ("environment", "later")}
    task = only_task(tmp_path, row)
    assert task == DIALOGUE_TASK
    assert only_task(tmp_path, task_record(task)) == task


def test_own_row_environment_needs_source_and_name_only(tmp_path: Path) -> None:
    task = only_task(tmp_path, {"question": "?", "environment": {"source": WORLD, "name": "City"}})
    assert task.environment == Environment(WORLD, "City")
    assert task_record(task)["environment"] == {"source": WORLD, "name": "City"}


def test_sub_answers_may_be_of_tools_that_come_later(tmp_path: Path) -> None:
    task = only_task(tmp_path, DIALOGUE | {"sub_answers": {"age_finder": ["51"]}})
    assert task.sub_answers == {"age_finder": ("51",)}


def test_ids_are_texts(tmp_path: Path) -> None:
    rows = [without(OWN, id=3), without(OWN, id="x"), without(OWN, "id"), without(OWN, id=None)]
    tasks = tasks_of(read(write_lines(tmp_path / "t.jsonl", rows))[1])
    assert [task.id for task in tasks] == ["3", "x", "task-2", "task-3"]


# What is refused


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            without(FTRL, "codes", "solve_rate", "ground_truth"),
            "column codes is missing; FTRL tasks need messages, tools, codes, answer "
            "(columns found: messages, tools, unsolved_set, data_source, split, answer)",
        ),
        (
            {"codes": "{}"},
            "columns messages, tools, answer are missing; FTRL tasks need messages, tools, codes, answer "
            "(columns found: codes)",
        ),
        (
            {"question": "Why?", "answer": "so", "tools": {"f": MAYOR}},
            "column functions is missing; ToolHop tasks need question, answer, tools, functions "
            "(columns found: question, answer, tools)",
        ),
    ],
)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_read_says_which_column_is_missing(tmp_path: Path, row: Any, reason: str, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
        write_table(path, [row])
    else:
        write_lines(path, [row])
    with pytest.raises(InputError) as error:
        read_tasks(path)
    assert str(error.value) == f"{path}: {reason}"


def test_read_says_which_column_a_forced_format_lacks(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", [{"a": 1, "turns": []}])
    with pytest.raises(InputError, match="column messages or question is missing; matchtir tasks need"):
        read_tasks(path, format="matchtir")
    with pytest.raises(InputError, match="columns question, answer, tools, functions are missing"):
        read_tasks(path, format="toolhop")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "holds no rows; expected tasks (ftrl, toolhop, matchtir)"),
        (" \n ", "holds no rows; expected tasks (ftrl, toolhop, matchtir)"),
        ("[]", "holds no rows; expected tasks (ftrl, toolhop, matchtir)"),
        ('{"turns": [], "group": 1}', "is not recognised: columns found: turns, group; tasks need ("),
        ("{}", "is not recognised: columns found: none; tasks need ("),
        ("7\nnull", "is not recognised: none of its first 2 rows is an object; tasks need ("),
        (
            json.dumps({f"c{i}": 0 for i in range(15)}),
            "c10, c11 and 3 more; tasks need (FTRL: messages, tools, codes, answer; "
            "ToolHop: question, answer, tools, functions; matchtir: messages or question)",
        ),
    ],
)
def test_read_refuses_what_holds_no_tasks(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(text, "utf-8")
    with pytest.raises(InputError) as error:
        read_tasks(path)
    assert str(error.value).startswith(str(path))
    assert reason in str(error.value)


def test_read_refuses_unknown_options_and_missing_files(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", [OWN])
    with pytest.raises(InputError, match="format is 'bfcl'; expected one of ftrl, toolhop, matchtir"):
        read_tasks(path, format="bfcl")
    with pytest.raises(InputError, match=r"split is 'train', but .*x\.jsonl is a file, which has no splits"):
        read_tasks(path, split="train")
    with pytest.raises(FileNotFoundError):
        read_tasks(tmp_path / "no" / "such")
    for name in ("no/such.parquet", "no/such.jsonl", "no/such.json.gz", "nothing"):
        with pytest.raises(FileNotFoundError):
            read_tasks(name)


def with_later(second: dict[str, Any]) -> dict[str, Any]:
    return without(OWN, later=[{"question": "And then?"}, second])


BROKEN = {
    "ftrl": [
        (without(FTRL, "codes"), "column codes is missing; expected a JSON object of tool name to source"),
        (without(FTRL, codes="{"), "codes holds a string: not JSON: "),
        (without(FTRL, codes="[]"), "codes is an array; expected an object"),
        (
            without(FTRL, codes={"mayor_finder": "x"}),
            "codes holds no source of tool 'age_finder'; expected a string",
        ),
        (without(FTRL, tools=None), "column tools is missing; expected a JSON list of schemas"),
        (without(FTRL, tools="3"), "tools is a number; expected a list"),
        (without(FTRL, tools=[MAYOR, MAYOR]), "tools holds 'mayor_finder' twice; expected each name once"),
        (without(FTRL, tools=[{"name": ""}]), "tools[0].name is a string, ''; expected the tool's name"),
        (without(FTRL, tools=[{"function": 3}]), "tools[0].function is a number; expected an object"),
        (without(FTRL, messages=[]), "messages is empty; expected the prompt"),
        (without(FTRL, messages=[{"content": "?"}]), "messages[0].role is null; expected a string"),
        (without(FTRL, messages=["?"]), "messages[0] is a string; expected an object"),
        (without(FTRL, answer=51), "answer is a number, 51; expected a string or null"),
        (without(FTRL, ground_truth='[{"parameters": {}}]'), 'ground_truth[0] is no call: no "name"'),
        (
            without(FTRL, ground_truth=[{"name": "nobody"}]),
            "a gold call is of 'nobody', which is none of the task's 2 tools",
        ),
        (
            without(FTRL, unsolved_set={"nobody": ["x"]}),
            "sub-answers are of 'nobody', which is none of the task's 2 tools",
        ),
        (
            without(FTRL, unsolved_set={"age_finder": [51]}),
            "unsolved_set.age_finder holds a number; expected strings",
        ),
        (without(FTRL, data_source=3), "data_source is a number, 3; expected a string or null"),
        (without(FTRL, id=True), "id is a boolean, True; expected a string or an integer"),
        ([1], "the row is an array; expected an object"),
        ('{"messages": ', "not JSON: "),
    ],
    "toolhop": [
        (without(TOOLHOP, "question"), "column question is missing; expected a string"),
        (without(TOOLHOP, question=["?"]), "column question is an array; expected a string"),
        (
            without(TOOLHOP, functions=[AGE_SOURCE]),
            "functions holds no source of tool 'mayor_finder'; expected one that",
        ),
        (without(TOOLHOP, functions=[3]), "functions[0] is a number; expected a list"),
        (without(TOOLHOP, functions={"f": [3]}), "functions['f'] holds a number; expected Python source"),
        (without(TOOLHOP, functions=None), "column functions is missing; expected Python sources"),
        (without(TOOLHOP, tools=7), "tools is a number; expected an object or a list"),
        (without(TOOLHOP, tools=["f"]), "tools[0] is a string; expected an object"),
        (without(TOOLHOP, tools=[{}]), "tools[0].name is null, None; expected the tool's name"),
        (
            without(TOOLHOP, tools=[MAYOR, without(MAYOR, "parameters")]),
            "tools holds 'mayor_finder' twice; expected each name once",
        ),
        (
            without(TOOLHOP, sub_task={key: ["x"] for key in SUB_TASK}),
            "sub_task['Who is the mayor of Bern?'] is an array; expected a string",
        ),
    ],
    "matchtir": [
        (without(OWN, "question"), "messages or question: neither is there; expected one of them"),
        (without(OWN, messages=PROMPT), "messages or question: both are there; expected one of them"),
        (
            without(OWN, tools=[{**AGE, "source": 3}]),
            "tools[0].source is a number; expected Python source or null",
        ),
        (
            without(OWN, tools=[{**AGE, "parameters": []}]),
            "tools[0].parameters is an array; expected an object",
        ),
        (
            without(OWN, tools=[{**AGE, "description": 1}]),
            "tools[0].description is a number; expected a string",
        ),
        (without(OWN, tools=None), "a gold call is of 'mayor_finder', which is none of the task's 0 tools"),
        (
            without(OWN, gold_calls=[{"name": "age_finder", "result": 51}]),
            "result of gold call 0 is a number; expected a string or null",
        ),
        (without(OWN, kind=1), "column kind is a number; expected a string"),
        (without(OWN, id=""), "id is a string, ''; expected a string or an integer"),
        (without(OWN, id="first"), "id is 'first', as in row 0; expected each id once"),
        (without(OWN, question=1), "question is a number; expected a string"),
        (without(OWN, environment=1), "environment is a number; expected an object"),
        (without(OWN, environment="{"), "environment holds a string: not JSON"),
        (without(OWN, environment={"name": "C"}), "environment.source is null; expected a string"),
        (without(OWN, environment={"source": "x", "name": 1}), "environment.name is a number"),
        (without(OWN, environment={"source": "x", "name": ""}), "environment.name is empty"),
        (without(OWN, environment={"source": "", "name": "C"}), "environment.source is empty"),
        (
            without(OWN, environment={"source": "x", "name": "C", "arguments": [1]}),
            "environment.arguments is an array; expected an object",
        ),
        (
            without(OWN, environment={"source": "x", "name": "C", "judge": 1}),
            "environment.judge is a number; expected a string or null",
        ),
        (
            without(OWN, environment={"source": "x", "name": "C", "checked": 0}),
            "environment.checked is a number; expected true, false or null",
        ),
        (without(OWN, later={"question": "?"}), "later is an object; expected a list"),
        (without(OWN, later=["?"]), "later[0] is a string; expected an object"),
        (with_later({}), "later[1].messages or question: neither is there; expected one of them"),
        (with_later({"question": 3}), "later[1].question is a number; expected a string"),
        (with_later({"messages": ["?"]}), "later[1].messages[0] is a string; expected an object"),
        (with_later({"messages": []}), "later[1]: messages is empty; expected the prompt"),
        (
            with_later({"messages": [{"role": "assistant", "content": "x"}]}),
            "later[1]: messages end with one of role assistant",
        ),
        (
            with_later({"question": "?", "gold_calls": [{"arguments": {}}]}),
            'later[1].gold_calls[0] is no call: no "name"',
        ),
        (
            with_later({"question": "?", "gold_calls": [{"name": "age_finder", "result": 3}]}),
            "later[1].result of gold_calls[0] is a number; expected a string or null",
        ),
        (with_later({"question": "?", "answer": 3}), "later[1].answer is a number, 3"),
        (
            with_later({"question": "?", "tools": [{"name": 3}]}),
            "later[1].tools[0].name is a number, 3; expected the tool's name",
        ),
        (with_later({"question": "?", "tools": [AGE]}), "later[1]: tools holds 'age_finder' twice"),
        (
            with_later({"question": "?", "gold_calls": [{"name": "nobody"}]}),
            "later[1]: a gold call is of 'nobody', which is none of the 2 tools known by then",
        ),
        (
            # A tool that comes with the next user turn.
            without(
                OWN,
                later=[
                    {"question": "?", "gold_calls": [{"name": "late"}]},
                    {"question": "?", "tools": [{"name": "late"}]},
                ],
            ),
            "later[0]: a gold call is of 'late', which is none of the 2 tools known by then",
        ),
        (
            without(OWN, "question", messages=[*PROMPT, {"role": "assistant", "content": "51"}]),
            "messages end with one of role assistant: this is a rollout, not a task",
        ),
    ],
}


@pytest.mark.parametrize(
    ("format", "broken", "reason"),
    [(format, row, reason) for format, cases in BROKEN.items() for row, reason in cases],
)
def test_broken_row_is_reported_and_the_rest_is_read(
    tmp_path: Path, format: str, broken: Any, reason: str
) -> None:
    row = ROWS[format][0]
    path = write_lines(tmp_path / "x.jsonl", [without(row, id="first"), broken, "", without(row, id="last")])
    found, rows = read(path)
    assert found.format == format
    assert [r.row for r in rows] == [0, 1, 2]
    assert [r.task and r.task.id for r in rows] == ["first", None, "last"]
    assert isinstance(rows[1].error, RowError)
    assert str(rows[1].error).startswith(f"{path}, line 2 (row 1): {reason}")


def test_broken_row_that_comes_first_can_be_read_past_with_a_format(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "x.jsonl", ["{"])
    _, rows = read(path, format="ftrl")
    assert [row.task for row in rows] == [None]
    assert str(rows[0].error).startswith(f"{path}, line 1 (row 0): not JSON")


@given(st.sampled_from(TASK_FORMATS), st.data())
def test_reading_raises_on_no_row(tmp_path_factory: pytest.TempPathFactory, format: str, data: Any) -> None:
    whole = ROWS[format][0]
    if format == "matchtir":
        whole = data.draw(st.sampled_from([whole, DIALOGUE]))
    row = dict(whole)
    json_values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=6,
    )
    key = data.draw(st.sampled_from(sorted(row)))
    row[key] = data.draw(json_values | json_values.map(json.dumps))
    path = write_lines(tmp_path_factory.mktemp("mutated") / "x.jsonl", [ROWS[format][0] | {"id": "-"}, row])
    _, rows = read(path, format=format)
    assert [r.row for r in rows] == [0, 1]
    assert (rows[1].task is None) == (rows[1].error is not None)
    if rows[1].task is not None:
        task_record(rows[1].task)  # what is read is a whole task


# Sources are data


def test_reading_compiles_and_runs_nothing(tmp_path: Path) -> None:
    trap = f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\ndef mayor_finder(city): pass\n"
    bad = "def age_finder(:\n"
    write_lines(tmp_path / "ftrl.jsonl", [FTRL | {"codes": {"mayor_finder": trap, "age_finder": bad}}])
    write_lines(tmp_path / "toolhop.jsonl", [TOOLHOP | {"functions": [trap, bad]}])
    write_lines(
        tmp_path / "own.jsonl", [OWN | {"tools": [{**MAYOR, "source": trap}, {**AGE, "source": bad}]}]
    )
    code = """
import encodings.utf_8_sig, sys
from matchtir.tasks import read_tasks, write_tasks
seen = []
sys.addaudithook(lambda event, _: event in ("compile", "exec", "import") and seen.append(event))
for path in sys.argv[1:]:
    rows = list(read_tasks(path))
    assert all(row.task for row in rows), rows[0].error
    assert [tool.source[:6] for row in rows for tool in row.task.tools] == ["import", "def ag"]
    write_tasks(path + ".out", [row.task for row in rows])
print(seen)
compile("1", "", "eval")
assert seen
"""
    paths = [str(tmp_path / f"{name}.jsonl") for name in ("ftrl", "toolhop", "own")]
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
    assert not (tmp_path / "ran").exists()


# Our own rows, both ways

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(st.text(), JSON, max_size=3)
NAMES = st.text(min_size=1, max_size=8).filter(str.strip)


@st.composite
def some_tasks(draw: st.DrawFn) -> Task:
    tools = tuple(
        Tool(name, draw(st.text()), draw(OBJECTS), draw(st.none() | st.text()))
        for name in draw(st.lists(NAMES, max_size=3, unique=True))
    )
    calls: tuple[ToolCall, ...] = ()
    sub_answers = None
    if tools:
        named = st.sampled_from([tool.name for tool in tools])
        calls = tuple(
            draw(st.lists(st.builds(ToolCall, named, OBJECTS, result=st.none() | st.text()), max_size=3))
        )
        answers = st.dictionaries(named, st.lists(st.text(), max_size=2).map(tuple))
        sub_answers = draw(st.none() | answers)
    roles = draw(st.lists(st.sampled_from(["system", "user", "assistant"]), max_size=3))
    messages = tuple({**draw(OBJECTS), "role": role} for role in [*roles, "user"])
    answer = draw(st.none() | st.text())
    kind = draw(st.text())
    environments = st.builds(
        Environment, st.text(min_size=1), st.text(min_size=1), OBJECTS, st.none() | st.text()
    )
    known = [tool.name for tool in tools]
    later = []
    for _ in range(draw(st.integers(0, 2))):
        new = [name for name in draw(st.lists(NAMES, max_size=2, unique=True)) if name not in known]
        known += new
        own: tuple[ToolCall, ...] = ()
        if known:
            own = tuple(draw(st.lists(st.builds(ToolCall, st.sampled_from(known), OBJECTS), max_size=2)))
        said = ({**draw(OBJECTS), "role": "user"},)
        later.append(UserTurn(said, tuple(map(Tool, new)), own, draw(st.none() | st.text())))
    return Task(
        draw(st.text(min_size=1)),
        messages,
        tools,
        calls,
        answer,
        sub_answers,
        kind,
        draw(st.none() | environments),
        tuple(later),
    )


@given(st.lists(some_tasks(), min_size=1, max_size=4, unique_by=lambda task: task.id))
def test_tasks_round_trip(tmp_path_factory: pytest.TempPathFactory, tasks: list[Task]) -> None:
    path = tmp_path_factory.mktemp("round") / "tasks.jsonl"
    assert write_tasks(path, iter(tasks)) == len(tasks)
    found, rows = read(path)
    assert found.format == "matchtir"
    assert tasks_of(rows) == tasks
    first = path.read_bytes()
    write_tasks(path, tasks_of(rows))
    assert path.read_bytes() == first


def test_task_record_has_the_documented_fields() -> None:
    assert task_record(OWN_TASK) == {
        "id": "age",
        "messages": PROMPT,
        "kind": "multi_hop",
        "tools": [
            {"type": "function", "function": MAYOR, "source": MAYOR_SOURCE},
            {"type": "function", "function": AGE},
        ],
        "gold_calls": [{"name": "mayor_finder", "arguments": {"city": "Bern"}}],
        "gold_answer": "51",
        "sub_answers": {"mayor_finder": ["Ada"]},
    }


def documented(language: str) -> list[str]:
    text = (Path(__file__).parents[1] / "docs" / "formats.md").read_text("utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text.partition("## Tasks")[2], re.DOTALL)


def test_documented_row_round_trips(tmp_path: Path) -> None:
    tasks = []
    for block in documented("json"):
        tasks.append(only_task(tmp_path, json.loads(block)))
        assert task_record(tasks[-1]) == json.loads(block)
    single, dialogue = tasks
    assert single.gold_calls[0].result == "Ada"
    assert [len(turn.tools) for turn in dialogue.later] == [0, 1]
    assert dialogue.environment is not None


def test_documented_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    pytest.importorskip("pyarrow")
    (block,) = documented("python")
    write_table(tmp_path / "test.parquet", [FTRL, without(FTRL, codes="{}")])
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    assert capsys.readouterr().out.startswith("test.parquet, row 1: codes holds no source of tool")
    assert tasks_of(read("tasks.jsonl")[1]) == [FTRL_TASK]


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        (Task("x", ()), "messages is empty"),
        (Task("", tuple(PROMPT)), "id is empty"),
        (Task("x", tuple(PROMPT), (Tool("f", function=print),)), "tool 'f' is a function of this program"),
        (Task("x", tuple(PROMPT), (Tool("f"), Tool("f"))), "tools holds 'f' twice"),
        (Task("x", tuple(PROMPT), gold_calls=(ToolCall("f"),)), "a gold call is of 'f'"),
        (
            Task("x", tuple(PROMPT), gold_calls=(ToolCall("f", malformed="cut"),)),
            "gold call 0 is malformed: cut",
        ),
        (Task("x", tuple(PROMPT), sub_answers={"f": ("1",)}), "sub-answers are of 'f'"),
        (Task("x", tuple(PROMPT), later=(UserTurn(()),)), "later[0]: messages is empty"),
        (
            Task("x", tuple(PROMPT), later=(UserTurn(tuple(PROMPT), gold_calls=(ToolCall("f"),)),)),
            "later[0]: a gold call is of 'f', which is none of the 0 tools known by then",
        ),
        (
            Task("x", tuple(PROMPT), later=(UserTurn(tuple(PROMPT), (Tool("f", function=print),)),)),
            "tool 'f' is a function of this program",
        ),
        (Task("x", tuple(PROMPT), environment=Environment("", "C")), "environment.source is empty"),
        (
            Task("x", tuple(PROMPT), environment=Environment("x", "C", {"a": float("inf")})),
            "Out of range float values",
        ),
        (Task("x", ({"role": "user", "content": float("nan")},)), "Out of range float values"),
        (Task("x", ({"role": "user", "content": {1}},)), "Object of type set is not JSON serializable"),
        (OWN_TASK, "an earlier task has the same id"),
    ],
)
def test_write_refuses_what_would_not_be_read_and_writes_nothing(
    tmp_path: Path, task: Task, reason: str
) -> None:
    path = tmp_path / "tasks.jsonl"
    with pytest.raises(InputError) as error:
        write_tasks(path, [OWN_TASK, task])
    assert str(error.value).startswith(f"task {task.id!r} cannot be written: {reason}")
    assert list(tmp_path.iterdir()) == []


# Data sets of the `datasets` library


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    library = pytest.importorskip("datasets")
    monkeypatch.setattr(library.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return library


@pytest.mark.parametrize("format", ["ftrl", "matchtir"])
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_folder_of_files_is_a_data_set(datasets: Any, tmp_path: Path, format: str, suffix: str) -> None:
    row, task = ROWS[format]
    folder = tmp_path / "data"
    folder.mkdir()
    write = write_table if suffix == "parquet" else write_lines
    row, task = row | {"id": "a"}, replace(task, id="a")
    write(folder / f"train.{suffix}", [row])
    write(folder / f"test.{suffix}", [row, row | {"id": "b"}])
    found, rows = read(folder, split="train")
    assert (found.format, found.name, found.progress) == (format, str(folder), (1, 1))
    assert tasks_of(rows) == [task]
    found, rows = read(str(folder), split="test")
    assert [task.id for task in tasks_of(rows)] == ["a", "b"]
    with pytest.raises(InputError, match=r"has the splits \w+, \w+; choose one with split="):
        read_tasks(folder)
    with pytest.raises(InputError, match=r'is no folder that the datasets library can load: .*"dev"'):
        read_tasks(folder, split="dev")


def test_folder_that_datasets_saved(datasets: Any, tmp_path: Path) -> None:
    one = datasets.Dataset.from_list([FTRL])
    one.save_to_disk(tmp_path / "one")
    assert tasks_of(read(tmp_path / "one")[1]) == [FTRL_TASK]
    datasets.DatasetDict(train=one, test=one).save_to_disk(tmp_path / "two")
    assert tasks_of(read(tmp_path / "two", split="test")[1]) == [FTRL_TASK]
    with pytest.raises(InputError, match="has the splits train, test; choose one with split="):
        read_tasks(tmp_path / "two")
    with pytest.raises(InputError, match="split is 'dev'; expected train or test"):
        read_tasks(tmp_path / "two", split="dev")


def test_hub_name_goes_through_datasets(datasets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, split: str | None = None) -> Any:
        asked.append((name, split))
        found = datasets.Dataset.from_list([FTRL, without(FTRL, codes="{}"), FTRL])
        return found if split else datasets.DatasetDict(train=found)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for split in ("train", None):
        found, rows = read("owner/some-set", split=split)
        assert (found.name, found.format, found.progress) == ("owner/some-set", "ftrl", (3, 3))
        assert [row.task and row.task.id for row in rows] == ["ftrl-train-0", None, "ftrl-train-2"]
        assert str(rows[1].error) == (
            "owner/some-set, row 1: codes holds no source of tool 'mayor_finder'; expected a string"
        )
    assert asked == [("owner/some-set", "train"), ("owner/some-set", None)]


def test_hub_without_network_or_library_says_so(datasets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, split: str | None = None) -> Any:
        raise ConnectionError(f"Couldn't reach {name!r} on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(InputError) as error:
        read_tasks("owner/name")
    assert str(error.value) == (
        "owner/name is no file here, and no data set of the hub that the datasets library can load: "
        "ConnectionError: Couldn't reach 'owner/name' on the Hub"
    )
    monkeypatch.setattr(datasets, "__version__", "3.6.0")
    with pytest.raises(ImportError, match=r'datasets 3\.6\.0 may run code .* "matchtir\[datasets\]"'):
        read_tasks("owner/name")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r'pip install "matchtir\[datasets\]"'):
        read_tasks("owner/name")


def test_existing_file_is_no_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner").mkdir()
    write_lines(tmp_path / "owner" / "name", [OWN])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert tasks_of(read(os.path.join("owner", "name"))[1]) == [OWN_TASK]
    with pytest.raises(FileNotFoundError):
        read_tasks(Path("owner") / "other")


def test_parquet_values_of_type_json_are_what_they_say(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", minversion="19")
    parquet = pytest.importorskip("pyarrow.parquet")

    def column(value: str) -> Any:
        items = pyarrow.ExtensionArray.from_storage(pyarrow.json_(), pyarrow.array([value]))
        return pyarrow.ListArray.from_arrays([0, 1], items)

    columns = {
        "messages": pyarrow.array([PROMPT]),
        "tools": column(json.dumps(MAYOR)),
        "gold_calls": column('{"name": "mayor_finder", "arguments": {"city": 3, "no": null}}'),
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    (task,) = tasks_of(read(tmp_path / "t.parquet")[1])
    assert task.gold_calls == (ToolCall("mayor_finder", {"city": 3, "no": None}),)
    assert task.tools == (Tool("mayor_finder", MAYOR["description"], MAYOR["parameters"]),)
