"""What the folder of a run adds to its rollouts: curves of its steps and evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .charts import Chart, Line, line_chart, stacked_chart

Metrics = Sequence[Mapping[str, Any]]
Evaluations = Mapping[int, Mapping[str, Any]]

_PHASE = "seconds/"


def run_charts(metrics: Metrics, evaluations: Evaluations) -> list[Chart]:
    """Curves over the steps; those of which nothing is known are left out.

    Parameters
    ----------
    metrics : sequence of mapping
        One per step, as ``metrics.jsonl`` has them.
    evaluations : mapping of int to mapping
        By step, as `matchtir.evals.Evaluation.to_dict` gives them.
    """
    kinds = sorted({name for line in metrics for name in line if name.startswith("reward/")})
    reward = [_of_steps(metrics, "reward", "all"), *(_of_steps(metrics, name, name[7:]) for name in kinds)]
    confidence = next((one.get("confidence", 0.95) for one in evaluations.values()), 0.95)
    judged = f"evaluations with their {100 * confidence:g} % interval"
    charts = [
        _chart("reward", "Mean return", reward, note="all rollouts, and by kind of task" if kinds else ""),
        _chart("solve-f1", "Solve-F1", _both(metrics, evaluations, "solve_f1"), judged=judged, share=True),
        _chart("correct", "Right answers", _both(metrics, evaluations, "correct"), judged=judged, share=True),
        _chart("matched", "Matched calls", [_of_steps(metrics, "matched", "matched")], share=True),
        _chart(
            "silent",
            "Groups without signal",
            [_of_steps(metrics, "silent_groups", "silent groups")],
            note="every advantage is 0",
            share=True,
        ),
        _chart("calls", "Calls per rollout", _both(metrics, evaluations, "calls"), judged=judged),
    ]
    phases = sorted({name for line in metrics for name in line if name.startswith(_PHASE)})
    if phases:
        seconds = {name[len(_PHASE) :]: [float(line.get(name) or 0.0) for line in metrics] for name in phases}
        shown = {
            name: values
            for name, values in seconds.items()
            if sum(values) >= 0.01 * sum(map(sum, seconds.values()))
        }
        steps = [line["step"] for line in metrics]
        charts.append(
            stacked_chart(
                "phases", "Seconds per step, by phase", steps, shown, label="step; phases of 1 % or more"
            )
        )
    return [chart for chart in charts if chart is not None]


def rollout_charts(columns: Mapping[str, list[Any]], details: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Curves of the rollouts that the page holds: advantage by turn, and calls that went wrong by step."""
    charts = []
    by_turn: dict[int, list[float]] = {}
    for one in details:
        for t, turn in enumerate(one["turns"]):
            by_turn.setdefault(t, []).append(turn["advantage"])
    if by_turn:
        turns = sorted(by_turn)
        low, mean, high = (
            [float(number(by_turn[t])) for t in turns]
            for number in (lambda v: np.quantile(v, 0.2), np.mean, lambda v: np.quantile(v, 0.8))
        )
        line = Line("mean", turns, mean, low, high)
        note = "mean, and quantiles of 20 and 80 %; "
        note += f"{len(by_turn[0]):,} rollouts at first, {len(by_turn[turns[-1]]):,} at the last turn"
        charts.append(
            line_chart("advantage", "Advantage by turn", [line], x="turn of the rollout", note=note)
        )
    steps = sorted({step for step in columns["step"] if step is not None})
    if len(steps) > 1:
        sums = {name: dict.fromkeys(steps, 0.0) for name in ("calls", "unmatched", "malformed")}
        for step, *counts in zip(columns["step"], *(columns[name] for name in sums), strict=True):
            for name, count in zip(sums, counts, strict=True):
                sums[name][step] += count
        lines = [
            Line(
                name, steps, [sums[name][step] / max(1.0, sums["calls"][step]) for step in steps], smooth=True
            )
            for name in ("unmatched", "malformed")
        ]
        note = "of the calls of the rollouts below; malformed ones are unmatched too"
        charts.append(line_chart("wrong", "Calls that match nothing", lines, x="step", note=note, share=True))
    return charts


def _chart(
    id: str, title: str, lines: Sequence[Line], *, note: str = "", judged: str = "", share: bool = False
) -> Chart | None:
    """A chart over the steps, of the lines that have numbers; `judged` is its note if it has intervals."""
    known = [line for line in lines if any(value is not None for value in line.y)]
    if any(line.low is not None for line in known):
        note = judged
    return line_chart(id, title, known, x="step", note=note, share=share) if known else None


def _both(metrics: Metrics, evaluations: Evaluations, name: str) -> list[Line]:
    """A metric of the training rollouts, and of the evaluations with its interval."""
    found = {step: one["rows"][0]["metrics"].get(name) for step, one in sorted(evaluations.items())}
    points = {step: estimate for step, estimate in found.items() if estimate is not None}
    low, mean, high = ([one.get(end) for one in points.values()] for end in ("low", "mean", "high"))
    evaluated = Line("evaluation", list(points), mean, low, high)
    return [_of_steps(metrics, name, "training rollouts"), evaluated]


def _of_steps(metrics: Metrics, name: str, label: str) -> Line:
    """A metric of the training rollouts."""
    return Line(label, [line["step"] for line in metrics], [line.get(name) for line in metrics], smooth=True)
