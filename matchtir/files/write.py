"""Score files out: one record a rollout, and a file that is whole or not there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..rows import pyarrow_modules, whole_file
from ..types import Credit
from .parquet import write_parquet

OUTPUT_SUFFIXES = (".jsonl", ".ndjson", ".parquet")
"""The file names that :func:`write_scores` writes to."""


def score_records(
    credit: Credit, rows: Iterable[int], groups: Iterable[str | int], *, file: str | None = None
) -> Iterator[dict[str, Any]]:
    """What a score file says of each rollout.

    Parameters
    ----------
    credit : Credit
        Of B rollouts.
    rows, groups : iterable of length B
        Index of each rollout in its file, from 0, and its group as the file names it.
    file : str, optional
        Name of the file; left out where None.

    Yields
    ------
    dict
        `file` (if given), `row`, `group`, `call_rewards`, `matches` (index of the gold call, or None),
        `turn_rewards`, `return`, `trajectory_advantage`, `turn_advantages`, `malformed` (count).
    """
    for b, (row, group) in enumerate(zip(rows, groups, strict=True)):
        record: dict[str, Any] = {} if file is None else {"file": file}
        record["row"] = row
        record["group"] = group
        record["call_rewards"] = credit.call_rewards[b].tolist()
        record["matches"] = [None if gold < 0 else gold for gold in credit.matches[b].tolist()]
        record["turn_rewards"] = credit.turn_rewards[b].tolist()
        record["return"] = float(credit.returns[b])
        record["trajectory_advantage"] = float(credit.trajectory_advantages[b])
        record["turn_advantages"] = credit.turn_advantages[b].tolist()
        record["malformed"] = int(credit.malformed[b])
        yield record


def json_line(record: Mapping[str, Any]) -> bytes:
    """One record as a line of JSON; raises ValueError rather than write NaN, which is no JSON."""
    return json.dumps(record, allow_nan=False).encode("ascii") + b"\n"


def check_output(path: str | os.PathLike[str]) -> Path:
    """Refuse a score file that could not be written, before anything is computed.

    Returns
    -------
    Path
        Where the file will be: `path` with its links followed.

    Raises
    ------
    InputError
        If the suffix is not one of `OUTPUT_SUFFIXES`, the folder is missing, or something that is no
        ordinary file stands there.
    ImportError
        For parquet without pyarrow.
    """
    suffix = Path(path).suffix
    if suffix not in OUTPUT_SUFFIXES:
        raise InputError(f"output {str(path)!r} ends in {suffix!r}; expected {', '.join(OUTPUT_SUFFIXES)}")
    # A link stays a link: what it points to is replaced.
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise InputError(f"output {str(path)!r}: there is no folder {str(target.parent)!r}")
    if target.exists() and not target.is_file():
        raise InputError(f"output {str(path)!r} exists and is no ordinary file")
    if suffix == ".parquet":
        pyarrow_modules()
    return target


def write_scores(
    path: str | os.PathLike[str], records: Iterable[Mapping[str, Any]], *, text_groups: bool = False
) -> int:
    """Write records to a file, JSON lines or parquet by its suffix; whole or not at all.

    Parameters
    ----------
    path : str or path
        Ends in one of `OUTPUT_SUFFIXES`.
    records : iterable of mapping
        As :func:`score_records` yields them; taken one by one.
    text_groups : bool
        A column of parquet has one type: write `group` as text. False where all groups are integers.

    Returns
    -------
    int
        The number of records.

    Raises
    ------
    InputError, ImportError
        As :func:`check_output`.
    """
    target = check_output(path)
    count = 0
    with whole_file(target) as stream:
        if Path(path).suffix == ".parquet":
            return write_parquet(stream, records, text_groups)
        for record in records:
            stream.write(json_line(record))
            count += 1
    return count
