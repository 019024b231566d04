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


def parse_mistral(text: str, *, repair: bool = False) -> Turn:
    """Read a turn in the Mistral format; see :func:`matchtir.parse.parse_turn`."""

    def read(text: str, start: int, ends: re.Pattern[str]) -> tuple[list[ToolCall], int]:
        position = skip_space(text, start)
        if text[position : position + 1] in ("[", "{") and not ends.match(text, position):
            pieces, end = decode_pieces(text, position, ends)
            if pieces[-1].open:
                pieces[-1] = close_piece(text, pieces[-1], ends)
                end = pieces[-1].end
            return [call for piece in pieces for call in calls_from_piece(text, piece, repair=repair)], end
        head = _HEAD.match(text, position)
        if head and text[head.end() : head.end() + 1] == "{":
            return _named(text, head, ends, repair)
        match = ends.search(text, start)
        end = match.start() if match else len(text)
        name = head.group(1) if head and head.end() == end else ""
        reason = "no arguments after the name" if name else "neither an array nor a name with arguments"
        return [ToolCall(name, malformed=f"no JSON: {reason}", raw=text[start:end])], end

    return scan_turn(text, _GRAMMAR, read)


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
