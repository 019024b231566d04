"""A run while it goes on, live on a terminal and in plain lines in a pipe, and what it came to."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .terminal import printable


class _Shown(NamedTuple):
    """A metric of a step: its name in lines and in the display, and how its number is written."""

    metric: str
    heading: str
    label: str
    share: bool
    digits: int

    @property
    def cells(self) -> int:
        """Width of its column in lines."""
        return max(7, len(self.heading))

    def cell(self, value: float | None) -> str:
        """A number, shares in per cent; "-" where it is not known."""
        if value is None:
            return "-"
        return f"{100.0 * value:.{self.digits}f} %" if self.share else f"{value:,.{self.digits}f}"


_RECENT = 10
_SHOWN = (
    _Shown("reward", "reward", "mean return", False, 3),
    _Shown("solve_f1", "Solve-F1", "Solve-F1", True, 1),
    _Shown("matched", "matched", "calls matched", True, 1),
    _Shown("silent_groups", "silent", "groups without signal", True, 1),
    _Shown("calls", "calls", "calls a rollout", False, 2),
    _Shown("unanswered", "no answer", "without answer", True, 1),
    _Shown("tokens_per_second", "tokens/s", "tokens a second", False, 0),
    _Shown("seconds", "s/step", "seconds a step", False, 2),
)
_MEASURED = {"solve_p": "Solve-P", "solve_r": "Solve-R", "solve_f1": "Solve-F1", "correct": "correct"}


class TrainingDisplay:
    """Shows what a trainer tells (:class:`matchtir.train.watch.Watch`).

    Parameters
    ----------
    steps : int
        Steps of the whole run.
    console : Console, optional
        By default of standard output. Where it is no terminal, every step is one line of plain text.
    """

    def __init__(self, steps: int, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._steps, self._step = steps, 0
        self._recent: deque[Mapping[str, float | None]] = deque(maxlen=_RECENT)
        self._phase = "loading"
        self._began = time.monotonic()
        self._headed = False
        self._live: Live | None = None
        if self._console.is_terminal:
            self._live = Live(
                console=self._console, get_renderable=self._picture, refresh_per_second=4, transient=True
            )
            self._live.start()

    def start(self, config: Any, facts: Mapping[str, Any]) -> None:
        """Say what is run, and where it begins."""
        shown = dict(facts)
        resumed = shown.pop("resumed", None)
        what = f"{config.method}, {config.model} on {config.tasks}, seed {config.seed}, in {config.output}"
        self._say(Text(printable(what), "bold"))
        counts = [f"{name.replace('_', ' ')} {_words(value)}" for name, value in shown.items()]
        if counts:
            self._say(Text(printable(", ".join(counts))))
        if resumed is not None:
            self._step = int(resumed)
            self._say(Text(f"resuming after step {resumed}"))

    def phase(self, name: str) -> None:
        """Keep what is being done for the display."""
        self._phase = name

    def step(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Show a step."""
        self._step = step
        self._recent.append(metrics)
        if self._live is not None:
            return
        width = 2 * len(str(self._steps)) + 1
        if not self._headed:
            self._line(
                "step".rjust(width), *(one.heading.rjust(one.cells) for one in _SHOWN), "left".rjust(8)
            )
            self._headed = True
        cells = (one.cell(metrics.get(one.metric)).rjust(one.cells) for one in _SHOWN)
        self._line(f"{step}/{self._steps}".rjust(width), *cells, _clock(self._left()).rjust(8))

    def evaluation(self, step: int, evaluation: Mapping[str, Any]) -> None:
        """Show an evaluation in one line."""
        overall = evaluation["rows"][0]
        parts = [
            f"{name} {_estimate(overall['metrics'][metric], share=True)}"
            for metric, name in _MEASURED.items()
            if overall["metrics"].get(metric) is not None and metric in ("solve_f1", "correct")
        ]
        parts.append(f"{_estimate(overall['metrics']['calls'], share=False)} calls")
        self._say(Text(f"evaluation after step {step}: {', '.join(parts)}; {overall['tasks']:,} tasks"))

    def note(self, text: str) -> None:
        """Show a note."""
        self._say(Text(printable(f"note: {text}")))

    def end(self, summary: Mapping[str, Any]) -> None:
        """Take the live display away and show what the run came to."""
        self.close()
        self._console.print(summary_tables(summary))

    def close(self) -> None:
        """Take the live display away."""
        if self._live is not None:
            self._live.stop()

    def _say(self, text: Text) -> None:
        """A line that stays, above the display where there is one."""
        self._console.print(text, soft_wrap=True)

    def _line(self, *cells: str) -> None:
        """A line of a step."""
        self._say(Text("  ".join(cells)))

    def _left(self) -> float | None:
        """Seconds that are left, by the last steps; None before the first."""
        known = [seconds for one in list(self._recent) if (seconds := one.get("seconds")) is not None]
        return sum(known) / len(known) * (self._steps - self._step) if known else None

    def _picture(self) -> Group:
        """The display as it is now."""
        head = Table.grid(padding=(0, 1))
        elapsed = _clock(time.monotonic() - self._began)
        head.add_row(
            Text(f"step {self._step} of {self._steps}"),
            ProgressBar(total=self._steps, completed=self._step, width=30),
            Text(f"{self._phase}, {elapsed} so far, {_clock(self._left())} left", "dim"),
        )
        recent = list(self._recent)  # rich draws in a thread of its own
        if not recent:
            return Group(head)
        table = Table(box=box.HORIZONTALS, show_edge=False, padding=(0, 1))
        table.add_column("")
        table.add_column("last step", justify="right")
        table.add_column(f"mean of {len(recent)}", justify="right")

        def add_row(shown: _Shown, metric: str, label: str) -> None:
            known = [value for one in recent if (value := one.get(metric)) is not None]
            mean = sum(known) / len(known) if known else None
            table.add_row(Text(printable(label)), shown.cell(recent[-1].get(metric)), shown.cell(mean))

        for one in _SHOWN:
            add_row(one, one.metric, one.label)
            if one.metric == "reward":
                for kind in sorted(name for name in recent[-1] if name.startswith("reward/")):
                    add_row(one, kind, f"  {kind.partition('/')[2]}")
        return Group(table, head)


def summary_tables(summary: Mapping[str, Any]) -> Group:
    """What a run came to: metrics before and after it with their intervals, and where its time went.

    Parameters
    ----------
    summary : mapping
        What ``summary.json`` holds.

    Returns
    -------
    Group
        For a rich console. A column is left out where nothing was evaluated then.
    """
    columns = {name: summary[name] for name in ("before", "after") if summary.get(name) is not None}
    parts: list[Any] = []
    if columns:
        table = Table(box=box.HORIZONTALS, padding=(0, 1), show_edge=False)
        table.add_column("")
        for name in columns:
            table.add_column(name, justify="right", no_wrap=True)
        for metric, name in {**_MEASURED, "calls": "calls a task"}.items():
            estimates = [found["rows"][0]["metrics"][metric] for found in columns.values()]
            table.add_row(name, *(_estimate(estimate, metric in _MEASURED) for estimate in estimates))
        found = next(iter(columns.values()))
        tasks = found["rows"][0]["tasks"]
        caption = f"{tasks:,} tasks; in brackets the {100 * found['confidence']:g} % interval"
        parts += [Text(), table, Text(f"{caption}\n", "dim")]
    phases = sorted(summary.get("seconds_by_phase", {}).items(), key=lambda item: -item[1])
    spent = ", ".join(f"{name} {_clock(seconds)}" for name, seconds in phases)
    steps = f"{summary['steps']:,} steps in {_clock(summary['seconds'])}"
    spent = f" ({spent})" if spent else ""
    return Group(*parts, Text(printable(f"{summary['method']}: {steps}{spent}")))


def methods_table(described: Mapping[str, str]) -> Table:
    """Names of methods and what they are."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    for name, text in described.items():
        table.add_row(name, text)
    return table


def _estimate(estimate: Mapping[str, Any] | None, share: bool) -> str:
    """A mean and its interval."""
    if estimate is None:
        return "-"
    scale, digits, unit = (100.0, 1, " %") if share else (1.0, 2, "")
    text = f"{scale * estimate['mean']:.{digits}f}{unit}"
    if estimate["low"] is None:
        return text
    return f"{text} ({scale * estimate['low']:.{digits}f}-{scale * estimate['high']:.{digits}f})"


def _clock(seconds: float | None) -> str:
    """A time as 3:07 or 2:15:00; "-" where it is not known."""
    if seconds is None:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _words(value: Any) -> str:
    """A fact as it is shown."""
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
