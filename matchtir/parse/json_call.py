"""What makes a decoded JSON value a tool call, and what makes it a malformed one.

The rules are the same in every format: a call is an object with a string `name` that is not
empty and with an object of arguments. Arguments that are missing, null or an empty string are
none; arguments that are a string are JSON and decoded once more. Of two equal keys the last
counts, as for `json.loads` and the tools that run the call.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from ..types import ToolCall
from .json_text import Piece, decode_value, fault_in, skip_space, type_name
from .repair import repaired_value

ARGUMENT_KEYS = ("arguments", "parameters")
"""Keys that hold the arguments; the first that is there counts."""

_NEVER = re.compile(r"(?!)")


def calls_from_piece(
    text: str, piece: Piece, *, keys: tuple[str, ...] = ARGUMENT_KEYS, repair: bool = False
) -> list[ToolCall]:
    """The calls of one piece of a turn's text: one, or more where a repair finds an array."""
    raw = text[piece.start : piece.end]
    if piece.error is None:
        return [call_from_value(piece.value, raw, keys=keys, repair=repair)]
    malformed = ToolCall("", malformed=piece.error, raw=raw)
    if not (repair and piece.repairable):
        return [malformed]
    value = repaired_value(raw)
    values = value if isinstance(value, list) and value else [value]
    if fault_in(values) is not None:
        return [malformed]
    calls = [call_from_value(item, raw, keys=keys, repair=True) for item in values]
    if all(call.malformed for call in calls):
        return [malformed]
    return [call if call.malformed else replace(call, repaired=True) for call in calls]


def call_from_value(
    value: object, raw: str | None, *, keys: tuple[str, ...] = ARGUMENT_KEYS, repair: bool = False
) -> ToolCall:
    """A call from a decoded value, malformed where it is none; the value has no fault of its own."""
    if not isinstance(value, Mapping):
        return ToolCall("", malformed=f"expected an object, got {type_name(value)}", raw=raw)
    if "name" not in value:
        return ToolCall("", malformed='no "name"', raw=raw)
    name = value["name"]
    if not isinstance(name, str):
        return ToolCall("", malformed=f'"name" is {type_name(name)}; expected a string', raw=raw)
    if not name.strip():
        return ToolCall("", malformed='"name" is empty', raw=raw)
    key = next((key for key in keys if key in value), keys[0])
    return call_with_arguments(name, value.get(key), raw, key=key, repair=repair)


def call_with_arguments(
    name: str, arguments: object, raw: str | None, *, key: str = "arguments", repair: bool = False
) -> ToolCall:
    """A call of a known tool from its arguments: an object, or a string that holds one."""
    if arguments is None:
        return ToolCall(name, {}, raw=raw)
    if isinstance(arguments, Mapping):
        return ToolCall(name, arguments, raw=raw)
    if not isinstance(arguments, str):
        reason = f'"{key}" is {type_name(arguments)}; expected an object'
        return ToolCall(name, malformed=reason, raw=raw)
    return _call_from_string(name, arguments, raw, key, repair)


def _call_from_string(name: str, source: str, raw: str | None, key: str, repair: bool) -> ToolCall:
    """A call whose arguments are JSON inside a string."""
    start = skip_space(source, 0)
    if start == len(source):
        return ToolCall(name, {}, raw=raw)
    repairable = True
    if source[start] == "{":
        piece = decode_value(source, start, _NEVER)
        rest = skip_space(source, piece.end)
        if piece.error is None and rest == len(source):
            return ToolCall(name, piece.value, raw=raw)
        error = piece.error or f"no JSON: Extra data at character {rest}"
        repairable = piece.repairable or piece.error is None
    else:
        error = f"expected an object, got {source!a:.60}"
    if repair and repairable:
        value = repaired_value(source)
        if isinstance(value, dict) and value and fault_in(value) is None:
            return ToolCall(name, value, repaired=True, raw=raw)
    return ToolCall(name, malformed=f'"{key}", a string: {error}', raw=raw)
