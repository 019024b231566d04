"""What the user of a calendar says, turn by turn, and what each turn needs, leaves and is answered by."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from ...types import ToolCall
from .config import EmbeddedConfig
from .phrases import NAME, OPENINGS, SYNONYMS, TOOL_OF, Part, request
from .week import DAYS, HOURS, Calendar
from .world import Draw, Names

DONE = "done"
"""The answer to a request that asks nothing, and what tools say that changed something."""
MOST_PARTS = 2
MOST_CALLS = 8
"""Gold calls of a dialogue."""

_BOOKED, _UNBOOKED = 12, 4
_FEWEST = 8  # so many are booked at least, one of them early on a day: then some part always fits
_VERBS = (*("book",) * 6, *("move",) * 6, *("cancel",) * 3, *("find",) * 3, *(NAME,) * 2)
_PLACED = {"move": 0.25, "cancel": 0.4, "find": 0.4}
"""How often such a request says who by a place ("the opener of Tue")."""
_OR_LATER = 0.2
_FOCUS = 0.6


def text_of(value: object) -> str:
    """What a tool of the calendar returned, as a model is shown it."""
    return value if isinstance(value, str) else json.dumps(value)


class Said(NamedTuple):
    """A user turn: what is said, the calls it needs, the state they leave, the answer to what is asked."""

    text: str
    calls: tuple[ToolCall, ...]
    left: dict[str, list[str]]
    asked: str | None

    @property
    def answer(self) -> str:
        """What a right reply says."""
        return DONE if self.asked is None else self.asked


class Maker:
    """Draws user turns one after the other, and follows what their calls leave."""

    def __init__(self, draw: Draw, names: Names, config: EmbeddedConfig) -> None:
        self._draw, self._config = draw, config
        self.people = [names.new("person") for _ in range(_BOOKED + _UNBOOKED)]
        self.slots = dict(zip(self.people, _slots(draw), strict=False))
        self.former: dict[str, str] = {}
        self._old_name = names.new("person")
        self._calendar = Calendar(self.people, self.slots, {}, [])
        self._now = self._calendar._slots
        self._fault = draw.choice(("name", "hour")) if draw.chance(config.error_rate) else None
        self._left = MOST_CALLS
        # What a reader of the dialogue knows without asking: where people are, and answers about a day.
        self._known: set[str] = set()
        self._told: dict[tuple[str, str], object] = {}
        self._touched: list[str] = []  # people and days

    def user_turn(self, to_come: int) -> Said:
        """The next user turn; `to_come` more follow it."""
        calls: list[ToolCall] = []
        most = min(self._config.max_turns - 2, self._left - to_come)
        parts: list[Part] = []
        answers: list[str] = []
        busy: set[str] = set()
        for _ in range(self._draw.between(1, MOST_PARTS)):
            if len(calls) == most:
                break
            part = self._fitting(most - len(calls), busy)
            made, who = self._follow(part)
            calls += made
            busy.add(who)
            if part.asks:
                answers.append(who if part.verb == NAME else str(made[-1].result))
            parts.append(self._as_said(part))
        self._left -= len(calls)
        left = {person: list(slot) for person, slot in self._now.items()}
        text = request(self._draw.choice(OPENINGS), parts)
        return Said(text, tuple(calls), left, ", ".join(answers) or None)

    def _fitting(self, most: int, busy: set[str]) -> Part:
        """A part of at most so many calls, about none of the people of the other part."""
        while True:
            verb = self._draw.choice(_VERBS)
            part = self._when(self._who(Part(self._word(verb)), busy), busy)
            if part is not None and part.calls <= most:
                if self._fault == "name":
                    self.former[self._old_name] = str(part.person)
                self._fault = None
                return part

    def _who(self, part: Part, busy: set[str]) -> Part | None:
        """Add who it is about; None if there is nobody."""
        tool = TOOL_OF.get(part.verb)
        if self._fault != "name" and (tool is None or (tool != "book" and self._draw.chance(_PLACED[tool]))):
            place, day = self._draw.choice(("opener", "closer")), self._day()
            who = getattr(self._calendar, place)(day)
            if (place, day) in self._told or not isinstance(who, str) or who in busy:
                return None
            if tool == "find" and who in self._known:
                return None
            return replace(part, place=self._word(place), of=day)
        able = [
            person
            for person in self.people
            if (person in self._now) == (tool != "book")
            and person not in busy
            and (tool != "find" or person not in self._known)
        ]
        if tool is None or not able:
            return None
        return replace(part, person=self._one_of(able))

    def _when(self, part: Part | None, busy: set[str]) -> Part | None:
        """Add when, to an order to book or move; None if nothing fits."""
        if part is None or TOOL_OF.get(part.verb) not in ("book", "move"):
            return part if self._fault != "hour" else None
        form = "exact" if self._fault == "hour" else self._draw.choice(("exact", "free", "free", "like"))
        day = self._day()
        if form == "exact":
            return self._at_an_hour(part, day)
        like = None
        if form == "like":
            able = [x for x in self._now if x not in self._known and x not in busy and x != part.person]
            if not able:
                return None
            like = self._draw.choice(able)
            day = self._now[like][0]
        tool = self._draw.choice(("earliest", "latest"))
        if (tool, day) in self._told or not isinstance(getattr(self._calendar, tool)(day), str):
            return None
        return replace(part, free=self._word(tool), like=like, day=None if like else day)

    def _at_an_hour(self, part: Part, day: str) -> Part | None:
        """Add an hour, which is free unless that is this task's fault."""
        free = [[day, hour] not in self._now.values() for hour in HOURS]
        fails = self._fault == "hour"
        who = part.person or getattr(self._calendar, TOOL_OF[str(part.place)])(part.of)
        able = [
            hour
            for i, hour in enumerate(HOURS)
            if free[i] != fails and any(free[i:]) and self._now.get(who) != [day, hour]
        ]
        if not able:
            return None
        later = fails or self._draw.chance(_OR_LATER)
        return replace(part, day=day, hour=self._draw.choice(able), later=later)

    def _follow(self, part: Part) -> tuple[list[ToolCall], str]:
        """Make the calls of a part; returns them, and who it is about."""
        calls: list[ToolCall] = []

        def call(name: str, **arguments: str) -> str:
            result = text_of(getattr(self._calendar, name)(**arguments))
            calls.append(ToolCall(name, arguments, result=result))
            return result

        def ask(name: str, day: str) -> str:
            self._told[name, day] = call(name, day=day)
            return str(self._told[name, day])

        who = part.person or ask(TOOL_OF[str(part.place)], str(part.of))
        day, hour = part.day, part.hour
        if part.like:
            day = call("find", person=part.like).split(" at ")[0]
            self._known.add(part.like)
        if part.free:
            hour = ask(TOOL_OF[part.free], str(day))
        elif hour:
            hour = next(x for x in HOURS[HOURS.index(hour) :] if [day, x] not in self._now.values())
        tool = TOOL_OF.get(part.verb)
        if tool in ("book", "move"):
            call(tool, person=who, day=str(day), hour=str(hour))
        elif tool is not None:
            call(tool, person=who)
        self._known.add(who)
        self._touched += [who, *(x for x in (day, part.of) if x)]
        for asked, told in list(self._told.items()):
            if getattr(self._calendar, asked[0])(asked[1]) != told:
                del self._told[asked]
        return calls, who

    def _as_said(self, part: Part) -> Part:
        """The part with the old name of whoever has one."""
        old = {new: old for old, new in self.former.items()}
        return replace(
            part,
            person=part.person and old.get(part.person, part.person),
            like=part.like and old.get(part.like, part.like),
        )

    def _word(self, tool: str) -> str:
        """A word for a tool, or for none."""
        return tool if tool == NAME else self._draw.choice((tool, SYNONYMS[tool]))

    def _day(self) -> str:
        """A day, more likely one that was spoken of."""
        return self._one_of(DAYS)

    def _one_of(self, able: Sequence[str]) -> str:
        """One of these, more likely one that was spoken of."""
        touched = [x for x in self._touched if x in able]
        return self._draw.choice(touched if touched and self._draw.chance(_FOCUS) else able)


def _slots(draw: Draw) -> list[list[str]]:
    """Day and hour of the first appointments, in random order; days begin and end with a few taken hours."""
    while True:
        slots: list[list[str]] = []
        for day in DAYS:
            early, late = draw.choice((0, 0, 1, 2, 3)), draw.choice((0, 1, 2))
            taken = [*HOURS[:early], *HOURS[len(HOURS) - late :]]
            if draw.chance(0.5):
                taken.append(draw.choice(HOURS[early + 1 : len(HOURS) - late]))
            slots += [[day, hour] for hour in taken]
        slots = draw.shuffled(slots)[:_BOOKED]
        # An hour from which a later one is free, for the order that names a taken one.
        if len(slots) >= _FEWEST and any(hour in HOURS[:3] for _, hour in slots):
            return slots
