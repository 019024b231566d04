"""Our own rows of tasks, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..errors import InputError
from ..parse.json_text import type_name
from ..parse.messages import mapping_at, sequence_at
from ..types import Task, Tool, ToolCall
from .fields import checked, decoded, id_of, messages_of, task_from, text, tool_at

_GOLD_CALLS = ("gold_calls", "ground_truth")
_KNOWN = (*_GOLD_CALLS, "gold_answer", "answer", "sub_answers", "unsolved_set")


def task_from_own(row: Mapping[str, Any], index: int) -> Task:
    """A task from one row of our schema, the `index`-th of its file."""
    if (row.get("messages") is None) == (row.get("question") is None):
        came = "neither is there" if row.get("messages") is None else "both are there"
        raise InputError(f"messages or question: {came}; expected one of them")
    if row.get("question") is not None:
        messages: tuple[Mapping[str, Any], ...] = ({"role": "user", "content": text(row, "question")},)
    else:
        messages = messages_of(row)
    found = decoded(row.get("tools"), "tools")
    task = task_from(
        row,
        _KNOWN,
        id=id_of(row, f"task-{index}"),
        messages=messages,
        tools=tuple(_tool(tool, f"tools[{k}]") for k, tool in enumerate(sequence_at(found or [], "tools"))),
        kind=text(row, "kind", ""),
    )
    if not task.gold_calls:
        return task
    golds = next(row[name] for name in _GOLD_CALLS if row.get(name) is not None)
    results = [_result(gold, f"gold call {k}") for k, gold in enumerate(decoded(golds, "gold_calls"))]
    calls = [replace(call, result=result) for call, result in zip(task.gold_calls, results, strict=True)]
    return replace(task, gold_calls=tuple(calls))


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
    if task.tools:
        record["tools"] = [_tool_record(tool) for tool in task.tools]
    if task.gold_calls:
        record["gold_calls"] = [_call_record(call) for call in task.gold_calls]
    if task.gold_answer is not None:
        record["gold_answer"] = task.gold_answer
    if task.sub_answers is not None:
        record["sub_answers"] = {name: list(answers) for name, answers in task.sub_answers.items()}
    return record


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
