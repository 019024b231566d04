"""One task, solved live: a model and the task's tools take turns until the model answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..parse import parse_messages
from ..tools import Sandbox, ToolRegistry
from ..types import Task, ToolCall, Turn
from .chat import Chat, RequestError

MAX_TURNS = 16
"""Turns that a rollout may have by default: the hardest tasks need 11 calls and an answer."""

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Rollout:
    """What became of a task.

    Attributes
    ----------
    messages : tuple of dict
        The prompt, and all that model and tools wrote after it, as it came.
    finish : {"answer", "no_answer", "max_turns", "refused"}
        ``no_answer``: the model stopped with an empty message. ``max_turns``: it still made calls in the
        last turn it had. ``refused``: the endpoint would not answer this conversation.
    error : str or None
        Why it was refused.
    """

    messages: tuple[Message, ...]
    finish: Literal["answer", "no_answer", "max_turns", "refused"]
    error: str | None = None


def run_task(
    task: Task,
    chat: Chat,
    box: Sandbox | None = None,
    *,
    max_turns: int = MAX_TURNS,
    text_format: str | None = None,
) -> Rollout:
    """Let a model solve a task: its calls are run and answered until it makes none.

    Parameters
    ----------
    task : Task
        Its prompt and its tools are what the model is given.
    chat : Chat
        The model. Calls that are malformed in what it is sent again have empty arguments, because many
        servers fail on arguments that are no JSON; what is recorded is what came. Reasoning is recorded
        and not sent again.
    box : Sandbox, optional
        Runs the tools that are source; not needed where all are functions.
    max_turns : int
        Assistant turns at most. The calls of the last one are run too.
    text_format : str, optional
        Format of the calls that a model writes into its text (see :func:`matchtir.parse.parse_turn`), for
        servers that do not parse them. None reads `tool_calls` only.

    Returns
    -------
    Rollout
        A malformed or failed call is data: the model is told, and goes on.

    Raises
    ------
    EndpointError, UnavailableError
        As the model raises them. A request that is refused ends the rollout and raises nothing.
    InputError
        If the model's message is not built like one.

    Examples
    --------
    >>> from matchtir.types import Task, Tool
    >>> def double(x: int) -> int:
    ...     return 2 * x
    >>> schema = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    >>> tool = Tool("double", parameters=schema, function=double)
    >>> task = Task("t", ({"role": "user", "content": "Twice 4?"},), (tool,))
    >>> def chat(messages, tools):
    ...     if messages[-1]["role"] == "tool":
    ...         return {"role": "assistant", "content": f"It is {messages[-1]['content']}."}
    ...     function = {"name": tools[0]["function"]["name"], "arguments": '{"x": 4}'}
    ...     return {"role": "assistant", "content": None, "tool_calls": [{"id": "a", "function": function}]}
    >>> rollout = run_task(task, chat)
    >>> rollout.finish, rollout.messages[-1]["content"]
    ('answer', 'It is 8.')
    """
    registry = ToolRegistry(task.tools)
    schemas = registry.schemas()
    recorded = [dict(message) for message in task.messages]
    sent = list(recorded)
    for t in range(max_turns):
        try:
            message = {**chat(sent, schemas), "role": "assistant"}
        except RequestError as error:
            return Rollout(tuple(recorded), "refused", str(error))
        turn = parse_messages([message], format=text_format)[0]
        ids = _ids(message, turn, t)
        recorded.append(_recorded(message, ids))
        sent.append(_sent(message, turn, ids))
        if not turn.calls:
            return Rollout(tuple(recorded), "no_answer" if turn.answer is None else "answer")
        for call_id, observation in zip(ids, registry.run(turn.calls, box), strict=True):
            answer = {"role": "tool", "tool_call_id": call_id, "content": observation.text}
            recorded.append(answer)
            sent.append(answer)
    return Rollout(tuple(recorded), "max_turns")


def rollout_row(task: Task, rollout: Rollout, *, text_format: str | None = None) -> dict[str, Any]:
    """A rollout as a row of a rollout file, which `matchtir score`, `explain` and `eval` read.

    Parameters
    ----------
    task : Task
        What it is judged by.
    rollout : Rollout
        What :func:`run_task` returned. One that was refused before its first turn has the field `turns`,
        an empty list, instead of `messages`.
    text_format : str, optional
        As :func:`run_task` had it.

    Returns
    -------
    dict
        `group`, `kind`, `messages`, `gold_calls`, `gold_answer`, `sub_answers`, and `finish` and `error` of
        the rollout; `format` where one is given.
    """
    began = len(rollout.messages) > len(task.messages)
    row: dict[str, Any] = {"group": task.id, "kind": task.kind}
    row |= {"messages": list(rollout.messages)} if began else {"turns": []}
    row["gold_calls"] = [{"name": call.name, "arguments": dict(call.arguments)} for call in task.gold_calls]
    row["gold_answer"] = task.gold_answer
    answers = task.sub_answers
    row["sub_answers"] = None if answers is None else {name: list(texts) for name, texts in answers.items()}
    if text_format is not None:
        row["format"] = text_format
    return row | {"finish": rollout.finish, "error": rollout.error}


def _in_fields(message: Mapping[str, Any]) -> bool:
    """Whether the calls of a message stand in their own field, and not in its text."""
    return bool(message.get("tool_calls") or message.get("function_call"))


def _ids(message: Mapping[str, Any], turn: Turn, t: int) -> list[str]:
    """One id a call of turn t: the server's, unless it gave none, or one twice."""
    given = [entry.get("id") for entry in message.get("tool_calls") or ()]
    ids: list[str] = []
    for k in range(len(turn.calls)):
        own = given[k] if k < len(given) else None
        ids.append(own if isinstance(own, str) and own and own not in ids else f"call_{t}_{k}")
    return ids


def _recorded(message: Mapping[str, Any], ids: Sequence[str]) -> Message:
    """The message as it came, without its empty fields, each call with its id."""
    kept = {key: value for key, value in message.items() if value is not None}
    kept = {"role": "assistant", "content": None} | kept
    if kept.get("tool_calls"):
        entries = zip(kept["tool_calls"], ids, strict=True)
        kept["tool_calls"] = [{**entry, "id": call_id} for entry, call_id in entries]
    else:
        kept.pop("tool_calls", None)
    return kept


def _sent(message: Mapping[str, Any], turn: Turn, ids: Sequence[str]) -> Message:
    """The message as the model is shown it in the next request."""
    content = turn.text if message.get("content") is not None else None
    if not (turn.calls and _in_fields(message)):
        return {"role": "assistant", "content": _utf8(content or "")}
    calls = [_sent_call(call, call_id) for call, call_id in zip(turn.calls, ids, strict=True)]
    return {
        "role": "assistant",
        "content": None if content is None else _utf8(content),
        "tool_calls": calls,
    }


def _sent_call(call: ToolCall, call_id: str) -> Message:
    """A call that every server can read."""
    function = {"name": _utf8(call.name) or "unknown", "arguments": json.dumps(dict(call.arguments))}
    return {"id": call_id, "type": "function", "function": function}


def _utf8(text: str) -> str:
    """Text without the lone surrogates that no request can carry."""
    return text.encode("utf-8", "replace").decode()
