"""Runs that are stopped, in processes of their own: killed, interrupted, resumed, shared by two processes."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
for needed in ("transformers", "deepspeed", "jsonargparse"):
    pytest.importorskip(needed)

from safetensors.torch import load_file  # noqa: E402
from train_runs import command, environment, run, weights  # noqa: E402

from matchtir import cli  # noqa: E402

STEPS = 6


def steps_of(output):
    path = Path(output) / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text().splitlines()] if path.exists() else []


def without_times(output):
    path = Path(output) / "metrics.jsonl"
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if "second" not in k} for line in found]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody stopped."""
    output = tmp_path_factory.mktemp("whole") / "run"
    run(output, steps=STEPS)
    return output


def test_killed_run_ends_with_the_same_bits(whole, tmp_path):
    output = tmp_path / "run"
    random.seed(0)
    kills = 0
    for _ in range(12):
        process = subprocess.Popen(
            command(output, steps=STEPS), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        before = len(steps_of(output))
        # Once it steps, at any moment: in rollouts, update, while files are written.
        while process.poll() is None and len(steps_of(output)) <= before:
            time.sleep(0.01)
        try:
            process.wait(random.uniform(0.0, 0.4))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            kills += 1
        _, error = process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, error
    assert kills >= 2
    assert steps_of(output) == list(range(1, STEPS + 1))
    expected = weights(whole, STEPS)
    found = weights(output, STEPS)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert without_times(output) == without_times(whole)
    for step in range(1, STEPS + 1):
        name = f"rollouts/step-{step:06d}.jsonl"
        assert (output / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_saves_and_says_how_to_go_on(number, whole, tmp_path):
    output = tmp_path / "run"
    process = subprocess.Popen(
        command(output, steps=STEPS, checkpoint__every=100),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and len(steps_of(output)) < 2:
        time.sleep(0.01)
    process.send_signal(number)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    done = steps_of(output)
    assert done == list(range(1, len(done) + 1))
    assert len(done) < STEPS
    assert f"goes on after step {len(done)}" in error
    assert (output / f"checkpoints/step-{len(done):06d}").is_dir()
    assert not (output / "summary.json").exists()
    run(output, steps=STEPS, checkpoint__every=100)
    expected, found = weights(whole, STEPS), weights(output, STEPS)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_other_settings_do_not_go_on(whole):
    done = run(whole, steps=STEPS, seed=1, check=False)
    assert done.returncode == 2
    assert "seed is 0 there and 1 here" in done.stderr
    assert steps_of(whole) == list(range(1, STEPS + 1))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_processes_end_with_the_weights_of_one(stage, whole, tmp_path):
    output = tmp_path / "run"
    run(output, steps=STEPS, processes=2, deepspeed__stage=stage)
    expected, found = weights(whole, STEPS), weights(output, STEPS)
    assert without_times(output)[0]["reward"] == without_times(whole)[0]["reward"]
    for name, value in expected.items():
        torch.testing.assert_close(found[name].float(), value.float(), rtol=1e-3, atol=2e-4)
    # From the shares of both processes, without the folder of weights, comes the same model.
    checkpoint = output / f"checkpoints/step-{STEPS:06d}"
    shutil.rmtree(checkpoint / "weights")
    assert cli.main(["export", str(checkpoint), "-o", str(tmp_path / "model")]) == cli.DONE
    exported = load_file(tmp_path / "model/model.safetensors")
    assert all(torch.equal(exported[name].float(), value.float()) for name, value in found.items())
