"""Tools for a model whose chat template knows none: described in words, answered in user messages."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]

_HERMES = 'write\n<tool_call>\n{"name": "the tool", "arguments": {"argument": "value"}}\n</tool_call>\n'
_HOW = {
    "hermes": _HERMES,
    "qwen3": _HERMES,
    "llama3": 'write on a line of its own\n{"name": "the tool", "parameters": {"argument": "value"}}\n',
    "mistral": 'write\n[TOOL_CALLS] [{"name": "the tool", "arguments": {"argument": "value"}}]\n',
}

OWN_FORMATS = tuple(_HOW)
"""Formats in which tools can be described without the help of a chat template."""


def with_own_tools(
    messages: Sequence[Message], schemas: Sequence[Mapping[str, Any]], format: str, *, merged: bool
) -> list[Message]:
    """The conversation for a template that knows neither tools nor their outputs.

    Parameters
    ----------
    messages : sequence of mapping
        In OpenAI's form, calls in the text of assistant messages.
    schemas : sequence of mapping
        OpenAI's `tools`. Without any nothing is described.
    format : str
        One of :data:`OWN_FORMATS`.
    merged : bool
        The template takes no system message: what one would say begins the first user message.

    Returns
    -------
    list of mapping
        Tool messages that follow each other are one user message.
    """
    changed: list[dict[str, Any]] = []
    follows = False
    for message in messages:
        if message.get("role") != "tool":
            changed.append(dict(message))
        elif follows:
            changed[-1]["content"] += "\n" + _response(message)
        else:
            changed.append({"role": "user", "content": _response(message)})
        follows = message.get("role") == "tool"
    system = [_described(schemas, format)] if schemas else []
    if changed and changed[0].get("role") == "system":
        system.insert(0, str(changed.pop(0).get("content") or ""))
    text = "\n\n".join(system)
    if not text:
        return list(changed)
    if merged and changed:
        return [{**changed[0], "content": f"{text}\n\n{changed[0].get('content') or ''}"}, *changed[1:]]
    return [{"role": "system", "content": text}, *changed]


def with_new_tools(messages: Sequence[Message], schemas: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Messages of a user turn, the last with the tools that appear in it.

    Parameters
    ----------
    messages : sequence of mapping, at least one
    schemas : sequence of mapping
        OpenAI's `tools`; none change nothing.
    """
    if not schemas or not messages:
        return list(messages)
    lines = "\n".join(json.dumps(schema["function"], ensure_ascii=False) for schema in schemas)
    said = messages[-1].get("content") or ""
    text = f"{said}\n\nMore tools can be called from now on:\n<tools>\n{lines}\n</tools>"
    return [*messages[:-1], {**messages[-1], "content": text}]


def _response(message: Message) -> str:
    """A tool's output as a user says it."""
    return f"<tool_response>\n{message.get('content') or ''}\n</tool_response>"


def _described(schemas: Sequence[Mapping[str, Any]], format: str) -> str:
    """What the system says of the tools and of the answer."""
    lines = "\n".join(json.dumps(schema["function"], ensure_ascii=False) for schema in schemas)
    return (
        f"You can call tools. These are their JSON schemas:\n<tools>\n{lines}\n</tools>\n"
        f"To call a tool, {_HOW[format]}"
        "You may make several calls at once. What they return comes back in <tool_response> tags.\n"
        "When you know the answer, make no call and write it as <answer>the answer</answer>."
    )
