"""Trackers that people already use: TensorBoard, W&B, MLflow, trackio, each imported when it is asked for."""

from __future__ import annotations

import importlib
import json
import secrets
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from ..errors import ConfigError
from ..rows import whole_file
from .config import TRACKERS, TrainConfig
from .run_folder import settings_of

PROJECT = "matchtir"

_REMEMBERED = "trackers.json"


class Tracker(Protocol):
    """Takes numbers by name, step by step."""

    def log(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Record a step's numbers; those that are None are left out."""

    def close(self) -> None:
        """Write what is left, and end."""


def open_tracker(names: Sequence[str], folder: Path, config: TrainConfig) -> Tracker:
    """Open trackers, as one.

    A run that goes on, goes on in the trackers too: their ids of it are kept in the folder.

    Parameters
    ----------
    names : sequence of str
        Of "tensorboard", "wandb", "mlflow", "trackio"; none is fine.
    folder : path
        Of the run. TensorBoard writes into its folder ``tensorboard``.
    config : TrainConfig
        Recorded with the run.

    Raises
    ------
    ImportError
        If a tracker's package is missing; the message says what to install.
    ConfigError
        If there is no such tracker.
    """
    with ExitStack() as stack:
        opened: list[Tracker] = []
        for name in names:
            if name not in TRACKERS:
                raise ConfigError(f"report_to is {name!r}; expected names of {', '.join(TRACKERS)}")
            opened.append(_OPEN[name](folder, config))
            stack.callback(opened[-1].close)
        return _Several(opened, stack.pop_all())


class _Several:
    """Several trackers as one."""

    def __init__(self, trackers: Sequence[Tracker], stack: ExitStack) -> None:
        self._trackers, self._stack = trackers, stack

    def log(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Tell all of them."""
        known = {name: float(value) for name, value in metrics.items() if value is not None}
        for tracker in self._trackers:
            tracker.log(step, known)

    def close(self) -> None:
        """Close all of them, whatever one of them raises."""
        self._stack.close()


class _TensorBoard:
    """Event files in the folder of the run."""

    def __init__(self, folder: Path, config: TrainConfig) -> None:
        module = _module("torch.utils.tensorboard", "tensorboard")
        self._writer = module.SummaryWriter(log_dir=str(folder / "tensorboard"))
        text = json.dumps(settings_of(config), indent=2)
        self._writer.add_text("settings", "\n".join(f"    {line}" for line in text.splitlines()), 0)

    def log(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """One scalar a number; flushed, so that a killed run shows them."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class _Wandb:
    """A run of Weights & Biases."""

    def __init__(self, folder: Path, config: TrainConfig) -> None:
        module = _module("wandb", "wandb")
        self._run = module.init(
            project=PROJECT,
            name=folder.name,
            id=_remembered(folder, "wandb") or _remember(folder, "wandb", secrets.token_hex(8)),
            resume="allow",
            dir=str(folder),
            config=settings_of(config),
        )

    def log(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """All numbers of the step."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """End the run."""
        self._run.finish()


class _MLflow:
    """A run of MLflow, wherever its own settings say."""

    def __init__(self, folder: Path, config: TrainConfig) -> None:
        self._mlflow = _module("mlflow", "mlflow")
        known = _remembered(folder, "mlflow")
        if known is not None:
            self._mlflow.start_run(run_id=known)
            return
        self._mlflow.set_experiment(PROJECT)
        run = self._mlflow.start_run(run_name=folder.name)
        _remember(folder, "mlflow", run.info.run_id)
        self._mlflow.log_params(dict(_dotted(settings_of(config))))

    def log(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """All numbers of the step."""
        self._mlflow.log_metrics(dict(metrics), step=step)

    def close(self) -> None:
        """End the run."""
        self._mlflow.end_run()


class _Trackio:
    """A run of trackio."""

    def __init__(self, folder: Path, config: TrainConfig) -> None:
        self._trackio = _module("trackio", "trackio")
        name = _remembered(folder, "trackio")
        if name is None:
            # Its runs are told apart by their names alone.
            name = _remember(folder, "trackio", f"{folder.name}-{secrets.token_hex(3)}")
        self._trackio.init(project=PROJECT, name=name, config=settings_of(config), resume="allow")

    def log(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """All numbers of the step."""
        self._trackio.log(dict(metrics), step=step)

    def close(self) -> None:
        """End the run."""
        self._trackio.finish()


_OPEN: dict[str, Any] = {
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
    "mlflow": _MLflow,
    "trackio": _Trackio,
}


def _module(name: str, package: str) -> Any:
    """A tracker's module; raises ImportError with what to install."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"report_to {package} needs its package: pip install {package}") from error


def _remembered(folder: Path, tracker: str) -> str | None:
    """A tracker's id of the run in a folder."""
    source = folder / _REMEMBERED
    found = json.loads(source.read_bytes()) if source.is_file() else {}
    return found.get(tracker)


def _remember(folder: Path, tracker: str, name: str) -> str:
    """Keep a tracker's id of the run, and return it."""
    source = folder / _REMEMBERED
    found = json.loads(source.read_bytes()) if source.is_file() else {}
    with whole_file(source) as stream:
        stream.write(json.dumps({**found, tracker: name}).encode("ascii") + b"\n")
    return name


def _dotted(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested settings by dotted name."""
    found: list[tuple[str, Any]] = []
    for name, value in settings.items():
        inside = isinstance(value, Mapping)
        found += _dotted(value, f"{prefix}{name}.") if inside else [(f"{prefix}{name}", value)]
    return found
