"""Means of the metrics over tasks: overall, by kind and by difficulty, with confidence intervals."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..types import FloatArray, IntArray, Trajectory
from .bootstrap import Bootstrap
from .metrics import METRICS, Measured, measure

BANDS = ((1, 3, "1-3"), (4, 7, "4-7"), (8, 11, "8-11"), (12, None, "12+"))
"""Difficulty bands: least and most gold calls, and name."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Mean of a metric over the `tasks` that have it, and its confidence interval where there is one."""

    mean: float
    low: float | None
    high: float | None
    tasks: int


@dataclass(frozen=True, slots=True)
class EvaluationRow:
    """The metrics of all tasks (`level` "overall"), of one kind ("kind") or difficulty band ("band")."""

    level: str
    name: str
    tasks: int
    rollouts: int
    metrics: Mapping[str, Estimate | None]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What :func:`evaluate` found.

    Attributes
    ----------
    rows : tuple of EvaluationRow
        Overall; then each kind by name, if any task has one; then the difficulty bands that occur.
    bootstrap : Bootstrap
        How the intervals were found.
    notes : tuple of str
        What a reader of the numbers should know of the data.
    """

    rows: tuple[EvaluationRow, ...]
    bootstrap: Bootstrap
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; a metric that no task of a row has is None."""
        return {
            "samples": self.bootstrap.samples,
            "confidence": self.bootstrap.confidence,
            "seed": self.bootstrap.seed,
            "notes": list(self.notes),
            "rows": [asdict(row) for row in self.rows],
        }


def evaluate(trajectories: Sequence[Trajectory], bootstrap: Bootstrap | None = None) -> Evaluation:
    """Measure rollouts and average over tasks: :func:`measure` each, :func:`summarize` all.

    Parameters
    ----------
    trajectories : sequence of Trajectory, length B
        Rollouts of one group are rollouts of one task.
    bootstrap : Bootstrap, optional
        How confidence intervals are found; by default 2,000 resamples, 95 %, seed 0.

    Returns
    -------
    Evaluation

    Raises
    ------
    InputError
        As :func:`summarize`.
    """
    return summarize([measure(trajectory) for trajectory in trajectories], bootstrap)


def summarize(measured: Sequence[Measured], bootstrap: Bootstrap | None = None) -> Evaluation:
    """Means over tasks, overall, by kind and by difficulty, with bootstrap confidence intervals.

    Every task has the same weight, as in the paper: a task's value is the mean over its rollouts that
    have the metric, a row's value the mean over its tasks that have it. Solve-F1 is thus the mean of
    the tasks' F1, not the F1 of mean precision and mean recall. Intervals resample tasks, not
    rollouts, since rollouts of one task resemble each other.

    Difficulty is the number of gold calls; where these are not known it is the number of
    sub-questions. Tasks with neither are in no band.

    Parameters
    ----------
    measured : sequence of Measured, length B
        In any order.
    bootstrap : Bootstrap, optional
        How confidence intervals are found; by default 2,000 resamples, 95 %, seed 0.

    Returns
    -------
    Evaluation
        If calls were made and not one of them has a result, results were not kept: the failed share is
        left out then. If this is so of the rollouts with sub-answers, the Solve metrics are left out,
        and a note says so.

    Raises
    ------
    InputError
        If there are no rollouts; if nothing is left that says what is right (Solve metrics or gold
        answers); or if rollouts of one task differ in kind or size.
    """
    if not measured:
        raise InputError("there are no rollouts; expected at least one")
    kept, notes = _known(measured)
    if all(one.solve_f1 is None and one.correct is None for one in kept):
        why = notes[0] if notes else "expected sub_answers or gold_answer"
        raise InputError(f"nothing says what is right in {len(kept)} rollouts: {why}")
    tasks = _tasks(kept)
    values = _task_means(kept, tasks)
    counts = np.bincount(tasks)
    firsts = [kept[b] for b in np.unique(tasks, return_index=True)[1]]
    bootstrap = bootstrap or Bootstrap()

    def row(level: str, name: str, chosen: npt.NDArray[np.bool_]) -> EvaluationRow:
        metrics = dict(zip(METRICS, _estimates(values[chosen], bootstrap), strict=True))
        return EvaluationRow(level, name, int(chosen.sum()), int(counts[chosen].sum()), metrics)

    kinds = np.array([one.kind for one in firsts], dtype=object)
    sizes = np.array([one.size for one in firsts])
    rows = [row("overall", "all", np.ones(len(firsts), dtype=bool))]
    if any(kinds):
        rows += [row("kind", kind, kinds == kind) for kind in sorted(set(kinds))]
    for least, most, name in BANDS:
        chosen = (sizes >= least) & (sizes <= (most or np.inf))
        if chosen.any():
            rows.append(row("band", name, chosen))
    return Evaluation(tuple(rows), bootstrap, notes)


def _known(measured: Sequence[Measured]) -> tuple[Sequence[Measured], tuple[str, ...]]:
    """The rollouts without the metrics that lost results would falsify, and notes on what is missing."""
    asked = [one for one in measured if one.solve_f1 is not None]
    silent = sum(one.well_formed > 0 and not one.results for one in asked)
    notes: tuple[str, ...] = ()
    kept = measured
    if _lost(asked):
        kept = [replace(one, solve_p=None, solve_r=None, solve_f1=None) for one in kept]
        count = sum(one.well_formed for one in asked)
        notes = (f"the Solve metrics need results, but none of the {count:,} calls has one",)
    elif silent:
        rollouts = f"{silent:,} of {len(measured):,} rollouts"
        notes = (f"{rollouts} make calls but hold no result of any, so they solve nothing",)
    if _lost(measured):
        # What is left of the failed share is that of malformed calls, always 1.
        kept = [replace(one, failed_calls=None) for one in kept]
    return kept, notes


def _lost(measured: Sequence[Measured]) -> bool:
    """Whether results were not kept: well-formed calls were made and no call has a result."""
    return any(one.well_formed for one in measured) and not any(one.results for one in measured)


def _tasks(measured: Sequence[Measured]) -> IntArray:
    """Index of each rollout's task, by first appearance, shape (B,)."""
    first: dict[Hashable, tuple[int, Measured]] = {}
    index = np.empty(len(measured), dtype=np.int64)
    for b, one in enumerate(measured):
        index[b], other = first.setdefault(one.task, (len(first), one))
        if (one.kind, one.size) != (other.kind, other.size):
            raise InputError(
                f"rollouts of group {one.task!r:.60} are of different tasks: "
                f"{_what(other)} and {_what(one)}; expected one task a group"
            )
    return index


def _what(one: Measured) -> str:
    """Kind and size of a task in words."""
    return f"kind {one.kind!r:.40} of size {one.size}"


def _task_means(measured: Sequence[Measured], tasks: IntArray) -> FloatArray:
    """Mean of each metric over a task's rollouts that have it, shape (tasks, M); NaN where none has."""
    values = np.array([[getattr(one, name) for name in METRICS] for one in measured], dtype=np.float64)
    present = ~np.isnan(values)
    sums, counts = np.zeros((2, int(tasks.max()) + 1, len(METRICS)))
    np.add.at(sums, tasks, np.where(present, values, 0.0))
    np.add.at(counts, tasks, present)
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


def _estimates(values: FloatArray, bootstrap: Bootstrap) -> list[Estimate | None]:
    """Mean and interval of each column, shape (n, M); None for a column of NaN."""
    found: list[Estimate | None] = []
    for column, low, high in zip(values.T, *bootstrap.intervals(values), strict=True):
        known = column[~np.isnan(column)]
        if not len(known):
            found.append(None)
        elif np.isnan(low):
            found.append(Estimate(float(known.mean()), None, None, len(known)))
        else:
            found.append(Estimate(float(known.mean()), float(low), float(high), len(known)))
    return found
