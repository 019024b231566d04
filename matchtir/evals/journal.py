"""A rollout file that grows by whole lines, survives a killed process, and belongs to one run."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Any

from ..errors import InputError
from ..types import Task, UserTurn

Key = tuple[str, int]
"""A rollout: the task's id, and which of its samples it is."""

_OPENING = b'{"group": '
_ADVICE = "expected the file of the same run, another -o, or --fresh to start over"


def tasks_digest(tasks: Sequence[Task]) -> str:
    """What tasks are, in 16 characters: equal for equal ids, prompts, tools, environments and solutions."""
    digest = hashlib.sha256()
    for task in tasks:
        content: tuple[Any, ...] = (task.id, *_user_turn(task), task.sub_answers, task.kind)
        if task.environment is not None or task.later:
            kept = None if task.environment is None else asdict(task.environment)
            content = (*content, kept, [_user_turn(turn) for turn in task.later])
        digest.update(json.dumps(content, sort_keys=True, default=dict).encode("ascii") + b"\n")
    return digest.hexdigest()[:16]


def _user_turn(asked: Task | UserTurn) -> tuple[Any, ...]:
    """What the user says, the tools that come with it, and what is right."""
    tools = [(tool.name, tool.description, tool.parameters, tool.source) for tool in asked.tools]
    gold = [(call.name, call.arguments) for call in asked.gold_calls]
    return asked.messages, tools, gold, asked.gold_answer


class Journal:
    """Opens a rollout file to go on with it, or a new one.

    Every line is a rollout: a row of a rollout file with the fields `sample` (int) and `run` (settings)
    added. A line is written and flushed to the disk as a whole; one that a killed process left unfinished
    at the end is cut off.

    Parameters
    ----------
    path : str or path
        The file. One that is there must have been written by a run with the same settings.
    run : mapping of str to JSON value
        Settings that all rollouts of a file share: model, temperature, digest of the tasks and the like.
    fresh : bool
        Empty the file first, whatever it holds.

    Attributes
    ----------
    done : set of (str, int)
        Rollouts in the file: the task's id and the number of the sample.
    cut : int
        Bytes of an unfinished line that were cut off.

    Raises
    ------
    InputError
        If another process writes the file, it was not written by such a run, or with other settings.
    OSError
        If it cannot be opened or written.
    """

    def __init__(self, path: str | os.PathLike[str], run: Mapping[str, Any], *, fresh: bool = False) -> None:
        self.path = os.fspath(path)
        self.run = json.loads(json.dumps(run))  # as a file gives it back
        self.done: set[Key] = set()
        self.cut = 0
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            self._lock()
            if fresh:
                os.ftruncate(self._file, 0)
            self._read()
        except BaseException:
            os.close(self._file)
            raise

    def append(self, row: Mapping[str, Any], sample: int) -> None:
        """Add a rollout that is finished; it is on the disk when this returns."""
        key = (row["group"], sample)
        if key in self.done:
            raise InputError(f"{self.path} has sample {sample} of task {key[0]!r} already")
        fields = {"group": row["group"], "sample": sample, "run": self.run}
        self._write(json.dumps({**fields, **row}).encode("ascii") + b"\n")
        self.done.add(key)

    def close(self) -> None:
        """Close the file, which also gives it free for other processes."""
        os.close(self._file)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _lock(self) -> None:
        """Keep other processes out, as long as the file is open."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{self.path} is being written by another process") from None

    def _write(self, data: bytes) -> None:
        """All bytes at the end of the file, and onto the disk."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._file, view) :]
        os.fsync(self._file)

    def _read(self) -> None:
        """Learn what is done; nothing is changed before every whole line is known to be ours."""
        size = tail = 0
        line = b""
        with open(self._file, "rb", closefd=False) as stream:
            for number, line in enumerate(stream, 1):
                size += len(line)
                if line.endswith(b"\n"):
                    self._take(number, line)
                else:
                    tail = len(line)
        if not tail:
            return
        if not (line.startswith(_OPENING) or _OPENING.startswith(line)) and line.strip(b"\0"):
            raise InputError(f"{self.path} was not written by an evaluation: {line[:40]!r}; {_ADVICE}")
        os.ftruncate(self._file, size - tail)
        os.fsync(self._file)
        self.cut = tail

    def _take(self, number: int, line: bytes) -> None:
        """One whole line: a rollout of this run."""
        where = f"{self.path}, line {number}"
        try:
            row = json.loads(line)
            key, run = (row["group"], row["sample"]), row["run"]
            if not isinstance(key[0], str) or not isinstance(key[1], int):
                raise TypeError
            changed = [name for name in {**run, **self.run} if run.get(name) != self.run.get(name)]
        except (ValueError, TypeError, KeyError):
            raise InputError(f"{where} was not written by an evaluation; {_ADVICE}") from None
        if changed:
            came = ", ".join(
                f"{n}={json.dumps(run.get(n))}, not {json.dumps(self.run.get(n))}" for n in changed
            )
            raise InputError(f"{where} was written with {came}; {_ADVICE}")
        if key in self.done:
            raise InputError(f"{where} repeats sample {key[1]} of task {key[0]!r}; {_ADVICE}")
        self.done.add(key)
