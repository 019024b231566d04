"""BFCL's multi-turn tasks: what is read of the package, its gold calls replayed, and what a world refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from matchtir.errors import ConfigError, InputError
from matchtir.tasks import (
    BFCL_CATEGORIES,
    BFCL_MODULES,
    bfcl_split,
    bfcl_tasks,
    gold_by_user_turn,
    read_tasks,
    write_tasks,
)
from matchtir.tasks.bfcl import gold_call, world_source
from matchtir.tasks.bfcl_package import folder
from matchtir.tools import Sandbox, ToolRegistry
from matchtir.types import Task, ToolCall

HERE = find_spec("bfcl_eval") is not None
needs_package = pytest.mark.skipif(not HERE, reason="bfcl_eval is not installed")

# The package's ground truth asks here for a tool before the model has it: no rollout can be right.
TOO_EARLY = "multi_turn_miss_func_49"
# And here for a string where the tool's schema says integer.
AGAINST_SCHEMA = {f"{category}_173" for category in BFCL_CATEGORIES}


@pytest.fixture(scope="module")
def tasks() -> dict[str, Task]:
    if not HERE:
        pytest.skip("bfcl_eval is not installed")
    return {task.id: task for task in bfcl_tasks()}


@pytest.fixture(scope="module")
def evaluation() -> Any:
    """The package's module that keeps instances."""
    return pytest.importorskip("bfcl_eval.eval_checker.multi_turn_eval.multi_turn_utils")


@pytest.fixture
def space(evaluation: Any) -> Iterator[dict[str, Any]]:
    """The source of the environment, executed; its instances are gone afterwards."""
    before = set(vars(evaluation))
    found: dict[str, Any] = {}
    exec(compile(world_source(), "<string>", "exec", dont_inherit=True), found)
    yield found
    for key in set(vars(evaluation)) - before:
        del vars(evaluation)[key]


def made(space: Mapping[str, Any], task: Task, **other: Any) -> Any:
    assert task.environment is not None
    return space[task.environment.name](**task.environment.arguments, **other)


def replay(world: Any, turns: Sequence[Sequence[ToolCall]]) -> tuple[list[list[str]], list[float]]:
    """What the calls return, and the verdict after each user turn."""
    results, verdicts = [], []
    for calls in turns:
        results.append([getattr(world, call.name)(**call.arguments) for call in calls])
        verdicts.append(world.judge(answer="done"))
    return results, verdicts


def ground_truth(task: Task) -> list[tuple[ToolCall, ...]]:
    """All calls of the package, those too that come too early."""
    assert task.environment is not None
    every = [*task.tools, *(tool for turn in task.later for tool in turn.tools)]
    parameters = {tool.name: list(tool.parameters["properties"]) for tool in every}
    return [
        tuple(gold_call(text, parameters) for text in texts)
        for texts in task.environment.arguments["ground_truth"]
    ]


def number(task: Task) -> int:
    return int(task.id.rpartition("_")[2])


# What is read


def test_all_tasks_are_read(tasks: dict[str, Task]) -> None:
    assert list(tasks) == [f"{category}_{n}" for category in BFCL_CATEGORIES for n in range(200)]
    users = dict.fromkeys(BFCL_CATEGORIES, 0)
    for name, task in tasks.items():
        assert task.kind == name.rpartition("_")[0]
        assert task.gold_answer is None
        assert task.environment is not None
        assert task.environment.judge == "judge"
        assert all(tool.source is None and tool.function is None for tool in task.tools)
        for messages in [task.messages, *(turn.messages for turn in task.later)]:
            assert [message["role"] for message in messages] == ["user"]
            assert messages[0]["content"]
        users[task.kind] += 1 + len(task.later)
    assert list(users.values()) == [734, 934, 934, 734]


def test_gold_calls_are_the_packages_calls_but_one(tasks: dict[str, Task]) -> None:
    left_out = [
        (task.id, t, call.name)
        for task in tasks.values()
        for t, (gold, every) in enumerate(zip(gold_by_user_turn(task), ground_truth(task), strict=True))
        for call in every
        if call not in gold
    ]
    assert left_out == [(TOO_EARLY, 1, "tail")]
    assert tasks["multi_turn_base_0"].gold_calls == (
        ToolCall("cd", {"folder": "document"}),
        ToolCall("mkdir", {"dir_name": "temp"}),
        ToolCall("mv", {"source": "final_report.pdf", "destination": "temp"}),
    )


def test_tools_and_messages_are_those_of_the_packages_own_reader(
    tasks: dict[str, Task], tmp_path: Path
) -> None:
    code = """
import json, sys
from bfcl_eval.constants import default_prompts
from bfcl_eval.utils import load_dataset_entry
for category in sys.argv[1:]:
    for entry in load_dataset_entry(category):
        print(json.dumps([
            entry["id"], entry["function"], entry.get("missed_function", {}), entry["question"],
            default_prompts.DEFAULT_USER_PROMPT_FOR_ADDITIONAL_FUNCTION_FC,
        ]))
"""
    environment = {**os.environ, "BFCL_PROJECT_ROOT": str(tmp_path)}  # it makes folders there
    done = subprocess.run(
        [sys.executable, "-c", code, *BFCL_CATEGORIES],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.split("\n")[:-1]
    assert len(lines) == len(tasks)
    for line in lines:
        name, functions, missed, question, added_message = json.loads(line)
        task = tasks[name]
        assert [shown(tool) for tool in task.tools] == [as_json_schema(one) for one in functions]
        for t, turn in enumerate(task.later, 1):
            assert [shown(x) for x in turn.tools] == [as_json_schema(x) for x in missed.get(str(t), [])]
            expected = question[t] or [{"role": "user", "content": added_message}]
            assert list(turn.messages) == expected
            assert bool(turn.tools) == (question[t] == [])


def shown(tool: Any) -> dict[str, Any]:
    return {"name": tool.name, "description": tool.description, "parameters": tool.parameters}


def as_json_schema(function: Mapping[str, Any]) -> Any:
    """The package's definition with JSON Schema's names of types."""
    kept = {key: function[key] for key in ("name", "description", "parameters")}
    text = json.dumps(kept).replace('"type": "dict"', '"type": "object"')
    return json.loads(text.replace('"type": "float"', '"type": "number"'))


def test_gold_calls_pass_the_registrys_check(tasks: dict[str, Task]) -> None:
    refused = set()
    for task in tasks.values():
        tools = list(task.tools)
        for calls, more in zip(gold_by_user_turn(task), [(), *(x.tools for x in task.later)], strict=True):
            tools += more
            registry = ToolRegistry(tools)
            refused |= {task.id for call in calls if registry.check(call) is not None}
    assert refused == AGAINST_SCHEMA


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ls(", "'(' was never closed"),
        ("ls", "no call of a function by its name"),
        ("os.ls()", "no call of a function by its name"),
        ("rm()", "no tool is named rm"),
        ("ls(1, 2)", "2 positional arguments but 1 parameters"),
        ("ls(ls())", "malformed node"),
        ("ls(*[1])", "malformed node"),
        ("ls(**{'a': 1})", "arguments that JSON cannot hold"),
        ("ls({1})", "not JSON serializable"),
        ("ls((1, 2))", "arguments that JSON cannot hold"),
        ("ls(True, a=False)", "arguments that JSON cannot hold"),
    ],
)
def test_gold_call_that_is_none_is_refused(text: str, reason: str) -> None:
    assert gold_call("ls(True)", {"ls": ["a"]}) == ToolCall("ls", {"a": True})
    with pytest.raises(InputError, match="ground_truth holds ") as error:
        gold_call(text, {"ls": ["a"]})
    assert reason in str(error.value)


# How they are named


@needs_package
def test_read_tasks_takes_categories_and_a_split(tasks: dict[str, Task]) -> None:
    def read(source: str, split: str | None = None) -> list[Task | None]:
        with read_tasks(source, split=split) as rows:
            assert (rows.format, rows.name) == ("bfcl", source)
            found = [row.task for row in rows]
            assert rows.progress == (len(found), len(found))
            return found

    assert read("bfcl:test") == [task for task in tasks.values() if bfcl_split(number(task)) == "test"]
    base = [task for task in tasks.values() if task.kind == "multi_turn_base"]
    assert read("bfcl:multi_turn_base") == base == bfcl_tasks(["multi_turn_base"])
    test = [tasks[f"multi_turn_base_{n}"] for n in range(200) if bfcl_split(n) == "test"]
    assert read("bfcl:multi_turn_base:test") == read("bfcl:multi_turn_base", "test") == test
    assert read("bfcl:multi_turn_miss_func:multi_turn_base") == [*tasks.values()][:400]


@needs_package
def test_unknown_names_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"bfcl:multi_turn names 'multi_turn', .*; expected multi_turn_base,"
    ):
        read_tasks("bfcl:multi_turn")
    with pytest.raises(InputError, match="bfcl names 'dev'"):
        read_tasks("bfcl", split="dev")
    with pytest.raises(InputError, match="names the splits train and test"):
        read_tasks("bfcl:train", split="test")
    with pytest.raises(InputError, match="format is 'ftrl', but bfcl has a form of its own"):
        read_tasks("bfcl", format="ftrl")


@needs_package
def test_file_of_that_name_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bfcl").write_text('{"id": "a", "question": "1 + 1?"}\n')
    monkeypatch.chdir(tmp_path)
    with read_tasks("bfcl") as rows:
        assert rows.format == "matchtir"


@pytest.fixture
def looked_for() -> Iterator[None]:
    """Where the package is, is not remembered."""
    folder.cache_clear()
    yield
    folder.cache_clear()


@pytest.mark.usefixtures("looked_for")
def test_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matchtir.tasks.bfcl_package.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install --no-deps bfcl-eval==2026\.3\.23$"):
        read_tasks("bfcl")


@pytest.mark.usefixtures("looked_for")
def test_other_version_of_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bfcl_eval").mkdir()
    (tmp_path / "bfcl_eval/__init__.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "bfcl_eval", raising=False)
    assert folder() == tmp_path / "bfcl_eval"
    with pytest.raises(InputError, match=r"has no file data/BFCL_v4_\w+\.json .*; expected bfcl-eval 2026"):
        bfcl_tasks()


@needs_package
def test_tasks_are_written_and_read_back(tasks: dict[str, Task], tmp_path: Path) -> None:
    some = [task for task in tasks.values() if task.id.endswith("9")]
    assert write_tasks(tmp_path / "x.jsonl", some) == 80
    with read_tasks(tmp_path / "x.jsonl") as rows:
        assert [row.task for row in rows] == some


# The split


def test_split_goes_by_scenario_and_is_fixed(tasks: dict[str, Task]) -> None:
    numbers = [n for n in range(200) if bfcl_split(n) == "test"]
    assert len(numbers) == 50
    assert [n // 4 for n in numbers] == list(range(50))
    assert numbers[:8] == [0, 6, 11, 15, 19, 22, 24, 31]
    for category in BFCL_CATEGORIES[:2]:
        chosen = {task.id: split for split in ("train", "test") for task in bfcl_tasks([category], split)}
        assert chosen == {f"{category}_{n}": bfcl_split(n) for n in range(200)}


def test_same_number_is_the_same_scenario(tasks: dict[str, Task]) -> None:
    def of(category: str, n: int, key: str) -> Any:
        environment = tasks[f"{category}_{n}"].environment
        assert environment is not None
        return environment.arguments[key]

    same = {
        category: sum(
            of(category, n, "initial_config") == of("multi_turn_base", n, "initial_config")
            for n in range(200)
            if of(category, n, "involved_classes") == of("multi_turn_base", n, "involved_classes")
        )
        for category in BFCL_CATEGORIES
    }
    # Those that differ are corrections of single numbers and texts in some categories only.
    assert list(same.values()) == [200, 193, 191, 194]


def test_no_scenario_of_the_test_split_is_in_train(tasks: dict[str, Task]) -> None:
    numbers: dict[str, set[int]] = {"train": set(), "test": set()}
    solutions: dict[str, set[str]] = {"train": set(), "test": set()}
    for task in tasks.values():
        split = bfcl_split(number(task))
        numbers[split].add(number(task))
        solutions[split].add(repr([calls for calls in ground_truth(task) if calls]))
    assert numbers["train"].isdisjoint(numbers["test"])
    assert solutions["train"].isdisjoint(solutions["test"])


# The gold calls replayed


def check_replay(space: dict[str, Any], evaluation: Any, some: Sequence[Task]) -> dict[str, int]:
    """Replay tasks; every verdict is 1, every result as the package's own. Returns how many, by category."""
    right = dict.fromkeys(BFCL_CATEGORIES, 0)
    for task in some:
        assert task.environment is not None
        given = task.environment.arguments
        results, verdicts = replay(made(space, task), ground_truth(task))
        for texts, found in zip(given["ground_truth"], results, strict=True):
            expected, _ = evaluation.execute_multi_turn_func_call(
                texts,
                given["initial_config"],
                given["involved_classes"],
                "oracle",
                task.id,
                long_context="long_context" in task.id,
            )
            assert found == expected, task.id
        assert verdicts == [1.0] * (1 + len(task.later)), task.id
        right[task.kind] += 1
    return right


def test_some_gold_calls_are_judged_right(
    tasks: dict[str, Task], space: dict[str, Any], evaluation: Any
) -> None:
    some = [task for task in tasks.values() if number(task) % 10 == 3]
    assert check_replay(space, evaluation, some) == dict.fromkeys(BFCL_CATEGORIES, 20)


@pytest.mark.slow
def test_all_gold_calls_are_judged_right(
    tasks: dict[str, Task], space: dict[str, Any], evaluation: Any
) -> None:
    found = check_replay(space, evaluation, list(tasks.values()))
    assert found == dict.fromkeys(BFCL_CATEGORIES, 200)


def test_task_that_needs_a_tool_too_early_cannot_be_right(
    tasks: dict[str, Task], space: dict[str, Any]
) -> None:
    task = tasks[TOO_EARLY]
    assert replay(made(space, task), gold_by_user_turn(task))[1] == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert replay(made(space, task), ground_truth(task))[1] == [1.0] * 5


def test_world_leaves_none_of_its_judges_instances(
    tasks: dict[str, Task], space: dict[str, Any], evaluation: Any
) -> None:
    task = tasks["multi_turn_base_0"]
    world = made(space, task)
    before = set(vars(evaluation))
    for _ in range(2):
        replay(world, [task.gold_calls])
    assert set(vars(evaluation)) == before
    # A second world of the same task begins anew, whatever the first has done.
    assert replay(made(space, task), gold_by_user_turn(task))[1] == [1.0] * 4


@pytest.mark.parametrize("number", [0, 37, 88, 121, 167])
def test_verdict_does_not_depend_on_how_calls_are_grouped(
    tasks: dict[str, Task], space: dict[str, Any], number: int
) -> None:
    for category in BFCL_CATEGORIES:
        task = tasks[f"{category}_{number}"]
        every = ground_truth(task)
        wrong = [turn[:-1] for turn in every]
        for turns in (every, wrong):
            world = made(space, task)
            steps = [[[space["written"](call.name, call.arguments) for call in turn]] for turn in turns]
            entry, truth = world._entry, world._ground_truth
            whole = space["multi_turn_checker"](
                steps, truth, entry, category, f"grouped{len(turns)}{id(turns)}"
            )
            assert (
                float(whole["valid"])
                == replay(
                    made(
                        space,
                        task,
                    ),
                    turns,
                )[1][-1]
            )


# What is wrong is judged so


def call(name: str, **arguments: Any) -> ToolCall:
    return ToolCall(name, arguments)


def test_wrong_calls_are_judged_wrong_from_there_on(tasks: dict[str, Task], space: dict[str, Any]) -> None:
    task = tasks["multi_turn_base_0"]
    gold = gold_by_user_turn(task)

    def verdicts(t: int, calls: Sequence[ToolCall]) -> list[float]:
        return replay(made(space, task), [*gold[:t], calls, *gold[t + 1 :]])[1]

    cd, mkdir, mv = gold[0]
    assert verdicts(0, [cd, mkdir]) == [0.0] * 4
    assert verdicts(0, []) == [0.0] * 4
    assert verdicts(0, [cd, call("mkdir", dir_name="tmp"), mv]) == [0.0] * 4
    assert verdicts(0, [cd, mkdir, mv, call("touch", file_name="x.txt")]) == [0.0] * 4
    assert verdicts(1, gold[1][:1]) == [1.0, 0.0, 0.0, 0.0]
    assert verdicts(2, [call("sort", file_name="nothing.pdf")]) == [1.0, 1.0, 0.0, 0.0]
    assert verdicts(3, [*gold[3], call("mkdir", dir_name="more")]) == [1.0, 1.0, 1.0, 0.0]
    # What reads only and is not needed is not wrong, and order counts only through what it changes.
    assert verdicts(0, [call("pwd"), cd, call("ls", a=True), mkdir, mv]) == [1.0] * 4
    assert verdicts(0, [cd, mv, mkdir]) == [0.0] * 4


def test_each_gold_call_left_out_is_missed(tasks: dict[str, Task], space: dict[str, Any]) -> None:
    kept, count = [], 0
    for task in [tasks[f"{category}_{n}"] for category in BFCL_CATEGORIES for n in (5, 60, 110, 175)]:
        turns = ground_truth(task)
        for t, calls in enumerate(turns):
            for k in range(len(calls)):
                fewer = [*turns[:t], (*calls[:k], *calls[k + 1 :]), *turns[t + 1 :]]
                count += 1
                if replay(made(space, task), fewer)[1][-1] == 1.0:
                    kept.append((task.id, t, k))
    assert (kept, count > 50) == ([], True)


def test_call_in_a_user_turn_that_needs_none_is_wrong(tasks: dict[str, Task], space: dict[str, Any]) -> None:
    def verdicts(name: str, extra: ToolCall, **other: Any) -> list[float]:
        task = tasks[name]
        turns = [calls or (extra,) for calls in gold_by_user_turn(task)]
        assert task.environment is not None
        arguments = {**task.environment.arguments, **other}
        return replay(space["World"](**arguments), turns)[1]

    ls, touch = call("ls"), call("touch", file_name="x.txt")
    for name, empty in (("multi_turn_miss_param_0", 3), ("multi_turn_miss_func_0", 2)):
        assert verdicts(name, ls, irrelevance=True) == [1.0] * empty + [0.0] * (5 - empty)
        # The package judges the user turn by the state that the next one finds.
        assert verdicts(name, ls) == [1.0] * 5
        assert verdicts(name, touch) == [1.0] * (empty + 1) + [0.0] * (4 - empty)
    # Nothing is missing in this category, so that a look is free.
    flight = call("get_nearest_airport_by_city", location="Rivermist")
    assert verdicts("multi_turn_base_167", flight, irrelevance=True) == [1.0] * 5
    assert verdicts("multi_turn_miss_param_167", flight, irrelevance=True) == [1.0] + [0.0] * 5


@needs_package
def test_irrelevance_can_be_asked_for() -> None:
    (task,) = [task for task in bfcl_tasks(irrelevance=True) if task.id == "multi_turn_miss_param_0"]
    assert task.environment is not None
    assert task.environment.arguments["irrelevance"] is True


# What reaches nothing

HOSTILE_NAMES = [
    "__import__('os').system",
    "_load_scenario",
    "_execute",
    "__class__",
    "__init__",
    "cp(1) or kill",
    "kill",
    "exit",
    "eval",
    "World",
    "root",  # an attribute of the class, no method
    "send_message",  # of a class that this task has not
    "ls\n",
    "ｌｓ",  # Python would read it as ls
    "",
]
HOSTILE_TEXTS = [
    "'); trap() #",
    '"); trap() #',
    "'\"'''\"\"\"\n\r\t\0\\",
    "\\",
    "\\'",
    "') or trap() or ('",
    "{trap()}",
    "trap()",
    "\ttrap()\nls(1)\\N{DIGIT ONE}",
    "\ttail('x')\u2028sort(\ud800)",
    "cp(1) or kill",
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_name_that_is_no_public_method_is_refused(
    tasks: dict[str, Task], space: dict[str, Any], evaluation: Any, name: str
) -> None:
    world = made(space, tasks["multi_turn_base_0"])
    before = vars(world).copy()
    if name.startswith("_"):
        # The sandbox calls no such name; those that Python looks up itself are the world's own.
        assert name in dir(world) or not hasattr(world, name)
    else:
        with pytest.raises(AttributeError, match="have no method"):
            getattr(world, name)
    assert vars(world) == before


@pytest.mark.parametrize("text", HOSTILE_TEXTS)
def test_text_is_an_argument_and_nothing_else(
    tasks: dict[str, Task],
    space: dict[str, Any],
    evaluation: Any,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
) -> None:
    sprung: list[str] = []
    monkeypatch.setattr(evaluation, "trap", lambda: sprung.append(text), raising=False)
    world = made(space, tasks["multi_turn_base_0"])
    for arguments in (
        {"content": text},
        {"content": [text, {text: text}]},
        {"content": "x", "mentions": text},
    ):
        world.post_tweet(**arguments)
        world.touch(file_name=arguments["content"])
        for key in ({text}, {f"{text}=1, content"}, {f"content='x', **{text}"}):
            with pytest.raises(ValueError, match="is no plain name"):
                world.post_tweet(**dict.fromkeys(key, "x"))
    assert world.judge(answer=text) == 0.0
    assert sprung == []
    assert not hasattr(evaluation, "kill")


@pytest.mark.parametrize("key", ["a b", "for", "a=1, b", "é", "", "_a", "a\n", "**x", "a.b", "a(", "1"])
def test_parameter_that_is_no_plain_name_is_refused(
    tasks: dict[str, Task], space: dict[str, Any], key: str
) -> None:
    world = made(space, tasks["multi_turn_base_0"])
    with pytest.raises(ValueError, match="is no plain name"):
        world.ls(**{key: 1})
    assert world._steps == [[]]


class Liar(str):
    __slots__ = ()

    def __repr__(self) -> str:
        return "trap()"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (float("nan"), "is no JSON"),
        (float("-inf"), "is no JSON"),
        ((1,), "is no JSON"),
        ({1: 2}, "is no JSON"),
        (b"x", "is no JSON"),
        (Liar("x"), "is no JSON"),
        ({Liar("x"): 1}, "is no JSON"),
        ([{"a": [print]}], "is no JSON"),
        (1 << 5000, "a whole number has more than 4096 bits"),
    ],
)
def test_value_that_is_no_json_is_refused(space: dict[str, Any], value: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        space["literal"](value)


def test_deep_value_is_refused_and_others_are_their_literals(space: dict[str, Any]) -> None:
    deep: Any = 1
    for _ in range(70):
        deep = [deep]
    with pytest.raises(ValueError, match="nested deeper than 64"):
        space["literal"](deep)
    value = {"a": [1, -2.5, True, None, "'\"\\\n\0é", {}], "'": [[]], "\ud800": 1e300, "n": -(10**1000)}
    assert eval(space["literal"](value), {"__builtins__": {}}) == value


# Where it runs


@needs_package
def test_modules_import_no_vendor_and_make_no_folder() -> None:
    site = Path(sysconfig.get_path("purelib"))
    before = sorted(site.iterdir())
    code = f"""
import importlib, sys
before = set(sys.modules)
for name in {BFCL_MODULES!r}:
    importlib.import_module(name)
roots = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(sorted(roots - set(sys.stdlib_module_names)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(eval(done.stdout)) <= {"bfcl_eval", "mpmath", "gmpy2"}
    assert sorted(site.iterdir()) == before


@needs_package
def test_reading_imports_nothing_of_the_package() -> None:
    code = """
import sys
from matchtir.tasks import bfcl_tasks
assert len(bfcl_tasks()) == 800
assert not [name for name in sys.modules if name.startswith("bfcl_eval")]
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@needs_package
@pytest.mark.skipif(sys.platform != "linux", reason="the sandbox holds on Linux only")
def test_world_lives_in_the_sandbox(tasks: dict[str, Task]) -> None:
    try:
        box = Sandbox(workers=1, modules=BFCL_MODULES)
    except ConfigError as error:  # pragma: no cover
        pytest.fail(f"the modules cannot be imported: {error}")
    with box:
        for task in [tasks[f"{category}_{n}"] for category in BFCL_CATEGORIES for n in (18, 105)]:
            assert task.environment is not None
            given = task.environment
            with box.open(given.source, given.name, given.arguments) as instance:
                assert instance.start.status == "ok", instance.start
                for calls in gold_by_user_turn(task):
                    for one in calls:
                        assert instance.call(one.name, one.arguments).status == "ok"
                    assert instance.call("judge", {"answer": None}).value == 1.0
                for name in HOSTILE_NAMES:
                    assert "has no method" in str(instance.call(name).error), name
