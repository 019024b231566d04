"""Makes calls of FTRL's tools from a seed: their schemas say what fits, their sources what is interesting.

A tool looks its arguments up in a small table, or compares them with constants; arguments that no source
mentions would only see its last branch. So the sources are parsed (never run) for such constants.
"""

from __future__ import annotations

import ast
import random
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from matchtir.tools import Call
from matchtir.types import Tool

Arguments = dict[str, Any]

TEXTS = ("Berlin", "unknown", "2024", "2020-2024", "42", "08:30", "2 + 3 * 4", "naïve ☃", "a", "")
FORMATS = {
    "date": ("2024-05-12", "1999-12-31", "2024-02-30", "12/05/2024"),
    "date-time": ("2024-05-12T08:30:00", "2024-05-12T08:30:00Z", "2024-05-12 08:30"),
    "time": ("08:30", "08:30:00", "25:00"),
    "duration": ("P3D", "3 days"),
}
WRONG = (None, True, -1, 7, 2.5, 1e308, "", "no such value", [], ["no such value"], {}, {"key": 1})
DISTURBED_SHARE = 0.5
MOST_DRAWS = 12


class SweepCall(NamedTuple):
    """A call, the row of the task that its tool belongs to, and the tool's name."""

    row: int
    tool: str
    call: Call


class Constants(NamedTuple):
    """What a source mentions: short texts, numbers, and names with the values that they are compared with."""

    texts: list[str]
    numbers: list[float]
    hints: list[Arguments]


def sweep(tools: Iterable[tuple[int, Tool]], seed: int = 0) -> list[SweepCall]:
    """Three calls of each tool: what is required; all parameters; some, half of the time with a fault.

    They differ wherever a tool takes anything at all that can differ.
    """
    made = []
    for row, tool in tools:
        rng = random.Random(f"{seed}/{row}/{tool.name}")
        for arguments in arguments_of(tool, rng):
            made.append(SweepCall(row, tool.name, Call(tool.source or "", tool.name, arguments)))
    return made


def arguments_of(tool: Tool, rng: random.Random) -> Iterator[Arguments]:
    """Three sets of arguments for a tool."""
    properties: dict[str, Any] = dict(tool.parameters.get("properties", {}))
    required = [name for name in tool.parameters.get("required", ()) if name in properties]
    found = constants(tool.source or "", properties)
    seen: list[Arguments] = []
    for which in range(3):
        for _ in range(MOST_DRAWS):
            names = required if which == 0 else list(properties)
            if which == 2:
                names = [name for name in names if name in required or rng.random() < 0.5]
            arguments = _arguments(properties, names, found, rng)
            if which == 2 and rng.random() < DISTURBED_SHARE:
                arguments = disturbed(arguments, rng)
            if arguments not in seen:
                break
        seen.append(arguments)
        yield arguments


def _arguments(
    properties: Mapping[str, Any], names: list[str], found: Constants, rng: random.Random
) -> Arguments:
    """A value for each name; four times in five some of them fulfil one condition of the source together."""
    arguments = {name: value_of(properties[name], found, rng) for name in names}
    if found.hints and rng.random() < 0.8:
        hint = rng.choice(found.hints)
        for name in names:
            if name in hint:
                listed = properties[name].get("type") == "array" and not isinstance(hint[name], list)
                arguments[name] = [hint[name]] if listed else hint[name]
    return arguments


def disturbed(arguments: Arguments, rng: random.Random) -> Arguments:
    """The same with one fault: a wrong value, an argument too few, or one too many."""
    names = list(arguments)
    fault = rng.choice(("wrong", "wrong", "missing", "unknown")) if names else "unknown"
    if fault == "unknown":
        return {**arguments, "unexpected": 1}
    name = rng.choice(names)
    if fault == "missing":
        return {key: value for key, value in arguments.items() if key != name}
    return {**arguments, name: rng.choice(WRONG)}


def value_of(schema: Mapping[str, Any], found: Constants, rng: random.Random) -> Any:
    """A value that a schema allows, most of the time."""
    if schema.get("enum"):
        return rng.choice(schema["enum"])
    if "default" in schema and rng.random() < 0.3:
        return schema["default"]
    kind = schema.get("type", "string")
    if kind == "boolean":
        return rng.random() < 0.5
    if kind in ("integer", "number"):
        return _number(schema, kind == "integer", found, rng)
    if kind == "array":
        count = rng.randint(max(1, schema.get("minItems", 1)), max(2, schema.get("minItems", 1)))
        return [value_of(schema.get("items", {}), found, rng) for _ in range(count)]
    if kind == "object":
        inner = schema.get("properties", {})
        needed = schema.get("required", ())
        needed = needed if isinstance(needed, list) else ()
        return {
            name: value_of(part, found, rng)
            for name, part in inner.items()
            if name in needed or rng.random() < 0.7
        }
    return _text(schema, found, rng)


def _number(schema: Mapping[str, Any], whole: bool, found: Constants, rng: random.Random) -> float:
    """A number in the schema's range: an end of it, one that the source mentions, or any."""
    low = schema.get("minimum", 0)
    high = schema.get("maximum", max(low, 1) * 30)
    mentioned = [n for n in found.numbers if low <= n <= high and (not whole or n == int(n))]
    if mentioned and rng.random() < 0.5:
        value = rng.choice(mentioned)
    else:
        value = rng.choice((low, high, rng.uniform(low, high)))
    return int(value) if whole else value


def _text(schema: Mapping[str, Any], found: Constants, rng: random.Random) -> str:
    """A text that fits pattern or format if there is one at hand, or one that the source mentions."""
    if pattern := schema.get("pattern"):
        fits = [text for text in (*found.texts, *TEXTS, *FORMATS["date"]) if re.search(pattern, text)]
        if fits:
            return rng.choice(fits)
    if form := FORMATS.get(schema.get("format", "")):
        mentioned = [text for text in found.texts if re.fullmatch(r"\d{4}-\d{1,2}-\d{1,2}.*", text)]
        return rng.choice(mentioned if mentioned and rng.random() < 0.5 else form)
    return rng.choice(found.texts if found.texts and rng.random() < 0.75 else TEXTS)


def constants(source: str, properties: Mapping[str, Any]) -> Constants:
    """What a source mentions; of the hints only what says something of these parameters."""
    with warnings.catch_warnings():  # of escapes like "\\d", of which the tools are full
        warnings.simplefilter("ignore")
        nodes = list(ast.walk(ast.parse(source)))
    docs = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    parts = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    values = [node.value for node in nodes if isinstance(node, ast.Constant) and id(node) not in docs | parts]
    texts = [value for value in values if isinstance(value, str) and 0 < len(value) <= 60]
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    hints = [
        {name: value for name, value in hint.items() if name in properties}
        for node in nodes
        for hint in ([_record(node)] if isinstance(node, ast.Dict) else _condition(node))
    ]
    return Constants(list(dict.fromkeys(texts)), list(dict.fromkeys(numbers)), [h for h in hints if h])


def _record(node: ast.Dict) -> Arguments:
    """The constant fields of a dict: an entry of a table, perhaps."""
    record = {}
    for key, value in zip(node.keys, node.values, strict=True):
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            literal = _literal(value)
            if literal is not None:
                record[key.value] = literal
    return record


def _condition(node: ast.AST) -> list[Arguments]:
    """What the names in a condition may be to fulfil it, as if all its parts had to hold."""
    if not isinstance(node, ast.If | ast.IfExp):
        return []
    wanted = {}
    for part in ast.walk(node.test):
        if not (isinstance(part, ast.Compare) and isinstance(part.ops[0], ast.Eq | ast.In)):
            continue
        left, right = part.left, part.comparators[0]
        for named, other in ((left, right), (right, left)):
            literal = _literal(other)
            if isinstance(part.ops[0], ast.In) and other is right and isinstance(literal, list):
                literal = literal[-1] if literal else None
            if (name := _name(named)) and literal is not None:
                wanted[name] = literal
    return [wanted]


def _name(node: ast.expr) -> str | None:
    """The name in ``name``, ``name.lower()``, ``name.strip().lower()`` and so on."""
    while isinstance(node, ast.Call | ast.Attribute):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else None


def _literal(node: ast.expr) -> Any:
    """The JSON value of a literal (of a set or tuple: a list); None where it is no such value."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str | int | float) else None
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        items = [_literal(item) for item in node.elts]
        return None if None in items else items
    return None
