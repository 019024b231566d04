"""What the folder of a run holds, for whoever reads it while or after it is written.

config.json                     the settings; `matchtir train --config` reads it
metrics.jsonl                   one line a step
rollouts/step-000012.jsonl      every rollout with its matches, rewards and advantages
evaluations/step-000000.jsonl   rollouts of an evaluation, and step-000000.json its metrics
checkpoints/                    see :mod:`matchtir.train.checkpoints`
summary.json                    written at the end, like learning-curve.png
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..errors import InputError

CONFIG, METRICS, SUMMARY, CURVE = "config.json", "metrics.jsonl", "summary.json", "learning-curve.png"
ROLLOUTS, EVALUATIONS, CHECKPOINTS = "rollouts", "evaluations", "checkpoints"


def read_settings(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings of the run in a folder. Raises InputError if there are none that can be read."""
    return _read_json(Path(path) / CONFIG)


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl`` of the run in a folder; an unfinished last one is passed over."""
    source = Path(path) / METRICS
    if not source.is_file():
        return []
    content = source.read_bytes()
    found = []
    for number, line in enumerate(content[: whole_lines(content)].splitlines(), 1):
        try:
            metrics = json.loads(line)
            metrics["step"] = int(metrics["step"])
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{source}, line {number} is no step of a run: {error}") from error
        found.append(metrics)
    return found


def read_evaluations(path: str | os.PathLike[str]) -> dict[int, dict[str, Any]]:
    """The metrics of the evaluations of the run in a folder, by step, ascending.

    Raises InputError if a file is no JSON, or holds no metrics.
    """
    files = [file for file in files_of_steps(Path(path) / EVALUATIONS) if file.suffix == ".json"]
    found = {step_of(file): _read_json(file) for file in sorted(files)}
    for step, one in found.items():
        rows = one.get("rows")
        if not (isinstance(rows, list) and rows and isinstance(rows[0], dict) and "metrics" in rows[0]):
            raise InputError(
                f"the evaluation of step {step} in {path} has no metrics; expected what a run wrote"
            )
    return found


def _read_json(source: Path) -> dict[str, Any]:
    """The object that a file of ours holds."""
    try:
        found = json.loads(source.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{source} is missing; expected the folder of a run") from None
    except ValueError as error:
        raise InputError(f"{source} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{source} holds no object; expected what a run wrote")
    return found


def files_of_steps(folder: Path) -> list[Path]:
    """Files named for a step."""
    return [file for file in folder.glob("step-*.json*") if file.stem[5:].isdigit()]


def step_of(file: Path) -> int:
    """The step that a file is named for."""
    return int(file.stem[5:])


def whole_lines(content: bytes) -> int:
    """Length of what ends with a line's end."""
    return content.rfind(b"\n") + 1
