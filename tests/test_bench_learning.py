"""The comparison of methods: which runs it makes, that it goes on where it was, the table of what is done."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

from matchtir.tasks import read_tasks

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "bench").exists(), reason="needs a checkout with bench/")


@pytest.fixture
def learning(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [str(ROOT / "bench"), *sys.path])
    module = importlib.import_module("learning")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(module, "WORK", tmp_path / "work")
    return module


def result(learning, run, f1):
    points = {
        step: {"solve_f1": f1 * step / learning.STEPS, "correct": 0.5, "calls": 3.0, "unanswered": 0.0}
        for step in range(0, learning.STEPS + 1, learning.EVERY)
    }
    fields = {"method": run.method, "penalty": run.penalty, "mix": run.mix, "seed": run.seed}
    run.result.parent.mkdir(exist_ok=True)
    run.result.write_text(json.dumps({**fields, "evaluations": points}))


def test_every_cell_has_its_seeds(learning):
    found = learning.runs()
    assert len({run.name for run in found}) == len(found)
    for method, penalty in learning.CELLS:
        for mix in learning.MIXES:
            seeds = [x.seed for x in found if (x.method, x.penalty, x.mix) == (method, penalty, mix)]
            count = 5 if method in ("matchtir-km", "grpo") else 3
            compared = mix != learning.CHAINS or (method, penalty) in learning.CHAINS_CELLS
            assert seeds == list(range(1, count + 1)) * compared


def test_commands_are_settings_that_the_trainer_takes(learning):
    pytest.importorskip("jsonargparse")
    from matchtir.cli.train import request_of

    for run in learning.runs():
        command = run.command()
        config = request_of(command[command.index("train") + 1 :]).config
        assert (config.method, config.seed) == (run.method, run.seed)
        if run.mix == learning.CHAINS:
            assert (config.tasks, config.eval_tasks) == tuple(map(str, learning.tasks_of(run.mix).values()))
        else:
            assert (config.tasks, config.data.mix) == ("embedded", run.mix)
        assert config.steps == learning.STEPS
        if run.penalty is not None:
            assert config.credit.penalty == run.penalty


def test_chains_are_tasks_of_four_calls_one_after_the_other(learning):
    learning.write_chains()
    for path in learning.tasks_of(learning.CHAINS).values():
        with read_tasks(path) as rows:
            tasks = [row.task for row in rows]
        assert {(task.kind, len(task.gold_calls)) for task in tasks} == {("multi_hop", 4)}
    assert len(tasks) == 200


def test_what_is_done_is_not_done_again(learning, monkeypatch):
    todo = learning.runs(["grpo"])[:4]
    for run in todo[:3]:
        result(learning, run, 0.5)
    done, warm = [], []
    monkeypatch.setattr(learning, "make_warm_start", warm.append)
    monkeypatch.setattr(learning, "do", done.append)
    learning.compare(todo, 2, None)
    assert done == todo[3:]
    assert warm == [todo[3].seed]


def test_a_run_that_fails_does_not_end_the_others(learning, monkeypatch, capsys):
    todo = learning.runs(["grpo"])[:3]

    def do(run):
        if run is todo[0]:
            raise RuntimeError("it broke")
        result(learning, run, 0.5)

    monkeypatch.setattr(learning, "make_warm_start", lambda seed: None)
    monkeypatch.setattr(learning, "do", do)
    assert learning.compare(todo, 1, None) == 1
    assert [run.result.exists() for run in todo] == [False, True, True]
    assert f"{todo[0].name} failed: it broke" in capsys.readouterr().err


def test_table_holds_means_intervals_and_the_lowest_seed(learning):
    runs = [run for run in learning.runs(["grpo"]) if run.mix == "easy"]
    for run, f1 in zip(runs, (0.4, 0.5, 0.6, 0.7, 0.8), strict=True):
        result(learning, run, f1)
    lines = learning.table().splitlines()
    assert len(lines) == 3
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells[:4] == ["easy", "grpo", "—", "5"]
    mean, low, high = cells[7].replace("(", "").replace(")", "").replace(" to ", " ").split()
    assert float(mean) == 0.6
    assert 0.4 < float(low) < 0.6 < float(high) < 0.8
    assert cells[-2:] == ["0.400", "—"]
    rivals = [run for run in learning.runs(["matchtir-ot"]) if run.mix == "easy"]
    for run, f1 in zip(rivals, (0.5, 0.7, 0.9), strict=True):
        result(learning, run, f1)
    (line,) = (line for line in learning.table().splitlines() if "matchtir-ot" in line)
    less = line.split("|")[-2].strip().replace("(", "").replace(")", "").replace(" to ", " ").split()
    assert less == ["0.200", "0.100", "0.300"]
