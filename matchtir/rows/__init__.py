"""Files of rows in, decoded one row at a time, and files out that are whole or not there.

What a file holds is told by its content, never by its name. A row that cannot be decoded comes as a
:class:`~matchtir.errors.RowError` in its place, so that the rows around it are read.
"""

from .json_rows import RawRow, json_error
from .parquet import BATCH_ROWS, pyarrow_modules, table_rows
from .row_file import STDIN, RowFile
from .whole_file import whole_file

__all__ = [
    "BATCH_ROWS",
    "STDIN",
    "RawRow",
    "RowFile",
    "json_error",
    "pyarrow_modules",
    "table_rows",
    "whole_file",
]
