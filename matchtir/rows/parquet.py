"""Rows of parquet files and of arrow tables, as JSON would hold them."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

from ..errors import InputError, RowError
from .json_rows import RawRow, cut_off, json_error

BATCH_ROWS = 256
"""Rows of a parquet file that are in memory at a time."""


def pyarrow_modules() -> tuple[Any, Any]:
    """The modules `pyarrow` and `pyarrow.parquet`, or how to get them."""
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ImportError('parquet files need pyarrow: pip install "matchtir[parquet]"') from None


class ParquetRows:
    """Rows of a parquet file, one batch in memory at a time.

    Attributes
    ----------
    size, done : int
        Rows of the file, and how many were given out.
    """

    def __init__(self, path: str | os.PathLike[str], name: str) -> None:
        self._pyarrow, parquet = pyarrow_modules()
        try:
            self._file = parquet.ParquetFile(path)
        except self._pyarrow.ArrowException as error:
            raise InputError(f"{name} is no readable parquet file: {error}") from None
        self._name = name
        self.size: int = self._file.metadata.num_rows
        self.done = 0

    def __iter__(self) -> Iterator[RawRow]:
        for row in table_rows(self._file.iter_batches(batch_size=BATCH_ROWS), self._name):
            yield row
            self.done = row[0] + 1

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def table_rows(batches: Iterable[Any], name: str) -> Iterator[RawRow]:
    """Rows of record batches or tables of arrow, numbered from 0 over all of them."""
    pyarrow, _ = pyarrow_modules()
    row = 0
    try:
        for batch in batches:
            kind = pyarrow.struct(batch.schema)
            for value in batch.to_pylist():
                yield row, f"{name}, row {row}", _row(value, kind, pyarrow)
                row += 1
    except pyarrow.ArrowException as error:
        yield cut_off(name, row, f"the file cannot be read on from here: {error}")


def _row(value: dict[str, Any], kind: Any, pyarrow: Any) -> Any:
    """A row as JSON values, with the columns that hold JSON as text parsed; the parser knows the others."""
    try:
        row = _plain(value, kind, pyarrow)
    except (ValueError, RecursionError) as error:
        return RowError(f"a value of type JSON holds a string: {json_error(error)}")
    for key in ("messages", "turns", "traj", "info"):
        if isinstance(row.get(key), str):
            try:
                row[key] = json.loads(row[key])
            except (ValueError, RecursionError) as error:
                return RowError(f"column {key} holds a string: {json_error(error)}")
    return row


def _plain(value: Any, kind: Any, pyarrow: Any) -> Any:
    """A value of arrow type `kind` as a JSON value.

    A struct column has every field of every row, so a field that is null says nothing of whether the row
    had it: null fields are left out. A map column keeps its nulls. A JSON column, which the library
    `datasets` writes for values of several types, holds texts and means what they say.
    """
    if isinstance(value, str):
        return json.loads(value) if isinstance(kind, getattr(pyarrow, "JsonType", ())) else value
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if pyarrow.types.is_struct(kind):
        found = {field.name: _plain(value[field.name], field.type, pyarrow) for field in kind}
        return {name: entry for name, entry in found.items() if entry is not None}
    if pyarrow.types.is_map(kind):
        return {str(key): _plain(entry, kind.item_type, pyarrow) for key, entry in value}
    if isinstance(value, list):
        return [_plain(entry, kind.value_type, pyarrow) for entry in value]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
