"""Mistral: ``[TOOL_CALLS]`` and an array of calls, or ``[TOOL_CALLS]name{…}`` once a call.

The second form may hold ``[CALL_ID]id`` and ``[ARGS]`` between the name and the arguments.
"""

from __future__ import annotations

import re
from dataclasses import replace

from ..types import ToolCall, Turn
from .json_call import call_with_arguments, calls_from_piece
from .json_text import decode_pieces, decode_value, fault_in, skip_space
from .repair import repaired_value
from .scan import Grammar, close_piece, scan_turn

_TAG = r"\[TOOL_CALLS\]"
_GRAMMAR = Grammar(opening=_TAG, ends=rf"{_TAG}|</s>")
_HEAD = re.compile(r"([^\s\[\]{}<>\"',:;]+)\s*(?:\[CALL_ID\][^\[\]{}<>]*)?(?:\[ARGS\])?\s*")
_BETWEEN = re.compile(r"[\s,;]*")
_ARRAY = re.compile(r"\[\s*[\[{\]]")


def parse_mistral(text: str, *, repair: bool = False) -> Turn:
    """Read a turn in the Mistral format; see :func:`matchtir.parse.parse_turn`."""

    def read(text: str, start: int, ends: re.Pattern[str]) -> tuple[list[ToolCall], int]:
        calls, position = _calls(text, skip_space(text, start), ends, repair)
        if not calls:
            return [_broken(text, start, ends)], _end(text, start, ends)
        # What follows without a tag of its own are calls too: leaving them out would hide them.
        while between := _BETWEEN.match(text, position):
            following = between.end()
            # A "[" alone may be the beginning of a tag that was cut off.
            cut = text.startswith("[", following) and not _ARRAY.match(text, following)
            more, end = ([], following) if cut else _calls(text, following, ends, repair)
            if not more:
                break
            calls.extend(more)
            position = end
        return calls, position

    return scan_turn(text, _GRAMMAR, read)


def _calls(text: str, start: int, ends: re.Pattern[str], repair: bool) -> tuple[list[ToolCall], int]:
    """The calls of the value, or of the name with arguments, at `start` and the index past it; or none."""
    if ends.match(text, start):
        return [], start
    if text[start : start + 1] in ("[", "{"):
        pieces, end = decode_pieces(text, start, ends)
        if pieces[-1].open:
            pieces[-1] = close_piece(text, pieces[-1], ends)
            end = pieces[-1].end
        return [call for piece in pieces for call in calls_from_piece(text, piece, repair=repair)], end
    head = _HEAD.match(text, start)
    if head and text[head.end() : head.end() + 1] == "{":
        return _named(text, head, ends, repair)
    return [], start


def _end(text: str, start: int, ends: re.Pattern[str]) -> int:
    """Index of the next marker, or of the end."""
    match = ends.search(text, start)
    return match.start() if match else len(text)


def _broken(text: str, start: int, ends: re.Pattern[str]) -> ToolCall:
    """The malformed call of a tag behind which there is none."""
    end = _end(text, start, ends)
    head = _HEAD.match(text, skip_space(text, start))
    name = head.group(1) if head and head.end() == end else ""
    reason = "no arguments after the name" if name else "neither an array nor a name with arguments"
    return ToolCall(name, malformed=f"no JSON: {reason}", raw=text[start:end])


def _named(text: str, head: re.Match[str], ends: re.Pattern[str], repair: bool) -> tuple[list[ToolCall], int]:
    """The call whose name `head` matched, and the index past its arguments."""
    name = head.group(1)
    piece = close_piece(text, decode_value(text, head.end(), ends), ends)
    raw = text[head.start() : piece.end]
    if piece.error is None:
        return [call_with_arguments(name, piece.value, raw)], piece.end
    if repair and piece.repairable:
        value = repaired_value(text[piece.start : piece.end])
        if isinstance(value, dict) and fault_in(value) is None:
            return [replace(call_with_arguments(name, value, raw), repaired=True)], piece.end
    return [ToolCall(name, malformed=piece.error, raw=raw)], piece.end
