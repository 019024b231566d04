"""How the command speaks: its exit codes, and lines on standard error."""

from __future__ import annotations

import sys

from ..report import terminal

DONE, PARTLY, FAILED, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 130, 141


def say(text: str) -> None:
    """One line on standard error."""
    print(f"matchtir: {terminal.printable(text)}", file=sys.stderr)


def words(error: BaseException) -> str:
    """An error in words, without Python's and the system's numbers."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    return str(error) or ("out of memory" if isinstance(error, MemoryError) else type(error).__name__)
