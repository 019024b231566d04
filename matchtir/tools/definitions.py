"""Tools from their definitions: a JSON schema, or what an MCP server lists."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..errors import InputError
from ..types import Tool


def tool_from_schema(
    schema: Mapping[str, Any], source: str | None = None, function: Callable[..., Any] | None = None
) -> Tool:
    """Make a tool of its JSON schema.

    Parameters
    ----------
    schema : mapping
        OpenAI's form, ``{"type": "function", "function": {…}}``, or what stands in `function` there: name,
        description, parameters. Without parameters the tool takes none.
    source : str, optional
        Python source that defines a function of that name. It runs in the sandbox only.
    function : callable, optional
        Trusted function that runs in this process.

    Returns
    -------
    Tool
        The schema is checked when the tool is registered, not here.

    Raises
    ------
    InputError
        If the name is missing, or a field is not what it should be.

    Examples
    --------
    >>> tool_from_schema({"type": "function", "function": {"name": "now"}}, "def now(): return 12").name
    'now'
    """
    inner = schema.get("function") if isinstance(schema, Mapping) else schema
    return _tool(schema if inner is None else inner, "parameters", source, function)


def tool_from_mcp(definition: Mapping[str, Any], function: Callable[..., Any] | None = None) -> Tool:
    """Make a tool of a definition as MCP servers list them.

    Parameters
    ----------
    definition : mapping
        ``{"name", "description", "inputSchema", …}``; other fields are passed over, but for `title`, which
        stands in for a missing description. Source: Model Context Protocol, "Tools".
    function : callable, optional
        Calls the server, in this process, with the arguments by name.

    Returns
    -------
    Tool
        The schema is checked when the tool is registered, not here.

    Raises
    ------
    InputError
        If the name or the schema is missing, or a field is not what it should be.

    Examples
    --------
    >>> tool_from_mcp({"name": "now", "title": "Time", "inputSchema": {"type": "object"}}).description
    'Time'
    """
    if isinstance(definition, Mapping):
        if definition.get("inputSchema") is None:
            raise InputError(
                f"inputSchema of {definition.get('name')!r:.80} is missing; expected a JSON schema"
            )
        definition = {**definition, "description": definition.get("description") or definition.get("title")}
    return _tool(definition, "inputSchema", None, function)


def _tool(value: Any, key: str, source: str | None, function: Callable[..., Any] | None) -> Tool:
    """A tool from a mapping that keeps the schema of its parameters in `key`."""
    if not isinstance(value, Mapping):
        raise InputError(f"the definition of a tool is {type(value).__name__}; expected an object")
    name, description, parameters = (value.get(field) for field in ("name", "description", key))
    if not isinstance(name, str) or not name:
        raise InputError(f"the definition of a tool has the name {name!r:.80}; expected a string, not empty")
    if not isinstance(description, str | None):
        raise InputError(f"description of {name} is {type(description).__name__}; expected a string")
    if parameters is None:
        parameters = {"type": "object", "properties": {}}
    if not isinstance(parameters, Mapping):
        raise InputError(f"{key} of {name} is {type(parameters).__name__}; expected a JSON schema")
    return Tool(name, description or "", parameters, source, function)
