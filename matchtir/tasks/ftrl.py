"""FTRL's tasks: the schemas of the tools, their Python sources, and the answers of the sub-questions.

Reference: Ye et al., *Feedback-Driven Tool-Use Improvements in Large Language Models via Automated Build
Environments*, Findings of ACL 2026, arXiv 2508.08791.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import InputError
from ..parse.messages import mapping_at, sequence_at
from ..types import Task
from .fields import field, id_of, messages_of, task_from, text, tool_at

COLUMNS = ("messages", "tools", "codes", "answer")
"""Columns that every file of FTRL's has."""

MARKS = ("codes", "unsolved_set", "data_source")
"""Columns by any of which such a file is recognised."""


def task_from_ftrl(row: Mapping[str, Any], index: int) -> Task:
    """A task from one row of FTRL's, the `index`-th of its file."""
    codes = mapping_at(field(row, "codes", "a JSON object of tool name to source"), "codes")
    tools = []
    for k, schema in enumerate(sequence_at(field(row, "tools", "a JSON list of schemas"), "tools")):
        name = tool_at(schema, f"tools[{k}]").name
        source = codes.get(name)
        if not isinstance(source, str):
            raise InputError(f"codes holds no source of tool {name!r}; expected a string")
        tools.append(tool_at(schema, f"tools[{k}]", source))
    return task_from(
        row,
        ("ground_truth", "answer", "unsolved_set", "data_source"),
        id=id_of(row, "-".join(filter(None, ["ftrl", text(row, "split", ""), str(index)]))),
        messages=messages_of(row),
        tools=tuple(tools),
    )
