"""Score records as the typed columns of a parquet file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, BinaryIO

from ..rows import pyarrow_modules

_BATCH_ROWS = 256


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
