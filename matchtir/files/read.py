"""Rollout files in: what a file holds is recognised by its content, and read row by row."""

from __future__ import annotations

import importlib.resources
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import Any, final

from ..errors import InputError, MatchtirError, RowError
from ..parse import formats, trajectory_from_row
from ..rows import RawRow, RowFile
from ..types import ToolCall, Trajectory

FORMATS = ("jsonl", "messages", "tau-bench", "parquet")
"""What :func:`read_rollouts` reads, by the names that it reports and takes."""

_PEEK_ROWS = 16
_ROLLOUT_KEYS = ("messages", "turns", "traj")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a rollout file: a trajectory, or the reason why there is none.

    Attributes
    ----------
    row : int
        Index in the file from 0. A broken row counts; an empty line does not.
    trajectory : Trajectory or None
        None where the row is broken.
    error : RowError or None
        Where and why the row is broken: file, line (of JSON lines), row and reason.
    fields : mapping
        The row itself, in our schema, with the fields that a trajectory does not keep; empty where the row
        is broken.
    """

    row: int
    trajectory: Trajectory | None
    error: RowError | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


def sample_path() -> Path:
    """Path of the sample rollouts that the package ships: JSON lines, 32 rollouts of 8 prompts.

    Four task shapes (single hop, parallel, multi-hop, parallel multi-hop), two prompts each, with
    the usual failings: wrong arguments, repeats, missing and malformed calls, early and wrong answers.
    """
    return Path(str(importlib.resources.files("matchtir") / "data" / "sample.jsonl"))


@final
class RolloutFile:
    """A rollout file, open for one pass over its rows; made by :func:`read_rollouts`.

    Attributes
    ----------
    name : str
        The path as given, or ``<stdin>``.
    format : str
        One of `FORMATS`: what was recognised, or what was asked for.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        format: str | None = None,
        text_format: str | None = None,
        repair: bool = False,
    ) -> None:
        if format is not None and format not in FORMATS:
            raise InputError(f"format is {format!r}; expected one of {', '.join(FORMATS)}")
        if text_format is not None and text_format not in formats():
            raise InputError(f"text_format is {text_format!r}; expected one of {', '.join(formats())}")
        self._text_format, self._repair = text_format, repair
        self._golds: dict[str, tuple[ToolCall, ...]] = {}
        with ExitStack() as stack:
            self._file = stack.enter_context(RowFile(path))
            self.name = self._file.name
            raw_rows, container = self._raw_rows(format)
            # Content decides, not the extension, so the first rows are looked at before they are given out.
            head = list(islice(raw_rows, _PEEK_ROWS))
            self._rows = chain(head, raw_rows)
            self._is_tau_bench = _is_tau_bench(self.name, head, forced=format)
            if format is None:
                format = "tau-bench" if self._is_tau_bench and container != "parquet" else container
            self.format = format
            stack.pop_all()

    def _raw_rows(self, format: str | None) -> tuple[Iterator[RawRow], str]:
        """Raw rows and the format that names what holds them."""
        container = self._file.container
        if container == "parquet" and format not in (None, "parquet"):
            raise InputError(f"{self.name} is a parquet file; format is {format!r}")
        if container == "parquet" or format == "parquet":
            return self._file.rows("parquet"), "parquet"
        if not container:
            raise InputError(f"{self.name} is empty; expected rollouts ({', '.join(FORMATS)})")
        if container == "array" and format != "jsonl":
            return self._file.rows("array"), "messages"
        return self._file.rows("lines"), "jsonl"

    @property
    def progress(self) -> tuple[int, int | None]:
        """How far reading is, and how far it goes (bytes, or rows of parquet; None: nobody knows)."""
        return self._file.progress

    def __iter__(self) -> Iterator[Row]:
        for row, where, value in self._rows:
            try:
                fields, trajectory = self._trajectory(value)
            except (MatchtirError, RecursionError) as error:
                reason = str(error) or type(error).__name__
                yield Row(row, None, RowError(f"{where}: {reason}"))
            else:
                yield Row(row, trajectory, fields=fields)

    def _trajectory(self, value: Any) -> tuple[Mapping[str, Any], Trajectory]:
        """One decoded row in our schema, and the trajectory in it; raises what is wrong with it."""
        if isinstance(value, MatchtirError):
            raise value
        if not isinstance(value, Mapping):
            raise RowError(f"the row is {_kind(value)}; expected an object")
        row = _from_tau_bench(value) if self._is_tau_bench else value
        if _is_task(row.get("messages")):
            raise RowError("messages holds no assistant turn: this is a task, not a rollout")
        formed = trajectory_from_row(row, format=self._text_format, repair=self._repair, golds=self._golds)
        return row, formed

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> RolloutFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_rollouts(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    text_format: str | None = None,
    repair: bool = False,
) -> RolloutFile:
    """Open a file of rollouts for one pass over its rows.

    Parameters
    ----------
    path : str or path
        JSON lines, a JSON array or parquet; JSON also gzipped. ``-`` is standard input.
    format : {"jsonl", "messages", "tau-bench", "parquet"}, optional
        What the file holds; by default its content tells.
    text_format : str, optional
        How raw text of turns is parsed, see :func:`matchtir.parse.parse_turn`.
    repair : bool
        Repair calls that are no JSON; what was repaired is marked.

    Returns
    -------
    RolloutFile
        An iterable of :class:`Row` and a context manager. A broken row comes as a `Row` with an
        error; it never stops the iteration.

    Raises
    ------
    OSError
        If the file cannot be opened.
    InputError
        If it is empty, is not recognised, or `format` or `text_format` is unknown.
    ImportError
        For parquet without pyarrow.

    Examples
    --------
    >>> with read_rollouts(sample_path()) as rollouts:
    ...     rows = list(rollouts)
    >>> rollouts.format, len(rows), rows[0].trajectory.group
    ('jsonl', 32, 'ferry-capacity')
    """
    return RolloutFile(path, format=format, text_format=text_format, repair=repair)


def _is_tau_bench(name: str, head: list[RawRow], forced: str | None) -> bool:
    """Whether rows keep their messages as tau-bench does; refuses rows that are no rollouts at all."""
    if not head:
        raise InputError(f"{name} holds no rows")
    if forced in ("tau-bench", "jsonl", "messages"):
        return forced == "tau-bench"
    objects = [value for _, _, value in head if isinstance(value, Mapping)]
    for value in objects:
        if any(key in value for key in _ROLLOUT_KEYS):
            return "messages" not in value and "turns" not in value
    expected = "expected rows with messages or turns (jsonl, messages, parquet) or traj (tau-bench)"
    if objects:
        keys = ", ".join(map(str, list(objects[0])[:8])) or "nothing"
        raise InputError(f"{name} is not recognised: its first row holds {keys}; {expected}")
    raise InputError(f"{name} is not recognised: none of its first {len(head)} rows is an object; {expected}")


def _is_task(messages: Any) -> bool:
    """Whether these are messages, and no assistant wrote any of them."""
    if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
        return False
    return not any(message.get("role") == "assistant" for message in messages)


def _kind(value: Any) -> str:
    """The JSON name of a value's type, with its article."""
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _from_tau_bench(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """A row as tau-bench keeps it, in our schema; its `reward` is the benchmark's own check of success."""
    if "traj" not in row:
        raise RowError("traj is missing; expected the messages of the rollout")
    info = row.get("info")
    task = info.get("task") if isinstance(info, Mapping) else None
    if not isinstance(task, Mapping) or "actions" not in task:
        recorded = info.get("error") if isinstance(info, Mapping) else None
        because = f" (the benchmark recorded the error {str(recorded)[:80]!r})" if recorded else ""
        raise RowError(f"info.task.actions is missing{because}; expected the gold calls")
    ours = {"messages": row["traj"], "gold_calls": task["actions"], "outcome": row.get("reward")}
    return ours | ({"group": row["task_id"]} if "task_id" in row else {})
