"""Reports in the terminal: the summary of a scored file, one rollout turn by turn, and progress.

Text of rollouts was written by models and tools. It is shown by :func:`printable`, never read as
markup, and never reaches the terminal as control codes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from rich import box
from rich.console import Console, Group
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from ..dialogues import split
from ..rewards import outcome_reward
from ..types import Credit, ToolCall, Trajectory

T = TypeVar("T")

LONG_ROWS = 2_000
LONG_SECONDS = 2.0


def printable(text: str) -> str:
    """Text in one line, with what a terminal would act on instead of show written as an escape."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


@dataclass(frozen=True, slots=True)
class Summary:
    """Totals over scored rollouts; summaries of several files add up.

    Attributes
    ----------
    rollouts, groups, calls, matched, malformed : int
        Malformed calls are never matched: calls - matched includes them.
    return_sum : float
        Sum of the returns.
    silent_groups : int
        Groups without signal: every advantage of every turn in them is 0.
    """

    rollouts: int = 0
    groups: int = 0
    calls: int = 0
    matched: int = 0
    malformed: int = 0
    return_sum: float = 0.0
    silent_groups: int = 0

    @classmethod
    def of(cls, credit: Credit) -> Summary:
        """Totals of one scored batch."""
        turns = credit.turn_advantages
        heard = np.bincount(turns.problem, weights=turns.values != 0.0, minlength=len(turns)) > 0
        heard |= credit.trajectory_advantages != 0.0
        groups = int(credit.group_ids.max()) + 1 if len(credit.group_ids) else 0
        heard_groups = np.unique(credit.group_ids[heard])
        return cls(
            rollouts=len(credit.returns),
            groups=groups,
            calls=len(credit.matches.values),
            matched=int((credit.matches.values >= 0).sum()),
            malformed=int(credit.malformed.sum()),
            return_sum=float(credit.returns.sum()),
            silent_groups=groups - len(heard_groups),
        )

    def __add__(self, other: Summary) -> Summary:
        return Summary(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))


def summary_table(summary: Summary, title: str, caption: str = "") -> Group:
    """What ends a scoring run: counts, with their share where they are parts of a whole."""
    table = Table(box=box.HORIZONTALS, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", no_wrap=True, style="dim")

    def row(label: str, count: int, whole: int | None = None) -> None:
        share = "" if not whole else f"{100.0 * count / whole:.1f} %"
        table.add_row(label, f"{count:,}", share)

    row("rollouts", summary.rollouts)
    row("groups", summary.groups)
    row("calls", summary.calls)
    row("  matched", summary.matched, summary.calls)
    row("  unmatched", summary.calls - summary.matched, summary.calls)
    row("    malformed", summary.malformed, summary.calls)
    mean = f"{summary.return_sum / summary.rollouts:.4f}" if summary.rollouts else "-"
    table.add_row("mean return", mean, "")
    row("groups without signal", summary.silent_groups, summary.groups)
    # Beside the table and not its title, which would be wrapped at the table's width.
    return Group(Text(printable(title), "bold"), table, Text(caption, "dim"))


def print_rollout(
    console: Console,
    trajectory: Trajectory,
    credit: Credit,
    b: int,
    *,
    where: str,
    width: int | None = None,
) -> None:
    """Print one rollout turn by turn: calls, gold matches, rewards and advantages.

    Parameters
    ----------
    console : Console
        Where to print.
    trajectory : Trajectory
        The rollout.
    credit : Credit
        Of the whole file, since advantages compare the rollouts of a group.
    b : int
        Which rollout of `credit` it is.
    where : str
        File and row, for the heading.
    width : int, optional
        Longer lines are cut to this many cells; None cuts nothing.
    """
    for line in rollout_lines(trajectory, credit, b, where):
        if width is not None:
            line.truncate(width, overflow="ellipsis")
        console.print(line, soft_wrap=True)


def rollout_lines(trajectory: Trajectory, credit: Credit, b: int, where: str) -> Iterator[Text]:
    """The lines of :func:`print_rollout`, uncut."""
    returns = credit.returns[credit.group_ids == credit.group_ids[b]]
    yield Text(printable(where), "bold")
    yield Text(f"group {_json(trajectory.group)}, {_count(len(returns), 'rollout')}")
    if trajectory.rounds:
        answered = sum(one.turns > 0 for one in trajectory.rounds)
        yield Text(f"{_count(len(trajectory.rounds), 'user turn')}, {answered:,} with turns of the model")
    yield Text(
        f"return {credit.returns[b]:.4f}, group mean {returns.mean():.4f}, "
        f"trajectory advantage {credit.trajectory_advantages[b]:+.4f}"
    )
    first_turn = first_gold = first_call = 0
    for k, part in enumerate(split([trajectory])):
        if trajectory.rounds:
            yield Text()
            yield _round_line(part, k)
        for t, turn in enumerate(part.turns, start=first_turn):
            yield Text()
            yield _turn_line(credit, b, t)
            for i, call in enumerate(turn.calls, start=first_call):
                yield from _call_lines(trajectory, credit, b, i, call)
            first_call += len(turn.calls)
            if turn.answer is not None:
                yield Text.assemble("  = answer  ", (printable(turn.answer), "bold"))
            elif not turn.calls:
                yield Text("  - no call and no answer", "dim")
        yield Text()
        yield from _end_lines(part, credit, b, first_gold)
        first_turn += len(part.turns)
        first_gold += len(part.gold_calls)


def _round_line(part: Trajectory, k: int) -> Text:
    """Heading of user turn k, which stands out from those of its turns."""
    turns = _count(len(part.turns), "turn") if part.turns else "no turn"
    holds = f"   {turns}, {_count(len(part.gold_calls), 'gold call')}"
    return Text.assemble((f"=== user turn {k}", "bold cyan"), (holds, "dim"))


def _turn_line(credit: Credit, b: int, t: int) -> Text:
    """Heading of turn t: its reward and advantage."""
    advantage = credit.turn_advantages[b][t]
    return Text.assemble(
        (f"turn {t}", "bold"),
        f"   reward {credit.turn_rewards[b][t]:.4f}   advantage ",
        (f"{advantage:+.4f}", "green" if advantage > 0 else "red" if advantage < 0 else ""),
        (f"   (turn level {credit.turn_level_advantages[b][t]:+.4f})", "dim"),
    )


def _call_lines(trajectory: Trajectory, credit: Credit, b: int, i: int, call: ToolCall) -> Iterator[Text]:
    """Predicted call i of rollout b, and under it what it matched or why nothing."""
    scores, gold = credit.similarity[b][i], int(credit.matches[b][i])
    reward = f"reward {credit.call_rewards[b][i] + 0.0:.4f}"
    repaired = "  (repaired)" if call.repaired else ""
    if call.malformed is not None:
        mark, style = "!", "red"
        under = [f"malformed: {call.malformed}   {reward}", *([call.raw] if call.raw else [])]
    elif gold >= 0:
        mark, style = ("+", "green") if scores[gold] == 1.0 else ("~", "yellow")
        under = [
            f"gold {gold}  {_call(trajectory.gold_calls[gold])}",
            f"similarity {scores[gold]:.4f}   {reward}",
        ]
    else:
        mark, style = "x", "red"
        under = [f"unmatched   {reward}   {_nearest(credit, b, i, bool(trajectory.rounds))}"]
    yield Text.assemble((f"  {mark} ", style), f"call {i}  {_call(call)}{repaired}")
    for line in under:
        yield Text(f"      {printable(line)}", "dim")


def _nearest(credit: Credit, b: int, i: int, rounds: bool) -> str:
    """The gold call that an unmatched call is most like, and which call has it."""
    scores = credit.similarity[b][i]
    if not len(scores) or scores.max() <= 0.0:
        return "no gold call has this name" if not rounds else "no gold call of this user turn has this name"
    gold = int(scores.argmax())
    holders = np.flatnonzero(credit.matches[b] == gold)
    taken = f", which call {holders[0]} matched" if len(holders) else ""
    return f"most like gold {gold} (similarity {scores[gold]:.4f}){taken}"


def _end_lines(trajectory: Trajectory, credit: Credit, b: int, first_gold: int) -> Iterator[Text]:
    """The gold calls that nothing matched, and what the answer was judged by, of one user turn."""
    matched = set(credit.matches[b].tolist())
    golds = enumerate(trajectory.gold_calls, start=first_gold)
    missed = [(j, call) for j, call in golds if j not in matched]
    yield Text(f"gold calls without a match: {len(missed)} of {len(trajectory.gold_calls)}", "bold")
    for j, call in missed:
        yield Text.assemble(("  - ", "yellow"), f"gold {j}  {_call(call)}")
    last = trajectory.turns[-1] if trajectory.turns else None
    judge = "F1 of the two answers" if trajectory.outcome is None else "as the file says"
    for label, text in (
        ("answer", None if last is None else last.answer),
        ("gold answer", trajectory.gold_answer),
        ("outcome", f"{outcome_reward(trajectory):.4f}, {judge}"),
    ):
        yield Text.assemble((f"{label:<13}", "bold"), "none" if text is None else printable(text))


def _call(call: ToolCall) -> str:
    """Name and arguments in one line."""
    name = printable(call.name) or "(no name)"
    return name if call.malformed is not None else f"{name} {_json(call.arguments)}"


def _json(value: object) -> str:
    """Compact JSON in one printable line."""
    return printable(json.dumps(value, ensure_ascii=False, separators=(", ", ": "), default=str))


def _count(number: int, noun: str) -> str:
    """A number and its noun: 1 rollout, 2 rollouts."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def track(
    items: Iterable[T],
    console: Console,
    label: str,
    position: Callable[[], tuple[int, int | None]],
) -> Iterator[T]:
    """Pass items through, with a progress bar once the work turns out long.

    The bar appears after `LONG_ROWS` items or `LONG_SECONDS` seconds, on a terminal only, and goes
    away at the end.

    Parameters
    ----------
    items : iterable
        The work.
    console : Console
        Of standard error.
    label : str
        What is being worked on.
    position : callable
        How far the work is and how far it goes, in any unit; None where nobody knows.
    """
    if not console.is_terminal:
        yield from items
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[rows]:,} rows"),
        TimeElapsedColumn(),
    )
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task(printable(label), total=None, rows=0)
    begin = shown = time.monotonic()
    started = False
    try:
        for count, item in enumerate(items, 1):
            yield item
            now = time.monotonic()
            if not started and (count >= LONG_ROWS or now - begin >= LONG_SECONDS):
                bar.start()
                started = True
            if started and now - shown >= 0.1:
                done, total = position()
                bar.update(task, completed=done, total=total, rows=count)
                shown = now
    finally:
        if started:
            bar.stop()
