"""Hermes and Qwen: ``<tool_call>{"name": …, "arguments": {…}}</tool_call>``.

A block holds one object, several one after the other, or an array of them.
"""

from __future__ import annotations

import re
from dataclasses import replace

from ..types import ToolCall, Turn
from .json_call import calls_from_piece
from .json_text import Piece, decode_pieces, skip_space
from .scan import Grammar, close_piece, scan_turn

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_GRAMMAR = Grammar(opening=_OPEN, ends=r"</?tool_call>|<\|im_end\|>|<\|endoftext\|>")


def parse_hermes(text: str, *, repair: bool = False) -> Turn:
    """Read a turn in the Hermes format; see :func:`matchtir.parse.parse_turn`."""

    def read(text: str, start: int, ends: re.Pattern[str]) -> tuple[list[ToolCall], int]:
        pieces, end = _block(text, start, ends)
        closed = text.startswith(_CLOSE, end)
        calls = [call for piece in pieces for call in calls_from_piece(text, piece, repair=repair and closed)]
        if closed:
            return calls, end + len(_CLOSE)
        return [_unclosed(call) for call in calls], end

    return scan_turn(text, _GRAMMAR, read)


def _block(text: str, start: int, ends: re.Pattern[str]) -> tuple[list[Piece], int]:
    """The pieces of the block that opened before `start`, at least one, and where the block ends."""
    pieces: list[Piece] = []
    position = skip_space(text, start)
    while text[position : position + 1] in ("{", "["):
        found, end = decode_pieces(text, position, ends)
        pieces.extend(found)
        if pieces[-1].open:
            pieces[-1] = close_piece(text, pieces[-1], ends)
            return pieces, pieces[-1].end
        position = skip_space(text, end)
    match = ends.search(text, position)
    end = match.start() if match else len(text)
    if end > position or not pieces:
        # Text that is no value belongs to the value before it, and spoils it.
        first = pieces.pop() if pieces else Piece(position, end, None, "no JSON: no object")
        error = first.error or f"no JSON: extra data at character {position - first.start}"
        pieces.append(Piece(first.start, end, None, error, repairable=True))
    return pieces, end


def _unclosed(call: ToolCall) -> ToolCall:
    """The same call, marked: a turn that stops inside a call has not made it."""
    reason = f"unclosed {_OPEN}" + (f"; {call.malformed}" if call.malformed else "")
    return replace(call, arguments={}, malformed=reason)
