"""The tools of a task: Python source that holds a slice of its world, and the schema that a model reads."""

from __future__ import annotations

import json
from collections.abc import Mapping

from ...types import Tool
from .world import Relation, Value

UNITS = ("metres", "feet")

# `@` stands for the one argument, a word that is also its type. The hints lead from a failed call to the
# right one; they name entities of the argument's type only, never a value.
_SOURCE = """\
FACTS = {facts}
OLD_NAMES = {old_names}
UNIT = {unit}


def {name}(@=None, {unit_argument}**others):
    if @ is None or others:
        return {{"error": "give @"}}
    if not isinstance(@, str):
        return {{"error": "@ must be a name"}}
    if @ in OLD_NAMES:
        return {{"error": "old name; use " + OLD_NAMES[@]}}
    if @ not in FACTS:
        near = [known for known in FACTS if known[:3] == @[:3]]
        return {{"error": "unknown @" + ("; did you mean " + near[0] + "?" if near else "")}}
{unit_check}    return FACTS[@]
"""
_UNIT_CHECK = """\
    if unit != UNIT:
        return {"error": "unit must be " + UNIT}
"""


def make_tool(
    relation: Relation, facts: Mapping[str, Value], old_names: Mapping[str, str], unit: str | None
) -> Tool:
    """The tool that answers one relation.

    Parameters
    ----------
    relation
        Gives the name, the description, and the name of the one required argument: its domain.
    facts
        Entity to value.
    old_names
        Old name to the entity's name; the tool refuses the old one and says the new one.
    unit
        If not None the tool has a second argument ``unit``, and answers only if it is this one.
    """
    source = _SOURCE.format(
        name=relation.name,
        facts=json.dumps(facts),
        old_names=json.dumps(old_names),
        unit=repr(unit),
        unit_argument="unit=None, " if unit else "",
        unit_check=_UNIT_CHECK if unit else "",
    ).replace("@", relation.domain)
    properties = {relation.domain: {"type": "string"}} | ({"unit": {"type": "string"}} if unit else {})
    return Tool(
        relation.name,
        f"{relation.synonym} of a {relation.domain}",
        {"type": "object", "properties": properties, "required": [relation.domain]},
        source,
    )
