"""Trackers: TensorBoard for real, the others by the calls that their documentation asks for."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from matchtir.errors import ConfigError
from matchtir.train.settings import resolve
from matchtir.train.trackers import open_tracker

CONFIG = resolve({"method": "grpo"})


class StandIn:
    """A module that keeps what it was called with."""

    def __init__(self, *names: str) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        for name in names:
            setattr(self, name, self._keep(name))

    def _keep(self, name: str) -> Any:
        def called(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, args, kwargs))
            # What starts a run gives it: with the calls of a run of W&B, the id of one of MLflow.
            return SimpleNamespace(
                log=self._keep("run.log"), finish=self._keep("run.finish"), info=SimpleNamespace(run_id="r1")
            )

        return called

    def of(self, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        return [(args, kwargs) for called, args, kwargs in self.calls if called == name]


def follow(folder: Any, *names: str) -> None:
    """A run of two steps, that is stopped and goes on for one more."""
    for steps in ((1, 2), (3,)):
        tracker = open_tracker(names, folder, CONFIG)
        for step in steps:
            tracker.log(step, {"train/reward": step / 2, "train/kl": None})
        tracker.close()


def test_tensorboard_holds_every_step(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    follow(tmp_path, "tensorboard")
    found = events.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert found.Tags()["scalars"] == ["train/reward"]
    assert [(one.step, one.value) for one in found.Scalars("train/reward")] == [(1, 0.5), (2, 1.0), (3, 1.5)]
    (text,) = found.Tags()["tensors"]
    assert b'"method": "grpo"' in found.Tensors(text)[0].tensor_proto.string_val[0]


def test_wandb_gets_the_settings_and_goes_on_with_its_run(tmp_path, monkeypatch):
    wandb = StandIn("init")
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    follow(tmp_path, "wandb")
    first, second = (kwargs for _, kwargs in wandb.of("init"))
    assert first["id"] == second["id"]
    assert (first["project"], first["name"], first["resume"]) == ("matchtir", tmp_path.name, "allow")
    assert first["config"]["credit"]["reward"] == "outcome"
    assert wandb.of("run.log") == [(({"train/reward": step / 2},), {"step": step}) for step in (1, 2, 3)]
    assert len(wandb.of("run.finish")) == 2


def test_mlflow_gets_the_settings_and_goes_on_with_its_run(tmp_path, monkeypatch):
    names = ("set_experiment", "start_run", "log_params", "log_metrics", "end_run")
    mlflow = StandIn(*names)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    follow(tmp_path, "mlflow")
    assert mlflow.of("start_run") == [((), {"run_name": tmp_path.name}), ((), {"run_id": "r1"})]
    ((params,), _) = mlflow.of("log_params")[0]
    assert params["update.lr"] == CONFIG.update.lr
    logged = [(({"train/reward": step / 2},), {"step": step}) for step in (1, 2, 3)]
    assert mlflow.of("log_metrics") == logged
    assert len(mlflow.of("end_run")) == 2


def test_trackio_gets_the_settings_and_goes_on_with_its_run(tmp_path, monkeypatch):
    trackio = StandIn("init", "log", "finish")
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    follow(tmp_path, "trackio")
    first, second = (kwargs for _, kwargs in trackio.of("init"))
    assert first["name"] == second["name"]
    assert first["resume"] == "allow"
    assert trackio.of("log") == [(({"train/reward": step / 2},), {"step": step}) for step in (1, 2, 3)]
    assert len(trackio.of("finish")) == 2


def test_several_trackers_are_told_and_closed_together(tmp_path, monkeypatch):
    wandb, trackio = StandIn("init"), StandIn("init", "log", "finish")
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    follow(tmp_path, "wandb", "trackio")
    assert set(json.loads((tmp_path / "trackers.json").read_text())) == {"wandb", "trackio"}
    assert len(wandb.of("run.log")) == len(trackio.of("log")) == 3
    assert len(wandb.of("run.finish")) == len(trackio.of("finish")) == 2


def test_missing_tracker_says_what_to_install_and_closes_the_others(tmp_path, monkeypatch):
    trackio = StandIn("init", "log", "finish")
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ImportError, match="report_to mlflow needs its package: pip install mlflow"):
        open_tracker(("trackio", "mlflow"), tmp_path, CONFIG)
    assert len(trackio.of("finish")) == 1
    with pytest.raises(ConfigError, match="report_to is 'nobody'"):
        open_tracker(("nobody",), tmp_path, CONFIG)


def test_no_tracker_is_a_tracker(tmp_path):
    follow(tmp_path)
    assert list(tmp_path.iterdir()) == []
