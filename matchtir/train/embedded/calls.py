"""Calls of scripted demonstrations: how the policy writes them, and what embedded tools answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from ...types import Environment, Tool, ToolCall

Message = dict[str, Any]
Chance = Callable[[float], bool]
"""Decides whether a mistake of this probability is made."""

MAX_TURNS = 6
"""Turns that a demonstration has at most, for each user turn."""


def call_text(call: ToolCall) -> str:
    """A call as the policy writes it."""
    written = {"name": call.name, "arguments": dict(call.arguments)}
    return f"<tool_call>{json.dumps(written)}</tool_call>"


def run_embedded_tool(tool: Tool, arguments: Mapping[str, Any], environment: Any = None) -> str:
    """What an embedded tool answers, as the model is shown it.

    Parameters
    ----------
    tool : Tool
        Of an embedded task, whose source is this library's own: it runs in this process, and not in the
        sandbox, which would answer the same.
    arguments : mapping
        Of the call.
    environment : object, optional
        Of :func:`open_environment`, whose method a tool without a source is.

    Returns
    -------
    str
        A name as it is, anything else as JSON.
    """
    called = getattr(environment, tool.name) if tool.source is None else _defined(tool.source, tool.name)
    value = called(**arguments)
    return value if isinstance(value, str) else json.dumps(value)


def open_environment(environment: Environment) -> Any:
    """The object that a stateful embedded task acts on, a new one, in this process."""
    return _defined(environment.source, environment.name)(**environment.arguments)


@lru_cache(maxsize=64)
def _defined(source: str, name: str) -> Any:
    """The function or class that a source defines."""
    defined: dict[str, Any] = {}
    exec(source, defined)
    return defined[name]
