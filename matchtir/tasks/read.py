"""Tasks in: the format is recognised by the columns, and tasks are read row by row."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import chain, islice
from types import TracebackType
from typing import Any, NamedTuple, final

from ..errors import InputError, MatchtirError, RowError
from ..parse.json_text import type_name
from ..rows import RawRow, RowFile
from ..types import Task
from . import ftrl, toolhop
from .bfcl import BFCL, BfclRows, is_bfcl, task_from_bfcl
from .hub import HubRows, is_data_set
from .own import task_from_own

_PEEK_ROWS = 16


class _Format(NamedTuple):
    """A format: its name in prose, the columns it needs, and how a row becomes a task."""

    title: str
    columns: tuple[str, ...]
    read: Callable[[Mapping[str, Any], int], Task]


_FORMATS = {
    "ftrl": _Format("FTRL", ftrl.COLUMNS, ftrl.task_from_ftrl),
    "toolhop": _Format("ToolHop", toolhop.COLUMNS, toolhop.task_from_toolhop),
    "matchtir": _Format("matchtir", ("messages or question",), task_from_own),
}

TASK_FORMATS = tuple(_FORMATS)
"""What :func:`read_tasks` reads, by the names that it reports and takes."""


@dataclass(frozen=True, slots=True)
class TaskRow:
    """One row of a task file: a task, or the reason why there is none.

    Attributes
    ----------
    row : int
        Index in the file from 0. A broken row counts; an empty line does not.
    task : Task or None
        None where the row is broken.
    error : RowError or None
        Where and why the row is broken: file, line (of JSON lines), row and reason.
    """

    row: int
    task: Task | None
    error: RowError | None = None


@final
class TaskFile:
    """A file or data set of tasks, open for one pass over its rows; made by :func:`read_tasks`.

    Attributes
    ----------
    name : str
        The path or name as given, or ``<stdin>``.
    format : str
        One of `TASK_FORMATS`: what was recognised, or what was asked for; ``bfcl`` for BFCL's tasks.
    """

    def __init__(
        self, source: str | os.PathLike[str], *, split: str | None = None, format: str | None = None
    ) -> None:
        if format is not None and format not in _FORMATS:
            raise InputError(f"format is {format!r}; expected one of {', '.join(TASK_FORMATS)}")
        with ExitStack() as stack:
            self._source = stack.enter_context(closing(_opened(source, split)))
            self.name = self._source.name
            rows = self._source.rows()
            self._read: Callable[[Mapping[str, Any], int], Task] = task_from_bfcl
            head: list[RawRow] = []
            if not isinstance(self._source, BfclRows):
                # Content decides, not the extension: the first rows are looked at before they are given out.
                head = list(islice(rows, _PEEK_ROWS))
                self.format = _recognised(self.name, head, format)
                self._read = _FORMATS[self.format].read
            elif format is None:
                self.format = BFCL
            else:
                raise InputError(
                    f"format is {format!r}, but {self.name} has a form of its own; expected None"
                )
            self._rows = chain(head, rows)
            self._first: dict[str, int] = {}
            stack.pop_all()

    @property
    def progress(self) -> tuple[int, int | None]:
        """How far reading is, and how far it goes (bytes, or rows; None: nobody knows)."""
        return self._source.progress

    def __iter__(self) -> Iterator[TaskRow]:
        for row, where, value in self._rows:
            try:
                task = self._task(row, value)
            except (MatchtirError, RecursionError) as error:
                reason = str(error) or type(error).__name__
                yield TaskRow(row, None, RowError(f"{where}: {reason}"))
            else:
                yield TaskRow(row, task)

    def _task(self, row: int, value: Any) -> Task:
        """A task from one decoded row; raises what is wrong with it."""
        if isinstance(value, MatchtirError):
            raise value
        if not isinstance(value, Mapping):
            raise RowError(f"the row is {type_name(value)}; expected an object")
        task = self._read(value, row)
        if self._first.setdefault(task.id, row) != row:
            raise RowError(f"id is {task.id!r}, as in row {self._first[task.id]}; expected each id once")
        return task

    def close(self) -> None:
        """Close the file."""
        self._source.close()

    def __enter__(self) -> TaskFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_tasks(
    source: str | os.PathLike[str], *, split: str | None = None, format: str | None = None
) -> TaskFile:
    """Open a file or data set of tasks for one pass over its rows.

    Parameters
    ----------
    source : str or path
        A file: JSON lines, a JSON array or parquet; JSON also gzipped; ``-`` is standard input. Or what the
        `datasets` library loads: a folder, or the name of a data set on the hub, ``owner/name``. Or
        ``bfcl``, BFCL's multi-turn tasks from the installed package bfcl_eval; ``bfcl:multi_turn_base`` one
        category, ``bfcl:multi_turn_base:train`` one split of it.
    split : str, optional
        Split of a data set, or of BFCL; files have none.
    format : {"ftrl", "toolhop", "matchtir"}, optional
        What a row is; by default its columns tell. ``docs/formats.md`` describes each.

    Returns
    -------
    TaskFile
        An iterable of :class:`TaskRow` and a context manager. A broken row comes as a `TaskRow` with an
        error; it never stops the iteration. The sources of tools are data: nothing compiles or runs them.

    Raises
    ------
    OSError
        If the file cannot be opened.
    InputError
        If it is empty, is not recognised, or lacks a column that its format needs; if `format` or `split`
        is unknown; if a data set cannot be loaded.
    ImportError
        For parquet without pyarrow, for data sets without `datasets`, for BFCL without bfcl_eval.

    Examples
    --------
    >>> import json, os, tempfile
    >>> row = {"id": "sum", "question": "What is 2 + 2?", "gold_answer": "4"}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "tasks.jsonl")
    ...     with open(path, "w") as file:
    ...         _ = file.write(json.dumps(row))
    ...     with read_tasks(path) as tasks:
    ...         found = [(row.task.id, row.task.gold_answer) for row in tasks if row.task]
    >>> tasks.format, found
    ('matchtir', [('sum', '4')])
    """
    return TaskFile(source, split=split, format=format)


def _opened(source: str | os.PathLike[str], split: str | None) -> RowFile | HubRows | BfclRows:
    """What gives the rows."""
    if is_bfcl(source):
        return BfclRows(os.fspath(source), split)
    if is_data_set(source):
        return HubRows(source, split)
    if split is not None:
        raise InputError(f"split is {split!r}, but {os.fspath(source)} is a file, which has no splits")
    return RowFile(source)


def _recognised(name: str, head: list[RawRow], forced: str | None) -> str:
    """The format of these first rows; refuses what lacks a column of it."""
    if not head:
        raise InputError(f"{name} holds no rows; expected tasks ({', '.join(TASK_FORMATS)})")
    rows = [value for _, _, value in head if isinstance(value, Mapping)]
    columns = list(dict.fromkeys(str(key) for row in rows for key in row))
    found = forced or _guessed(rows, columns)
    if found is None or not (rows or forced):
        needs = "; ".join(f"{form.title}: {', '.join(form.columns)}" for form in _FORMATS.values())
        came = _shown(columns) if rows else f"none of its first {len(head)} rows is an object"
        raise InputError(f"{name} is not recognised: {came}; tasks need ({needs})")
    form = _FORMATS[found]
    missing = [need for need in form.columns if not any(key in columns for key in need.split(" or "))]
    if rows and missing:
        what = f"column {missing[0]} is" if len(missing) == 1 else f"columns {', '.join(missing)} are"
        needs = ", ".join(form.columns)
        raise InputError(f"{name}: {what} missing; {form.title} tasks need {needs} ({_shown(columns)})")
    return found


def _guessed(rows: list[Mapping[str, Any]], columns: list[str]) -> str | None:
    """The format whose marks the rows bear."""
    if any(mark in columns for mark in ftrl.MARKS):
        return "ftrl"
    named = any(isinstance(row.get("tools"), Mapping) for row in rows)  # in other formats they are a list
    if named or any(mark in columns for mark in toolhop.MARKS):
        return "toolhop"
    return "matchtir" if "messages" in columns or "question" in columns else None


def _shown(columns: list[str]) -> str:
    """Columns in words, not too many of them."""
    rest = f" and {len(columns) - 12} more" if len(columns) > 12 else ""
    return f"columns found: {', '.join(columns[:12]) or 'none'}{rest}"
