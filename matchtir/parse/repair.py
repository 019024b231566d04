"""Repair of malformed JSON, on request; the one file that imports `json_repair`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

MAX_REPAIR_LENGTH = 65_536
"""Characters of one call that are handed to the repair; longer text stays malformed."""


def load_repair() -> Callable[[str], Any]:
    """The function that repairs JSON text and returns the value.

    Raises
    ------
    ImportError
        If `json_repair` is not installed.
    """
    try:
        module = importlib.import_module("json_repair")
    except ImportError as error:
        raise ImportError(
            'repair=True needs json_repair, which is not installed: pip install "matchtir[repair]"'
        ) from error
    loads: Callable[[str], Any] = module.loads
    return loads


def repaired_value(source: str) -> Any:
    """What the repair makes of `source`, or None where it makes nothing of it."""
    loads = load_repair()
    if len(source) > MAX_REPAIR_LENGTH:
        return None
    try:
        return loads(source)
    except (ValueError, RecursionError, IndexError, KeyError, TypeError, AttributeError):
        # Text that the repair trips over stays what it was: malformed.
        return None
