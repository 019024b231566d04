"""ToolHop's tasks: a question of several hops, and one tool a hop with its Python source.

Reference: Ye et al., *ToolHop: A Query-Driven Benchmark for Evaluating Large Language Models in Multi-Hop
Tool Use*, ACL 2025, arXiv 2501.02506.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import InputError
from ..parse.json_text import type_name
from ..parse.messages import sequence_at
from ..types import Task, Tool
from .fields import decoded, field, id_of, task_from, text, tool_at

COLUMNS = ("question", "answer", "tools", "functions")
"""Columns that every file of ToolHop's has."""

MARKS = ("functions", "sub_task")
"""Columns by any of which such a file is recognised."""

KIND = "multi_hop"
"""All tasks of ToolHop have this one shape."""

# The source is data: it is searched, never compiled.
_DEFINED = re.compile(r"^(?:async[ \t]+)?def[ \t]+(\w+)", re.MULTILINE)


def task_from_toolhop(row: Mapping[str, Any], index: int) -> Task:
    """A task from one row of ToolHop's, the `index`-th of its file."""
    sources = _Sources(field(row, "functions", "Python sources, by tool name or in a list"))
    tools: dict[str | int, Tool] = {}
    for key, schema in _entries(field(row, "tools", "JSON schemas, by name or in a list"), "tools"):
        tool = tool_at(_with_name(schema, key), f"tools[{key!r}]")
        tools[key] = tool_at(_with_name(schema, key), f"tools[{key!r}]", sources.of(tool.name, key))
    once: list[Tool] = []
    for tool in tools.values():  # two hops may share a tool
        if tool not in once:
            once.append(tool)
    return task_from(
        {"answer": row.get("answer"), "sub_answers": _sub_answers(row.get("sub_task"), tools)},
        ("answer", "sub_answers"),
        id=id_of(row, f"toolhop-{index}"),
        messages=({"role": "user", "content": text(row, "question")},),
        tools=tuple(once),
        kind=KIND,
    )


def _entries(value: Any, where: str) -> Iterator[tuple[str | int, Any]]:
    """Keys and values of an object, indices and items of a list."""
    if isinstance(value, Mapping):
        return iter(value.items())
    return enumerate(sequence_at(value, where, "an object or a list"))


def _with_name(schema: Any, key: str | int) -> Any:
    """A schema that says its tool's name: the key is the name where the schema does not say one."""
    if not (isinstance(schema, Mapping) and isinstance(key, str)):
        return schema
    if any(word in schema for word in ("name", "function")):
        return schema
    if "parameters" in schema:
        return {"name": key, **schema}
    # The schema of the arguments alone.
    return {"name": key, "description": schema.get("description"), "parameters": schema}


class _Sources:
    """The sources of one row, to be found by the tool's name, by its key, or by the function they define."""

    def __init__(self, value: Any) -> None:
        self._keyed: dict[str | int, str] = {}
        first: dict[str, str] = {}
        other: dict[str, str] = {}
        for key, entry in _entries(value, "functions"):
            pieces = [entry] if isinstance(entry, str) else sequence_at(entry, f"functions[{key!r}]")
            wrong = next((piece for piece in pieces if not isinstance(piece, str)), "")
            if not isinstance(wrong, str):
                raise InputError(f"functions[{key!r}] holds {type_name(wrong)}; expected Python source")
            if isinstance(key, str):
                self._keyed[key] = "\n\n".join(pieces)
            for piece in pieces:
                names = _DEFINED.findall(piece)
                first.update((name, piece) for name in names[:1])
                other.update((name, piece) for name in names[1:])
        # A source is the one of its first function before it is that of another's helper. Of two that define
        # the same function the later counts, as when both are run.
        self._defined = {**other, **first}

    def of(self, name: str, key: str | int) -> str:
        """The source of a tool."""
        found = self._keyed.get(name) or self._keyed.get(key) or self._defined.get(name)
        if found is None:
            raise InputError(f"functions holds no source of tool {name!r}; expected one that defines it")
        return found


def _sub_answers(value: Any, tools: Mapping[str | int, Tool]) -> dict[str, list[str]] | None:
    """Answers by tool, where each sub-question is the key of a tool; None where they cannot be told apart."""
    value = decoded(value, "sub_task")
    if not isinstance(value, Mapping) or not all(question in tools for question in value):
        return None
    answers: dict[str, list[str]] = {}
    for question, answer in value.items():
        is_number = isinstance(answer, int | float) and not isinstance(answer, bool)
        if not isinstance(answer, str) and not is_number:
            raise InputError(f"sub_task[{question!r}] is {type_name(answer)}; expected a string")
        answers.setdefault(tools[question].name, []).append(str(answer))
    return answers
