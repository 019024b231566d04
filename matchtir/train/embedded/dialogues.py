"""Scripted demonstrations of calendar tasks, imperfect on purpose.

The script reads each request and does its parts in order, one call a turn, by what the tools answer. Its
mistakes depend on what stands before them, as those of :mod:`.demonstrations` do.

========= ======================================== =================================================
mistake   where                                    what
========= ======================================== =================================================
sibling   the request has one of `CONFUSED`        the sibling's tool is called
half      two parts, "Now …", a later user turn    the second part is not done
check     an order is done, "Please …"             `find` is called, though nobody asked
verb      "shift"                                  `book` is called; the error leads to `move`
stale     book at a free hour of somebody's day    that person's own hour is taken for free
ignore    the hour is occupied                     the part is given up, though the error has a free one
========= ======================================== =================================================
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ...tasks.embedded.phrases import NAME, SIBLINGS, TOOL_OF, Part, read_request
from ...types import Task, ToolCall
from .calls import MAX_TURNS, Chance, Message, call_text, open_environment, run_embedded_tool

CONFUSED = frozenset(("starter",))
"""Words of requests whose sibling is called: few, for a dialogue has many parts that can go wrong."""
RATES: Mapping[str, float] = {
    "sibling": 0.75,
    "half": 0.65,
    "check": 0.7,
    "verb": 0.7,
    "stale": 0.65,
    "ignore": 0.65,
}
"""How often each mistake is made where it can be."""

_HINT = re.compile(r"use (\w+)")


class _GivenUpError(Exception):
    """A part of a request is not done."""


def dialogue(task: Task, chance: Chance) -> list[Message]:
    """One scripted rollout of a calendar task, all its user turns; `chance` decides on mistakes."""
    script = _Script(task, chance)
    for said in (task.messages, *(turn.messages for turn in task.later)):
        script.follow(said)
    return script.messages


class _Script:
    """The state of a demonstration between its user turns."""

    def __init__(self, task: Task, chance: Chance) -> None:
        if task.environment is None:
            raise ValueError(f"task {task.id!r} has no environment; expected one of the calendar")
        self.messages: list[Message] = []
        self._tools = {tool.name: tool for tool in task.tools}
        self._calendar = open_environment(task.environment)
        self._chance = chance
        self._names: dict[str, str] = {}  # old to new, as errors said
        self._left = 0

    def follow(self, said: tuple[Mapping[str, Any], ...]) -> None:
        """Answer a user turn."""
        later = bool(self.messages)
        self.messages += [dict(message) for message in said]
        self._left = MAX_TURNS - 1
        opening, parts = read_request(said[-1]["content"])
        hasty = opening == "Now "
        if len(parts) > 1 and hasty and later and self._mistake("half"):
            parts.pop()
        answers = []
        for part in parts:
            try:
                answer = self._do(part, hasty)
            except _GivenUpError:
                answer = "none"
            answers += [answer] if part.asks else []
        self.messages.append(
            {"role": "assistant", "content": f"<answer>{', '.join(answers) or 'done'}</answer>"}
        )

    def _do(self, part: Part, hasty: bool) -> str:
        """Do one part; returns its answer."""
        person = self._ask(part.place, part.of) if part.place else self._name(part.person)
        day, hour = part.day, part.hour
        if part.like:
            day, hour = self._call("find", person=self._name(part.like)).split(" at ")
        if part.verb == NAME:
            return person
        tool = TOOL_OF[part.verb]
        if part.free and not (part.like and tool == "book" and self._mistake("stale")):
            hour = self._ask(part.free, day)
        if tool not in ("book", "move"):
            return self._call(tool, person=person)
        if part.verb == "shift" and self._mistake("verb"):
            tool = "book"
        answer = self._call(tool, person=person, day=day, hour=hour)
        if not hasty and self._left and self._mistake("check"):
            self._call("find", person=self._name(person))
        return answer

    def _ask(self, word: str | None, day: str | None) -> str:
        """What the tool of a word, or its sibling, says of a day."""
        tool = TOOL_OF[str(word)]
        if word in CONFUSED and self._mistake("sibling"):
            tool = SIBLINGS[tool]
        return self._call(tool, day=day)

    def _name(self, name: str | None) -> str:
        """The name that somebody has now, as far as it was heard."""
        return self._names.get(str(name), str(name))

    def _call(self, tool: str, **arguments: str | None) -> str:
        """Make a call, and a better one if the error says how; returns what came of the last."""
        if not self._left:
            raise _GivenUpError
        self._left -= 1
        result = run_embedded_tool(self._tools[tool], arguments, self._calendar)
        self.messages.append({"role": "assistant", "content": call_text(ToolCall(tool, arguments))})
        self.messages.append({"role": "tool", "content": result})
        if not result.startswith("{"):
            return result
        hint = _HINT.search(result)
        if hint is None:
            raise _GivenUpError
        if hint[1] == "move":
            return self._call("move", **arguments)
        if "old name" in result:
            self._names[str(arguments["person"])] = hint[1]
            return self._call(tool, **{**arguments, "person": hint[1]})
        if self._mistake("ignore"):
            raise _GivenUpError
        return self._call(tool, **{**arguments, "hour": hint[1]})

    def _mistake(self, name: str) -> bool:
        """Whether this mistake is made now."""
        return self._chance(RATES[name])
