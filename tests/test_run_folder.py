"""The folder of a run: what is written, what is refused, what survives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from matchtir import CreditConfig, assign_credit, cli
from matchtir.errors import InputError
from matchtir.evals import evaluate
from matchtir.files import read_rollouts
from matchtir.parse import parse_messages
from matchtir.rollout.records import Rollout
from matchtir.train.config import TrainConfig
from matchtir.train.rollout_rows import rollout_rows
from matchtir.train.run_files import read_evaluations, read_metrics, read_settings
from matchtir.train.run_folder import RunFolder, check_output, settings_of
from matchtir.train.settings import resolve
from matchtir.types import Task, ToolCall


def config(folder: Path, **more: Any) -> TrainConfig:
    return resolve({"output": str(folder)}, more)


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def rollout(sample: int, *turns: str, finish: str = "answer") -> Rollout:
    """A rollout whose calls all answer 101."""
    gold = (ToolCall("tower", {"city": "Bern"}), ToolCall("tower", {"city": "Ulm"}))
    task = Task(
        "t\u2028\ud800",
        ({"role": "user", "content": "How high?"},),
        gold_calls=gold,
        gold_answer="101",
        sub_answers={"tower": ("101", "162")},
        kind="multi_hop",
    )
    messages: list[dict[str, Any]] = list(map(dict, task.messages))
    for text in turns:
        messages.append({"role": "assistant", "content": text})
        calls = parse_messages([messages[-1]], format="hermes")[0].calls
        messages += [{"role": "tool", "content": "101"} for _ in calls]
    return Rollout(
        task=task,
        sample=sample,
        tokens=np.arange(9),
        prompt_length=3,
        spans=np.array([[3 + t, 4 + t] for t in range(len(turns))], dtype=np.int64).reshape(-1, 2),
        logps=np.zeros(9, np.float32),
        turns=tuple(parse_messages(messages, format="hermes")),
        messages=tuple(messages),
        finish=finish,  # type: ignore[arg-type]
    )


ROLLOUTS = [
    rollout(0, call("tower", city="Bern"), call("tower", city="Ulm"), "<answer>101</answer>"),
    rollout(1, call("tower", city="Bern") + call("bridge", city="Bern"), "<answer>102 metres</answer>"),
    rollout(2, "<tool_call>{broken</tool_call>", finish="max_turns"),
    rollout(3, finish="response_tokens"),
]


def test_dumped_rollouts_score_as_they_did_in_training(tmp_path, capsys):
    settings = CreditConfig(penalty=0.3)
    credit = assign_credit([one.trajectory() for one in ROLLOUTS], settings)
    with RunFolder(config(tmp_path)) as folder:
        folder.write_rollouts(12, rollout_rows(ROLLOUTS, credit, step=12, text_format="hermes"))
    path = tmp_path / "rollouts" / "step-000012.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["sample"], row["step"], row["finish"]) for row in rows] == [
        (0, 12, "answer"),
        (1, 12, "answer"),
        (2, 12, "max_turns"),
        (3, 12, "response_tokens"),
    ]
    assert rows[1]["matches"] == [0, None]
    assert rows[1]["call_rewards"] == [1.0, -0.3]
    out = tmp_path / "scores.jsonl"
    assert cli.main(["score", str(path), "--penalty", "0.3", "-o", str(out)]) == cli.DONE
    for row, scored in zip(rows, map(json.loads, out.read_text().splitlines()), strict=True):
        for name in ("matches", "call_rewards", "turn_rewards", "return", "turn_advantages", "malformed"):
            assert row[name] == scored[name], name
    with read_rollouts(path) as read:
        measured = [row.trajectory for row in read]
    again = evaluate([one for one in measured if one is not None])
    assert again == evaluate([one.trajectory() for one in ROLLOUTS])
    assert cli.main(["explain", str(path), "--row", "1"]) == cli.DONE
    assert cli.main(["eval", str(path)]) == cli.DONE
    assert "Solve-F1" in capsys.readouterr().out


def test_run_goes_on_in_its_folder_and_forgets_what_came_after_the_checkpoint(tmp_path):
    run = config(tmp_path / "deep" / "run")
    with RunFolder(run) as folder:
        assert not folder.resumes
        assert read_settings(folder.path) == settings_of(run)
        for step in (1, 2, 3):
            folder.write_metrics(
                step, {"reward": np.float64(0.5 * step), "kl": float("nan"), "n": np.int64(3)}
            )
            folder.write_rollouts(step, [{"group": "a", "value": float("inf")}])
        folder.write_evaluation(0, [], {"rows": [{"metrics": {}}]})
        folder.write_evaluation(3, [{"group": "a"}], {"rows": [{"metrics": {"calls": None}}]})
        folder.write_summary({"steps": 3})
    with RunFolder(run) as folder:
        assert folder.resumes
        assert read_metrics(folder.path)[2] == {"step": 3, "reward": 1.5, "kl": None, "n": 3}
        assert read_evaluations(folder.path) == {
            0: {"step": 0, "rows": [{"metrics": {}}]},
            3: {"step": 3, "rows": [{"metrics": {"calls": None}}]},
        }
        folder.cut(2)
        assert [line["step"] for line in read_metrics(folder.path)] == [1, 2]
        assert sorted(os.listdir(folder.path / "rollouts")) == ["step-000001.jsonl", "step-000002.jsonl"]
        assert list(read_evaluations(folder.path)) == [0]
        assert not (folder.path / "summary.json").exists()
        folder.write_metrics(3, {"reward": 9})
        assert [line.get("reward") for line in read_metrics(folder.path)] == [0.5, 1.0, 9]


def test_other_settings_are_refused_and_named(tmp_path):
    with RunFolder(config(tmp_path, **{"update.lr": 1e-4})) as folder:
        folder.write_metrics(1, {})
    before = (tmp_path / "config.json").read_bytes()
    for changes, message in (
        ({"update.lr": 1e-5}, r"update\.lr is 0\.0001 there and 1e-05 here\. Expected the same"),
        ({"update.lr": 1e-4, "method": "grpo"}, r'method is "matchtir-km" there.*; credit\.reward is'),
        (
            {"update.lr": 1e-4, "deepspeed.overrides": {"a": 1}},
            r"overrides\.a is null there and 1",
        ),
        ({"update.lr": 1e-4, "update.schedule": "linear", "steps": 5}, r"steps is 100 .*; update\.schedule"),
    ):
        for attempt in (lambda c: check_output(c), lambda c: RunFolder(c)):
            with pytest.raises(InputError, match=message):
                attempt(config(tmp_path, **changes))
    assert (tmp_path / "config.json").read_bytes() == before
    same = {"update.lr": 1e-4, "checkpoint.every": 5, "report_to": ["wandb"], "steps": 500}
    assert check_output(config(tmp_path, **same))
    with RunFolder(config(tmp_path, **same)) as folder:
        assert folder.resumes
        assert read_settings(tmp_path)["steps"] == 500


def test_run_that_failed_before_it_began_stands_in_nobodys_way(tmp_path):
    RunFolder(config(tmp_path, model="misspelt")).close()
    with RunFolder(config(tmp_path, model="right")) as folder:
        assert not folder.resumes
        assert read_settings(folder.path)["model"] == "right"


def test_fresh_removes_a_run_and_nothing_else(tmp_path):
    with RunFolder(config(tmp_path)) as folder:
        folder.write_metrics(1, {})
        folder.write_rollouts(1, [])
        (folder.checkpoints / "step-000001").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("mine")
    with RunFolder(config(tmp_path, seed=5), fresh=True) as folder:
        assert not folder.resumes
        assert read_settings(tmp_path)["seed"] == 5
    assert sorted(os.listdir(tmp_path)) == [".matchtir-run", "config.json", "notes.txt"]


def test_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    for fresh in (False, True):
        with pytest.raises(InputError, match="holds something else; expected a new or an empty one"):
            RunFolder(config(tmp_path), fresh=fresh)
    assert os.listdir(tmp_path) == ["thesis.tex"]
    with pytest.raises(InputError, match="is a file; expected a folder"):
        RunFolder(config(tmp_path / "thesis.tex"), fresh=True)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert not check_output(config(empty))
    assert os.listdir(empty) == []


def test_run_without_its_settings_is_not_taken_for_a_new_one(tmp_path):
    with RunFolder(config(tmp_path)) as folder:
        folder.write_metrics(1, {})
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json is missing from a run"):
        RunFolder(config(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json is no JSON"):
        RunFolder(config(tmp_path))
    with RunFolder(config(tmp_path), fresh=True) as folder:
        assert read_metrics(folder.path) == []


def test_two_processes_cannot_write_one_run(tmp_path):
    with RunFolder(config(tmp_path)):
        code = (
            "import sys; from matchtir.train.run_folder import RunFolder\n"
            "from matchtir.train.settings import resolve\n"
            "from matchtir.errors import InputError\n"
            "try: RunFolder(resolve({'output': sys.argv[1]}), fresh=True)\n"
            "except InputError as error: print(error)"
        )
        other = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
        assert "belongs to a run that is going on in another process" in other.stdout, other.stderr
        assert (tmp_path / "config.json").exists()
    RunFolder(config(tmp_path)).close()


def test_torn_last_line_is_cut_off_and_a_broken_one_is_named(tmp_path):
    with RunFolder(config(tmp_path)) as folder:
        folder.write_metrics(1, {"reward": 1})
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'{"step": 2, "rew')
    assert [line["step"] for line in read_metrics(tmp_path)] == [1]
    with RunFolder(config(tmp_path)) as folder:
        folder.write_metrics(2, {"reward": 2})
    assert [line["reward"] for line in read_metrics(tmp_path)] == [1, 2]
    path.write_bytes(b'{"step": 1}\n{"steq": 2}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl, line 2 is no step"):
        read_metrics(tmp_path)


def test_killed_writer_leaves_whole_lines_and_files(tmp_path):
    code = (
        "import sys; from matchtir.train.run_folder import RunFolder\n"
        "from matchtir.train.settings import resolve\n"
        "folder = RunFolder(resolve({'output': sys.argv[1]}))\n"
        "for step in range(1, 10**6):\n"
        "    folder.write_rollouts(step, [{'group': 'a', 'text': 'x' * 1000}] * 50)\n"
        "    folder.write_metrics(step, {'reward': step}); print(step, flush=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) == 5:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with RunFolder(config(tmp_path)) as folder:
        steps = [line["step"] for line in read_metrics(folder.path)]
        assert steps == list(range(1, len(steps) + 1))
        assert len(steps) >= 5
    for file in (tmp_path / "rollouts").glob("step-*"):
        assert len([json.loads(line) for line in file.read_text().splitlines()]) == 50


def test_full_disk_is_said_and_what_was_there_stays(tmp_path):
    # A limit of the system on the size of files stands for the disk's end.
    code = (
        "import resource, sys; from matchtir.train.run_folder import RunFolder\n"
        "from matchtir.train.settings import resolve\n"
        "from matchtir.errors import InputError\n"
        "folder = RunFolder(resolve({'output': sys.argv[1]}))\n"
        "folder.write_metrics(1, {'text': 'x' * 3000}); folder.write_rollouts(1, [])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "for write in (lambda: folder.write_metrics(2, {'text': 'x' * 3000}),\n"
        "              lambda: folder.write_rollouts(2, [{'text': 'x' * 9000}])):\n"
        "    try: write()\n"
        "    except InputError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    said = done.stdout.splitlines()
    assert len(said) == 2, done.stderr
    assert "metrics.jsonl cannot be written: the disk is full" in said[0]
    assert "step-000002.jsonl cannot be written: the disk is full" in said[1]
    content = (tmp_path / "metrics.jsonl").read_text()
    assert content.endswith("}\n")
    assert content.count("\n") == 1
    assert os.listdir(tmp_path / "rollouts") == ["step-000001.jsonl"]
