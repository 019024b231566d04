"""Rows of JSON files, decoded one at a time: JSON lines, and the elements of one JSON array."""

from __future__ import annotations

import codecs
import json
import re
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from ..errors import RowError

# A decoded row: its index in the file, where it stands in words, and its value or a RowError.
RawRow = tuple[int, str, Any]

READ_ERRORS = (OSError, EOFError, zlib.error)
"""What reading a stream, gzipped or not, may raise."""

LONGEST = 64 << 20
"""Bytes of a row, or characters: a small gzip file may hold rows of any length."""

_CHUNK = 1 << 20
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")
_CUT = "the file cannot be read on from here"
_TOO_LONG = f"is longer than {LONGEST >> 20} MiB; nothing after it can be read"


def json_error(error: ValueError | RecursionError) -> RowError:
    """What is wrong with the text of a row, in one line."""
    if isinstance(error, json.JSONDecodeError):
        return RowError(f"not JSON: {error.msg} at column {error.colno}")
    if isinstance(error, UnicodeDecodeError):
        return RowError(f"not UTF-8: byte 0x{error.object[error.start]:02x} at {error.start}")
    return RowError(f"not JSON that can be read: {error}")


def cut_off(name: str, row: int, reason: str) -> RawRow:
    """The row in whose place reading had to stop."""
    return row, f"{name}, row {row}", RowError(reason)


def json_lines(stream: BinaryIO, name: str) -> Iterator[RawRow]:
    """Rows of a file with one JSON value a line; empty lines are skipped."""
    row = number = 0
    while True:
        try:
            line = stream.readline(LONGEST + 1)
        except READ_ERRORS as error:
            yield cut_off(name, row, f"{_CUT}: {error}")
            return
        if not line:
            return
        number += 1
        if len(line) > LONGEST:
            yield cut_off(name, row, f"line {number} {_TOO_LONG}")
            return
        if not line.strip():
            continue
        value: Any
        try:
            value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except (ValueError, RecursionError) as error:
            value = json_error(error)
        yield row, f"{name}, line {number} (row {row})", value
        row += 1


class _TooLongError(Exception):
    """A row of an array is longer than a row may be."""


class _ArrayScanner:
    """Elements of a JSON array, decoded one by one from a stream that is read in pieces."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._text, self._at = stream, "", 0
        # Bytes that are no UTF-8 become surrogates, so that they break the row they stand in and no other.
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self._ended = False
        self._decode = json.JSONDecoder().raw_decode

    def _more(self) -> bool:
        """Append a piece at least as long as what is left, so that one long row is not tried too often."""
        if self._ended:
            return False
        left = self._text[self._at :]
        if len(left) > LONGEST:
            raise _TooLongError
        piece = self._stream.read(max(_CHUNK, len(left)))
        self._ended = not piece
        self._text, self._at = left + self._utf8.decode(piece, final=self._ended), 0
        return True

    def token(self) -> str:
        """The next character that is no white space, not consumed; empty at the end of the file."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def skip(self) -> None:
        """Consume one character."""
        self._at += 1

    def element(self) -> Any:
        """Consume one element: its value, or a RowError if it is no UTF-8; raises JSONDecodeError at none."""
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # Cut off by the end of the piece, or broken wherever the piece ends?
                unfinished = error.msg.startswith("Unterminated") or error.pos + 16 > len(self._text)
                if not (unfinished and self._more()):
                    raise
                continue
            # What looks like a number's end may be where the piece ends: "1" of "1e+5".
            if isinstance(value, int | float) and end + 3 > len(self._text) and self._more():
                continue
            begin, self._at = self._at, end
            if stray := _ESCAPED_BYTE.search(self._text, begin, end):
                return RowError(f"not UTF-8: byte 0x{ord(stray.group()) - 0xDC00:02x}")
            return value


def json_array(stream: BinaryIO, name: str) -> Iterator[RawRow]:
    """Rows of a file that is one JSON array. After broken JSON nothing tells where a row begins."""
    scanner = _ArrayScanner(stream)
    row = 0
    try:
        scanner.token()
        scanner.skip()
        while (token := scanner.token()) != "]":
            if row and token != ",":
                reason = (
                    f"not JSON: {token!r} where ',' or ']' should be" if token else "the array breaks off"
                )
                yield cut_off(name, row, reason)
                return
            if row:
                scanner.skip()
                scanner.token()
            value = scanner.element()
            yield row, f"{name}, row {row}", value
            row += 1
        scanner.skip()
        if scanner.token():
            yield cut_off(name, row, "more text follows the end of the array")
    except json.JSONDecodeError as error:
        # The scanner stands where the row begins, and has read on to the end if that could have helped.
        reason = f"not JSON: {error.msg}"
        yield cut_off(name, row, f"{reason}; nothing after it can be read")
    except (ValueError, RecursionError) as error:
        yield cut_off(name, row, f"{json_error(error)}; nothing after it can be read")
    except _TooLongError:
        yield cut_off(name, row, f"the row {_TOO_LONG}")
    except READ_ERRORS as error:
        yield cut_off(name, row, f"{_CUT}: {error}")
