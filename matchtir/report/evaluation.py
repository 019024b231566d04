"""The metrics of an evaluation in the terminal: what was solved, and what it took."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from .terminal import printable

# Metric: its heading, and whether it is a share, shown in per cent.
_SOLVED = {
    "solve_p": ("Solve-P", True),
    "solve_r": ("Solve-R", True),
    "solve_f1": ("Solve-F1", True),
    "correct": ("correct", True),
}
_EFFORT = {
    "calls": ("calls", False),
    "failed_calls": ("failed", True),
    "turns": ("turns", False),
    "unanswered": ("no answer", True),
}
_LEVELS = {"kind": "by kind", "band": "by calls needed"}

# Both tables are 79 cells wide: 19, 5 and four times 11, and two between columns and one before the first.
_NAME_CELLS = 19  # of "parallel_single_hop"
_INTERVAL_CELLS = 11  # of "100.0-100.0"


def evaluation_tables(found: Mapping[str, Any], title: str) -> Group:
    """Two tables, what was solved and what it took, at most 80 cells wide.

    Parameters
    ----------
    found : mapping
        As `Evaluation.to_dict` gives it.
    title : str
        What was evaluated, shown above the tables.

    Returns
    -------
    Group
        For a rich console. Each cell is the mean over tasks and, below, its confidence interval;
        "-" where no task has the metric. Shares are in per cent.
    """
    rows = found["rows"]
    overall = rows[0]
    counts = f"{_count(overall['rollouts'], 'rollout')} of {_count(overall['tasks'], 'task')}"
    return Group(
        Text(printable(title), "bold"),
        Text(counts),
        Text("\nsolved, in per cent", "bold"),
        _table(rows, _SOLVED),
        Text("\neffort a task; failed calls and tasks without answer in per cent", "bold"),
        _table(rows, _EFFORT),
        Text("\n" + "\n".join(_captions(found)), "dim"),
    )


def _captions(found: Mapping[str, Any]) -> list[str]:
    """What the numbers are, and which of them are of fewer tasks than there are."""
    overall = found["rows"][0]
    lines = ["Means over tasks."]
    if found["samples"]:
        confidence = f"{100 * found['confidence']:g} %"
        lines[0] = f"Means over tasks; below each its {confidence} interval"
        lines[0] += f" ({found['samples']:,} resamples, seed {found['seed']})."
    fewer: dict[int, list[str]] = {}
    for name, (heading, _) in (_SOLVED | _EFFORT).items():
        estimate = overall["metrics"][name]
        known = 0 if estimate is None else estimate["tasks"]
        if known < overall["tasks"]:
            fewer.setdefault(known, []).append(heading)
    return lines + [
        f"Known for {_count(known, 'task')}: {', '.join(names)}." for known, names in fewer.items()
    ]


def _table(rows: list[Mapping[str, Any]], metrics: Mapping[str, tuple[str, bool]]) -> Table:
    """One row of the table for each row of the evaluation, one column a metric."""
    table = Table(box=box.HORIZONTALS, padding=(0, 0, 0, 1), show_edge=False)
    table.add_column("", min_width=_NAME_CELLS, max_width=_NAME_CELLS, overflow="ellipsis", no_wrap=True)
    table.add_column("tasks", justify="right", no_wrap=True)
    for heading, _ in metrics.values():
        table.add_column(heading, justify="right", no_wrap=True, min_width=_INTERVAL_CELLS)
    level = "overall"
    for row in rows:
        if row["level"] != level:
            level = row["level"]
            table.add_section()
            table.add_row(Text(_LEVELS[level], "dim"))
        cells = [_cell(row["metrics"][name], share) for name, (_, share) in metrics.items()]
        table.add_row(Text(printable(row["name"]) or "(none)"), f"{row['tasks']:,}", *cells)
    return table


def _cell(estimate: Mapping[str, Any] | None, share: bool) -> Text:
    """Mean and interval, one below the other."""
    if estimate is None:
        return Text("-")
    scale, digits = (100.0, 1) if share else (1.0, 2)
    mean, low, high = (
        None if estimate[name] is None else f"{scale * estimate[name]:.{digits}f}"
        for name in ("mean", "low", "high")
    )
    return Text.assemble(f"{mean}", (f"\n{low}-{high}" if low is not None else "", "dim"))


def _count(number: int, noun: str) -> str:
    """A number and its noun: 1 task, 2 tasks."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
