"""Small training runs for tests: a random policy of the embedded family, few tasks, short rollouts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from matchtir.train.settings import resolve

SMALL = {
    "steps": 4,
    "data.limit": 12,
    "data.eval_limit": 6,
    "rollout.max_turns": 3,
    "rollout.max_response_tokens": 60,
    "rollout.max_prompt_tokens": 200,
    "rollout.tool_workers": 1,
    "credit.penalty": 0.3,
    "update.prompts": 3,
    "update.group_size": 4,
    "checkpoint.every": 1,
}


def small_config(output, **changes):
    """The configuration of a run of seconds; `changes` by dotted name with double underscores for dots."""
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return resolve({**SMALL, "output": str(output)}, named)


def command(output, *options, processes=1, **changes):
    """The same run as a command line."""
    named = {name.replace("__", "."): value for name, value in changes.items()}
    start = [sys.executable, "-m"]
    if processes > 1:
        start += ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"]
    values = {**SMALL, "output": str(output), **named}
    settings = [f"--{name}={value}" for name, value in values.items()]
    return [*start, "matchtir", "train", *settings, *options]


def environment():
    """One thread, as on one CPU process; no launcher's variables."""
    launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in launcher}
    return {**kept, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}


def run(*arguments, check=True, **more):
    """Run such a command to its end."""
    done = subprocess.run(
        command(*arguments, **more),
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


def weights(output, step):
    """The weights of a checkpoint, by name."""
    from safetensors.torch import load_file

    return load_file(Path(output) / f"checkpoints/step-{step:06d}/weights/model.safetensors")
