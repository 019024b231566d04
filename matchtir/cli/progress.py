"""Progress of long work on standard error: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from rich.console import Console

from ..report import terminal
from .say import say

_LINE_SECONDS = 30.0

T = TypeVar("T")


def shown(done: Iterator[T], label: str, total: int, line: Callable[[list[T]], str]) -> Iterator[T]:
    """The same, while progress is shown.

    Parameters
    ----------
    done : iterator
        What is done, one after the other.
    label : str
        Of the bar.
    total : int
        How many there will be.
    line : callable
        From all that are done so far to the words of a line.
    """
    console = Console(stderr=True, highlight=False)
    seen: list[T] = []
    begin = told = time.monotonic()
    for one in terminal.track(done, console, label, lambda: (len(seen), total)):
        seen.append(one)
        yield one
        now = time.monotonic()
        if not console.is_terminal and now - told >= _LINE_SECONDS:
            say(f"{line(seen)}, {now - begin:.0f} s")
            told = now
