"""OpenAI messages: every assistant message is a turn, every tool message the result of a call."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..errors import InputError
from ..types import ToolCall, Turn
from .json_call import call_from_value
from .json_text import fault_in, type_name
from .registry import parse_turn, parser_of
from .repair import load_repair
from .scan import Grammar, scan_turn

_RESULT_ROLES = ("tool", "function")
_ASKING_ROLES = ("user", "system", "developer")
_REASONING_KEYS = ("reasoning_content", "reasoning")


def parse_messages(
    messages: Sequence[Mapping[str, Any]], *, format: str | None = None, repair: bool = False
) -> tuple[Turn, ...]:
    """Read a conversation in OpenAI's form: one turn an assistant message.

    Parameters
    ----------
    messages : sequence of mapping
        Each with a `role`. An assistant message has `content` (a string, a list of text parts,
        or None), `tool_calls`, and perhaps `reasoning_content`. A message of role ``"tool"`` is
        the result of the call that its `tool_call_id` names in the turn before it, or of the
        first call there without a result.
    format : str, optional
        How the content of messages without `tool_calls` is parsed for calls. None takes it for
        text: think blocks and the answer are read, calls only from `tool_calls`.
    repair : bool
        Repair arguments that are malformed JSON, and mark the call `repaired`.

    Returns
    -------
    tuple of Turn, length N
        Only the last turn may have an answer: what stands in its ``<answer>…</answer>``, else,
        if its content is not empty, its whole visible content. A result without a call, and
        roles other than these, are passed over.

    Raises
    ------
    InputError
        If a message is not built like one; the text names the field and what came. A malformed
        call raises nothing.
    ConfigError
        If `format` is unknown.
    ImportError
        If `repair` is true and `json_repair` is not installed.

    Examples
    --------
    >>> call = {"id": "a", "function": {"name": "add", "arguments": '{"x": 1}'}}
    >>> turns = parse_messages([
    ...     {"role": "assistant", "content": None, "tool_calls": [call]},
    ...     {"role": "tool", "tool_call_id": "a", "content": "2"},
    ...     {"role": "assistant", "content": "Two."},
    ... ])
    >>> turns[0].calls[0].arguments, turns[0].calls[0].result, turns[1].answer
    ({'x': 1}, '2', 'Two.')
    """
    return last_answers(turns_of_messages(messages, format=format, repair=repair))


def turns_of_messages(
    messages: Sequence[Mapping[str, Any]], *, format: str | None = None, repair: bool = False
) -> list[Turn]:
    """The turns of :func:`parse_messages`, each with what it would answer if it were the last."""
    if format is not None:
        parser_of(format)
    if repair:
        load_repair()
    turns: list[Turn] = []
    ids: list[str | None] = []
    results: list[tuple[str | None, str]] = []
    for i, message in enumerate(sequence_at(messages, "messages")):
        where = f"messages[{i}]"
        role = mapping_at(message, where).get("role")
        if not isinstance(role, str):
            raise InputError(f"{where}.role is {type_name(role)}; expected a string")
        if role == "assistant":
            _give_results(turns, ids, results)
            turn, ids = _turn(message, where, format, repair)
            turns.append(turn)
            results = []
        elif role in _RESULT_ROLES:
            call_id = message.get("tool_call_id")
            content = content_text(message.get("content"), f"{where}.content")
            results.append((call_id if isinstance(call_id, str) else None, content))
    _give_results(turns, ids, results)
    return turns


def turns_by_user_turn(messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """How many assistant messages answer each user turn; its prompt begins the first one.

    A user turn begins with a message of the user or system that comes after one of the assistant; several in
    a row are one.
    """
    counts = [0]
    answered = False
    for message in messages:
        role = message.get("role")
        if role == "assistant":
            counts[-1] += 1
            answered = True
        elif role in _ASKING_ROLES and answered:
            counts.append(0)
            answered = False
    return counts


def last_answers(turns: Sequence[Turn], counts: Sequence[int] = ()) -> tuple[Turn, ...]:
    """The same turns, where only the last one keeps its answer; of dialogues the last of each user turn.

    `counts` says how many turns each user turn has.
    """
    last = set(itertools.accumulate(counts)) if counts else {len(turns)}
    return tuple(
        replace(turn, answer=None) if t not in last and turn.answer is not None else turn
        for t, turn in enumerate(turns, start=1)
    )


def _turn(
    message: Mapping[str, Any], where: str, format: str | None, repair: bool
) -> tuple[Turn, list[str | None]]:
    """The turn of one assistant message, and the id of each of its calls."""
    text = content_text(message.get("content"), f"{where}.content")
    entries = _entries(message, where)
    if entries or format is None:
        turn, visible = _plain(text)
    else:
        turn = parse_turn(text, format, repair=repair)
        visible = _plain(text)[1]
    ids: list[str | None] = [None] * len(turn.calls)
    if entries:
        calls = tuple(_call(entry, f"{where}.{field}", repair) for field, entry in entries)
        turn = replace(turn, calls=calls, answer=None)
        ids = [_id(entry) for _, entry in entries]
    elif not turn.calls and turn.answer is None and visible:
        turn = replace(turn, answer=visible)
    reasoning = next((r for key in _REASONING_KEYS if isinstance(r := message.get(key), str)), None)
    if reasoning is not None:
        both = (part for part in (reasoning.strip(), turn.reasoning) if part)
        turn = replace(turn, reasoning="\n\n".join(both))
    return turn, ids


def _plain(text: str) -> tuple[Turn, str]:
    """A turn of text in which nothing is a call, and the text without its think blocks."""
    seen: list[str] = []
    turn = scan_turn(
        text, Grammar(opening=r"(?!)", ends=r"(?!)"), lambda text, start, ends: ([], start), seen
    )
    return turn, "".join(seen).strip()


def _entries(message: Mapping[str, Any], where: str) -> list[tuple[str, Any]]:
    """The message's calls as they came, each with its field's name."""
    calls = message.get("tool_calls")
    if calls is not None:
        entries = [(f"tool_calls[{j}]", c) for j, c in enumerate(sequence_at(calls, f"{where}.tool_calls"))]
        if entries:
            return entries
    legacy = message.get("function_call")
    return [] if legacy is None else [("function_call", legacy)]


def _call(entry: Any, where: str, repair: bool) -> ToolCall:
    """One entry of `tool_calls`: OpenAI's, with a `function`, or a flat name and arguments."""
    function = mapping_at(entry, where)
    if function.get("function") is not None:
        function = mapping_at(function["function"], f"{where}.function")
    return call_from_object(function, repair=repair)


def call_from_object(value: Mapping[str, Any], *, repair: bool = False) -> ToolCall:
    """A call from an object that was never text, or whose arguments alone are text."""
    arguments = value.get("arguments")
    raw = arguments if isinstance(arguments, str) else None
    fault = fault_in({key: value[key] for key in ("name", "arguments", "parameters") if key in value})
    call = ToolCall("", malformed=fault) if fault else call_from_value(value, raw, repair=repair)
    if call.malformed and raw is None:
        # Nothing else would show what came.
        return replace(call, raw=_shown(value))
    return call


def _shown(value: Any) -> str:
    """A value as text, for a reader, whatever it is."""
    try:
        return json.dumps(value, default=repr)
    except (TypeError, ValueError, RecursionError):
        return f"{type_name(value)} that cannot be shown"


def _id(entry: Any) -> str | None:
    """The id of a call, None where it has none."""
    call_id = entry.get("id")
    return call_id if isinstance(call_id, str) else None


def _give_results(
    turns: list[Turn], ids: Sequence[str | None], results: Sequence[tuple[str | None, str]]
) -> None:
    """Put the results into the calls of the last turn: by id first, the others in order."""
    if not turns or not results or not turns[-1].calls:
        return
    calls = list(turns[-1].calls)
    by_id: dict[str, list[int]] = {}
    for k, call_id in enumerate(ids):
        if call_id is not None:
            by_id.setdefault(call_id, []).append(k)
    others: list[str] = []
    for call_id, content in results:
        named = by_id.get(call_id) if call_id is not None else None
        if named:
            k = named.pop(0)
            calls[k] = replace(calls[k], result=content)
        else:
            others.append(content)
    free = (k for k, call in enumerate(calls) if call.result is None)
    for k, content in zip(free, others, strict=False):
        calls[k] = replace(calls[k], result=content)
    turns[-1] = replace(turns[-1], calls=tuple(calls))


def content_text(content: Any, where: str) -> str:
    """The text of a message: a string, the text parts of a list, or nothing."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    parts: list[str] = []
    for j, part in enumerate(sequence_at(content, where, "a string, a list of parts, or null")):
        text = part if isinstance(part, str) else mapping_at(part, f"{where}[{j}]").get("text")
        if text is not None and not isinstance(text, str):
            raise InputError(f"{where}[{j}].text is {type_name(text)}; expected a string")
        parts.append(text or "")
    return "".join(parts)


def sequence_at(value: Any, where: str, expected: str = "a list") -> Sequence[Any]:
    """The value, if it is a list."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return value
    raise InputError(f"{where} is {type_name(value)}; expected {expected}")


def mapping_at(value: Any, where: str) -> Mapping[str, Any]:
    """The value, if it is an object."""
    if isinstance(value, Mapping):
        return value
    raise InputError(f"{where} is {type_name(value)}; expected an object")
