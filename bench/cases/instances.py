"""Objects with state in the sandbox: how long a start, a call and a copy take, and whether state crosses."""

from __future__ import annotations

import numpy as np
from checks import check
from timing import Row, Times, once

from matchtir.tools import Instance, Sandbox

_BOOK = """
import os


class Book:
    def __init__(self, entries):
        self.entries = dict(entries)

    def put(self, key, value):
        self.entries[key] = value
        return len(self.entries)

    def get(self, key):
        return self.entries[key]

    def leave(self):
        os._exit(1)
"""
_ENTRIES = {f"entry {i}": i for i in range(200)}


def latency(smoke: bool) -> list[Row]:
    """Milliseconds of a start, a call and a copy, seen from the trainer."""
    count = 10 if smoke else 300
    times: dict[str, list[float]] = {"start": [], "call": [], "copy": []}
    with Sandbox(workers=1) as box, box.open(_BOOK, "Book", {"entries": _ENTRIES}, branching=True) as book:
        made: list[Instance] = []

        def start() -> None:
            made.append(box.open(_BOOK, "Book", {"entries": _ENTRIES}, branching=True))

        def call() -> None:
            check(book.call("put", {"key": "one", "value": 1}).value == 201, "a call lost its state")

        def copy() -> None:
            made.append(book.copy())

        call()
        for _ in range(count):
            for name, act in (("start", start), ("call", call), ("copy", copy)):
                times[name].append(once(act))
            started, copied = made
            check(started.call("get", {"key": "entry 7"}).value == 7, "a start lost its arguments")
            check(copied.call("get", {"key": "one"}).value == 1, "a copy lost the state")
            for instance in made:
                instance.close()
            made.clear()
    rows = []
    for name, target in (("start", 5.0), ("call", 3.0), ("copy", 5.0)):
        low, high = (1e3 * float(x) for x in np.quantile(times[name], (0.2, 0.8)))
        median = 1e3 * Times(tuple(times[name])).median
        rows.append(
            Row(
                "environments",
                f"{name}, p50",
                median,
                target,
                unit="ms",
                better="lower",
                quantiles=(low, high),
            )
        )
    return rows


def crossing(smoke: bool) -> list[Row]:
    """64 objects side by side, of which 5 % are killed in a call: states that are not their own."""
    count, steps = 64, 5 if smoke else 100
    draw = np.random.default_rng(5)
    killed = {
        int(i): int(draw.integers(steps)) for i in draw.choice(count, round(0.05 * count), replace=False)
    }
    wrong = 0
    with Sandbox(workers=2) as box:
        books = box.open_all([(_BOOK, "Book", {"entries": {"own": i}}) for i in range(count)])
        for step in range(steps):
            batch = []
            for i, book in enumerate(books):
                end = [("leave", {})] if killed.get(i) == step else []
                batch.append((book, [("put", {"key": f"step {step}", "value": i}), *end]))
            for i, results in enumerate(box.call_all(batch)):
                ended = i in killed and killed[i] < step
                expected = ("crash", None) if ended else ("ok", step + 2)
                wrong += (results[0].status, results[0].value) != expected
        for i, book in enumerate(books):
            check(book.alive == (i not in killed), "another object ended than the one that was killed")
            if i not in killed:
                keys = ["own", *(f"step {step}" for step in range(steps))]
                found = box.call_all([(book, [("get", {"key": key}) for key in keys])])[0]
                wrong += sum(result.value != i for result in found)
    return [Row("environments", "states that crossed, 64 at once", wrong, 0, unit="", better="lower")]
