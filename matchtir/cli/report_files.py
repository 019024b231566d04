"""What a report shows of rollout files: each is read, scored and described."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..credit import CreditConfig, assign_credit
from ..errors import InputError
from ..report.inspector.page import Report
from ..report.inspector.rollouts import Shown, describe
from ..report.inspector.run import rollout_charts
from ..report.terminal import Summary
from ..types import Trajectory
from .credit_options import settings_of
from .reading import FileRead, read_file
from .say import DONE, FAILED, PARTLY, say, words


@dataclass(frozen=True)
class PageFile:
    """What a page shows of a file, and why it does not show the rest."""

    name: str
    columns: dict[str, list[Any]]
    details: list[dict[str, Any]]
    summary: Summary
    broken: list[str]
    cut: list[str]


def report_of_files(
    sources: Sequence[str],
    args: argparse.Namespace,
    config: CreditConfig,
    tokens: Any,
    empty: bool = False,
    known: dict[str, tuple[Any, PageFile]] | None = None,
) -> tuple[Report | None, int]:
    """What the page of rollout files shows; None if nothing can be read and that is no empty page.

    `known` holds the files of the last page, of which those are read that have changed, then of this one.
    """
    code, left = DONE, args.limit
    columns: dict[str, list[Any]] = {}
    details: list[dict[str, Any]] = []
    names: list[str] = []
    broken: list[str] = []
    summary = Summary()
    read = {}
    for source in sources:
        try:
            state = None if known is None else state_of(Path(source))
            before, one = (known or {}).get(source, (None, None))
            if one is None or before != state:
                one = _of_file(source, args, config, tokens, None if empty else left)
        except (OSError, ImportError, InputError) as error:
            say(f"error: {words(error)}")
            broken.append(words(error))
            code = PARTLY
            continue
        read[source] = state, one
        broken += one.broken + one.cut
        code = PARTLY if one.broken else code
        if not one.details:
            continue
        left -= len(one.details)
        summary += one.summary
        details += one.details
        for name, values in one.columns.items():
            columns.setdefault(name, []).extend(values)
        columns["file"][-len(one.details) :] = [len(names)] * len(one.details)
        names.append(one.name)
    if known is not None:
        known.clear()
        known.update(read)
    if not details:
        if not empty:
            say("nothing can be shown")
            return None, FAILED
        columns, _ = describe([], assign_credit([], config), config)
    names = _without_shared_folders(names)
    report = Report(
        title=", ".join(names) if len(names) <= 2 else f"{len(names)} files",
        columns=columns,
        details=details,
        files=names,
        facts=_facts(summary),
        settings=[
            ("credit", settings_of(config).removeprefix("settings: ")),
            *((f"credit.{name}", str(value)) for name, value in asdict(config).items()),
        ],
        charts=rollout_charts(columns, details),
        broken=broken,
        integration=config.resolved_integration,
    )
    return report, code


def _of_file(
    source: str, args: argparse.Namespace, config: CreditConfig, tokens: Any, limit: int | None
) -> PageFile:
    """A file read, scored and described; with a limit only its first groups."""
    read = _read(source, args, config)
    items = read.items if limit is None else _whole_groups(read.items, limit)
    cut = []
    if len(items) < len(read.items):
        cut = [f"{read.name}: only {len(items):,} of {len(read.items):,} rollouts are shown (--limit)"]
        say(cut[0])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        credit = assign_credit([one.trajectory for one in items], config)
        columns, details = describe(items, credit, config, tokens)
    for warning in caught:
        say(f"warning: {read.name}: {warning.message}")
    broken = [str(error) for error in read.broken.values()]
    return PageFile(read.name, columns, details, Summary.of(credit), broken, cut)


def state_of(file: Path) -> tuple[int, int]:
    """What changes with a file: its size and when it was written."""
    found = file.stat()
    return found.st_size, found.st_mtime_ns


def _without_shared_folders(names: Sequence[str]) -> list[str]:
    """Names of files without the folders that all of them are in."""
    parts = [Path(name).parts for name in names]
    shared = 0
    while all(len(one) > shared + 1 for one in parts) and len({one[shared] for one in parts}) == 1:
        shared += 1
    return ["/".join(one[shared:]) for one in parts]


def _read(source: str, args: argparse.Namespace, config: CreditConfig) -> FileRead[Shown]:
    """The rollouts of a file, with their rows."""

    def take(row: int, trajectory: Trajectory, fields: Any) -> Shown:
        if config.reward == "ftrl" and trajectory.sub_answers is None:
            raise InputError("sub_answers is missing; the reward 'ftrl' needs it")
        return Shown(trajectory, fields, row)

    return read_file(source, args, take)


def _whole_groups(items: list[Shown], limit: int) -> list[Shown]:
    """The first rollouts, not more than a limit but for the first group, and no group in parts."""
    kept: set[Any] = set()
    sizes: dict[Any, int] = {}
    for one in items:
        sizes[one.trajectory.group] = sizes.get(one.trajectory.group, 0) + 1
    for group, size in sizes.items():
        if kept and size > limit:
            break
        kept.add(group)
        limit -= size
    return [one for one in items if one.trajectory.group in kept]


def _facts(summary: Summary) -> list[tuple[str, str, str]]:
    """The figures that `matchtir score` prints."""
    calls, groups = max(1, summary.calls), max(1, summary.groups)
    return [
        ("rollouts", f"{summary.rollouts:,}", ""),
        ("groups", f"{summary.groups:,}", f"{summary.silent_groups / groups:.1%} without signal"),
        ("calls", f"{summary.calls:,}", ""),
        ("matched", f"{summary.matched / calls:.1%}", f"{summary.matched:,}"),
        ("malformed", f"{summary.malformed / calls:.1%}", f"{summary.malformed:,}"),
        ("mean return", f"{summary.return_sum / max(1, summary.rollouts):.4f}", ""),
    ]
