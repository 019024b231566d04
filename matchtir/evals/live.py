"""One task, solved live: a model and the task's tools take turns until the model answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..parse import parse_messages
from ..rollout.environments import Environments, registry_of
from ..rollout.judged_by import judged_by
from ..tools import Sandbox
from ..types import Task, Tool, ToolCall, Turn, UserTurn
from .chat import Chat, RequestError

MAX_TURNS = 16
"""Turns that a rollout may have by default: the hardest tasks need 11 calls and an answer."""

Message = dict[str, Any]
Finish = Literal["answer", "no_answer", "max_turns", "refused"]


@dataclass(frozen=True, slots=True)
class Rollout:
    """What became of a task.

    Attributes
    ----------
    messages : tuple of dict
        The prompt, and all that model, tools and user wrote after it, as it came.
    finish : {"answer", "no_answer", "max_turns", "refused"}
        ``no_answer``: the model stopped with an empty message. ``max_turns``: it still made calls in the
        last turn it had. ``refused``: the endpoint would not answer this conversation.
    error : str or None
        Why it was refused.
    rounds : tuple of int
        Turns of each user turn that was reached.
    outcomes : tuple of float
        What the environment's judge said of each user turn that the model ended, from 0 to 1.
    fault : str or None
        What went wrong where a judge should have said something; the outcome is 0 then.
    """

    messages: tuple[Message, ...]
    finish: Finish
    error: str | None = None
    rounds: tuple[int, ...] = ()
    outcomes: tuple[float, ...] = ()
    fault: str | None = None


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
        Runs the tools that are source, and keeps the environment; not needed where all tools are functions.
    max_turns : int
        Assistant turns of each user turn at most. The calls of the last one are run too.
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
    talk = _Talk(task, chat, box, max_turns, text_format)
    with Environments(box) as environments:
        for k, asked in enumerate([UserTurn(task.messages, task.tools), *task.later]):
            finish, error = talk.user_turn(asked, environments)
            if finish not in ("answer", "no_answer") or k == len(task.later):
                break
    return Rollout(tuple(talk.recorded), finish, error, tuple(talk.rounds), tuple(talk.outcomes), talk.fault)


class _Talk:
    """A rollout while it is made."""

    def __init__(
        self, task: Task, chat: Chat, box: Sandbox | None, max_turns: int, text_format: str | None
    ) -> None:
        self._task, self._environment, self._chat, self._box = task, task.environment, chat, box
        self._max_turns, self._format = max_turns, text_format
        self._tools: list[Tool] = []
        self._sent: list[Message] = []
        self.recorded: list[Message] = []
        self.rounds: list[int] = []
        self.outcomes: list[float] = []
        self.fault: str | None = None

    def user_turn(self, asked: UserTurn, environments: Environments) -> tuple[Finish, str | None]:
        """What the user says, and the model's turns until it makes no call; how that ended, and why."""
        said = [dict(message) for message in asked.messages]
        self.recorded += said
        self._sent += said
        self._tools += asked.tools
        registry = registry_of(self._task, self._tools)
        self.rounds.append(0)
        for _ in range(self._max_turns):
            try:
                message = {**self._chat(self._sent, registry.schemas()), "role": "assistant"}
            except RequestError as error:
                return "refused", str(error)
            turn = self._hear(message)
            if not turn.calls:
                self._judge(turn.answer, environments)
                return ("no_answer" if turn.answer is None else "answer"), None
            acts = {} if self._environment is None else {0: self._environment}
            instance = environments.of(acts).get(0)
            ids = _ids(message, turn, sum(self.rounds) - 1)
            for call_id, seen in zip(ids, registry.run(turn.calls, self._box, instance), strict=True):
                answer = {"role": "tool", "tool_call_id": call_id, "content": seen.text}
                self.recorded.append(answer)
                self._sent.append(answer)
        return "max_turns", None

    def _hear(self, message: Message) -> Turn:
        """Record a turn."""
        turn = parse_messages([message], format=self._format)[0]
        ids = _ids(message, turn, sum(self.rounds))
        self.rounds[-1] += 1
        self.recorded.append(_recorded(message, ids))
        self._sent.append(_sent(message, turn, ids))
        return turn

    def _judge(self, answer: str | None, environments: Environments) -> None:
        """Record what the environment's judge says of a user turn that is over."""
        if self._environment is not None and self._environment.judge is not None:
            judged = environments.judge({0: (self._environment, answer)})[0]
            self.outcomes.append(judged.outcome)
            self.fault = self.fault or judged.fault


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
        `group`, `kind`, `messages`, what it is judged by (see :func:`matchtir.rollout.judged_by.judged_by`),
        `finish` and `error` of the rollout; `format` where one is given, `fault` where there is one.
    """
    began = len(rollout.messages) > len(task.messages)
    row: dict[str, Any] = {"group": task.id, "kind": task.kind}
    row |= {"messages": list(rollout.messages)} if began else {"turns": []}
    row |= judged_by(task, rollout.rounds, rollout.outcomes)
    if text_format is not None:
        row["format"] = text_format
    if rollout.fault is not None:
        row["fault"] = rollout.fault
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
