"""`matchtir eval --endpoint`: the command as users run it, killed, interrupted, and resumed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from openai_server import OpenAIServer, Reply, Request, calls, fails, says, scripted

from matchtir.cli import main
from matchtir.tasks import write_tasks
from matchtir.tasks.embedded import embedded_tasks
from matchtir.types import Task, Tool, ToolCall

pytest.importorskip("openai")
pytest.importorskip("jsonschema")

SOURCE = """
def tower(city):
    return {"city": city, "height": 100 + len(city)}
"""
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
COUNT = 30


def make_task(k: int) -> Task:
    city = "x" * k
    return Task(
        f"t{k:02}",
        ({"role": "user", "content": f"How high is the tower of {city!r}?"},),
        (Tool("tower", "Height of a tower.", CITY, source=SOURCE),),
        (ToolCall("tower", {"city": city}),),
        str(100 + k),
        {"tower": (str(100 + k),)},
        "single_hop",
    )


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tasks") / "tasks.jsonl"
    write_tasks(path, [make_task(k) for k in range(COUNT)])
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "rollouts.jsonl"


def solver(request: Request) -> Reply:
    """Calls the tool, first wrongly for every third task, and answers with what it says."""
    last = request["messages"][-1]
    city = request["messages"][0]["content"].split("'")[1]
    if last["role"] == "tool" and "error" not in last["content"]:
        return says(f"It is {json.loads(last['content'])['height']} m.")
    if last["role"] == "user" and len(city) % 3 == 0:
        return calls(("tower", '{"city": '))
    return calls(("tower", {"city": city}))


def slowly(request: Request) -> Reply:
    reply = solver(request)
    reply.delay = 0.05
    return reply


def command(server_url: str, tasks: Path, *options: str) -> list[str]:
    base = [sys.executable, "-m", "matchtir", "eval", "--endpoint", server_url, "--model", "m"]
    return [*base, "--tasks", str(tasks), "--concurrency", "4", "--retries", "0", "--workers", "1", *options]


class Done(NamedTuple):
    """A run of the command inside this process."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("COLUMNS", "120")

    def run(server_url: str, tasks: Path, *options: str, **variables: str) -> Done:
        with monkeypatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            code = main(command(server_url, tasks, *options)[3:])
        return Done(code, *capsys.readouterr())

    return run


def start(server_url: str, tasks: Path, out: Path) -> subprocess.Popen[str]:
    """The command in a process of its own, to be killed."""
    arguments = command(server_url, tasks, "-o", str(out))
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def keys_of(path: Path) -> list[tuple[str, int]]:
    return sorted((row["group"], row["sample"]) for row in rows_of(path))


def wait_for_lines(path: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Until a file has so many lines; the process must not end before."""
    for _ in range(6000):
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError(f"{path} never got {count} lines")


def test_eval_endpoint_rollouts_are_evaluated_and_can_be_evaluated_again(
    run: Run, capsys: pytest.CaptureFixture[str], tasks: Path, out: Path
) -> None:
    metrics = out.with_name("metrics.json")
    with OpenAIServer(solver) as server:
        done = run(server.url, tasks, "-o", str(out), "--json", str(metrics))
    assert done.returncode == 0, done.stderr
    assert keys_of(out) == [(f"t{k:02}", 0) for k in range(COUNT)]
    overall = json.loads(metrics.read_text())["rows"][0]["metrics"]
    # Ten tasks of thirty need a second call: precision 1/2 there, F1 2/3.
    expected = {"solve_p": (20 + 10 / 2) / 30, "solve_r": 1.0, "solve_f1": (20 + 10 * 2 / 3) / 30}
    expected |= {"correct": 1.0, "calls": 40 / 30, "unanswered": 0.0}
    assert {name: overall[name]["mean"] for name in expected} == pytest.approx(expected)
    assert main(["eval", str(out)]) == 0
    assert capsys.readouterr().out == done.stdout
    assert main(["score", str(out)]) == 0
    assert main(["explain", str(out), "--row", "29"]) == 0


def test_eval_endpoint_gold_calls_solve_the_embedded_tasks(run: Run, out: Path) -> None:
    known = {task.messages[-1]["content"]: task for task in embedded_tasks(split="test")}

    def gold(request: Request) -> Reply:
        prompt = next(m["content"] for m in request["messages"][::-1] if m["role"] == "user")
        task = known[prompt]
        made = sum(m["role"] == "assistant" for m in request["messages"])
        if made == len(task.gold_calls):
            return says(task.gold_answer)
        return calls((task.gold_calls[made].name, dict(task.gold_calls[made].arguments)))

    metrics = out.with_name("metrics.json")
    with OpenAIServer(gold) as server:
        done = run(server.url, Path("embedded"), "--limit", "24", "-o", str(out), "--json", str(metrics))
    assert done.returncode == 0, done.stderr
    overall = json.loads(metrics.read_text())["rows"][0]
    assert overall["tasks"] == 24
    means = {name: overall["metrics"][name]["mean"] for name in ("solve_p", "solve_r", "correct")}
    assert means == {"solve_p": 1.0, "solve_r": 1.0, "correct": 1.0}
    # Sources ran in the sandbox and said what the tasks say that they do.
    for row in rows_of(out):
        task = next(task for task in known.values() if task.id == row["group"])
        results = [m["content"] for m in row["messages"] if m["role"] == "tool"]
        assert results == [call.result for call in task.gold_calls]


def test_eval_endpoint_tells_how_far_it_is(run: Run, tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matchtir.cli.progress._LINE_SECONDS", 0.0)
    with OpenAIServer(solver) as server:
        done = run(server.url, tasks, "--limit", "3")
        assert f"3 rollouts of m at {server.url}, 4 at a time" in done.stderr
    for count in (1, 2, 3):
        assert f"matchtir: {count} of 3 rollouts, 0 failed, " in done.stderr


def test_eval_endpoint_broken_rows_of_tasks_are_left_out_and_told(
    run: Run, tasks: Path, out: Path, tmp_path: Path
) -> None:
    lines = tasks.read_text().splitlines()
    broken = tmp_path / "broken.jsonl"
    broken.write_text("\n".join([lines[0], '{"id": "x"}', "no json", lines[1]]) + "\n")
    with OpenAIServer(solver) as server:
        done = run(server.url, broken, "-o", str(out))
    assert done.returncode == 1
    assert "line 2 (row 1)" in done.stderr
    assert "2 broken rows left out, 2 tasks read" in done.stderr
    assert keys_of(out) == [("t00", 0), ("t01", 0)]


def test_eval_endpoint_killed_again_and_again_every_task_is_there_once(
    run: Run, tasks: Path, out: Path
) -> None:
    with OpenAIServer(slowly) as server:
        for enough in (5, 17):
            process = start(server.url, tasks, out)
            wait_for_lines(out, enough, process)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            assert process.returncode == -signal.SIGKILL
            # What a kill may leave: a line that was being written.
            whole = out.read_bytes()
            out.write_bytes(whole + whole.splitlines()[-1][: 40 * enough])
        before = len(server.requests)
        done = run(server.url, tasks, "-o", str(out))
        made = len(server.requests) - before
    assert done.returncode == 0, done.stderr
    assert "an unfinished line of" in done.stderr
    assert "of 30 rollouts are there" in done.stderr
    assert keys_of(out) == [(f"t{k:02}", 0) for k in range(COUNT)]
    assert made < 40, "tasks that were done are not solved again"


def test_eval_endpoint_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(
    run: Run, tasks: Path, out: Path
) -> None:
    with OpenAIServer(slowly) as server:
        process = start(server.url, tasks, out)
        wait_for_lines(out, 5, process)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 130, errors
        assert "Traceback" not in errors
        assert "of 30 rollouts are done; the same command makes the others" in errors
        assert output == ""
        done = len(keys_of(out))
        assert 5 <= done < COUNT
        assert out.read_bytes().endswith(b"\n")
        assert run(server.url, tasks, "-o", str(out)).returncode == 0
    assert keys_of(out) == [(f"t{k:02}", 0) for k in range(COUNT)]


def test_eval_endpoint_more_tasks_and_more_samples_go_on_in_the_same_file(
    run: Run, tasks: Path, out: Path
) -> None:
    with OpenAIServer(solver) as server:
        for options, expected in (
            (["--limit", "2"], 2),
            (["--limit", "4"], 4),
            (["--limit", "4", "--samples", "3"], 12),
        ):
            assert run(server.url, tasks, "-o", str(out), *options).returncode == 0
            assert len(keys_of(out)) == expected
        before = len(server.requests)
        assert run(server.url, tasks, "-o", str(out), "--limit", "4", "--samples", "3").returncode == 0
        assert len(server.requests) == before
    assert Counter(name for name, _ in keys_of(out)) == dict.fromkeys(("t00", "t01", "t02", "t03"), 3)


def test_eval_endpoint_another_run_does_not_mix_into_the_file(
    run: Run, tasks: Path, out: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.jsonl"
    write_tasks(other, [make_task(k) for k in range(5)])
    with OpenAIServer(solver) as server:
        assert run(server.url, tasks, "-o", str(out), "--limit", "2").returncode == 0
        content = out.read_bytes()
        for file, options, words in (
            (tasks, ["--temperature", "0.5"], "temperature=null, not 0.5"),
            (tasks, ["--max-turns", "3"], "max_turns=16, not 3"),
            (tasks, ["--extra", '{"top_k": 1}'], 'extra={}, not {"top_k": 1}'),
            (other, [], 'tasks="'),
        ):
            refused = run(server.url, file, "-o", str(out), *options)
            assert refused.returncode == 2
            assert words in refused.stderr
            assert "--fresh" in refused.stderr
            assert out.read_bytes() == content
        fresh = run(server.url, other, "-o", str(out), "--fresh", "--temperature", "0.5")
        assert fresh.returncode == 0, fresh.stderr
    assert keys_of(out) == [(f"t{k:02}", 0) for k in range(5)]
    assert {row["run"]["temperature"] for row in rows_of(out)} == {0.5}


def test_eval_endpoint_two_processes_do_not_write_one_file(run: Run, tasks: Path, out: Path) -> None:
    with OpenAIServer(slowly) as server:
        first = start(server.url, tasks, out)
        wait_for_lines(out, 1, first)
        second = run(server.url, tasks, "-o", str(out), "--fresh")
        assert second.returncode == 2
        assert "is being written by another process" in second.stderr
        _, errors = first.communicate(timeout=60)
        assert first.returncode == 0, errors
    assert keys_of(out) == [(f"t{k:02}", 0) for k in range(COUNT)]


def test_eval_endpoint_that_fails_for_some_tasks_exits_with_1_and_says_what_is_missing(
    run: Run, tasks: Path, out: Path
) -> None:
    def moody(request: Request) -> Reply:
        return fails(500, "oops") if "'xxxxx'" in request["messages"][0]["content"] else solver(request)

    with OpenAIServer(moody) as server:
        done = run(server.url, tasks, "-o", str(out))
        assert done.returncode == 1
        assert "task t05, sample 0:" in done.stderr
        assert "500: oops" in done.stderr
        assert "1 of 30 rollouts are missing; the same command makes the others" in done.stderr
        assert "single_hop" in done.stdout
        assert len(keys_of(out)) == 29
        server.answer = solver
        assert run(server.url, tasks, "-o", str(out)).returncode == 0
    assert len(keys_of(out)) == 30


def test_eval_endpoint_wrong_key_model_or_address_is_one_clear_error(
    run: Run, tasks: Path, out: Path
) -> None:
    with OpenAIServer(solver, key="right") as server:
        wrong = run(server.url, tasks, "-o", str(out), OPENAI_API_KEY="wrong-key")
        elsewhere = run(server.url.removesuffix("/v1"), tasks, "-o", str(out))
        right = run(server.url, tasks, "--limit", "1", OPENAI_API_KEY="right")
        other = run(server.url, tasks, "--limit", "1", "--api-key-variable", "MINE", MINE="right")
    with OpenAIServer(scripted([fails(404, "The model `m` does not exist.")])) as server:
        model = run(server.url, tasks)
    closed = run(server.url, tasks)
    for done, words in (
        (wrong, "401: Incorrect API key provided (the key is read from OPENAI_API_KEY)"),
        (elsewhere, "404: no such path /chat/completions"),
        (model, "404: The model `m` does not exist."),
        (closed, "Connection error. ([Errno 111] Connection refused)"),
    ):
        assert done.returncode == 2
        assert words in done.stderr
        assert done.stderr.count("error:") == 1
        assert "wrong-key" not in done.stderr
        assert done.stdout == ""
    assert out.read_bytes() == b""
    assert (right.returncode, other.returncode) == (0, 0)


def test_eval_endpoint_without_a_file_keeps_nothing_and_shows_the_table(
    run: Run, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with OpenAIServer(solver) as server:
        done = run(server.url, tasks, "--limit", "3")
    assert done.returncode == 0, done.stderr
    assert "single_hop" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--endpoint", "http://x/v1", "--model", "m"], "--tasks is missing"),
        (["--endpoint", "http://x/v1", "--tasks", "embedded"], "--model is missing"),
        (["-o", "x.jsonl"], "--endpoint is missing"),
        (["--sample"], "expected no FILE and no --sample"),
        (["--extra", "[1]"], "'[1]' is no JSON object"),
        (["--limit", "0"], "limit is 0; expected at least 1"),
        (["--samples", "0"], "samples is 0; expected at least 1"),
        (["--endpoint", "x"], "endpoint is 'x'; expected a URL"),
        (["--confidence", "7"], "confidence"),
        (["--json", "no/such/folder.json"], "there is no folder"),
        (["-o", "."], "exists and is no ordinary file"),
    ],
)
def test_eval_endpoint_wrong_options_stop_before_anything_is_asked(
    options: list[str], words: str, tasks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with OpenAIServer(solver) as server:
        if "is missing" not in words:
            options = ["--endpoint", server.url, "--model", "m", "--tasks", str(tasks), *options]
        assert main(["eval", *options]) == 2
        assert server.requests == []
    assert words in capsys.readouterr().err


def test_eval_endpoint_rollouts_and_metrics_do_not_share_a_file(run: Run, tasks: Path, out: Path) -> None:
    done = run("http://x/v1", tasks, "-o", str(out), "--json", str(out))
    assert (done.returncode, out.exists()) == (2, False)
    assert "is the file of metrics too" in done.stderr
    assert "is standard output; expected a file" in run("http://x/v1", tasks, "-o", "-").stderr


def test_eval_endpoint_the_file_of_tasks_is_not_the_output(
    tasks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = tasks.read_bytes()
    options = ["--endpoint", "http://x/v1", "--model", "m", "--tasks", str(tasks), "-o", str(tasks)]
    assert main(["eval", *options, "--fresh"]) == 2
    assert "is the file of tasks too" in capsys.readouterr().err
    assert tasks.read_bytes() == content
