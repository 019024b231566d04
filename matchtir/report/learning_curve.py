"""The picture of a run: reward, Solve-F1, groups without signal and calls, step by step."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..rows import whole_file
from ..types import FloatArray

_RAW, _SMOOTH, _MEASURED = "#b9cfe6", "#1f5fa8", "#d1590a"  # pale and dark blue, orange: seen by everybody
_SIZE = (10.0, 6.4)  # inches
_DPI = 130

# Metric of the steps, metric of the evaluations, what it is, whether it is a share.
_PANELS = (
    ("reward", None, "mean return", False),
    ("solve_f1", "solve_f1", "Solve-F1, %", True),
    ("silent_groups", None, "groups without signal, %", True),
    ("calls", "calls", "calls a rollout", False),
)


def draw_learning_curve(
    path: str | os.PathLike[str],
    metrics: Sequence[Mapping[str, Any]],
    evaluations: Mapping[int, Mapping[str, Any]],
    title: str,
) -> None:
    """Draw a run as a PNG file, which is whole or not there.

    Parameters
    ----------
    path : str or path
        The file.
    metrics : sequence of mapping
        One per step, with its number `step`, as ``metrics.jsonl`` has them. A metric may be missing or None.
    evaluations : mapping of int to mapping
        By step, as `matchtir.evals.Evaluation.to_dict` gives them.
    title : str
        What was run.

    Raises
    ------
    ImportError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('a learning curve needs matplotlib: pip install "matchtir[train]"') from error
    figure = Figure(figsize=_SIZE, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=14, fontweight="bold")
    panels = figure.subplots(2, 2, sharex=True)
    for axes, (of_steps, of_evaluations, label, share) in zip(panels.flat, _PANELS, strict=True):
        scale = 100.0 if share else 1.0
        _draw_steps(axes, metrics, of_steps, scale)
        if of_evaluations is not None:
            _draw_evaluations(axes, evaluations, of_evaluations, scale)
        _finish(axes, label, share)
    for axes in panels[1]:
        axes.set_xlabel("step", fontsize=11)
    # One legend for all panels, which draw the same things.
    drawn = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in panels.flat]
    legend = {label: handle for pairs in drawn for handle, label in pairs}
    place: dict[str, Any] = {"loc": "outside lower center", "ncols": 3, "fontsize": 11, "frameon": False}
    figure.legend(list(legend.values()), list(legend), **place)
    with whole_file(path) as stream:
        figure.savefig(stream, format="png", dpi=_DPI)


def smoothed(values: FloatArray, window: int) -> FloatArray:
    """Mean of the up to `window` values around each, fewer at the ends; NaN counts as no value.

    >>> smoothed(np.array([0.0, 3.0, np.nan, 1.0]), 3).tolist()
    [1.5, 1.5, 2.0, 1.0]
    """
    half = window // 2
    chosen = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    known = [part[~np.isnan(part)] for part in chosen]
    return np.array([part.mean() if len(part) else np.nan for part in known])


def _draw_steps(axes: Any, metrics: Sequence[Mapping[str, Any]], name: str, scale: float) -> None:
    """A metric of the training rollouts, as it was and smoothed."""
    steps = np.array([line["step"] for line in metrics], dtype=float)
    values = np.array([_number(line.get(name)) for line in metrics], dtype=float) * scale
    if np.isnan(values).all():
        return
    # Enough steps to see through the noise of one batch, few enough to see a change of direction.
    window = max(3, len(steps) // 12) | 1
    axes.plot(steps, values, color=_RAW, linewidth=1.2, label="training rollouts")
    label = f"the same, mean of {window} steps"
    axes.plot(steps, smoothed(values, window), color=_SMOOTH, linewidth=2.2, label=label)


def _draw_evaluations(
    axes: Any, evaluations: Mapping[int, Mapping[str, Any]], name: str, scale: float
) -> None:
    """A metric of the evaluations, with its interval."""
    found = {step: evaluation["rows"][0]["metrics"].get(name) for step, evaluation in evaluations.items()}
    points = [(step, estimate) for step, estimate in sorted(found.items()) if estimate is not None]
    if not points:
        return
    means = np.array([estimate["mean"] for _, estimate in points]) * scale
    low, high = (
        np.array([_number(estimate[end], estimate["mean"]) for _, estimate in points]) * scale
        for end in ("low", "high")
    )
    confidence = next(iter(evaluations.values())).get("confidence", 0.95)
    axes.errorbar(
        [step for step, _ in points],
        means,
        yerr=np.vstack([means - low, high - means]).clip(min=0.0),
        color=_MEASURED,
        linewidth=1.5,
        marker="o",
        markersize=6,
        capsize=4,
        zorder=3,
        label=f"evaluation, {100 * confidence:g} % interval",
    )


def _finish(axes: Any, label: str, share: bool) -> None:
    """Labels, grid and limits of a panel."""
    axes.set_title(label, fontsize=12, loc="left")
    axes.tick_params(labelsize=10)
    axes.grid(alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.margins(x=0.02)
    if share:
        axes.set_ylim(0.0, 100.0)
    if not axes.has_data():
        axes.text(0.5, 0.5, "not known", transform=axes.transAxes, ha="center", color="gray", fontsize=11)


def _number(value: Any, otherwise: float = np.nan) -> float:
    """A number, or what stands for None."""
    return otherwise if value is None else float(value)
