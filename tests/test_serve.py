"""Live evaluation against a real server, `transformers serve` with a tiny model: killed, and resumed."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from chance_model import save_chance_model

from matchtir.cli import main
from matchtir.tasks import write_tasks
from matchtir.types import Task, Tool, ToolCall

NEEDED = ("openai", "jsonschema", "torch", "transformers", "tokenizers", "fastapi", "uvicorn", "accelerate")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
if MISSING:
    pytest.skip(f"the server needs {', '.join(MISSING)}: matchtir[test]", allow_module_level=True)

COUNT = 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_chance_model(folder)
    return folder


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tower = Tool("tower", "Height.", schema, source="def tower(city): return f'{100 + len(city)} m'")
    call = ToolCall("tower", {"city": "Bern"})
    prompt = ({"role": "user", "content": "How high is the tower of Bern?"},)
    path = tmp_path_factory.mktemp("tasks") / "tasks.jsonl"
    write_tasks(
        path,
        [Task(f"t{k}", prompt, (tower,), (call,), "104", {"tower": ("104",)}) for k in range(COUNT)],
    )
    return path


@contextmanager
def serving(model: Path, log: Path) -> Iterator[str]:
    """The server on a free port; its base URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(model)]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    with log.open("ab") as stream:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"],
            env=offline,
            stdout=stream,
            stderr=stream,
        )
    try:
        for _ in range(600):
            assert server.poll() is None, log.read_text()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        else:
            raise AssertionError(f"the server does not come up: {log.read_text()}")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.kill()
        server.wait()


def options(url: str, model: Path, tasks: Path, out: Path) -> list[str]:
    return [
        *("eval", "--endpoint", url, "--model", str(model), "--tasks", str(tasks), "-o", str(out)),
        *("--temperature", "1", "--max-tokens", "16", "--max-turns", "4"),
        *("--samples", "2", "--concurrency", "2", "--retries", "1", "--workers", "1"),
    ]


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def wait_for_lines(path: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(6000):
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError(f"{path} never got {count} lines")


def test_serve_command_and_server_killed_half_way_no_task_is_lost_or_doubled(
    model: Path, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, log = tmp_path / "rollouts.jsonl", tmp_path / "server.log"

    def start(url: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "matchtir", *options(url, model, tasks, out)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    with serving(model, log) as url:
        killed = start(url)
        wait_for_lines(out, 5, killed)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        done = len(rows_of(out))
        assert 5 <= done < 2 * COUNT, log.read_text()
        left = start(url)
        wait_for_lines(out, done + 5, left)
    _, errors = left.communicate(timeout=60)
    assert left.returncode == 1, errors
    assert b"of 40 rollouts are missing; the same command makes the others" in errors
    assert done + 5 <= len(rows_of(out)) < 2 * COUNT

    with serving(model, log) as url:  # on another port
        assert main(options(url, model, tasks, out)) == 0, capsys.readouterr().err
    rows = rows_of(out)
    assert sorted((row["group"], row["sample"]) for row in rows) == sorted(
        (f"t{k}", sample) for k in range(COUNT) for sample in range(2)
    )
    # The model calls or answers by chance, and its calls were really made.
    assert "answer" in {row["finish"] for row in rows}
    results = {m["content"] for row in rows for m in row["messages"] if m["role"] == "tool"}
    assert results == {"104 m"}
    assert capsys.readouterr().out.count("\n") > 5
