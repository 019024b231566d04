"""What all readers share: fields of a row to the parts of a task, and what a task must hold."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..errors import InputError
from ..parse import trajectory_from_row
from ..parse.json_text import type_name
from ..parse.messages import mapping_at, sequence_at
from ..rows import json_error
from ..types import Environment, Task, Tool, ToolCall, UserTurn


def field(row: Mapping[str, Any], name: str, expected: str) -> Any:
    """A field that must be there and not null, decoded if it is a JSON string."""
    value = row.get(name)
    if value is None:
        raise InputError(f"column {name} is missing; expected {expected}")
    return decoded(value, name)


def decoded(value: Any, where: str) -> Any:
    """The value, decoded if it is a JSON string."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} holds a string: {json_error(error)}") from None


def text(row: Mapping[str, Any], name: str, default: str | None = None) -> str:
    """A field that is a string; `default` where it is missing or null, if there is one."""
    value = row.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        came = "missing" if value is None else type_name(value)
        raise InputError(f"column {name} is {came}; expected a string")
    return value


def id_of(row: Mapping[str, Any], otherwise: str) -> str:
    """The row's `id` as text, or `otherwise`."""
    value = row.get("id")
    if value is None:
        return otherwise
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise InputError(f"id is {type_name(value)}, {value!r:.60}; expected a string or an integer")
    return str(value)


def tool_at(value: Any, where: str, source: str | None = None) -> Tool:
    """A tool from its schema: OpenAI's form with a `function`, or a bare name, description and parameters."""
    schema = mapping_at(value, where)
    if schema.get("function") is not None:
        where = f"{where}.function"
        schema = mapping_at(schema["function"], where)
    name, description, parameters = (schema.get(key) for key in ("name", "description", "parameters"))
    if not isinstance(name, str) or not name:
        raise InputError(f"{where}.name is {type_name(name)}, {name!r:.60}; expected the tool's name")
    if description is not None and not isinstance(description, str):
        raise InputError(f"{where}.description is {type_name(description)}; expected a string")
    if parameters is None:
        return Tool(name, description or "", source=source)
    return Tool(name, description or "", mapping_at(parameters, f"{where}.parameters"), source)


def messages_of(row: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """The prompt of a row; :func:`checked` looks at what it holds."""
    found = sequence_at(field(row, "messages", "the messages of the prompt"), "messages")
    return tuple(mapping_at(message, f"messages[{i}]") for i, message in enumerate(found))


def task_from(
    row: Mapping[str, Any],
    fields: Iterable[str],
    *,
    id: str,
    messages: tuple[Mapping[str, Any], ...],
    tools: tuple[Tool, ...],
    kind: str | None = None,
    environment: Environment | None = None,
    later: tuple[UserTurn, ...] = (),
) -> Task:
    """A task of which these fields say the rest, as in rollout files: what solves it, and its kind."""
    known = trajectory_from_row({"group": id, "turns": []} | {name: row.get(name) for name in fields})
    kind = known.kind if kind is None else kind
    solved = (known.gold_calls, known.gold_answer, known.sub_answers)
    return checked(Task(id, messages, tools, *solved, kind, environment, later))


def checked(task: Task) -> Task:
    """The task, if it can be posed and solved; raises InputError with the first reason why not."""
    _check_prompt(task.messages)
    names = [tool.name for tool in task.tools]
    _check_names(names)
    _check_calls(task.gold_calls, names, f"none of the task's {len(names)} tools")
    for k, turn in enumerate(task.later):
        names += [tool.name for tool in turn.tools]
        try:
            _check_prompt(turn.messages)
            _check_names(names)
            _check_calls(turn.gold_calls, names, f"none of the {len(names)} tools known by then")
        except InputError as error:
            raise InputError(f"later[{k}]: {error}") from error
    for name in task.sub_answers or ():
        if name not in names:
            raise InputError(f"sub-answers are of {name!r}, which is none of the task's {len(names)} tools")
    for name in ("source", "name") if task.environment is not None else ():
        if not getattr(task.environment, name):
            raise InputError(f"environment.{name} is empty; expected a string that is not")
    return task


def _check_prompt(messages: Sequence[Mapping[str, Any]]) -> None:
    """Refuse what is no prompt."""
    if not messages:
        raise InputError("messages is empty; expected the prompt")
    for i, message in enumerate(messages):
        if not isinstance(message.get("role"), str):
            came = type_name(message.get("role"))
            raise InputError(f"messages[{i}].role is {came}; expected a string")
    if messages[-1]["role"] == "assistant":
        raise InputError("messages end with one of role assistant: this is a rollout, not a task")


def _check_names(names: Sequence[str]) -> None:
    """Refuse two tools of one name."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"tools holds {twice!r} twice; expected each name once")


def _check_calls(calls: Sequence[ToolCall], names: Sequence[str], none_of: str) -> None:
    """Refuse gold calls that are malformed, or of a tool that the model has not."""
    for k, call in enumerate(calls):
        if call.malformed is not None:
            raise InputError(f"gold call {k} is malformed: {call.malformed}")
    for call in calls:
        if call.name not in names:
            raise InputError(f"a gold call is of {call.name!r}, which is {none_of}")
