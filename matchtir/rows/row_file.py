"""One file of rows: what holds them is told by its first bytes."""

from __future__ import annotations

import gzip
import io
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Any, final

from ..errors import InputError
from .json_rows import READ_ERRORS, RawRow, json_array, json_lines
from .parquet import ParquetRows

STDIN = "-"
"""The path that means standard input."""


@final
class RowFile:
    """A file of rows, open for one pass over them.

    Parameters
    ----------
    path : str or path
        JSON lines, a JSON array or parquet; JSON also gzipped. ``-`` is standard input.

    Attributes
    ----------
    name : str
        The path as given, or ``<stdin>``.
    container : {"lines", "array", "parquet", ""}
        What the content looks like; empty for a file with nothing in it.

    Raises
    ------
    OSError
        If the file cannot be opened.
    InputError
        If it begins like a gzip file and is none.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = "<stdin>" if os.fspath(path) == STDIN else os.fspath(path)
        self._path = path
        self._size: int | None = None
        self._position: Any = lambda: 0
        with ExitStack() as stack:
            self._stream = self._open(stack)
            head = self._stream.peek(4)
            if head.startswith(b"\x1f\x8b"):
                self._stream = gzip.GzipFile(fileobj=self._stream)
                try:
                    head = self._stream.peek(4)
                except READ_ERRORS as error:
                    raise InputError(f"{self.name} is no readable gzip file: {error}") from None
            if head.startswith(b"PAR1"):
                self.container = "parquet"
            else:
                first = _first_character(self._stream)
                self.container = "array" if first == b"[" else "lines" if first else ""
            self._stack = stack.pop_all()

    def _open(self, stack: ExitStack) -> Any:
        """A buffered stream of the file, or standard input, that can be peeked into."""
        if self.name == "<stdin>":
            return sys.stdin.buffer
        source = io.FileIO(os.fspath(self._path), "rb")
        status = os.fstat(source.fileno())
        if stat.S_ISREG(status.st_mode):
            self._size, self._position = status.st_size, source.tell
        return stack.enter_context(io.BufferedReader(source))

    def rows(self, container: str | None = None) -> Iterator[RawRow]:
        """Rows in order, read as `container`, or as what the content looks like; to be called once.

        Raises
        ------
        InputError
            If it is no parquet file, or one that comes from a pipe.
        ImportError
            For parquet without pyarrow.
        """
        container = container or self.container
        if container == "parquet":
            if self._size is None:
                raise InputError(f"{self.name} holds parquet, which cannot be read from a pipe; give a file")
            table = ParquetRows(self._path, self.name)
            self._stack.callback(table.close)
            self._size, self._position = table.size, lambda: table.done
            return iter(table)
        if container == "array":
            return json_array(self._stream, self.name)
        return json_lines(self._stream, self.name)

    @property
    def progress(self) -> tuple[int, int | None]:
        """How far reading is, and how far it goes (bytes, or rows of parquet; None: nobody knows)."""
        return self._position(), self._size

    def close(self) -> None:
        """Close the file."""
        self._stack.close()

    def __enter__(self) -> RowFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _first_character(stream: Any) -> bytes:
    """The first byte that is no white space or byte-order mark, not consumed; empty at the end."""
    while head := bytes(stream.peek(1)):
        rest = head.lstrip(b"\xef\xbb\xbf \t\r\n")
        if rest:
            return rest[:1]
        stream.read(len(head))
    return b""
