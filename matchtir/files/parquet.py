"""Parquet, both ways: rows as JSON would hold them, and score records as typed columns."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, BinaryIO

from ..errors import InputError, RowError
from .json_rows import RawRow, cut_off, json_error

_BATCH_ROWS = 256


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
        try:
            for batch in self._file.iter_batches(batch_size=_BATCH_ROWS):
                kind = self._pyarrow.struct(batch.schema)
                for value in batch.to_pylist():
                    row = _parse_columns(_plain(value, kind, self._pyarrow.types))
                    yield self.done, f"{self._name}, row {self.done}", row
                    self.done += 1
        except self._pyarrow.ArrowException as error:
            yield cut_off(self._name, self.done, f"the file cannot be read on from here: {error}")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _parse_columns(row: dict[str, Any]) -> Any:
    """A row with the columns that hold JSON as text parsed; the parser knows the others."""
    for key in ("messages", "turns", "traj", "info"):
        if isinstance(row.get(key), str):
            try:
                row[key] = json.loads(row[key])
            except (ValueError, RecursionError) as error:
                return RowError(f"column {key} holds a string: {json_error(error)}")
    return row


def _plain(value: Any, kind: Any, types: Any) -> Any:
    """A value of arrow type `kind` as a JSON value.

    A struct column has every field of every row, so a field that is null says nothing of whether the row
    had it: null fields are left out. A map column keeps its nulls.
    """
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if types.is_struct(kind):
        found = {field.name: _plain(value[field.name], field.type, types) for field in kind}
        return {name: entry for name, entry in found.items() if entry is not None}
    if types.is_map(kind):
        return {str(key): _plain(entry, kind.item_type, types) for key, entry in value}
    if isinstance(value, list):
        return [_plain(entry, kind.value_type, types) for entry in value]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def write_parquet(stream: BinaryIO, records: Iterable[Mapping[str, Any]], text_groups: bool) -> int:
    """Records to an open stream; returns how many."""
    pyarrow, parquet = pyarrow_modules()
    number, index = pyarrow.float64(), pyarrow.int64()
    columns = {
        "file": pyarrow.string(),
        "row": index,
        "group": pyarrow.string() if text_groups else index,
        "call_rewards": pyarrow.list_(number),
        "matches": pyarrow.list_(index),
        "turn_rewards": pyarrow.list_(number),
        "return": number,
        "trajectory_advantage": number,
        "turn_advantages": pyarrow.list_(number),
        "malformed": index,
    }
    records = iter(records)
    batch = list(islice(records, _BATCH_ROWS))
    if batch and "file" not in batch[0]:
        del columns["file"]
    schema = pyarrow.schema(list(columns.items()))
    count = 0
    with parquet.ParquetWriter(stream, schema) as writer:
        while batch:
            if text_groups:
                batch = [{**record, "group": _utf8(str(record["group"]))} for record in batch]
            writer.write_table(pyarrow.Table.from_pylist(batch, schema=schema))
            count += len(batch)
            batch = list(islice(records, _BATCH_ROWS))
    return count


def _utf8(text: str) -> str:
    """Text without the lone surrogates that JSON can hold and parquet cannot."""
    return text.encode("utf-8", "replace").decode("utf-8")
