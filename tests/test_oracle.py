"""A scripted policy on FTRL's real test tasks and tools: the metrics are what the policy counted itself."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import mean

import pytest
from ftrl_oracle import DO_NOT_KNOW, Oracle

from matchtir import cli
from matchtir.evals import evaluate
from matchtir.evals.campaign import Settings, remaining, run_tasks
from matchtir.evals.journal import Journal
from matchtir.files import read_rollouts
from matchtir.tasks import read_tasks
from matchtir.tools import Sandbox
from matchtir.types import Task

pytest.importorskip("jsonschema")
pytest.importorskip("pyarrow")


def expected(task: Task, oracle: Oracle) -> dict[str, float]:
    """The metrics of one task from the oracle's counts (equations 12 to 14)."""
    q, asked, calls = oracle.solved, oracle.asked, oracle.calls
    precision, recall = q / calls, q / asked
    answer = task.gold_answer if q == asked else DO_NOT_KNOW
    return {
        "solve_p": precision,
        "solve_r": recall,
        "solve_f1": 2 * precision * recall / (precision + recall) if q else 0.0,
        "correct": float(answer == task.gold_answer),
        "calls": calls,
        "turns": len(oracle.plan) + 1,
        "unanswered": 0.0,
    }


@pytest.mark.filterwarnings("ignore:.*invalid escape sequence")  # in the data's own sources
def test_oracle_on_ftrl_is_measured_as_it_counts_itself(ftrl_path: Path, tmp_path: Path) -> None:
    with read_tasks(ftrl_path) as rows:
        tasks = [row.task for row in rows if row.task is not None]
    assert len(tasks) == 200
    oracles: dict[str, Oracle] = {}
    path = tmp_path / "rollouts.jsonl"
    with Sandbox(workers=2, timeout=10.0) as box, Journal(path, {}) as journal:

        def policy(task: Task, sample: int) -> Oracle:
            oracles[task.id] = Oracle(task, box)
            return oracles[task.id]

        jobs = remaining(tasks, journal.done, 1)
        settings = Settings(concurrency=2)
        assert all(one.error is None for one in run_tasks(jobs, policy, box, journal, settings))
    with read_rollouts(path) as rows:
        rollouts = [row.trajectory for row in rows if row.trajectory is not None]
    assert sorted(str(rollout.group) for rollout in rollouts) == sorted(oracles)

    # Far from trivial: most sub-questions can be found by search, many not at once, some not at all.
    solved = sum(oracle.solved for oracle in oracles.values())
    asked = sum(oracle.asked for oracle in oracles.values())
    calls = sum(oracle.calls for oracle in oracles.values())
    assert asked == 820
    assert 0.8 * asked < solved < 0.95 * asked
    assert calls > 1.5 * solved

    by_kind: dict[str, list[dict[str, float]]] = defaultdict(list)
    for task in tasks:
        for kind in ("all", task.kind):
            by_kind[kind].append(expected(task, oracles[task.id]))
    assert len(by_kind) == 5
    rows_of_table = {row.name: row for row in evaluate(rollouts).rows if row.level in ("overall", "kind")}
    for kind, found in by_kind.items():
        metrics = rows_of_table[kind].metrics
        means = {name: estimate.mean for name, estimate in metrics.items() if estimate is not None}
        counted = {name: mean(one[name] for one in found) for name in found[0]}
        assert {name: means[name] for name in counted} == pytest.approx(counted), kind
        assert 0.0 < means["failed_calls"] < 1.0

    out = tmp_path / "evaluation.json"
    assert cli.main(["eval", str(path), "--json", str(out)]) == cli.DONE
    shown = {row["name"]: row["metrics"] for row in json.loads(out.read_text())["rows"]}
    assert shown["all"]["solve_f1"]["mean"] == rows_of_table["all"].metrics["solve_f1"].mean
    assert [name for name in shown if name in by_kind] == list(rows_of_table)
