"""The comparison on stateful tasks: what is run, when a task counts as solved, and what the table says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

stateful: Any = pytest.importorskip("stateful", reason="needs a checkout with bench/")


def written(folder: Path, solved: dict[tuple[str, int], dict[str, list[int]]]) -> Any:
    """A comparison of so many steps whose results are there."""
    setting = stateful.Setting(folder, folder, steps=2, every=1)
    for run in stateful.runs():
        if (run.method, run.seed) in solved:
            steps = solved[run.method, run.seed]
            points = {step: {f"t{i}": v for i, v in enumerate(values)} for step, values in steps.items()}
            calls = dict.fromkeys(points, 4.0)
            setting.result(run).write_text(json.dumps({"solved": points, "calls": calls}))
    return setting


def test_task_is_solved_if_all_its_user_turns_are(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"group": "a", "rounds": [{"outcome": 1.0}, {"outcome": 1.0}]},
        {"group": "b", "rounds": [{"outcome": 1.0}, {"outcome": 0.0}]},
        {"group": "c", "outcome": 1.0},
        {"group": "d", "outcome": 0.0},
    ]
    file = tmp_path / "step-000000.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert stateful.solved(file) == {"a": 1, "b": 0, "c": 1, "d": 0}


def test_runs_are_pairs_of_one_warm_start_with_fixed_settings() -> None:
    setting = stateful.Setting()
    assert [run.seed for run in stateful.runs()] == [1, 1, 2, 2, 3, 3]
    command = setting.command(stateful.runs()[0])
    last = {}
    for word in command[4:]:
        key, _, value = word.partition("=")
        last[key] = value
    assert last["--model"].endswith("stateful/warm-start-1")
    assert last["--output"].endswith("stateful/matchtir-km-penalty-0.3-calendar-seed-1")
    assert (last["--data.mix"], last["--method"], last["--credit.penalty"]) == (
        "calendar",
        "matchtir-km",
        "0.3",
    )
    assert (last["--steps"], last["--evaluation.every"]) == ("100", "20")
    assert "--data.eval_limit" not in last


def test_table_has_means_and_paired_differences(tmp_path: Path) -> None:
    start = [0, 0, 0, 1]
    setting = written(
        tmp_path,
        {
            ("matchtir-km", 1): {"0": start, "1": start, "2": [1, 1, 1, 1]},
            ("matchtir-km", 2): {"0": start, "1": start, "2": [1, 1, 0, 1]},
            ("grpo", 1): {"0": start, "1": start, "2": [1, 0, 0, 1]},
        },
    )
    _, _, km, grpo = stateful.table(setting).splitlines()
    cells = [cell.strip() for cell in km.strip("|").split("|")]
    assert cells[:3] == ["matchtir-km", "0.3", "2"]
    # By hand: 1 of 4 before, 7 of 8 after; against the one grpo of the same seed 4 of 4 less 2 of 4.
    assert [cells[3].split()[0], cells[5].split()[0], cells[6]] == ["0.250", "0.875", "4.000"]
    assert cells[7].split()[0] == "0.500"
    assert [cell.strip() for cell in grpo.strip("|").split("|")][-1] == "—"


def test_interval_holds_the_mean_and_is_a_point_without_spread() -> None:
    assert stateful.interval(np.ones((3, 5))) == "1.000 (1.000–1.000)"
    found = stateful.interval(np.eye(4))
    mean, low, high = (float(x) for x in found.replace("(", "").replace(")", "").replace("–", " ").split())
    assert low <= mean <= high
    assert mean == 0.25


def test_settings_are_changed_only_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        stateful.main(["--steps", "2"])
    assert "need --work" in capsys.readouterr().err
