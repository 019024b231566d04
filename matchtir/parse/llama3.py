"""Llama 3: ``{"name": …, "parameters": {…}}``, after ``<|python_tag|>`` or without it.

Without the tag nothing marks a call but its shape and its place: an object, or an array of them,
that begins a line and whose first key is a call's, or which is JSON with a name and arguments. An
object that is something else is text, and so is all of an ``<answer>``. Further calls follow on new lines or
after ``;``. What comes after the tag is a call whatever it is.
"""

from __future__ import annotations

import re

from ..types import ToolCall, Turn
from .json_call import calls_from_piece
from .json_text import Piece, decode_pieces
from .scan import Grammar, close_piece, scan_turn

_KEYS = ("parameters", "arguments")
_TAG = "<|python_tag|>"
_STOP = r"<\|(?:python_tag|eot_id|eom_id|end_of_text)\|>"
_FIRST_KEY = r"""\{\s*(?:["']?(?:name|parameters|arguments)["']?\s*:|["']?type["']?\s*:\s*["']function["'])"""
_LOOKS_LIKE_CALL = re.compile(rf"(?:\[\s*)?{_FIRST_KEY}")
_SEPARATOR = re.compile(r"\s*;?\s*")
# Where the next call may begin, which ends a broken one: only what looks like one does.
_GRAMMAR = Grammar(
    opening=rf"{re.escape(_TAG)}|^[ \t]*(?=[\[{{])",
    ends=rf"{_STOP}|^[ \t]*(?=(?:\[\s*)?{_FIRST_KEY})",
    marked=re.escape(_TAG),
)


def parse_llama3(text: str, *, repair: bool = False) -> Turn:
    """Read a turn in the Llama 3 JSON format; see :func:`matchtir.parse.parse_turn`."""

    def read(text: str, start: int, ends: re.Pattern[str]) -> tuple[list[ToolCall], int]:
        tagged = text.endswith(_TAG, 0, start)
        pieces, end = _calls(text, start, ends, tagged)
        calls = [
            call for piece in pieces for call in calls_from_piece(text, piece, keys=_KEYS, repair=repair)
        ]
        return calls, end

    return scan_turn(text, _GRAMMAR, read)


def _calls(text: str, start: int, ends: re.Pattern[str], tagged: bool) -> tuple[list[Piece], int]:
    """The calls from `start` on and the index past them; none if no call opens there."""
    pieces: list[Piece] = []
    end, expected = start, tagged
    while True:
        separator = _SEPARATOR.match(text, end)
        position = separator.end() if separator else end
        expected = expected or ";" in text[end:position]
        if text[position : position + 1] not in ("{", "["):
            break
        looks = _LOOKS_LIKE_CALL.match(text, position) is not None
        found, after = decode_pieces(text, position, ends)
        if not (expected or looks or all(_is_call(piece) for piece in found)):
            # JSON that is no call is skipped whole, lest an object in it be taken for one.
            # Broken JSON is skipped as far as it is JSON, or to what looks like a call in it.
            if pieces:
                break
            broken = any(piece.error for piece in found)
            inner = ends.search(text, position + 1, after) if broken else None
            return [], max(position + 1, inner.start() if inner else after)
        pieces.extend(found)
        end, expected = after, False
        if pieces[-1].open:
            pieces[-1] = close_piece(text, pieces[-1], ends, _resume(text, position, end))
            return pieces, pieces[-1].end
    if tagged and not pieces:
        match = ends.search(text, start)
        end = match.start() if match else len(text)
        pieces.append(Piece(start, end, None, "no JSON: no object after " + _TAG, repairable=True))
    return pieces, end


def _resume(text: str, start: int, broken: int) -> int:
    """Where to look for the next call after text that began at `start` and broke at `broken`.

    JSON strings hold no line break, so a call that begins a line before the break is part of the
    JSON. Not so one whose bracket is the break: its line is looked at from its beginning.
    """
    line = text.rfind("\n", start, broken)
    if line >= 0 and not text[line:broken].strip():
        return line + 1
    return max(broken, start + 1)


def _is_call(piece: Piece) -> bool:
    """Whether JSON without a call's first key is a call: a name, and arguments under their own key."""
    value = piece.value
    return isinstance(value, dict) and "name" in value and any(key in value for key in _KEYS)
