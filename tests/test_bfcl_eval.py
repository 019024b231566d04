"""`matchtir eval bfcl`: what of a model's text is evaluated, the files of a run, the official code."""

from __future__ import annotations

import ast
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chance_model import save_chance_model
from openai_server import OpenAIServer, Reply, Request

import matchtir
from matchtir.cli import main
from matchtir.errors import InputError
from matchtir.evals import Bootstrap
from matchtir.evals.bfcl.campaign import Model, choose
from matchtir.evals.bfcl.drive import Driver, DriverError
from matchtir.evals.bfcl.driver.calls import RefusedError, check_call, value_of
from matchtir.evals.bfcl.driver.guard import checking, evaluator
from matchtir.evals.bfcl.results import Category, Results, open_folder
from matchtir.evals.bfcl.scores import Score, read_scores, table

ROOT = Path(__file__).parents[1]
PYTHON = Path(os.environ.get("MATCHTIR_BFCL_PYTHON") or ROOT / ".venv-bfcl/bin/python").absolute()
needs_bfcl = pytest.mark.skipif(
    not PYTHON.exists(), reason=f"needs {PYTHON}: make setup-bfcl, or MATCHTIR_BFCL_PYTHON"
)

# What text may be evaluated

TOOLS = {"cd": "a_instance", "mv": "a_instance", "mean": "b_instance"}
ALLOWED = (
    "cd(folder='x')",
    "cd('x')",
    "cd()",
    "mean(numbers=[1, -2.5, +3, (4, {5})])",
    "mv(source=cd(folder='x'), destination={'a': None, 'b': [True]})",
    "mv(source='__import__(\"os\").system(\"x\")', destination='a.b[c]')",
)


@pytest.mark.parametrize("text", ALLOWED)
def test_calls_of_tools_with_literals_are_allowed(text: str) -> None:
    check_call(text, TOOLS)


HOSTILE = (
    "__import__('os').system('x')",
    "cd(folder=__import__('os').system('x'))",
    "cd.__self__.__class__.__init__.__globals__['os'].system('x')",
    "a_instance.cd(folder='x')",
    "cd(folder=a_instance)",
    "cd(folder=().__class__.__bases__[0].__subclasses__())",
    "cd(folder=[x for x in range(10**9)])",
    "cd(*[x for x in (1,)])",
    "cd(**{'folder': 'x'})",
    "cd(folder={**{'a': 1}})",
    "cd(folder=10**10**10)",
    "cd(folder='a' * 10**9)",
    "cd(folder=-'a')",
    "cd(folder=not 1)",
    "cd(folder=f'{1}')",
    "cd(folder=lambda: 1)",
    "cd(folder=(y := 1))",
    "cd(folder=1) or cd(folder=2)",
    "cd(folder='x').real",
    "cd(folder='x')()",
    "(cd)(folder='x')[0]",
    "[cd(folder='x')]",
    "_load_scenario({})",
    "exec('x')",
    "cd",
    "1",
    "",
    "cd(folder='x'); cd()",
    "cd(folder='x')\ncd()",
    "cd(a-b=1)",
    "cd(" * 500,
    "cd(" + "-" * 100_000 + "1)",
    "x" * 1_000_001,
)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises((RefusedError, NameError, SyntaxError, RecursionError, MemoryError, ValueError)):
        check_call(text, TOOLS)


@pytest.mark.parametrize(
    "text", ["sort_all(x=1)", "spotify.play(x=1)", "cd(folder=nan)", "cd(a-b=1)", "cd(", "x"]
)
def test_errors_are_python_s_own_words_where_python_would_fail(text: str) -> None:
    with pytest.raises(Exception) as ours:  # noqa: PT011
        check_call(text, TOOLS)
    with pytest.raises(Exception) as python:  # noqa: PT011
        eval(text, {"cd": print})
    assert (type(ours.value), str(ours.value)) == (type(python.value), str(python.value))


@pytest.mark.parametrize(
    "text", ["[{'a': -1, 'b': (1.5, None, True)}]", "2*3.5", "10 - 4", "7 // 2 + 2 ** 10", " {1, 2}", "-(1)"]
)
def test_literal_values_and_small_sums_are_what_python_says(text: str) -> None:
    assert value_of(text) == eval(text.strip())


@pytest.mark.parametrize(
    "text",
    [
        "10**10**10",
        "2**65",
        "(10**18) ** 64",
        "'a' * 10**9",
        "[1] * 10**9",
        "1e18 * 1e18",
        "__import__('os').system('x') + 1",
        "().__class__",
        "[x for x in (1,)]",
        "true",
        "open('x')",
        "True + 1",
        "(-8) ** 0.5",
    ],
)
def test_other_values_are_refused(text: str) -> None:
    with pytest.raises((RefusedError, NameError)):
        value_of(text)


class Box:
    """Stands for an object of the official code."""

    def cd(self, folder: Any) -> Any:
        return folder


def run(text: str) -> Any:
    """Check and execute a call as the official code does, which names the object in between."""
    process = checking(lambda one, tools: re.sub(r"\bcd(?=\()", "a_instance.cd", one))
    return evaluator({"a_instance": Box(), "json": json})(process(text, {"cd": "a_instance"}))


def test_checked_calls_are_executed_with_the_objects_of_the_task_only() -> None:
    assert run("cd(folder=[1, -2])") == [1, -2]
    assert run("cd(folder=cd(folder='x'))") == "x"
    for text, error in (
        ("json.dumps(1)", NameError),
        ("print(1)", NameError),
        ("cd(folder=[0][0])", RefusedError),
    ):
        with pytest.raises(error):
            run(text)
    with pytest.raises(TypeError):
        evaluator({"a_instance": Box()})("a_instance.cd(1)")  # never checked


# The files of a run

PREFIX = "BFCL_v4"
BASE = Category(
    "multi_turn_base", "multi_turn", PREFIX, tuple(f"multi_turn_base_{k}" for k in range(4)), {}, {}
)
CHAIN = tuple(f"memory_kv_prereq_{k}-student-{k}" for k in range(3))
MEMORY = Category(
    "memory_kv",
    "agentic/memory/kv",
    PREFIX,
    ("memory_kv_0-student-0", "memory_kv_1-student-1"),
    {"student": CHAIN},
    {"memory_kv_0-student-0": "student", "memory_kv_1-student-1": "student"},
)
LOST = "Error during inference: Connection error."


def write_rows(path: Path, rows: Mapping[str, Any], tail: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"id": task, "result": result}) + "\n" for task, result in rows.items()]
    path.write_text("".join(lines) + tail)


def test_tidy_takes_out_errors_and_cut_lines_and_keeps_final_failures(tmp_path: Path) -> None:
    results = Results(tmp_path, [BASE])
    kept = {"multi_turn_base_0": [["x"]], "multi_turn_base_2": [[LOST]]}  # a model may say what it likes
    write_rows(results.file(BASE), {**kept, "multi_turn_base_1": LOST}, '{"id": "multi_turn_base_3", "re')
    results.fail(BASE, "multi_turn_base_3", "execution took longer than 30 s")
    tidied = results.tidy()
    assert dict(tidied.errors) == {"multi_turn_base_1": LOST}
    assert tidied.dependent == 0
    assert results.failed() == {"multi_turn_base_3": "execution took longer than 30 s"}
    found = results.found()
    assert {task for task, error in found.items() if error is None} == set(kept)
    assert found["multi_turn_base_3"] == "Error during inference: execution took longer than 30 s"
    assert results.tidy().errors == {}


def test_tidy_counts_cut_bytes_and_removes_a_file_without_results(tmp_path: Path) -> None:
    results = Results(tmp_path, [BASE])
    write_rows(results.file(BASE), {}, '{"id": "multi_turn')
    assert results.tidy().cut == len('{"id": "multi_turn')
    assert not results.file(BASE).exists()


@pytest.mark.parametrize("first", [0, 1, 2])
def test_tidy_sets_a_memory_back_to_its_first_missing_conversation(tmp_path: Path, first: int) -> None:
    results = Results(tmp_path, [MEMORY])
    write_rows(
        results.file(MEMORY, before=True), {one: LOST if k == first else [[]] for k, one in enumerate(CHAIN)}
    )
    write_rows(results.file(MEMORY), {task: [["x"]] for task in MEMORY.tasks})
    memory = tmp_path / MEMORY.folder / "memory_snapshot"
    (memory / "prereq_checkpoints").mkdir(parents=True)
    for k, one in enumerate(CHAIN):
        (memory / "prereq_checkpoints" / f"{one}.json").write_text(str(k))
    (memory / "student_final.json").write_text("2")
    assert results.tidy().dependent == 2 + (2 - first)
    assert set(results.found()) == set(CHAIN[:first])
    final = memory / "student_final.json"
    assert (final.read_text() if final.exists() else None) == (str(first - 1) if first else None)


def test_folder_of_other_settings_or_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    with open_folder(tmp_path / "a", {"model": "m", "temperature": 0.1}):
        pass
    before = (tmp_path / "a" / "matchtir.json").read_bytes()
    with (
        pytest.raises(InputError, match=r'model="m", not "n"; expected the same, or another --output'),
        open_folder(tmp_path / "a", {"model": "n", "temperature": 0.1}),
    ):
        pass
    assert (tmp_path / "a" / "matchtir.json").read_bytes() == before
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").touch()
    with pytest.raises(InputError, match="holds other files"), open_folder(tmp_path / "b", {}):
        pass
    assert os.listdir(tmp_path / "b") == ["thesis.tex"]


def test_folder_in_use_is_refused(tmp_path: Path) -> None:
    with (
        open_folder(tmp_path, {"model": "m"}),
        pytest.raises(InputError, match="being written by another process"),
        open_folder(tmp_path, {"model": "m"}),
    ):
        pass


def test_choose_takes_the_first_tasks_or_ids_with_the_conversations_they_need() -> None:
    assert choose([BASE], 2, None)[0].tasks == BASE.tasks[:2]
    memory = choose([BASE, MEMORY], None, {"memory_kv": [MEMORY.tasks[1]]})
    assert [one.all for one in memory] == [(*CHAIN, MEMORY.tasks[1])]
    with pytest.raises(InputError, match="'multi_turn_base_9' is no task of multi_turn_base"):
        choose([BASE], None, {"multi_turn_base": ["multi_turn_base_9"]})
    with pytest.raises(InputError, match="no tasks are left"):
        choose([BASE], None, {"memory_kv": []})


@pytest.mark.parametrize(
    ("name", "label"), [("Qwen/Qwen3-4B", "Qwen_Qwen3-4B"), ("7b model+x", "m_7b_model_x"), ("ä", "_")]
)
def test_label_of_any_model_makes_names_of_python(name: str, label: str) -> None:
    assert Model(name).label == label
    assert re.sub(r"[-./:]", "_", f"{label}_multi_turn_base_0_instance").isidentifier()


def test_label_of_a_folder_is_its_last_name_and_of_a_handler_the_registry_s(tmp_path: Path) -> None:
    (tmp_path / "policy_1").mkdir()
    assert Model(str(tmp_path / "policy_1")).label == "policy_1"
    assert Model("x", "Qwen/Qwen3-8B-FC").label == "Qwen/Qwen3-8B-FC"
    assert Model("x", "Qwen/Qwen3-8B-FC").folder == "Qwen_Qwen3-8B-FC"


# Scores


def verdicts(values: Sequence[float]) -> Score:
    return Score(int(sum(values)), len(values), dict(enumerate(values)))


def test_table_averages_as_the_paper_and_bootstraps_tasks_with_their_variants() -> None:
    values = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0]
    scores = {"multi_turn_base": verdicts(values), "multi_turn_miss_func": verdicts(values)}
    scores |= {"memory_kv": verdicts([1.0, 1.0]), "memory_rec_sum": verdicts([0.0, 0.0, 1.0, 1.0])}
    rows = {row.name: row for row in table(scores, Bootstrap(samples=500))}
    assert list(rows) == ["Base", "Miss Function", "Memory", "multi-turn average", "average"]
    assert (rows["Base"].mean, rows["Base"].correct, rows["Base"].total) == (0.7, 7, 10)
    assert rows["Memory"].mean == (1.0 + 0.5) / 2
    assert (rows["Memory"].correct, rows["Memory"].total) == (4, 6)
    assert rows["multi-turn average"].mean == pytest.approx(0.7)
    assert rows["average"].mean == pytest.approx((0.7 + 0.7 + 0.75) / 3)
    # The two categories hold the same tasks with the same verdicts: their average is as uncertain as each.
    base, average = rows["Base"], rows["multi-turn average"]
    assert (average.low, average.high) == pytest.approx((base.low, base.high))
    assert base.low is not None
    assert base.high is not None
    assert 0.2 < base.low < 0.7 < base.high <= 1.0


def test_interval_is_that_of_the_project_s_bootstrap_within_its_noise() -> None:
    values = np.array([1.0] * 30 + [0.0] * 20)
    (row,) = table({"multi_turn_base": verdicts(list(values))}, Bootstrap(samples=4000))
    expected = Bootstrap(samples=4000).intervals(values[:, None])[:, 0]
    assert [row.low, row.high] == pytest.approx(list(expected), abs=0.03)


def test_table_of_one_task_or_without_resamples_has_no_intervals() -> None:
    (one,) = table({"multi_turn_base": verdicts([1.0])}, Bootstrap())
    (none,) = table({"multi_turn_base": verdicts([1.0, 0.0])}, Bootstrap(samples=0))
    assert one.low is one.high is none.low is none.high is None


def test_score_files_whose_counts_disagree_are_refused(tmp_path: Path) -> None:
    results = Results(tmp_path / "result", [BASE])
    write_rows(results.file(BASE), {task: [["x"]] for task in BASE.tasks})
    path = tmp_path / "score" / BASE.folder / f"{PREFIX}_multi_turn_base_score.json"
    path.parent.mkdir(parents=True)
    header = {"accuracy": 0.75, "correct_count": 3, "total_count": 4}
    path.write_text(json.dumps(header) + "\n" + json.dumps({"id": "multi_turn_base_2"}) + "\n")
    score = read_scores(tmp_path / "score", results, [BASE])["multi_turn_base"]
    assert (score.correct, score.verdicts) == (3, {0: 1.0, 1: 1.0, 2: 0.0, 3: 1.0})
    path.write_text(
        json.dumps({**header, "correct_count": 4}) + "\n" + json.dumps({"id": "multi_turn_base_2"})
    )
    with pytest.raises(InputError, match="4 of 4 correct, 1 wrong"):
        read_scores(tmp_path / "score", results, [BASE])


# The command, without the package


def fails(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["eval", "bfcl", *arguments]) == 2
    return capsys.readouterr().err


def test_command_says_what_is_missing_and_makes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MATCHTIR_BFCL_PYTHON", raising=False)
    monkeypatch.delenv("SERPAPI_API_KEY", raising=False)
    assert "--model is missing" in fails([], capsys)
    error = fails(["--model", "m"], capsys)
    assert ".venv-bfcl/bin/python" in error
    assert "make setup-bfcl" in error
    assert "--bfcl-python" in error
    assert "expected it in SERPAPI_API_KEY" in fails(["--model", "m", "--categories", "web_search"], capsys)
    assert "limit is 0" in fails(["--model", "m", "--limit", "0"], capsys)
    (tmp_path / "ids").write_text("[1]")
    bare = os.path.realpath(sys.executable)  # without what the environment of these tests has
    assert "no object of lists" in fails(["--model", "m", "--ids", "ids"], capsys)
    assert "bfcl-eval is not installed there" in fails(["--model", "m", "--bfcl-python", bare], capsys)
    assert os.listdir(tmp_path) == ["ids"]


def test_file_named_bfcl_is_still_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    row = {"group": "g", "messages": [{"role": "assistant", "content": "4"}], "gold_answer": "4"}
    Path("bfcl").write_text(json.dumps(row))
    assert main(["eval", "./bfcl", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["metrics"]["correct"]["mean"] == 1.0


def test_help_of_both_commands_explains(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--help"]) == 0
    assert "matchtir eval bfcl" in capsys.readouterr().out
    assert main(["eval", "bfcl", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--handler" in out
    assert "usage: matchtir eval bfcl" in out


UNSAFE = """#!/bin/sh
read -r job
echo '{"unsafe": ["it can read and write all files"]}'
"""


def test_unconfined_package_is_refused_with_what_does_not_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    python = tmp_path / "python"
    python.write_text(UNSAFE)
    python.chmod(0o755)
    error = fails(["--model", "m", "--bfcl-python", str(python), "--output", str(tmp_path / "out")], capsys)
    assert "cannot be confined here: it can read and write all files; --allow-unsafe runs it" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("while True: sys.stdout.write('x' * (1 << 20))", "says more than it may"),
        ("print('[' * 100_000)", "says what is no event"),
        ("print('5')", "says what is no event"),
        ("print('no event')", "says what is no event"),
    ],
)
def test_process_that_says_anything_is_given_up(tmp_path: Path, said: str, error: str) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\nimport sys\n{said}\n")
    python.chmod(0o755)
    with pytest.raises(DriverError, match=error):
        list(Driver(str(python), tmp_path, 10.0).run("plan", None))


PACKAGE = Path(matchtir.__file__).parent


def test_driver_imports_nothing_that_its_environment_lacks() -> None:
    modules = "".join(
        f"import matchtir.evals.bfcl.driver.{path.stem}\n"
        for path in (PACKAGE / "evals/bfcl/driver").glob("[!_]*.py")
    )
    bare = os.path.realpath(sys.executable)
    listed = (
        "import sys; print(sorted({*(n.partition('.')[0] for n in sys.modules)} - sys.stdlib_module_names))"
    )
    before = subprocess.check_output([bare, "-I", "-c", listed], text=True)
    done = driven(bare, modules + listed)
    assert done.returncode == 0, done.stderr
    assert {*ast.literal_eval(done.stdout)} - {*ast.literal_eval(before)} == {"matchtir", "start"}


# The official package, asked and judged out of process

HANDLER = "openbmb/MiniCPM-SALA-FC"  # of the registry, the one that is the official chat handler as it is


def package() -> Path:
    """The installed package's folder."""
    code = "import importlib.util as u; print(u.find_spec('bfcl_eval').submodule_search_locations[0])"
    return Path(subprocess.check_output([PYTHON, "-I", "-c", code], text=True).strip())


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def positional_names() -> dict[str, list[str]]:
    """Of each tool of the multi-turn tasks, its parameters in order."""
    docs = [
        one for path in (package() / "data/multi_turn_func_doc").glob("*.json") for one in json_lines(path)
    ]
    return {one["name"]: list(one["parameters"]["properties"]) for one in docs}


def gold_turns(ids: Mapping[str, Sequence[str]]) -> dict[str, list[list[tuple[str, dict[str, Any]]]]]:
    """Of each task, found by its first message, the gold calls of each turn."""
    names, found = positional_names(), {}
    for category, wanted in ids.items():
        answers = {
            one["id"]: one["ground_truth"]
            for one in json_lines(package() / f"data/possible_answer/{PREFIX}_{category}.json")
        }
        for one in json_lines(package() / f"data/{PREFIX}_{category}.json"):
            if one["id"] in wanted:
                first = one["question"][0][0]["content"]
                assert first not in found
                found[first] = [[gold_call(text, names) for text in turn] for turn in answers[one["id"]]]
    return found


def gold_call(text: str, names: Mapping[str, list[str]]) -> tuple[str, dict[str, Any]]:
    """Name and arguments of a gold call."""
    node = ast.parse(text, mode="eval").body
    assert isinstance(node, ast.Call)
    assert isinstance(node.func, ast.Name)
    given = dict(zip(names[node.func.id], map(ast.literal_eval, node.args), strict=False))
    return node.func.id, given | {str(one.arg): ast.literal_eval(one.value) for one in node.keywords}


def answer(message: dict[str, Any]) -> Reply:
    """A chat completion with the usage that the official handler reads."""
    body = {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
    return Reply(body=json.dumps(body).encode())


def calling(calls: Sequence[tuple[str, Any]]) -> Reply:
    entries = [
        {"id": f"c{k}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for k, (name, arguments) in enumerate(calls)
    ]
    return answer({"role": "assistant", "content": None, "tool_calls": entries})


def saying(text: str) -> Reply:
    return answer({"role": "assistant", "content": text})


def player(turns: Mapping[str, list[list[tuple[str, dict[str, Any]]]]]) -> Callable[[Request], Reply]:
    """Plays a task's gold calls: those of a user's turn at once, then a message that ends the turn."""

    def play(request: Request) -> Reply:
        said = [one["content"] for one in request["messages"] if one["role"] == "user"]
        calls = turns[said[0]][len(said) - 1]
        return calling(calls) if calls and request["messages"][-1]["role"] == "user" else saying("Done.")

    return play


IDS = {
    "multi_turn_base": ["multi_turn_base_0", "multi_turn_base_1"],
    "multi_turn_miss_func": ["multi_turn_miss_func_2"],
    "multi_turn_miss_param": ["multi_turn_miss_param_3"],
    "multi_turn_long_context": ["multi_turn_long_context_4"],
}


class Command:
    """The command, in a folder of its own."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys
        self.out, self.ids = folder / "out", folder / "ids.json"

    def arguments(self, url: str, *more: str, ids: Mapping[str, Sequence[str]] = IDS) -> list[str]:
        self.ids.write_text(json.dumps(ids))
        return [
            *("eval", "bfcl", "--endpoint", url, "--ids", str(self.ids), "--output", str(self.out)),
            *("--bfcl-python", str(PYTHON), "--json", "-", "--threads", "2", *more),
        ]

    def __call__(
        self, url: str, *more: str, code: int = 0, ids: Mapping[str, Sequence[str]] = IDS
    ) -> tuple[dict[str, Any], str]:
        """Run it; returns what it writes as JSON, and what it says."""
        found = main(self.arguments(url, *more, ids=ids))
        out, errors = self.capsys.readouterr()
        assert found == code, errors + self.logs()
        return (json.loads(out)["categories"] if out else {}), errors

    def logs(self) -> str:
        return "".join(path.read_text()[-3000:] for path in sorted((self.out / "logs").glob("*.log")))

    def rows(self, name: str) -> dict[str, Any]:
        """The results of a category, by task."""
        (path,) = self.out.rglob(f"{PREFIX}_{name}_result.json")
        return {row["id"]: row["result"] for row in json_lines(path)}


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(tmp_path, capsys)


def official(folder: Path, url: str, *arguments: str) -> None:
    """An official command, as a user would give it."""
    environment = {
        **os.environ,
        "BFCL_PROJECT_ROOT": str(folder),
        "OPENAI_BASE_URL": url,
        "OPENAI_API_KEY": "x",
    }
    script = PYTHON.parent / "bfcl"
    done = subprocess.run(
        [PYTHON, script, *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def headers(folder: Path) -> dict[str, dict[str, Any]]:
    """The first line of each official score file, by its name."""
    return {path.name: json_lines(path)[0] for path in folder.rglob("*_score.json")}


@needs_bfcl
@pytest.mark.slow
def test_scores_are_those_of_the_official_commands_by_hand(command: Command, tmp_path: Path) -> None:
    turns = gold_turns(IDS)
    first = next(iter(turns))
    wrong = {**turns, first: [calls[:-1] for calls in turns[first]]}  # one task of five is played badly
    hand = tmp_path / "hand"
    hand.mkdir()
    with OpenAIServer(player(wrong)) as server:
        found, _ = command(server.url, "--handler", HANDLER)
        (hand / "test_case_ids_to_generate.json").write_bytes(
            (command.out / "test_case_ids_to_generate.json").read_bytes()
        )
        official(hand, server.url, "generate", "--model", HANDLER, "--run-ids", "--skip-server-setup")
    official(
        hand,
        "http://127.0.0.1:9",
        "evaluate",
        "--model",
        HANDLER,
        "--test-category",
        "multi_turn",
        "--partial-eval",
    )
    assert {name: (one["correct"], one["total"]) for name, one in found.items()} == {
        name: (1, len(ids)) for name, ids in IDS.items()
    }
    assert headers(command.out) == headers(hand)
    assert len(headers(hand)) == 4
    for category in IDS:  # the same results, but for seconds
        (path,) = hand.rglob(f"{PREFIX}_{category}_result.json")
        assert command.rows(category) == {row["id"]: row["result"] for row in json_lines(path)}
    with (
        (command.out / "score" / "data_multi_turn.csv").open() as ours,
        (hand / "score" / "data_multi_turn.csv").open() as theirs,
    ):
        assert list(csv.reader(ours)) == list(csv.reader(theirs))


@needs_bfcl
@pytest.mark.slow
def test_served_model_is_asked_and_judged_and_the_table_is_that_of_the_official_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("torch", "fastapi", "uvicorn", "accelerate"):
        pytest.importorskip(name)
    ids = {"multi_turn_base": ["multi_turn_base_0"], "multi_turn_miss_func": ["multi_turn_miss_func_2"]}
    model, out, asked, scores = (tmp_path / name for name in ("chance", "out", "ids.json", "scores.json"))
    save_chance_model(model)
    asked.write_text(json.dumps(ids))
    arguments = ("--model", str(model), "--ids", str(asked), "--output", str(out), "--threads", "1")
    code = main(["eval", "bfcl", *arguments, "--bfcl-python", str(PYTHON), "--json", str(scores)])
    errors = capsys.readouterr().err
    log = (out / "logs" / "server.log").read_text()
    assert code == 0, errors + log[-3000:]
    categories = json.loads(scores.read_text())["categories"]
    found = {name: (one["correct"], one["total"]) for name, one in categories.items()}
    files = headers(out)
    assert found == {
        name: (
            files[f"{PREFIX}_{name}_score.json"]["correct_count"],
            files[f"{PREFIX}_{name}_score.json"]["total_count"],
        )
        for name in ids
    }
    assert found == dict.fromkeys(ids, (0, 1))  # it calls a tool that no task has
    assert log.count("POST /v1/chat/completions") >= 4  # each task has several user turns


@needs_bfcl
@pytest.mark.slow
def test_gold_calls_score_all_and_garbage_none_and_settings_are_kept(command: Command) -> None:
    turns = gold_turns(IDS)
    with OpenAIServer(player(turns)) as server:
        found, said = command(server.url, "--model", "some/model_1 x")
        assert found == {name: {"correct": len(ids), "total": len(ids)} for name, ids in IDS.items()}
        assert {request["model"] for request in server.requests} == {"some/model_1 x"}
        assert all(request["tools"] for request in server.requests)
        count = len(server.requests)
        assert command(server.url, "--model", "some/model_1 x")[0] == found  # all is there
        assert len(server.requests) == count
        _, said = command(server.url, "--model", "other", code=2)
        assert 'holds results with model="some/model_1 x", not "other"' in said
        _, said = command(server.url, "--model", "some/model_1 x", "--temperature", "1", code=2)
        assert "temperature=0.001, not 1.0" in said
    command.out = command.folder / "garbage"
    with OpenAIServer(lambda request: calling([("cd", {"nowhere": 1}), ("no such tool", [])])) as server:
        found, _ = command(server.url, "--model", "m")
    assert found == {name: {"correct": 0, "total": len(ids)} for name, ids in IDS.items()}
    assert all(one["correct_count"] == 0 for one in headers(command.out).values())


@needs_bfcl
@pytest.mark.slow
def test_hostile_calls_reach_nothing_and_hanging_ones_fail_their_task_alone(
    command: Command, tmp_path: Path
) -> None:
    ids = {"multi_turn_base": [f"multi_turn_base_{k}" for k in (0, 1, 15, 28)]}
    turns = gold_turns(ids)
    good, _, hanging, last = turns
    canary = tmp_path / "out" / "tmp" / "canary"  # where the official code may write
    touch = f"open({str(canary)!r}, 'w')"
    names = (
        f"__import__('os').system('touch {canary}')",
        f"[{touch} for _ in (1,)] or ls",
        f"(lambda: {touch})",
        f"ls(a={touch}) or ls",
        "ls(a=10**10**10) or ls",
    )
    play = player(turns)

    def attack(request: Request) -> Reply:
        first = next(one["content"] for one in request["messages"] if one["role"] == "user")
        if request["messages"][-1]["role"] != "user" or first in (good, last):
            return play(request)
        if first == hanging:
            return calling([("power", {"base": 10, "exponent": 10**10})])
        return calling([*((name, {}) for name in names), ("ls", {f"a={touch}, b": 1})])

    with OpenAIServer(attack) as server:
        found, said = command(server.url, "--model", "m", "--timeout", "4", ids=ids)
        results = [
            one["content"]
            for request in server.requests
            for one in request["messages"]
            if one["role"] == "tool"
        ]
    assert not canary.exists()
    assert any("name '__import__' is not defined" in text for text in results)
    assert not any("posix" in text for text in results)
    assert found == {"multi_turn_base": {"correct": 2, "total": 4}}
    assert command.rows("multi_turn_base")["multi_turn_base_15"] == (
        "Error during inference: execution took longer than 4 s"
    )
    assert "multi_turn_base_15: execution took longer than 4 s" in said

    # The same in results that somebody else's run left: they are judged, not made.
    (path,) = command.out.rglob(f"{PREFIX}_multi_turn_base_result.json")
    rows = {row["id"]: row for row in json_lines(path)}
    rows["multi_turn_base_1"]["result"][0] = [[{name: "{}"} for name in names]]
    endless = [[[{"power": '{"base": 10, "exponent": 10000000000}'}]]] * len(turns[last])
    rows["multi_turn_base_28"]["result"] = endless
    rows["multi_turn_base_15"] = {**rows["multi_turn_base_15"], "result": [["\ud800"]]}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows.values()))
    found, said = command("http://127.0.0.1:9", "--model", "m", "--timeout", "4", ids=ids, code=2)
    assert "does not answer" in said
    with OpenAIServer(attack) as server:
        found, said = command(server.url, "--model", "m", "--timeout", "4", ids=ids)
        assert server.requests == []
    assert found == {"multi_turn_base": {"correct": 1, "total": 4}}
    assert "multi_turn_base_28: execution took longer than 4 s; it counts as failed" in said
    assert not canary.exists()


@needs_bfcl
@pytest.mark.slow
def test_endpoint_down_half_way_leaves_no_task_failed_and_memories_are_filled_once(command: Command) -> None:
    ids = {"memory_kv": ["memory_kv_0-customer-0"], "multi_turn_base": ["multi_turn_base_0"]}
    turns = gold_turns({"multi_turn_base": ids["multi_turn_base"]})
    play, conversations, up = player(turns), [], [True]

    def remember(request: Request) -> Reply:
        said = [one for one in request["messages"] if one["role"] == "user"]
        if not up[0]:
            return Reply(drop=True)
        if said[0]["content"] in turns:
            return play(request)
        if "first name" in said[0]["content"]:
            return saying("{'answer': 'Michael', 'context': ''}")
        if len(said) == 1 and request["messages"][-1]["role"] == "user":
            conversations.append(said[0]["content"])
            up[0] = len(conversations) != 4  # the fourth has written its memory when the server goes
            return calling([("archival_memory_add", {"key": f"key_{len(conversations)}", "value": "x"})])
        return saying("Noted.")

    with OpenAIServer(remember) as server:
        _, said = command(server.url, "--model", "m", "--categories", "memory_kv", code=2, ids=ids)
        assert "tasks in a row failed" in said
        assert "1 of 1 tasks are missing; the same command makes them" in said
        up[0] = True
        found, said = command(server.url, "--model", "m", ids=ids)
    assert "3 of 12 results are there, 9 to go" in said
    assert found == {
        "memory_kv": {"correct": 1, "total": 1},
        "multi_turn_base": {"correct": 1, "total": 1},
    }
    (final,) = command.out.rglob("customer_final.json")
    assert sorted(json.loads(final.read_text())["archival_memory"]) == sorted(
        f"key_{k}" for k in range(1, 12) if k != 4
    )
    assert len(conversations) == 11  # ten, and the one that was cut off


@needs_bfcl
@pytest.mark.slow
def test_refused_requests_are_left_out_or_count_as_failed_if_that_is_wanted(command: Command) -> None:
    ids = {"multi_turn_base": ["multi_turn_base_0", "multi_turn_base_1"]}
    turns = gold_turns(ids)
    play, long = player(turns), next(iter(turns))

    def answer_short(request: Request) -> Reply:
        first = next(one["content"] for one in request["messages"] if one["role"] == "user")
        error = Reply(status=400, body=b'{"error": {"message": "the context is too long"}}')
        return error if first == long else play(request)

    with OpenAIServer(answer_short) as server:
        found, said = command(server.url, "--model", "m", ids=ids, code=1)
        assert found == {"multi_turn_base": {"correct": 1, "total": 1}}
        assert "the context is too long" in said
        assert "1 of 2 tasks are missing" in said
        found, said = command(server.url, "--model", "m", "--allow-errors", ids=ids)
        assert found == {"multi_turn_base": {"correct": 1, "total": 2}}
    with OpenAIServer(play) as server:
        found, said = command(server.url, "--model", "m", ids=ids)
        assert found == {"multi_turn_base": {"correct": 2, "total": 2}}
        assert "1 tasks could not be generated and are generated again" in said


@needs_bfcl
@pytest.mark.slow
def test_killed_command_is_resumed_and_takes_the_official_code_with_it(command: Command) -> None:
    ids = {"multi_turn_base": [f"multi_turn_base_{k}" for k in range(6)]}
    turns = gold_turns(ids)
    play = player(turns)

    def slowly(request: Request) -> Reply:
        reply = play(request)
        reply.delay = 0.1
        return reply

    with OpenAIServer(slowly) as server:
        arguments = command.arguments(server.url, "--model", "m", ids=ids)
        process = subprocess.Popen([sys.executable, "-m", "matchtir", *arguments], stderr=subprocess.PIPE)
        path = command.out / "result/m/multi_turn" / f"{PREFIX}_multi_turn_base_result.json"
        until = time.monotonic() + 300
        while not (path.exists() and path.read_bytes().count(b"\n") >= 2):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        time.sleep(0.5)
        count = len(server.requests)
        time.sleep(1.5)
        assert len(server.requests) == count  # nobody asks any more
        done = set(command.rows("multi_turn_base"))
        assert 2 <= len(done) < 6
        found, said = command(server.url, "--model", "m", ids=ids)
        again = {one["messages"][0]["content"] for one in server.requests[count:]}
    assert f"{len(done)} of 6 results are there" in said
    assert found == {"multi_turn_base": {"correct": 6, "total": 6}}
    assert len(again) == 6 - len(done)
    assert sorted(row["id"] for row in json_lines(path)) == ids["multi_turn_base"]


@needs_bfcl
def test_package_says_which_names_it_does_not_know(command: Command, tmp_path: Path) -> None:
    for more, expected in (
        (
            ("--model", "m", "--categories", "poker"),
            "category 'poker' is unknown; expected one of multi_turn, ",
        ),
        (("--model", "m", "--categories", "simple_python"), "category 'simple_python' is unknown"),
        (("--handler", "gpt-9"), "'gpt-9' is not in bfcl_eval's registry; expected one of gpt-"),
        (("--handler", "claude-opus-4-5-20251101-FC"), "asks its vendor and not an endpoint"),
        (("--handler", HANDLER, "--model", "x"), "carry the name 'openbmb/MiniCPM-SALA-FC', not 'x'"),
        (("--model", "m"), "endpoint http://127.0.0.1:9/v1 does not answer"),
    ):
        assert expected in command("http://127.0.0.1:9/v1", *more, code=2)[1]
    unknown = {"multi_turn_base": ["multi_turn_base_200"]}
    said = command("http://127.0.0.1:9/v1", "--model", "m", code=2, ids=unknown)[1]
    assert "'multi_turn_base_200' is no task of multi_turn_base" in said
    assert not command.out.exists()


DRIVEN = """
import importlib, sys
sys.path.insert(0, {driver!r})
import start
start.make_packages(start.Path({matchtir!r}))
"""


def driven(python: str | Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code where the driver's modules can be imported, and nothing else of matchtir."""
    head = DRIVEN.format(driver=str(PACKAGE / "evals/bfcl/driver"), matchtir=str(PACKAGE))
    return subprocess.run(
        [python, "-I", "-B", "-c", head + code], capture_output=True, text=True, check=False
    )


CONFINED = """
import os, socket, threading
from matchtir.evals.bfcl.driver.confinement import confine_process
missing = confine_process(os.getppid(), read=[], write=[{inside!r}], connect=[{port}])
assert missing == [], missing
assert "numpy" not in sys.modules
def fails(function):
    try:
        function()
    except OSError:
        return True
    return False
def connect(port):
    socket.create_connection(("127.0.0.1", port), timeout=5).close()
assert fails(lambda: open("/etc/passwd"))
assert fails(lambda: open({outside!r}, "w"))
assert fails(lambda: os.listdir({outside!r} + "/.."))
assert fails(lambda: connect({port} + 1 if {port} < 65535 else 1))
assert fails(lambda: connect({other}))
assert fails(os.fork)
assert fails(lambda: os.posix_spawn("/bin/true", ["true"], {{}}))
assert fails(lambda: os.execv("/bin/true", ["true"]))
stream, multipath, fast_open = socket.SOCK_STREAM, 262, 0x20000000
assert fails(lambda: socket.socket(socket.AF_INET, stream, multipath).connect(("127.0.0.1", {other})))
assert fails(lambda: socket.socket().sendto(b"x", fast_open, ("127.0.0.1", {other})))
assert fails(lambda: socket.socket().sendmsg([b"x"], [], fast_open, ("127.0.0.1", {other})))
assert fails(lambda: socket.socket(socket.AF_UNIX))
assert fails(lambda: socket.socket().listen())
assert fails(lambda: os.kill(os.getppid(), 0))
assert fails(lambda: __import__("resource").prlimit(os.getppid(), 7))
lines = [line for line in open("/proc/self/status") if line.startswith(("CapEff", "CapPrm"))]
capabilities = [line.split()[1] for line in lines]
assert all(int(one, 16) in (0, 2) for one in capabilities), capabilities
before = os.stat("/etc")
os.chmod("/etc", 0o700)
os.utime("/etc", (1, 1))
assert os.stat("/etc") == before
assert fails(lambda: os.chown({inside!r}, os.geteuid(), os.getegid()))
open({inside!r} + "/x", "w").write("y")
os.replace({inside!r} + "/x", {inside!r} + "/y")
connect({port})
done = []
thread = threading.Thread(target=lambda: done.append(1))
thread.start(); thread.join()
assert done
print("confined")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="confinement is Linux's")
def test_driver_is_confined_to_its_folder_and_the_endpoint(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    with (
        OpenAIServer(lambda request: saying("")) as server,
        OpenAIServer(lambda request: saying("")) as other,
    ):
        ports = [int(one.url.rpartition(":")[2].partition("/")[0]) for one in (server, other)]
        done = driven(
            sys.executable,
            CONFINED.format(
                inside=str(tmp_path / "inside"), outside=str(tmp_path / "out"), port=ports[0], other=ports[1]
            ),
        )
    assert done.stdout == "confined\n", done.stderr
    assert [one.name for one in tmp_path.iterdir()] == ["inside"]


DECODED = """
import os
from matchtir.evals.bfcl.driver.guard import Guard
import bfcl_eval._llm_response_generation
from bfcl_eval.model_handler.utils import default_decode_execute_prompting as decode
from bfcl_eval.model_handler.local_inference.llama_3_1 import LlamaHandler_3_1
from bfcl_eval.model_handler.local_inference import qwen_fc
Guard(None).install()
touch = "__import__('os').system('touch {canary}')"
def error(function):
    try:
        return function()
    except Exception as error:
        return type(error).__name__
llama = LlamaHandler_3_1.__new__(LlamaHandler_3_1)
print(error(lambda: decode("[cd(folder=%s + 1)]" % touch)))
print(error(lambda: decode("[power(base=10**10**10)]")))
print(error(lambda: decode("[power(base=2*3, exponent=-1)]")))
print(error(lambda: llama.decode_execute(touch, False)))
print(error(lambda: llama.decode_execute("[{{'name': 'cd', 'parameters': {{'folder': 'x'}}}}]", False)))
left = [name for name, module in sys.modules.items()
        if name.startswith("bfcl_eval") and getattr(module, "eval", eval) is eval]
print(left)
"""


@needs_bfcl
@pytest.mark.slow
def test_texts_that_handlers_evaluate_themselves_are_literals_only(tmp_path: Path) -> None:
    environment = dict(os.environ)
    os.environ["BFCL_PROJECT_ROOT"] = str(tmp_path / "root")
    (tmp_path / "root").mkdir()
    try:
        done = driven(PYTHON, DECODED.format(canary=tmp_path / "canary"))
    finally:
        os.environ.clear()
        os.environ.update(environment)
    assert done.stdout.splitlines()[-6:] == [
        "NameError",
        "RefusedError",
        "['power(base=6, exponent=-1)']",
        "NameError",
        "[\"cd(folder='x')\"]",
        "[]",
    ], done.stderr
    assert not (tmp_path / "canary").exists()


@needs_bfcl
@pytest.mark.slow
def test_category_that_cannot_run_here_is_left_out_and_said(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    ids = {"memory_rec_sum": ["memory_rec_sum_0-customer-0"], "memory_vector": ["memory_vector_0-customer-0"]}
    with OpenAIServer(lambda request: saying("Michael.")) as server:
        found, said = command(server.url, "--model", "m", code=1, ids=ids)
    assert found == {"memory_rec_sum": {"correct": 1, "total": 1}}
    assert "memory_vector is left out" in said
    assert "1 of 2 tasks are missing" in said
