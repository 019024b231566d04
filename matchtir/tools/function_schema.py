"""From a Python function to a tool: type hints become a JSON schema, the docstring its descriptions."""

from __future__ import annotations

import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import takewhile
from typing import Any, Literal

from ..errors import ConfigError
from ..types import Tool

_SIMPLE: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    list: {"type": "array"},
    dict: {"type": "object"},
    type(None): {"type": "null"},
    Any: {},
}
_ARRAYS = (list, Sequence)
_OBJECTS = (dict, Mapping)
_HINTS = "str, int, float, bool, None, list, dict with str keys, Literal, unions of these, and Any"

_REFUSED_KINDS = {
    inspect.Parameter.VAR_POSITIONAL: "*{}",
    inspect.Parameter.VAR_KEYWORD: "**{}",
    inspect.Parameter.POSITIONAL_ONLY: "{}, positional only,",
}

_PARAMETERS_HEADER = re.compile(r"(Args|Arguments|Parameters):?")
_GOOGLE_HEADER = re.compile(r"[A-Z]\w*( [A-Za-z]\w*)?:")
_GOOGLE_ENTRY = re.compile(r"(\w+)\s*(?:\(.*?\))?\s*:\s*(.*)")


def tool_from_function(fn: Callable[..., Any]) -> Tool:
    """Make a tool of a trusted Python function; it runs in this process.

    Parameters
    ----------
    fn : callable
        A function or bound method whose parameters can be given by name. Hints may be str, int, float,
        bool, None, list, ``list[X]``, ``Sequence[X]``, dict, ``dict[str, X]``, ``Mapping[str, X]``,
        Literal, unions of these, and Any; a parameter without a hint takes anything.

    Returns
    -------
    Tool
        Named as the function. Its description is the first paragraph of the docstring; parameters are
        described by the docstring's NumPy or Google section. A parameter with a default is not required;
        the schema holds the default where JSON can. A default of None allows null.

    Raises
    ------
    ConfigError
        If the function has no name, is a coroutine, takes ``*args``, ``**kwargs`` or positional-only
        parameters, or has a hint that is not listed here.

    Examples
    --------
    >>> def forecast(city: str, days: int = 3) -> str:
    ...     '''Weather of the next days.'''
    ...     return f"{city}: sun for {days} days"
    >>> tool = tool_from_function(forecast)
    >>> tool.description, tool.parameters["required"]
    ('Weather of the next days.', ['city'])
    >>> tool.parameters["properties"]["days"]
    {'type': 'integer', 'default': 3}
    """
    name = getattr(fn, "__name__", None)
    if not inspect.isroutine(fn) or not isinstance(name, str) or not name.isidentifier():
        raise ConfigError(f"{fn!r:.80} cannot be a tool; expected a named function or a bound method")
    if inspect.iscoroutinefunction(fn) or inspect.isasyncgenfunction(fn):
        raise ConfigError(f"{name} is a coroutine function; expected a plain one")
    try:
        signature = inspect.signature(fn)
        hints = typing.get_type_hints(fn)
    except (NameError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"the signature of {name} cannot be read: {error}") from None
    description, texts = _read_docstring(inspect.getdoc(fn) or "")
    properties: dict[str, Any] = {}
    required: list[str] = []
    for parameter in signature.parameters.values():
        if parameter.kind in _REFUSED_KINDS:
            shown = _REFUSED_KINDS[parameter.kind].format(parameter.name)
            raise ConfigError(f"{name} takes {shown} which a schema cannot name; expected named parameters")
        schema = _parameter_schema(name, parameter, hints.get(parameter.name, Any))
        if parameter.name in texts:
            schema["description"] = texts[parameter.name]
        if parameter.default is inspect.Parameter.empty:
            required.append(parameter.name)
        properties[parameter.name] = schema
    parameters = {"type": "object", "properties": properties, "required": required}
    return Tool(name, description, parameters, function=fn)


def _parameter_schema(name: str, parameter: inspect.Parameter, hint: Any) -> dict[str, Any]:
    """The schema of one parameter, its default included."""
    schema = _hint_schema(hint)
    if schema is None:
        shown = hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else hint
        raise ConfigError(
            f"{name}: parameter {parameter.name} has the hint {shown}; expected one of {_HINTS}"
        )
    if parameter.default is None:
        schema = _with_null(schema)
    if parameter.default is not inspect.Parameter.empty:
        # A default that JSON has no word for is the function's own business.
        with suppress(TypeError, ValueError, RecursionError):
            schema["default"] = json.loads(json.dumps(parameter.default, allow_nan=False))
    return schema


def _hint_schema(hint: Any) -> dict[str, Any] | None:
    """A type hint as JSON schema; None where it has none."""
    try:
        if hint in _SIMPLE:
            return dict(_SIMPLE[hint])
    except TypeError:
        return None  # Not hashable, so no type.
    origin, parts = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin is Literal:
        return _literal_schema(parts)
    if origin in (typing.Union, types.UnionType):
        return _union_schema(parts)
    if origin in _ARRAYS and len(parts) <= 1:
        return _container("array", "items", parts)
    if origin in _OBJECTS and (not parts or parts[0] is str):
        return _container("object", "additionalProperties", parts[1:])
    return None


def _container(kind: str, key: str, parts: Sequence[Any]) -> dict[str, Any] | None:
    """An array or object, and the schema of what it holds where that is known."""
    if not parts:
        return {"type": kind}
    inner = _hint_schema(parts[0])
    if inner is None:
        return None
    return {"type": kind, key: inner} if inner else {"type": kind}


def _literal_schema(values: Sequence[Any]) -> dict[str, Any] | None:
    """The schema of ``Literal[values]``."""
    if not all(type(value) in _SIMPLE for value in values):
        return None
    kinds = list(dict.fromkeys(_SIMPLE[type(value)]["type"] for value in values))
    return {"type": kinds[0] if len(kinds) == 1 else kinds, "enum": list(values)}


def _union_schema(members: Sequence[Any]) -> dict[str, Any] | None:
    """The schema of a union. ``X | None`` is X's own schema with null, which reads best in a message."""
    schemas = [_hint_schema(member) for member in members if member is not type(None)]
    known = [schema for schema in schemas if schema is not None]
    if len(known) < len(schemas):
        return None
    whole = known[0] if len(known) == 1 else {} if {} in known else {"anyOf": known}
    return _with_null(whole) if len(schemas) < len(members) else whole


def _with_null(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema, null allowed as well."""
    if not schema:
        return schema
    if "anyOf" in schema:
        null = _SIMPLE[type(None)]
        return schema if null in schema["anyOf"] else {**schema, "anyOf": [*schema["anyOf"], dict(null)]}
    kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    if "null" in kinds:
        return schema
    more = {"enum": [*schema["enum"], None]} if "enum" in schema else {}
    return {**schema, "type": [*kinds, "null"], **more}


def _read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """The first paragraph, and the description of each parameter in a NumPy or Google section."""
    lines = text.splitlines()
    headers = [i for i in range(len(lines)) if _is_header(lines, i)]
    summary = takewhile(str.strip, lines[: headers[0] if headers else len(lines)])
    texts: dict[str, str] = {}
    for i in headers:
        if _PARAMETERS_HEADER.fullmatch(lines[i].strip()):
            end = min((j for j in headers if j > i), default=len(lines))
            is_google = lines[i].rstrip().endswith(":")
            texts.update(_read_section(lines[i + 1 if is_google else i + 2 : end], is_google))
    return " ".join(line.strip() for line in summary), texts


def _is_header(lines: Sequence[str], i: int) -> bool:
    """Whether a section begins here: Google's word with a colon, or NumPy's underlined word."""
    underlined = i + 1 < len(lines) and re.fullmatch(r"-{3,}\s*", lines[i + 1]) is not None
    return bool(lines[i].strip()) and (underlined or _GOOGLE_HEADER.fullmatch(lines[i].rstrip()) is not None)


def _read_section(lines: Sequence[str], is_google: bool) -> dict[str, str]:
    """Parameter names to descriptions: an entry starts at the section's indent, deeper lines go on."""
    entries: list[tuple[list[str], list[str]]] = []
    base: int | None = None
    for line in filter(str.strip, lines):
        indent = len(line) - len(line.lstrip())
        base = indent if base is None else base
        if indent < base:
            break
        if indent > base:
            if entries:
                entries[-1][1].append(line.strip())
        elif is_google:
            found = _GOOGLE_ENTRY.fullmatch(line.strip())
            entries.append(([found[1]], [found[2]]) if found else ([], []))
        else:
            entries.append((line.partition(":")[0].replace(",", " ").split(), []))
    return {name: text for names, parts in entries for name in names if (text := " ".join(parts).strip())}
