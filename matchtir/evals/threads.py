"""Work in threads, results as they come."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(
    work: Callable[[Item], Result], items: Sequence[Item], threads: int
) -> Iterator[tuple[Item, Result | Exception]]:
    """Work on all items, a few at a time.

    The threads are daemons: an iteration that is given up, by Ctrl-C say, starts no item more, and waits
    for none of those that are being worked on.

    Parameters
    ----------
    work : callable
        Takes an item; called in any thread.
    items : sequence
        Started in order.
    threads : int
        How many are worked on at a time.

    Yields
    ------
    item, result
        In the order in which they finish. What `work` raised stands in the result's place.
    """
    todo: queue.SimpleQueue[Item] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[Item, Result | Exception]] = queue.SimpleQueue()
    stopped = threading.Event()
    for item in items:
        todo.put(item)

    def worker() -> None:
        while not stopped.is_set():
            try:
                item = todo.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((item, work(item)))
            except Exception as error:  # goes to whoever iterates
                done.put((item, error))

    try:
        for _ in range(min(threads, len(items))):
            threading.Thread(target=worker, daemon=True).start()
        for _ in items:
            yield done.get()
    finally:
        stopped.set()
