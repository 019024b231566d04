"""The paper's columns, from the official score files, with confidence intervals."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ...types import FloatArray
from ..bootstrap import Bootstrap
from .results import Category, Results

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "Base": ("multi_turn_base",),
    "Miss Function": ("multi_turn_miss_func",),
    "Miss Parameter": ("multi_turn_miss_param",),
    "Long Context": ("multi_turn_long_context",),
    "Memory": ("memory_kv", "memory_vector", "memory_rec_sum"),
    "Web Search": ("web_search_base", "web_search_no_snippet"),
}
"""The paper's columns and the categories that each is the mean of."""

AVERAGES: Mapping[str, tuple[str, ...]] = {
    "multi-turn average": ("Base", "Miss Function", "Miss Parameter", "Long Context"),
    "agentic average": ("Memory", "Web Search"),
    "average": tuple(COLUMNS),
}
"""Means of columns, each with the same weight."""

_FAMILIES = ("multi_turn", "memory", "web_search")  # categories of a family are variants of the same tasks


@dataclass(frozen=True, slots=True)
class Score:
    """Correct tasks of a category, of `total`; `verdicts` are 0 or 1 by the task's number."""

    correct: int
    total: int
    verdicts: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Row:
    """A column of the paper or an average: mean, interval if there is one, counts, and what it is of."""

    level: str
    name: str
    mean: float
    low: float | None
    high: float | None
    correct: int
    total: int
    of: tuple[str, ...]


def read_scores(folder: Path, results: Results, categories: Sequence[Category]) -> dict[str, Score]:
    """Read the official score files of the categories that have results.

    Parameters
    ----------
    folder : Path
        The model's folder of scores.
    results : Results
        Says which tasks were judged.
    categories : sequence of Category
        Whose files to read.

    Returns
    -------
    dict of str to Score
        By category.

    Raises
    ------
    InputError
        If a file is missing, or its counts are not those of the tasks in it.
    """
    scores = {}
    for category in categories:
        if not results.file(category).exists():
            continue
        path = folder / category.folder / f"{category.prefix}_{category.name}_score.json"
        try:
            header, *wrong = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            correct, total = int(header["correct_count"]), int(header["total_count"])
            failed = {row["id"] for row in wrong}
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise InputError(f"{path} is no score file of bfcl-eval: {error}") from None
        judged = set(Results(results.folder, [category.chosen(())]).found())  # whichever run made them
        if total != len(judged) or correct != total - len(failed) or not failed <= judged:
            raise InputError(
                f"{path} says {correct} of {total} correct, {len(failed)} wrong; expected {len(judged)} tasks"
            )
        scores[category.name] = Score(correct, total, {_number(t): float(t not in failed) for t in judged})
    return scores


def _number(task: str) -> int:
    """The number that variants of a task share: 7 of multi_turn_base_7 and memory_kv_7-customer-7."""
    return int(task.rsplit("_", 1)[1].partition("-")[0])


def table(scores: Mapping[str, Score], bootstrap: Bootstrap) -> list[Row]:
    """Columns and averages, with percentile bootstrap intervals.

    A column is the mean of its categories' shares of correct tasks, an average that of its columns, as
    bfcl-eval averages. Tasks are resampled, together with their variants in the other categories of the
    family, since these are not independent.

    Parameters
    ----------
    scores : mapping of str to Score
        By category.
    bootstrap : Bootstrap
        How the intervals are found.

    Returns
    -------
    list of Row
        Columns and averages of which any category is there.
    """
    means = _resampled(scores, bootstrap)
    rows, columns = [], {}
    for name, all_of in COLUMNS.items():
        of = tuple(category for category in all_of if category in scores)
        if of:
            columns[name] = of
            rows.append(
                _row(
                    "column", name, of, [(category, 1 / len(of)) for category in of], scores, means, bootstrap
                )
            )
    for name, all_columns in AVERAGES.items():
        there = tuple(column for column in all_columns if column in columns)
        if len(there) > 1:
            weights = [
                (category, 1 / len(there) / len(columns[column]))
                for column in there
                for category in columns[column]
            ]
            rows.append(_row("average", name, there, weights, scores, means, bootstrap))
    return rows


def _row(
    level: str,
    name: str,
    of: tuple[str, ...],
    weights: Sequence[tuple[str, float]],
    scores: Mapping[str, Score],
    means: Mapping[str, FloatArray],
    bootstrap: Bootstrap,
) -> Row:
    """A weighted mean of categories."""
    mean = sum(weight * scores[category].correct / scores[category].total for category, weight in weights)
    correct, total = (
        sum(getattr(scores[category], field) for category, _ in weights) for field in ("correct", "total")
    )
    low = high = None
    if all(category in means for category, _ in weights):
        drawn = np.sum([weight * means[category] for category, weight in weights], axis=0)
        tail = (1.0 - bootstrap.confidence) / 2.0
        low, high = (float(value) for value in np.nanquantile(drawn, [tail, 1.0 - tail]))
    return Row(level, name, mean, low, high, correct, total, of)


def _resampled(scores: Mapping[str, Score], bootstrap: Bootstrap) -> dict[str, FloatArray]:
    """The mean of each category of two tasks or more in each resample, shape (samples,)."""
    means: dict[str, FloatArray] = {}
    generator = np.random.default_rng(bootstrap.seed)
    for family in _FAMILIES:
        members = [name for name in sorted(scores) if name.startswith(family) and scores[name].total > 1]
        numbers = sorted({number for name in members for number in scores[name].verdicts})
        if not members or not bootstrap.samples:
            continue
        drawn = generator.multinomial(len(numbers), [1 / len(numbers)] * len(numbers), size=bootstrap.samples)
        for name in members:
            verdicts = scores[name].verdicts
            present = np.array([number in verdicts for number in numbers], dtype=np.float64)
            values = np.array([verdicts.get(number, 0.0) for number in numbers])
            count = drawn @ present
            means[name] = np.divide(drawn @ values, count, out=np.full(len(count), np.nan), where=count > 0)
    return means


def to_dict(rows: Sequence[Row], scores: Mapping[str, Score], bootstrap: Bootstrap) -> dict[str, Any]:
    """As JSON values."""
    names = [field for field in Row.__slots__ if isinstance(field, str)]
    return {
        "samples": bootstrap.samples,
        "confidence": bootstrap.confidence,
        "seed": bootstrap.seed,
        "rows": [{name: getattr(row, name) for name in names} for row in rows],
        "categories": {
            name: {"correct": score.correct, "total": score.total} for name, score in scores.items()
        },
    }
