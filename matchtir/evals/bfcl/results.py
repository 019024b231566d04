"""The folder of a run: its settings, and the official result files, kept such that a run can go on."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InputError

SETTINGS = "matchtir.json"
IDS = "test_case_ids_to_generate.json"
"""The official name of the list of tasks, for ``bfcl generate --run-ids``."""

ERROR = "Error during inference:"
"""How a result begins that is none, in bfcl_eval."""

_FINAL = "matchtir"  # key of a result that is an error for good


@dataclass(frozen=True, slots=True)
class Category:
    """A category's tasks and where its files are, as the driver says.

    Attributes
    ----------
    name, folder, prefix : str
        Its name, its folder below the model's, and how its files' names begin.
    tasks : tuple of str
        The tasks that are scored, in order.
    before : mapping of str to tuple of str
        Of memory: the conversations that fill the memory of each scenario, in order.
    scenarios : mapping of str to str
        Of memory: each task's scenario.
    """

    name: str
    folder: str
    prefix: str
    tasks: tuple[str, ...]
    before: Mapping[str, tuple[str, ...]]
    scenarios: Mapping[str, str]

    def chosen(self, tasks: Sequence[str]) -> Category:
        """The same with some of its tasks, and the conversations that these need."""
        needed = {self.scenarios[task] for task in tasks if task in self.scenarios}
        before = {scenario: ids for scenario, ids in self.before.items() if scenario in needed}
        return Category(self.name, self.folder, self.prefix, tuple(tasks), before, self.scenarios)

    @property
    def all(self) -> tuple[str, ...]:
        """Conversations and tasks."""
        return (*(one for ids in self.before.values() for one in ids), *self.tasks)


@contextmanager
def open_folder(folder: Path, settings: Mapping[str, Any]) -> Iterator[None]:
    """Hold the folder of a run, or make it; raises InputError if it is another run's, or in use."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SETTINGS
    if not path.exists() and any(folder.iterdir()):
        raise InputError(
            f"output {str(folder)!r} holds other files; expected a new folder, or one of such a run"
        )
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder} is being written by another process") from None
        _same_settings(path, settings)
        yield
    finally:
        os.close(file)


def _same_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings, or compare them with those that are there."""
    text = path.read_text(encoding="utf-8")
    if not text.strip():
        path.write_text(json.dumps(settings, indent=2) + "\n", encoding="ascii")
        return
    try:
        found = json.loads(text)
        changed = [name for name in {**found, **settings} if found.get(name) != settings.get(name)]
    except (ValueError, TypeError, AttributeError):
        raise InputError(
            f"{path} was not written by `matchtir eval bfcl`; expected another --output"
        ) from None
    if changed:
        came = ", ".join(
            f"{name}={json.dumps(found.get(name))}, not {json.dumps(settings.get(name))}" for name in changed
        )
        raise InputError(f"{path.parent} holds results with {came}; expected the same, or another --output")


@dataclass(frozen=True, slots=True)
class Tidied:
    """What was taken out of files: bytes of broken lines, errors by task, and results that relied on them."""

    cut: int
    errors: Mapping[str, str]
    dependent: int


class Results:
    """The official result files of a model.

    Parameters
    ----------
    folder : Path
        The model's folder of results.
    categories : sequence of Category
        Whose files are meant.
    """

    def __init__(self, folder: Path, categories: Sequence[Category]) -> None:
        self.folder, self.categories = folder, categories

    def file(self, category: Category, *, before: bool = False) -> Path:
        """Where a category's results are, or those of the conversations before its tasks."""
        name = f"{category.prefix}_{category.name}{'_prereq' if before else ''}_result.json"
        return self.folder / category.folder / name

    def found(self) -> dict[str, str | None]:
        """The tasks that have a result, and what it says if it is an error."""
        rows = (row for category in self.categories for path in self._files(category) for row in _rows(path))
        return {row["id"]: row["result"] if _is_error(row) else None for row in rows}

    def tidy(self) -> Tidied:
        """Take out broken lines and errors, which the official code would keep, and what relied on them.

        A memory is filled by one conversation after the other. Where one is missing those after it are taken
        out too, and so are the answers to questions on the memory, and the memory is what it was before.
        """
        cut, dependent, errors = 0, 0, {}
        for category in self.categories:
            for path in self._files(category):
                rows: dict[str, bytes] = {}
                for line in _lines(path):
                    row = _row(line)
                    if row is None:
                        cut += len(line)
                    elif _is_error(row) and _FINAL not in row:
                        errors[row["id"]] = str(row["result"])
                    else:
                        rows[row["id"]] = line
                _rewrite(path, list(rows.values()))
            dependent += self._take_back(category)
        return Tidied(cut, errors, dependent)

    def fail(self, category: Category, task: str, reason: str) -> None:
        """Record that a task failed for good, as bfcl_eval records an error."""
        path = self.file(category, before=task not in category.tasks)
        path.parent.mkdir(parents=True, exist_ok=True)
        row = {"id": task, "result": f"{ERROR} {reason}", "traceback": "", _FINAL: reason}
        lines = [line for line in _lines(path) if _row(line) is not None]
        _rewrite(path, [*lines, json.dumps(row).encode("ascii") + b"\n"])

    def failed(self) -> dict[str, str]:
        """Tasks that failed for good, and why."""
        rows = (row for category in self.categories for path in self._files(category) for row in _rows(path))
        return {row["id"]: row[_FINAL] for row in rows if _FINAL in row}

    def _files(self, category: Category) -> list[Path]:
        """The files of a category that may be there."""
        return [self.file(category)] + ([self.file(category, before=True)] if category.before else [])

    def _take_back(self, category: Category) -> int:
        """Set each memory back to its first missing conversation; returns how many results went."""
        taken = 0
        done = {row["id"] for path in self._files(category) for row in _rows(path)}
        for scenario, chain in category.before.items():
            first = next((k for k, one in enumerate(chain) if one not in done), None)
            if first is None:
                continue
            gone = {*chain[first:], *(t for t, s in category.scenarios.items() if s == scenario)}
            for path in self._files(category):
                lines = _lines(path)
                kept = [line for line in lines if (row := _row(line)) is not None and row["id"] not in gone]
                taken += len(lines) - len(kept)
                _rewrite(path, kept)
            self._restore(category, scenario, chain[:first])
        return taken

    def _restore(self, category: Category, scenario: str, done: Sequence[str]) -> None:
        """Make a scenario's memory what the conversations that are done made it."""
        memory = self.folder / category.folder / "memory_snapshot"
        final = memory / f"{scenario}_final.json"
        for one in reversed(done):
            snapshot = memory / "prereq_checkpoints" / f"{one}.json"
            if snapshot.exists():
                shutil.copyfile(snapshot, final)
                return
        final.unlink(missing_ok=True)


def _is_error(row: Mapping[str, Any]) -> bool:
    """Whether a result is none."""
    return isinstance(row["result"], str) and row["result"].startswith(ERROR)


def _lines(path: Path) -> list[bytes]:
    """The lines of a file; none if it is not there."""
    return path.read_bytes().splitlines(keepends=True) if path.exists() else []


def _row(line: bytes) -> dict[str, Any] | None:
    """What a line holds; None if it was cut off."""
    try:
        row = json.loads(line) if line.endswith(b"\n") else None
        return row if isinstance(row, dict) and isinstance(row["id"], str) and "result" in row else None
    except (ValueError, KeyError, RecursionError):
        return None


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file that are whole."""
    return (row for line in _lines(path) if (row := _row(line)) is not None)


def _rewrite(path: Path, lines: Sequence[bytes]) -> None:
    """Put lines in place of a file's, all or nothing; a file without lines goes."""
    if lines == _lines(path):
        return
    if not lines:
        path.unlink()
        return
    beside = path.with_suffix(".new")
    beside.write_bytes(b"".join(lines))
    os.replace(beside, path)


def write_ids(folder: Path, categories: Sequence[Category]) -> None:
    """The list of tasks as the official commands read it."""
    ids = {category.name: list(category.all) for category in categories}
    (folder / IDS).write_text(json.dumps(ids, indent=2) + "\n", encoding="ascii")
