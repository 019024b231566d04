"""The folder of a run: one process writes it, whole lines and whole files, and a killed run goes on in it.

What it holds is described, and read, in :mod:`matchtir.train.run_files`.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import ConfigError, InputError
from ..rows import whole_file
from .config import TrainConfig
from .disk import remove, sync, writing
from .run_files import (
    CHECKPOINTS,
    CONFIG,
    CURVE,
    EVALUATIONS,
    METRICS,
    ROLLOUTS,
    SUMMARY,
    files_of_steps,
    read_metrics,
    read_settings,
    step_of,
    whole_lines,
)

_MARK = ".matchtir-run"
# What a run may leave in its folder, and `fresh` may remove; anything else there is somebody else's.
# The settings are the last to go: without them nobody knows what the rest is.
_TRACKED = ("trackers.json", "tensorboard", "wandb")
_OURS = (METRICS, SUMMARY, CURVE, ROLLOUTS, EVALUATIONS, CHECKPOINTS, *_TRACKED, "failed", CONFIG)
# Settings that change nothing of what is learnt.
_FREE = ("output", "report_to", "checkpoint")


class RunFolder:
    """Opens the folder of a run: a new one, or one to go on with.

    Parameters
    ----------
    config : TrainConfig
        `output` is the folder.
    fresh : bool
        Remove what an earlier run, of whatever settings, left in the folder.

    Attributes
    ----------
    path : Path
        The folder.
    resumes : bool
        Whether a run with these settings was there.

    Raises
    ------
    InputError
        As :func:`check_output`; or if another process has the folder open, or the disk is full.
    OSError
        If it cannot be made or written.
    """

    def __init__(self, config: TrainConfig, *, fresh: bool = False) -> None:
        self.path = Path(config.output)
        check_output(config, fresh=fresh)
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._lock = os.open(self.path / _MARK, flags, 0o666)
        try:
            self._take_lock()
            if fresh:
                for name in _OURS:
                    remove(self.path / name)
            self.resumes = check_output(config)
            self._write_json(CONFIG, settings_of(config))
            self._repair()
        except BaseException:
            os.close(self._lock)
            raise

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / CHECKPOINTS

    def cut(self, step: int) -> None:
        """Remove what was recorded after `step` steps, because training goes on from there."""
        kept = [line for line in read_metrics(self.path) if line["step"] <= step]
        with writing(self.path / METRICS), whole_file(self.path / METRICS) as stream:
            stream.writelines(_line(line) for line in kept)
        for name in (ROLLOUTS, EVALUATIONS):
            for file in files_of_steps(self.path / name):
                if step_of(file) > step:
                    remove(file)
        remove(self.path / SUMMARY)

    def write_metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Add a step's line to ``metrics.jsonl``; it is on the disk, or not in the file, when this returns.

        A number that is not finite becomes null, which JSON can hold.
        """
        path = self.path / METRICS
        with writing(path), open(path, "ab", buffering=0) as stream:
            end = stream.seek(0, os.SEEK_END)
            try:
                view = memoryview(_line({"step": step, **metrics}))
                while view:
                    view = view[stream.write(view) :]
                os.fsync(stream.fileno())
            except OSError:
                # The part that the disk still took is no line. A device or pipe has no end to cut.
                if os.path.isfile(path):
                    stream.truncate(end)
                raise

    def write_rollouts(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the rollouts of a step, as :func:`matchtir.train.rollout_rows.rollout_rows` has them."""
        self._write_lines(ROLLOUTS, step, rows)

    def write_evaluation(
        self, step: int, rows: Iterable[Mapping[str, Any]], evaluation: Mapping[str, Any]
    ) -> None:
        """Write an evaluation after `step` steps: its rollouts, then its metrics, which make it complete."""
        self._write_lines(EVALUATIONS, step, rows)
        self._write_json(f"{EVALUATIONS}/step-{step:06d}.json", {"step": step, **evaluation})

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``."""
        self._write_json(SUMMARY, summary)

    def close(self) -> None:
        """Give the folder free for other processes."""
        os.close(self._lock)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take_lock(self) -> None:
        """Keep other processes out, as long as this one has the folder open."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{self.path} belongs to a run that is going on in another process") from None

    def _repair(self) -> None:
        """Cut off a last line of metrics that a killed process left unfinished."""
        path = self.path / METRICS
        if path.is_file() and (whole := whole_lines(path.read_bytes())) != path.stat().st_size:
            os.truncate(path, whole)
            sync(path)

    def _write_lines(self, folder: str, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """A file of rows, whole or not there."""
        target = self.path / folder / f"step-{step:06d}.jsonl"
        with writing(target):
            target.parent.mkdir(exist_ok=True)
            with whole_file(target) as stream:
                stream.writelines(_line(row) for row in rows)

    def _write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """A file of one JSON object, whole or not there."""
        target = self.path / name
        text = json.dumps(_plain(value), indent=2, allow_nan=False)
        with writing(target), whole_file(target) as stream:
            stream.write(text.encode("ascii") + b"\n")


def settings_of(config: TrainConfig) -> dict[str, Any]:
    """A configuration as JSON values, nested like the configuration."""
    found: dict[str, Any] = json.loads(json.dumps(asdict(config), default=dict))
    return found


def check_output(config: TrainConfig, *, fresh: bool = False) -> bool:
    """Whether a run with these settings is in the folder `output`; nothing is written.

    Where a run is to go on, `output`, `report_to` and `checkpoint` may differ, and `steps` too with a
    constant learning rate.

    Raises
    ------
    InputError
        If something is there that is no run of ours; or, unless `fresh`, a run with other settings.
    """
    path = Path(config.output)
    if not path.exists():
        return False
    if not path.is_dir():
        raise InputError(f"output {str(path)!r} is a file; expected a folder, or the name of a new one")
    if not (path / _MARK).is_file():
        if any(path.iterdir()):
            raise InputError(
                f"output {str(path)!r} is a folder that holds something else; expected a new or an empty "
                "one, or that of a run"
            )
        return False
    if fresh:
        return False
    if not (path / CONFIG).is_file():
        if any((path / name).exists() for name in _OURS):
            raise InputError(f"{path / CONFIG} is missing from a run; expected another output, or --fresh")
        return False
    if not any((path / name).exists() for name in (METRICS, EVALUATIONS, CHECKPOINTS)):
        return False  # it failed before it began
    changed = _differences(read_settings(path), settings_of(config))
    if changed:
        raise InputError(
            f"output {str(path)!r} holds a run with other settings: {'; '.join(changed)}. Expected the same "
            "ones, which go on with it, another output, or --fresh, which starts over"
        )
    return True


def _differences(there: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Settings that differ, each with both values, but those that change nothing of what is learnt."""
    free: tuple[str, ...] = ()
    if not prefix:
        constant = all(one.get("update", {}).get("schedule") == "constant" for one in (there, wanted))
        free = (*_FREE, "steps") if constant else _FREE
    found = []
    for name in {**there, **wanted}:
        old, new = there.get(name), wanted.get(name)
        if name in free or old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += _differences(old, new, f"{prefix}{name}.")
        else:
            found.append(f"{prefix}{name} is {json.dumps(old)} there and {json.dumps(new)} here")
    return found


def _line(row: Mapping[str, Any]) -> bytes:
    """A line of JSON."""
    return json.dumps(_plain(row), allow_nan=False).encode("ascii") + b"\n"


def _plain(value: Any) -> Any:
    """JSON values of mappings, sequences and numbers of NumPy; null for a number that is not finite."""
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if hasattr(value, "item"):
        return _plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    raise ConfigError(f"{value!r} is a {type(value).__name__}; expected what JSON can hold")
