"""Bounded JSON decoding for text that a model wrote: where a value ends, what it holds, what is wrong.

Nothing here raises. Brackets nest at most `MAX_DEPTH` deep, so whoever walks a decoded value may
recurse, and an error costs no more than the text that was read for it.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

MAX_DEPTH = 100
"""Levels of brackets that the JSON of one call may nest."""

_MAX_DIGITS = 308
"""Characters of an integer: anything longer is beyond a double's range, and slow to convert."""

# What may stand between two brackets: strings, and the characters of JSON's other tokens. No call
# marker is made of those, so a scan stops at a marker unless the marker is inside a string. Two
# scans that start at different markers and pass the same third one disagree from there on about
# what is a string, so at most one of them gets past the next: reading stays linear in the text.
_STRING = r'"[^"\\]*(?:\\.[^"\\]*)*"'
_BETWEEN = re.compile(rf"[\s0-9A-Za-z,:.+\-]*(?:{_STRING}[\s0-9A-Za-z,:.+\-]*)*", re.DOTALL)
_SPACE = re.compile(r"\s*")
_SCALAR = re.compile(rf"{_STRING}|[^\s,\[\]{{}}<\"]+", re.DOTALL)

_TYPE_NAMES: dict[type, str] = {
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "an array",
    tuple: "an array",
    dict: "an object",
    type(None): "null",
}


@dataclass(frozen=True, slots=True)
class Piece:
    """What was read for one call: a JSON value, or why there is none.

    ``text[start:end]`` is the piece. `open` says that its end is not known: reading broke at
    `end`, and the format's next marker decides. `repairable` says that the text is no JSON, as
    opposed to JSON that holds what a call must not.
    """

    start: int
    end: int
    value: Any = None
    error: str | None = None
    repairable: bool = False
    open: bool = False


class _RefusedError(ValueError):
    """A number that no call may hold; raised inside the decoder and caught around it."""

    def __init__(self, reason: str, *, repairable: bool) -> None:
        super().__init__(reason)
        self.repairable = repairable


def _int(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise _RefusedError(f"a number of {len(digits)} digits, beyond a double's range", repairable=False)
    return int(digits)


def _float(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise _RefusedError(f"the number {digits:.40}, beyond a double's range", repairable=False)
    return number


def _constant(name: str) -> Any:
    raise _RefusedError(f"{name}, which JSON does not have", repairable=True)


_DECODER = json.JSONDecoder(parse_int=_int, parse_float=_float, parse_constant=_constant)


def type_name(value: object) -> str:
    """What the type of a JSON value is called in a message: ``"an array"``."""
    return _TYPE_NAMES.get(type(value), f"a {type(value).__name__}")


def skip_space(text: str, start: int) -> int:
    """Index of the first character from `start` on that is not white space."""
    match = _SPACE.match(text, start)
    return match.end() if match else start


def _extent(text: str, start: int) -> tuple[int, str]:
    """Where the bracketed value at `start` ends, and how: "closed", "broken" or "deep"."""
    depth, position = 0, start
    while True:
        between = _BETWEEN.match(text, position)
        position = between.end() if between else position
        bracket = text[position : position + 1]
        if bracket in ("[", "{"):
            if depth == MAX_DEPTH:
                return position, "deep"
            depth += 1
        elif bracket in ("]", "}"):
            depth -= 1
            if depth <= 0:
                return position + 1, "closed"
        else:
            return min(position + 1, len(text)), "broken"
        position += 1


def decode_value(text: str, start: int, ends: re.Pattern[str]) -> Piece:
    """Decode the object or array that opens at `start`.

    Broken JSON whose brackets close ends where they do, unless a marker that `ends` finds stands
    inside: with a quote missing, what looks like a string may be the next call.
    """
    stop, how = _extent(text, start)
    source = text[start:stop]
    error, repairable = None, False
    value: Any = None
    where = len(source)
    try:
        value, where = _DECODER.raw_decode(source)
    except json.JSONDecodeError as problem:
        where = problem.pos
        # Cut off before the bracket that nests too deep, the text is an error only at its end.
        if how == "deep" and where >= len(source):
            error = f"nested deeper than {MAX_DEPTH} levels"
        else:
            error = f"no JSON: {problem.msg.removesuffix(' at')} at character {where}"
            repairable = True
    except _RefusedError as problem:
        error, repairable = f"holds {problem}", problem.repairable
    else:
        if "\\u" in source or not source.isascii():
            error = fault_in(value)
    if error is None:
        return Piece(start, start + where, value)
    if how == "closed" and not ends.search(text, start + 1, stop):
        return Piece(start, stop, None, error, repairable)
    return Piece(start, start + max(where, 1), None, error, repairable, open=True)


def decode_array(text: str, start: int, ends: re.Pattern[str]) -> tuple[list[Piece], int]:
    """Decode the array that opens at `start`: one piece an element, at least one, and the index past it.

    Element by element, so that a broken one does not take its neighbours along. Only the last
    piece can be open. What breaks the array behind an element is that element's error.
    """
    pieces: list[Piece] = []
    position = skip_space(text, start + 1)
    comma = True
    while True:
        following = text[position : position + 1]
        scalar = _SCALAR.match(text, position) if comma else None
        if following in ("{", "["):
            piece = decode_value(text, position, ends)
        elif scalar and not ends.search(text, position, scalar.end()):
            error = f"expected an object, got {scalar.group()!a:.60}"
            piece = Piece(position, scalar.end(), None, error)
        elif following == "]" and not pieces:
            return [Piece(start, position + 1, None, "an empty array holds no call")], position + 1
        else:
            closed = following == "]"
            broken = pieces.pop() if pieces else Piece(start, position)
            error = broken.error or "no JSON: the array ends in a comma or is not closed"
            end = position + 1 if closed else position
            broken = Piece(broken.start, end, None, error, repairable=True, open=not closed)
            return [*pieces, broken], end
        if not comma and piece.error is None:
            piece = Piece(piece.start, piece.end, None, "no JSON: no comma before it", repairable=True)
        pieces.append(piece)
        if piece.open:
            return pieces, piece.end
        position = skip_space(text, piece.end)
        comma = text[position : position + 1] == ","
        if comma:
            position = skip_space(text, position + 1)
        elif text[position : position + 1] == "]":
            return pieces, position + 1


def decode_pieces(text: str, start: int, ends: re.Pattern[str]) -> tuple[list[Piece], int]:
    """Pieces of the object or array that opens at `start`, and the index just past it."""
    if text[start] == "[":
        return decode_array(text, start, ends)
    piece = decode_value(text, start, ends)
    return [piece], piece.end


def fault_in(value: object) -> str | None:
    """Why a call may not hold a value, or None: no JSON, too deep, too large, no text."""
    level: list[object] = [value]
    for depth in range(MAX_DEPTH + 1):
        below: list[object] = []
        for item in level:
            if depth == MAX_DEPTH and isinstance(item, dict | list | tuple):
                return f"nested deeper than {MAX_DEPTH} levels"
            if isinstance(item, dict):
                if not all(isinstance(key, str) for key in item):
                    return "holds an object with a key that is no string"
                below.extend(item)
                below.extend(item.values())
            elif isinstance(item, list | tuple):
                below.extend(item)
            elif fault := _scalar_fault(item):
                return fault
        level = below
    return None


def _scalar_fault(item: object) -> str | None:
    """What is wrong with a value that is no container, or None."""
    if isinstance(item, str):
        try:
            item.encode()
        except UnicodeEncodeError:
            return "holds half of a surrogate pair, which is no text"
    elif isinstance(item, float):
        if not math.isfinite(item):
            return f"holds {item}, which JSON does not have"
    elif isinstance(item, int):
        if abs(item) >= 10**_MAX_DIGITS:
            return "holds a number beyond a double's range"
    elif item is not None:
        return f"holds {type_name(item)}, which JSON does not have"
    return None
