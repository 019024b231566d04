"""One pass over a turn's text: what is reasoning, what is a call, what the reader sees.

``<think>…</think>`` is reasoning wherever it opens outside a call, and no call stands in it. One
that never closes reaches to the end. A ``</think>`` that none opened closes the one which the
chat template opened: all text before it is reasoning. A ``</think>`` inside the JSON of a call is
part of the JSON.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from ..types import ToolCall, Turn
from .json_text import Piece

_OPEN, _CLOSE = "<think>", "</think>"
_ANSWER_OPEN, _ANSWER_CLOSE = "<answer>", "</answer>"


class Reader(Protocol):
    """Reads what opens at a marker: ``text[start:]`` follows it; `ends` finds what ends broken text.

    Returns the calls, none where it turns out that nothing opened, and the index to go on at,
    greater than the marker's.
    """

    def __call__(self, text: str, start: int, ends: re.Pattern[str]) -> tuple[list[ToolCall], int]: ...


@dataclass(frozen=True, slots=True)
class Grammar:
    """The markers of a format: patterns of what opens a call and of what ends broken text.

    Where a call may open without a marker, `marked` is the pattern of the openings that have one: an
    ``<answer>…</answer>`` without any of those is an answer, whatever JSON stands in it.
    """

    opening: str
    ends: str
    marked: str | None = None


@lru_cache(maxsize=64)
def _compiled(grammar: Grammar) -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
    """Events of a scan; ends after a think closed; ends while one may still be open."""
    answer = "(?!)" if grammar.marked is None else _ANSWER_OPEN
    events = re.compile(
        f"(?P<open>{_OPEN})|(?P<close>{_CLOSE})|(?P<answer>{answer})|(?P<call>{grammar.opening})",
        re.MULTILINE,
    )
    ends = re.compile(grammar.ends, re.MULTILINE)
    return events, ends, re.compile(f"{grammar.ends}|{_CLOSE}", re.MULTILINE)


def scan_turn(text: str, grammar: Grammar, read: Reader, seen: list[str] | None = None) -> Turn:
    """Split a turn's text and read its calls; linear in the text, never raises.

    What is neither reasoning nor a call is appended to `seen`.
    """
    events, ends, ends_or_close = _compiled(grammar)
    visible: list[str] = []
    reasoning: list[str] = []
    calls: list[ToolCall] = []
    position, thought, answers = 0, False, True
    while match := events.search(text, position):
        begin, after = match.span()
        if match.lastgroup == "open":
            visible.append(text[position:begin])
            close = text.find(_CLOSE, after)
            thought = True
            reasoning.append(text[after : close if close >= 0 else len(text)])
            position = close + len(_CLOSE) if close >= 0 else len(text)
        elif match.lastgroup == "close":
            if thought:
                visible.append(text[position:after])
            else:
                # The template opened it: what looked like calls were drafts.
                reasoning, visible, calls, thought = [text[:begin]], [], [], True
            position = after
        elif match.lastgroup == "answer":
            close = text.find(_ANSWER_CLOSE, after) if answers else -1
            inside = text[after:close] if close >= 0 else ""
            # Looked at once only, or nested tags would make the scan quadratic.
            answers = close >= 0 and not re.search(f"{_OPEN}|{_CLOSE}|{grammar.marked}", inside)
            end = close if answers else after
            visible.append(text[position:end])
            position = end
        else:
            found, end = read(text, after, ends if thought else ends_or_close)
            visible.append(text[position : begin if found else end])
            calls.extend(found)
            position = end
    visible.append(text[position:])
    if seen is not None:
        seen.extend(visible)
    answer = None if calls else find_answer("".join(visible))
    thoughts = "\n\n".join(part.strip() for part in reasoning) if thought else None
    return Turn(tuple(calls), answer, text, thoughts)


def find_answer(visible: str) -> str | None:
    """What stands in the last closed ``<answer>…</answer>``, without surrounding space, or None."""
    end = visible.rfind(_ANSWER_CLOSE)
    start = visible.rfind(_ANSWER_OPEN, 0, end) if end >= 0 else -1
    return visible[start + len(_ANSWER_OPEN) : end].strip() if start >= 0 else None


def close_piece(text: str, piece: Piece, ends: re.Pattern[str], start: int | None = None) -> Piece:
    """The piece with an end: an open one reaches to the next marker from `start`, or to the end."""
    if not piece.open:
        return piece
    match = ends.search(text, piece.start if start is None else start)
    end = match.start() if match else len(text)
    return Piece(piece.start, end, None, piece.error, piece.repairable)
