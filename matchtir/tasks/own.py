"""Our own rows of tasks, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..errors import InputError
from ..parse import trajectory_from_row
from ..parse.json_text import type_name
from ..parse.messages import mapping_at, sequence_at
from ..types import Environment, Task, Tool, ToolCall, UserTurn
from .fields import checked, decoded, id_of, messages_of, task_from, text, tool_at

_GOLD_CALLS = ("gold_calls", "ground_truth")
_GOLD_ANSWER = ("gold_answer", "answer")
_KNOWN = (*_GOLD_CALLS, *_GOLD_ANSWER, "sub_answers", "unsolved_set")


def task_from_own(row: Mapping[str, Any], index: int) -> Task:
    """A task from one row of our schema, the `index`-th of its file."""
    messages = _messages(row)
    later = sequence_at(decoded(row.get("later"), "later") or [], "later")
    task = task_from(
        row,
        _KNOWN,
        id=id_of(row, f"task-{index}"),
        messages=messages,
        tools=_tools(row),
        kind=text(row, "kind", ""),
        environment=_environment(decoded(row.get("environment"), "environment")),
        later=tuple(_user_turn(value, f"later[{k}]") for k, value in enumerate(later)),
    )
    return replace(task, gold_calls=_with_results(row, task.gold_calls, "gold call {}"))


def _messages(row: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """What the user says: `messages`, or a `question`, which is the content of one."""
    question = row.get("question")
    if (row.get("messages") is None) == (question is None):
        came = "neither is there" if question is None else "both are there"
        raise InputError(f"messages or question: {came}; expected one of them")
    if question is None:
        return messages_of(row)
    if not isinstance(question, str):
        raise InputError(f"question is {type_name(question)}; expected a string")
    return ({"role": "user", "content": question},)


def _tools(row: Mapping[str, Any]) -> tuple[Tool, ...]:
    """The tools of a row or user turn."""
    found = sequence_at(decoded(row.get("tools"), "tools") or [], "tools")
    return tuple(_tool(tool, f"tools[{k}]") for k, tool in enumerate(found))


def _environment(value: Any) -> Environment | None:
    """What stateful tools act on; :func:`checked` refuses what is empty."""
    if value is None:
        return None
    found = mapping_at(value, "environment")
    for name in ("source", "name", "judge"):
        one = found.get(name)
        if not (isinstance(one, str) or (one is None and name == "judge")):
            expected = "a string or null" if name == "judge" else "a string"
            raise InputError(f"environment.{name} is {type_name(one)}; expected {expected}")
    arguments = decoded(found.get("arguments"), "environment.arguments")
    arguments = {} if arguments is None else mapping_at(arguments, "environment.arguments")
    checks = True if found.get("checked") is None else found["checked"]
    if not isinstance(checks, bool):
        raise InputError(f"environment.checked is {type_name(checks)}; expected true, false or null")
    return Environment(found["source"], found["name"], arguments, found.get("judge"), checks)


def _user_turn(value: Any, where: str) -> UserTurn:
    """One of the later user turns."""
    row = mapping_at(value, where)
    try:
        messages, tools = _messages(row), _tools(row)
        known = {name: row.get(name) for name in (*_GOLD_CALLS, *_GOLD_ANSWER)}
        found = trajectory_from_row({"group": 0, "turns": [], **known})
        calls = _with_results(row, found.gold_calls, "gold_calls[{}]")
    except InputError as error:
        raise InputError(f"{where}.{error}") from error
    return UserTurn(messages, tools, calls, found.gold_answer)


def _with_results(row: Mapping[str, Any], calls: tuple[ToolCall, ...], where: str) -> tuple[ToolCall, ...]:
    """A row's gold calls with what the tools answer, where the row says it."""
    if not calls:
        return calls
    golds = decoded(next(row[name] for name in _GOLD_CALLS if row.get(name) is not None), "gold_calls")
    pairs = zip(calls, golds, strict=True)
    return tuple(replace(call, result=_result(gold, where.format(k))) for k, (call, gold) in enumerate(pairs))


def _result(gold: Mapping[str, Any], where: str) -> str | None:
    """What the tool answers, where the row says it."""
    result = gold.get("result")
    if result is not None and not isinstance(result, str):
        raise InputError(f"result of {where} is {type_name(result)}; expected a string or null")
    return result


def _tool(value: Any, where: str) -> Tool:
    """A tool with its source, which stands beside `function`, or in the bare form beside `name`."""
    source = mapping_at(value, where).get("source")
    if source is not None and not isinstance(source, str):
        raise InputError(f"{where}.source is {type_name(source)}; expected Python source or null")
    return tool_at(value, where, source)


def task_record(task: Task) -> dict[str, Any]:
    """A task as a row of our schema, which reads back as an equal task.

    Parameters
    ----------
    task : Task
        Of its gold calls names, arguments and results are kept.

    Returns
    -------
    dict
        What is empty or None is left out.

    Raises
    ------
    InputError
        If it would not be read back: a gold call is malformed or of a tool that the task has not, two tools
        have one name, or a tool is a function of this program, which no file can hold.

    Examples
    --------
    >>> task_record(Task("t1", ({"role": "user", "content": "2 + 2?"},), gold_answer="4"))
    {'id': 't1', 'messages': [{'role': 'user', 'content': '2 + 2?'}], 'gold_answer': '4'}
    """
    checked(task)
    record: dict[str, Any] = {"id": task.id, "messages": [dict(message) for message in task.messages]}
    if not task.id:
        raise InputError("id is empty; expected a string")
    if task.kind:
        record["kind"] = task.kind
    record |= _asked_record(task)
    if task.sub_answers is not None:
        record["sub_answers"] = {name: list(answers) for name, answers in task.sub_answers.items()}
    if task.environment is not None:
        record["environment"] = _environment_record(task.environment)
    if task.later:
        record["later"] = [
            {"messages": [dict(message) for message in turn.messages]} | _asked_record(turn)
            for turn in task.later
        ]
    return record


def _asked_record(asked: Task | UserTurn) -> dict[str, Any]:
    """The tools that come with a user turn, and what solves it."""
    record: dict[str, Any] = {}
    if asked.tools:
        record["tools"] = [_tool_record(tool) for tool in asked.tools]
    if asked.gold_calls:
        record["gold_calls"] = [_call_record(call) for call in asked.gold_calls]
    if asked.gold_answer is not None:
        record["gold_answer"] = asked.gold_answer
    return record


def _environment_record(environment: Environment) -> dict[str, Any]:
    """The environment, without what is empty."""
    record: dict[str, Any] = {"source": environment.source, "name": environment.name}
    if environment.arguments:
        record["arguments"] = dict(environment.arguments)
    if environment.judge is not None:
        record["judge"] = environment.judge
    return record if environment.checked else record | {"checked": False}


def _call_record(call: ToolCall) -> dict[str, Any]:
    """A gold call, and its result where there is one."""
    record = {"name": call.name, "arguments": dict(call.arguments)}
    return record if call.result is None else record | {"result": call.result}


def _tool_record(tool: Tool) -> dict[str, Any]:
    """A tool in OpenAI's form, and its source beside it."""
    if tool.function is not None:
        raise InputError(f"tool {tool.name!r} is a function of this program; a file can hold source only")
    function = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    record: dict[str, Any] = {"type": "function", "function": function}
    return record if tool.source is None else record | {"source": tool.source}
