"""Reading rollout files for a command: which files, the options, and lines about what is broken."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from rich.console import Console

from .. import files
from ..errors import InputError, MatchtirError
from ..parse import formats as text_formats
from ..report import terminal
from ..types import Trajectory
from .say import say

T = TypeVar("T")


@dataclass(frozen=True)
class FileRead(Generic[T]):
    """What a command keeps of a file: an item a rollout, with its row, and why the broken rows are none."""

    name: str
    rows: list[int]
    items: list[T]
    broken: dict[int, MatchtirError]


def add_reading_options(command: argparse.ArgumentParser, *, run: str = "") -> None:
    """The files, and options that say what a file holds; `run` is what else may stand in their place."""
    command.add_argument(
        "files", nargs="*", metavar="FILE", help=f"rollout file, or - for standard input{run}"
    )
    group = command.add_argument_group("reading")
    group.add_argument("--sample", action="store_true", help="the sample rollouts that come with matchtir")
    group.add_argument("--format", choices=files.FORMATS, help="what FILE holds (default: its content tells)")
    group.add_argument("--text-format", choices=text_formats(), help="how raw text of turns is parsed")
    group.add_argument("--repair", action="store_true", help="repair calls that are no JSON")


def sources_of(args: argparse.Namespace) -> list[str]:
    """The files to read."""
    sources = [str(files.sample_path())] if args.sample else []
    sources += args.files
    if not sources:
        raise InputError("no file is given; expected FILE, - for standard input, or --sample")
    return sources


def refuse_input(output: str, target: Path, sources: list[str]) -> None:
    """Refuse an output file that is one of the inputs."""
    for source in sources:
        if target.exists() and os.path.exists(source) and os.path.samefile(source, target):
            raise InputError(f"output {output!r} is the input {source!r}; expected another file")


def read_file(
    source: str, args: argparse.Namespace, take: Callable[[int, Trajectory, Mapping[str, Any]], T]
) -> FileRead[T]:
    """Read a file and report its broken rows; `strict`, where a command has it, stops at the first.

    `take` gets each row's index, rollout and fields, and returns what is kept of it. An InputError from it
    makes the row a broken one.
    """
    strict = getattr(args, "strict", False)
    rows: list[int] = []
    items: list[T] = []
    broken: dict[int, MatchtirError] = {}
    errors = Console(stderr=True, highlight=False)
    with files.read_rollouts(
        source, format=args.format, text_format=args.text_format, repair=args.repair
    ) as opened:
        name = "sample" if source == str(files.sample_path()) else opened.name
        if not getattr(args, "quiet", False):
            say(f"{name}: {'recognised' if args.format is None else 'read'} as {opened.format}")
        label = f"reading {os.path.basename(name)}"
        for row in terminal.track(opened, errors, label, lambda: opened.progress):
            if row.trajectory is not None:
                try:
                    items.append(take(row.row, row.trajectory, row.fields))
                    rows.append(row.row)
                except InputError as error:
                    broken[row.row] = InputError(f"{name}, row {row.row}: {error}")
            elif row.error is not None:
                broken[row.row] = row.error
            if strict and broken:
                break
    if strict and broken:
        say(f"{next(iter(broken.values()))} (--strict stops here)")
    else:
        _say_broken(name, broken, len(rows))
    return FileRead(name, rows, items, broken)


def _say_broken(name: str, broken: dict[int, MatchtirError], read: int) -> None:
    """Report broken rows, one per line; in one line where the whole file is broken in the same way."""
    reasons = {str(error).partition(": ")[2] for error in broken.values()}
    if len(broken) > 1 and not read and len(reasons) == 1:
        say(f"{name}: all {len(broken)} rows: {reasons.pop()}")
        return
    for error in broken.values():
        say(str(error))
    if broken:
        rows = "row is" if len(broken) == 1 else "rows are"
        say(f"{name}: {len(broken):,} broken {rows} left out, {read:,} read")
