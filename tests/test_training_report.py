"""What is shown of a run: lines in a pipe, the display on a terminal, the summary, the learning curve."""

from __future__ import annotations

import io
import re
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from matchtir.report.learning_curve import draw_learning_curve, smoothed
from matchtir.report.training import TrainingDisplay, summary_tables
from matchtir.train.watch import Silent, Watch

CONFIG = SimpleNamespace(method="matchtir-km", model="embedded", tasks="embedded", seed=3, output="runs/a")


def evaluation(f1: float, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    names = ("solve_p", "solve_r", "solve_f1", "correct", "calls")
    estimate = {"mean": f1, "low": low, "high": high, "tasks": 200}
    metrics: dict[str, Any] = dict.fromkeys(names, estimate)
    metrics |= {"failed_calls": None, "turns": estimate, "unanswered": estimate}
    row = {"level": "overall", "name": "all", "tasks": 200, "rollouts": 200, "metrics": metrics}
    return {"samples": 2000, "confidence": 0.95, "seed": 0, "notes": [], "rows": [row]}


def step_metrics(step: int, **more: float | None) -> dict[str, float | None]:
    known: dict[str, float | None] = {
        "reward": 0.1 * step,
        "reward/multi_hop": 0.2,
        "solve_f1": 0.5,
        "matched": 1.0,
        "silent_groups": 0.0,
        "calls": 3.25,
        "unanswered": None,
        "tokens_per_second": 12345.6,
        "seconds": 2.0,
    }
    return known | more


def watched(watch: Watch) -> None:
    """A whole run of 120 steps, as a trainer tells it."""
    watch.note("3 tasks left out")
    watch.start(CONFIG, {"parameters": 294000, "device": "cpu", "resumed": None})  # type: ignore[arg-type]
    watch.phase("evaluation")
    watch.evaluation(0, evaluation(0.29, 0.25, 0.33))
    for step in range(1, 121):
        watch.phase("rollouts")
        watch.step(step, step_metrics(step))
    watch.end(
        {"method": "matchtir-km", "steps": 120, "seconds": 241.4, "seconds_by_phase": {"update": 140.0}}
    )


def shown(terminal: bool) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=100, highlight=False)
    watched(TrainingDisplay(120, console))
    return stream.getvalue()


def test_pipe_gets_one_aligned_line_a_step_and_no_control_characters():
    text = shown(terminal=False)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)
    lines = text.splitlines()
    assert lines[0] == "note: 3 tasks left out"
    assert lines[1] == "matchtir-km, embedded on embedded, seed 3, in runs/a"
    assert "parameters 294,000" in lines[2]
    steps = [line for line in lines if re.match(r" *\d+/120 ", line)]
    assert len(steps) == 120
    (head,) = [line for line in lines if "Solve-F1" in line and "s/step" in line]
    assert {len(line) for line in steps} == {len(head)}
    assert re.split(r" {2,}", steps[0].strip()) == [
        "1/120", "0.100", "50.0 %", "100.0 %", "0.0 %", "3.25", "-", "12,346", "2.00", "3:58",
    ]  # fmt: skip
    assert steps[-1].endswith("0:00")
    assert "evaluation after step 0: Solve-F1 29.0 % (25.0-33.0)" in text
    assert "matchtir-km: 120 steps in 4:01 (update 2:20)" in text


def test_terminal_gets_a_display_that_goes_away():
    text = shown(terminal=True)
    assert "\x1b[" in text
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert "step 120 of 120" in plain
    assert "multi_hop" in plain
    assert "groups without signal" in plain
    assert not re.search(r"^ *5/120 ", plain, flags=re.M)
    # The cursor, which the display hides, is there again.
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")


def test_display_is_taken_away_when_a_run_fails():
    stream = io.StringIO()
    display = TrainingDisplay(5, Console(file=stream, force_terminal=True))
    display.step(1, step_metrics(1))
    display.close()
    display.close()
    text = stream.getvalue()
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")


def test_resumed_run_says_after_which_step_and_reckons_with_what_is_left():
    stream = io.StringIO()
    display = TrainingDisplay(120, Console(file=stream, width=100))
    display.start(CONFIG, {"resumed": 40})
    display.step(41, step_metrics(41, seconds=10.0))
    text = stream.getvalue()
    assert "resuming after step 40" in text
    assert text.splitlines()[-1].endswith(" 13:10")


def test_text_of_models_reaches_the_terminal_as_text():
    stream = io.StringIO()
    display = TrainingDisplay(5, Console(file=stream, width=100))
    display.note("tool \x1b[2J[red]x")
    assert stream.getvalue() == "note: tool \\x1b[2J[red]x\n"


def test_summary_shows_before_and_after_with_intervals():
    stream = io.StringIO()
    summary = {"method": "grpo", "steps": 9, "seconds": 3723.0, "seconds_by_phase": {}}
    both = {"before": evaluation(0.29, 0.25, 0.33), "after": evaluation(0.7, 0.6, 0.8)}
    Console(file=stream, width=80).print(summary_tables(summary | both))
    lines = stream.getvalue().splitlines()
    (row,) = [line for line in lines if line.strip().startswith("Solve-F1")]
    assert row.split("  ")[-2:] != []
    assert re.findall(r"[\d.]+ % \([\d.-]+\)", row) == ["29.0 % (25.0-33.0)", "70.0 % (60.0-80.0)"]
    assert any("calls a task" in line and "0.29 (0.25-0.33)" in line for line in lines)
    assert "200 tasks; in brackets the 95 % interval" in stream.getvalue()
    assert lines[-1] == "grpo: 9 steps in 1:02:03"
    for only in ("before", "after"):
        stream = io.StringIO()
        Console(file=stream, width=80).print(summary_tables(summary | {only: evaluation(0.5)}))
        text = stream.getvalue()
        assert only in text
        assert "50.0 %" in text
        assert ("after" if only == "before" else "before") not in text


def test_silent_watch_says_nothing(capsys):
    watched(Silent())
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")


def test_smoothing_is_the_mean_of_what_is_near_and_known():
    values = np.array([1.0, 2.0, 3.0, np.nan, 5.0])
    assert smoothed(values, 1)[:3].tolist() == [1.0, 2.0, 3.0]
    assert smoothed(values, 3).tolist() == [1.5, 2.0, 2.5, 4.0, 5.0]
    assert np.isnan(smoothed(np.array([np.nan]), 3)).all()


def drawn(path: Path) -> tuple[int, int]:
    """Width and height of a PNG file."""
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content[-8:-4] == b"IEND"
    width, height = struct.unpack(">II", content[16:24])
    return width, height


@pytest.mark.parametrize(
    ("metrics", "evaluations"),
    [
        (
            [{"step": i, **step_metrics(i)} for i in range(1, 40)],
            {0: evaluation(0.3, 0.2, 0.4), 39: evaluation(0.6)},
        ),
        ([{"step": 1, "reward": 0.5}], {}),
        ([{"step": 1, "reward": None}, {"step": 2}], {0: evaluation(0.3)}),
        ([], {}),
    ],
    ids=["whole", "one step", "nothing known", "empty"],
)
def test_learning_curve_is_a_picture_whatever_is_known(tmp_path, metrics, evaluations):
    pytest.importorskip("matplotlib")
    draw_learning_curve(tmp_path / "a.png", metrics, evaluations, "matchtir-km, embedded, seed 0")
    assert drawn(tmp_path / "a.png") == (1300, 832)
    assert list(tmp_path.iterdir()) == [tmp_path / "a.png"]


def test_learning_curve_draws_what_the_run_holds(tmp_path, monkeypatch):
    figure_module = pytest.importorskip("matplotlib.figure")
    kept: list[Any] = []
    savefig = figure_module.Figure.savefig
    monkeypatch.setattr(
        figure_module.Figure, "savefig", lambda self, *a, **k: (kept.append(self), savefig(self, *a, **k))
    )
    metrics = [{"step": i, **step_metrics(i)} for i in range(1, 40)]
    draw_learning_curve(tmp_path / "a.png", metrics, {0: evaluation(0.3, 0.2, 0.4)}, "title")
    panels = {axes.get_title(loc="left"): axes for axes in kept[0].axes}
    assert list(panels) == ["mean return", "Solve-F1, %", "groups without signal, %", "calls a rollout"]
    raw, smooth = panels["mean return"].lines
    assert raw.get_ydata().tolist() == [line["reward"] for line in metrics]
    assert smooth.get_ydata()[20] == pytest.approx(2.1)
    assert panels["Solve-F1, %"].lines[0].get_ydata()[0] == 50.0
    (bars,) = panels["Solve-F1, %"].containers
    assert bars.lines[0].get_ydata().tolist() == [30.0]
    (segment,) = bars.lines[2][0].get_segments()
    assert segment[:, 1].tolist() == pytest.approx([20.0, 40.0])


def test_learning_curve_without_matplotlib_says_what_to_install(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'needs matplotlib: pip install "matchtir\[train\]"'):
        draw_learning_curve(tmp_path / "a.png", [], {}, "title")
