"""One row of a rollout file, in the documented schema, to a trajectory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..errors import ConfigError, InputError
from ..types import LARGEST_REWARD, Round, ToolCall, Trajectory, Turn
from .json_call import call_from_value
from .json_text import fault_in, type_name
from .messages import (
    call_from_object,
    last_answers,
    mapping_at,
    sequence_at,
    turns_by_user_turn,
    turns_of_messages,
)
from .registry import parse_turn, parser_of

_GROUP = ("group", "task_id", "prompt_id")
_GOLD_CALLS = ("gold_calls", "ground_truth")
_GOLD_ANSWER = ("gold_answer", "answer")
_SUB_ANSWERS = ("sub_answers", "unsolved_set")
_KIND = ("kind", "data_source")
_GOLD_KEYS = ("arguments", "parameters", "kwargs")


def trajectory_from_row(
    row: Mapping[str, Any],
    *,
    format: str | None = None,
    repair: bool = False,
    golds: dict[str, tuple[ToolCall, ...]] | None = None,
) -> Trajectory:
    """Build a trajectory from one row of a rollout file.

    Parameters
    ----------
    row : mapping
        `group` (aliases `task_id`, `prompt_id`): str or int, required.
        `messages`: OpenAI messages, see :func:`parse_messages`; or `turns`: a list whose items
        are the raw text of a turn, or objects with `calls`, `answer` and `text`; one of the two.
        `gold_calls` (alias `ground_truth`): list of ``{"name", "arguments"}``, where the key may
        also be `parameters` or `kwargs`; the list or the arguments may be JSON strings.
        `gold_answer` (alias `answer`): str or null. `outcome`: a number of magnitude at most 1e100, a
        boolean or null.
        `sub_answers` (alias `unsolved_set`): tool to list of str; may be a JSON string.
        `kind` (alias `data_source`): str or null, of which the part after the last "/" is taken.
        `rounds`: the user turns of a dialogue, those too that were not reached; a list, or a JSON string, of
        objects with `gold_calls`, `gold_answer` and `outcome`, which the row itself may not have then, and
        with `turns`: how many of the rollout's turns answer it. With `messages` all may leave `turns` out; it
        is then counted between the messages of user or system. Null or empty: there is one user turn.
        `format`: how text is parsed. Where a name and its alias are both there, the name counts,
        unless it is null. Other keys are passed over.
    format : str, optional
        Overrides the row's. Without either, turns are Hermes and messages have `tool_calls`.
    repair : bool
        Repair predicted calls that are malformed JSON. Gold calls are never repaired.
    golds : dict, optional
        Filled with gold traces as they are met. Rows that are read with the same dict share equal
        traces, so that they are read and later interned once.

    Returns
    -------
    Trajectory
        Malformed predicted calls are in it, marked. Without gold calls `gold_calls` is empty; an
        empty list of turns gives a trajectory without turns.

    Raises
    ------
    InputError
        If a field is missing or not what the schema says, or a gold call is malformed.
    ConfigError
        If the argument `format` is unknown.
    ImportError
        If `repair` is true and `json_repair` is not installed.

    Examples
    --------
    >>> row = {"group": 7, "turns": ['<tool_call>{"name": "f"}</tool_call>', "<answer>4</answer>"]}
    >>> trajectory = trajectory_from_row(row)
    >>> trajectory.calls[0].name, trajectory.turns[1].answer, trajectory.group
    ('f', '4', 7)
    """
    mapping_at(row, "row")
    if format is not None:
        parser_of(format)
    golds = {} if golds is None else golds
    turns = _turns(row, format or _format(row), repair)
    rounds, gold_calls = _rounds(row, len(turns), golds)
    return Trajectory(
        turns=last_answers(turns, [one.turns for one in rounds]),
        gold_calls=gold_calls if rounds else _gold_calls(row, golds),
        gold_answer=_gold_answer(row),
        group=_group(row),
        outcome=_outcome(row),
        sub_answers=_sub_answers(row),
        kind=_kind(row),
        rounds=rounds,
    )


def _pick(row: Mapping[str, Any], names: tuple[str, ...]) -> tuple[str, Any]:
    """The first field that is there and not null, with its name; the main name and None if none is."""
    return next(((name, row[name]) for name in names if row.get(name) is not None), (names[0], None))


def _from_json(value: Any, where: str) -> Any:
    """The value, decoded if it is a JSON string."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is a string that is no JSON: {error}") from error


def _group(row: Mapping[str, Any]) -> str | int:
    name, group = _pick(row, _GROUP)
    if group is None:
        raise InputError(f"group is missing; expected a string or an integer (or {', '.join(_GROUP[1:])})")
    if isinstance(group, bool) or not isinstance(group, str | int):
        raise InputError(f"{name} is {type_name(group)}, {group!r:.60}; expected a string or an integer")
    return group


def _format(row: Mapping[str, Any]) -> str | None:
    name = row.get("format")
    if name is None:
        return None
    try:
        parser_of(name)
    except ConfigError as error:
        raise InputError(str(error)) from error
    return str(name)


def _turns(row: Mapping[str, Any], format: str | None, repair: bool) -> list[Turn]:
    """The row's turns, each with what it would answer if it were the last of its user turn."""
    messages, turns = row.get("messages"), row.get("turns")
    if (messages is None) == (turns is None):
        came = "neither is there" if messages is None else "both are there"
        raise InputError(f"messages or turns: {came}; expected one of them")
    if messages is not None:
        return turns_of_messages(sequence_at(messages, "messages"), format=format, repair=repair)
    items = sequence_at(turns, "turns")
    return [_turn(item, f"turns[{t}]", format, repair) for t, item in enumerate(items)]


def _turn(item: Any, where: str, format: str | None, repair: bool) -> Turn:
    """A turn from its raw text, or from an object that says its calls."""
    if isinstance(item, str):
        return parse_turn(item, format or "hermes", repair=repair)
    if not isinstance(item, Mapping):
        raise InputError(f"{where} is {type_name(item)}; expected a string or an object")
    text, answer = item.get("text"), item.get("answer")
    for name, value in (("text", text), ("answer", answer)):
        if value is not None and not isinstance(value, str):
            raise InputError(f"{where}.{name} is {type_name(value)}; expected a string or null")
    if item.get("calls") is None:
        turn = parse_turn(text or "", format or "hermes", repair=repair)
        return replace(turn, answer=answer) if answer is not None and not turn.calls else turn
    calls = tuple(
        call_from_object(mapping_at(call, f"{where}.calls[{j}]"), repair=repair)
        for j, call in enumerate(sequence_at(item["calls"], f"{where}.calls"))
    )
    return Turn(calls, None if calls else answer, text or "")


def _rounds(
    row: Mapping[str, Any], turns: int, golds: dict[str, tuple[ToolCall, ...]]
) -> tuple[tuple[Round, ...], tuple[ToolCall, ...]]:
    """The user turns of a row that has `turns` turns, and the gold calls of all of them."""
    found = _from_json(row.get("rounds"), "rounds")
    items = () if found is None else sequence_at(found, "rounds")
    if not items:
        return (), ()
    for name in (*_GOLD_CALLS, *_GOLD_ANSWER, "outcome"):
        if row.get(name) is not None:
            raise InputError(f"{name} stands beside rounds; expected it in each of the rounds only")
    values = [mapping_at(item, f"rounds[{k}]") for k, item in enumerate(items)]
    counts = _turn_counts(row, values, turns)
    rounds: list[Round] = []
    traces: list[tuple[ToolCall, ...]] = []
    for k, (value, count) in enumerate(zip(values, counts, strict=True)):
        try:
            traces.append(_gold_calls(value, golds))
            rounds.append(Round(count, len(traces[-1]), _gold_answer(value), _outcome(value)))
        except InputError as error:
            raise InputError(f"rounds[{k}].{error}") from error
    # The traces live in golds, so that no two of them have one id. No JSON begins like this key.
    key = f"rounds of {[id(trace) for trace in traces]}"
    return tuple(rounds), golds.setdefault(key, tuple(call for trace in traces for call in trace))


def _turn_counts(row: Mapping[str, Any], rounds: list[Mapping[str, Any]], turns: int) -> list[int]:
    """How many turns each round has: what the rounds say, or else what the messages show."""
    if row.get("messages") is not None and all(one.get("turns") is None for one in rounds):
        counts = turns_by_user_turn(row["messages"])
        if len(counts) > len(rounds):
            raise InputError(
                f"messages hold {len(counts)} user turns but rounds holds {len(rounds)}; expected one a user "
                "turn, or the turns of each round"
            )
        return counts + [0] * (len(rounds) - len(counts))
    said: list[int] = []
    for k, one in enumerate(rounds):
        count = one.get("turns")
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            came = type_name(count) if count is None else f"{type_name(count)}, {count!r:.60}"
            raise InputError(f"rounds[{k}].turns is {came}; expected a whole number, 0 or more")
        said.append(count)
    if sum(said) != turns:
        raise InputError(f"rounds add up to {sum(said)} turns but the rollout has {turns}")
    return said


def _gold_calls(row: Mapping[str, Any], golds: dict[str, tuple[ToolCall, ...]]) -> tuple[ToolCall, ...]:
    name, value = _pick(row, _GOLD_CALLS)
    if value is None:
        return ()
    try:
        key = repr(value)  # not the value itself, for which True equals 1
    except RecursionError:
        raise InputError(f"{name} is nested too deep") from None
    if key not in golds:
        calls = sequence_at(_from_json(value, name), name)
        golds[key] = tuple(_gold_call(call, f"{name}[{k}]") for k, call in enumerate(calls))
    return golds[key]


def _gold_call(value: Any, where: str) -> ToolCall:
    """A gold call. The task's author wrote it, so a malformed one is an error of the row."""
    call = mapping_at(value, where)
    if call.get("name") is None and call.get("function") is not None:
        call = mapping_at(call["function"], f"{where}.function")
    fault = fault_in({key: call[key] for key in ("name", *_GOLD_KEYS) if key in call})
    gold = call_from_value(call, None, keys=_GOLD_KEYS)
    if fault or gold.malformed:
        raise InputError(f"{where} is no call: {fault or gold.malformed}")
    return gold


def _gold_answer(row: Mapping[str, Any]) -> str | None:
    name, answer = _pick(row, _GOLD_ANSWER)
    if answer is not None and not isinstance(answer, str):
        raise InputError(f"{name} is {type_name(answer)}, {answer!r:.60}; expected a string or null")
    return answer


def _outcome(row: Mapping[str, Any]) -> float | None:
    outcome = row.get("outcome")
    if outcome is None:
        return None
    if not isinstance(outcome, int | float):
        raise InputError(f"outcome is {type_name(outcome)}, {outcome!r:.60}; expected a number or null")
    if not abs(outcome) <= LARGEST_REWARD:
        raise InputError(
            f"outcome is {outcome!r:.60}; expected a finite number of magnitude at most 1e100, or null"
        )
    return float(outcome)


def _sub_answers(row: Mapping[str, Any]) -> dict[str, tuple[str, ...]] | None:
    name, value = _pick(row, _SUB_ANSWERS)
    value = _from_json(value, name)
    if value is None:
        return None
    answers: dict[str, tuple[str, ...]] = {}
    for tool, items in mapping_at(value, name).items():
        strings = sequence_at(items, f"{name}.{tool}")
        wrong = next((item for item in strings if not isinstance(item, str)), None)
        if wrong is not None or any(item is None for item in strings):
            raise InputError(f"{name}.{tool} holds {type_name(wrong)}; expected strings")
        answers[str(tool)] = tuple(strings)
    return answers


def _kind(row: Mapping[str, Any]) -> str:
    """The task's kind; FTRL's "self/single_hop" is "single_hop"."""
    name, kind = _pick(row, _KIND)
    if kind is not None and not isinstance(kind, str):
        raise InputError(f"{name} is {type_name(kind)}, {kind!r:.60}; expected a string or null")
    return (kind or "").rpartition("/")[2]
