"""Many tasks against one model: several at a time, each rollout once, and a stop where it makes no sense."""

from __future__ import annotations

import time
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, InputError
from ..tools import Sandbox
from ..types import Task
from .chat import EndpointError, Policy, UnavailableError
from .journal import Journal, Key
from .live import MAX_TURNS, rollout_row, run_task
from .threads import in_threads

TRIALS = 3
"""Tasks that are tried one by one before the endpoint is taken for unusable."""

Job = tuple[Task, int]


@dataclass(frozen=True, slots=True)
class Settings:
    """How an evaluation is run.

    Parameters
    ----------
    samples : int
        Rollouts of each task.
    concurrency : int
        Rollouts at a time.
    max_turns, text_format
        As :func:`run_task` takes them.
    """

    samples: int = 1
    concurrency: int = 8
    max_turns: int = MAX_TURNS
    text_format: str | None = None

    def __post_init__(self) -> None:
        for name in ("samples", "concurrency", "max_turns"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 1")


@dataclass(frozen=True, slots=True)
class Finished:
    """A rollout that is in the file, or, where `error` is given, that is not."""

    key: Key
    error: str | None = None


def remaining(tasks: Sequence[Task], done: Container[Key], samples: int) -> list[Job]:
    """The rollouts that are not done, sample by sample; raises InputError if two tasks have one id."""
    seen: set[str] = set()
    for task in tasks:
        if task.id in seen:
            raise InputError(f"two tasks have the id {task.id!r}; expected ids that differ")
        seen.add(task.id)
    return [(task, k) for k in range(samples) for task in tasks if (task.id, k) not in done]


def run_tasks(
    jobs: Sequence[Job], policy: Policy, box: Sandbox | None, journal: Journal, settings: Settings
) -> Iterator[Finished]:
    """Solve tasks and write each rollout to the file when it is finished.

    A request that the endpoint refuses ends its rollout, which is recorded with the reason. A rollout for
    which the endpoint was down is not recorded, so that the next run makes it.

    Parameters
    ----------
    jobs : sequence of (Task, int)
        As :func:`remaining` gives them.
    policy : callable
        Gives the model for a task and the number of its sample.
    box : Sandbox, optional
        Where tools run.
    journal : Journal
        The file.
    settings : Settings
        How many at a time, and how long.

    Yields
    ------
    Finished
        One a job, unless the run stops early.

    Raises
    ------
    EndpointError
        If no request can be answered: wrong key, address or model, or, in a new file, if the first
        `TRIALS` tasks are all refused; nothing is recorded then.
    UnavailableError
        If the first task cannot be answered, or as many in a row as run at a time.
    """

    def work(job: Job) -> dict[str, Any]:
        task, sample = job
        begin = time.monotonic()
        rollout = run_task(
            task,
            policy(task, sample),
            box,
            max_turns=settings.max_turns,
            text_format=settings.text_format,
        )
        row = rollout_row(task, rollout, text_format=settings.text_format)
        return row | {"seconds": round(time.monotonic() - begin, 3)}

    def record(job: Job, row: dict[str, Any]) -> Finished:
        journal.append(row, sample=job[1])
        return Finished((job[0].id, job[1]))

    tried: list[tuple[Job, dict[str, Any]]] = []
    if not journal.done:
        for job in jobs[:TRIALS]:
            tried.append((job, work(job)))
            if "messages" in tried[-1][1]:
                break
        else:
            if tried:
                raise EndpointError(f"the first {len(tried)} tasks are refused: {tried[0][1]['error']}")
    for job, row in tried:
        yield record(job, row)
    down_in_a_row = 0
    for job, result in in_threads(work, jobs[len(tried) :], settings.concurrency):
        if isinstance(result, UnavailableError):
            down_in_a_row += 1
            yield Finished((job[0].id, job[1]), str(result))
            if down_in_a_row >= max(settings.concurrency, TRIALS):
                raise UnavailableError(
                    f"{down_in_a_row} tasks in a row failed, the last one because {result}"
                )
        elif isinstance(result, Exception):
            raise result
        else:
            down_in_a_row = 0
            yield record(job, result)
