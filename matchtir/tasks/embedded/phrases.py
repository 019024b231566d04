"""What the user of a calendar says: one or two parts of a few forms, in words that come in pairs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

SYNONYMS = {
    "find": "locate",
    "earliest": "soonest",
    "latest": "final",
    "opener": "starter",
    "closer": "finisher",
    "book": "enter",
    "move": "shift",
    "cancel": "remove",
}
"""Name of each tool to its other word. Requests use either; the tool's description has the other word."""

SIBLINGS = {"earliest": "latest", "latest": "earliest", "opener": "closer", "closer": "opener"}
"""Tools that are easily confused: both are asked of a day."""

TOOL_OF = {word: name for name, synonym in SYNONYMS.items() for word in (name, synonym)}
NAME = "name"
"""The verb that asks who somebody is; no tool."""
OPENINGS = ("Please ", "Now ")

_PART = re.compile(
    r"(?P<verb>\w+) (?:the (?P<place>\w+) of (?P<of>\w+)|(?P<person>\w+))"
    r"(?: (?:on|to) (?P<day>\w+) at (?P<hour>\w+)(?P<later> or later)?"
    r"| (?:at|to) the (?P<free>\w+) free hour of (?:the day of (?P<like>\w+)|(?P<free_day>\w+)))?"
)


@dataclass(frozen=True)
class Part:
    """One part of a request.

    Attributes
    ----------
    verb : str
        A word for `book`, `move`, `cancel` or `find`, or :data:`NAME`.
    person : str or None
        Who it is about. None: whoever has the `place`, a word for `opener` or `closer`, of the day `of`.
    place, of : str or None
    day, hour : str or None
        When, of an order to book or move. `later`: or the next free hour, if somebody has this one.
    later : bool
    free : str or None
        Instead of `hour`: a word for `earliest` or `latest`; of the day `day`, or of that of `like`.
    like : str or None
        A person.
    """

    verb: str
    person: str | None = None
    place: str | None = None
    of: str | None = None
    day: str | None = None
    hour: str | None = None
    later: bool = False
    free: str | None = None
    like: str | None = None

    @property
    def asks(self) -> bool:
        """Whether it is a question."""
        return self.verb == NAME or TOOL_OF[self.verb] == "find"

    @property
    def calls(self) -> int:
        """Calls that it needs."""
        return bool(self.place) + bool(self.like) + bool(self.free) + (self.verb != NAME)

    def text(self) -> str:
        """As the user says it."""
        said = f"{self.verb} {self.person or f'the {self.place} of {self.of}'}"
        books = TOOL_OF.get(self.verb) == "book"
        if self.free:
            of = f"the day of {self.like}" if self.like else self.day
            return f"{said} {'at' if books else 'to'} the {self.free} free hour of {of}"
        if self.day:
            later = " or later" if self.later else ""
            return f"{said} {'on' if books else 'to'} {self.day} at {self.hour}{later}"
        return said


def request(opening: str, parts: list[Part]) -> str:
    """What the user says in one turn.

    >>> request("Please ", [Part("shift", "Baldor", day="Tue", hour="14"), Part("find", "Dunfel")])
    'Please shift Baldor to Tue at 14 and find Dunfel.'
    """
    return f"{opening}{' and '.join(part.text() for part in parts)}."


def read_request(text: str) -> tuple[str, list[Part]]:
    """Opening and parts of what :func:`request` wrote.

    >>> read_request("Now enter Baldor at the final free hour of the day of Dunfel.")[1][0].like
    'Dunfel'
    """
    opening = next(opening for opening in OPENINGS if text.startswith(opening))
    parts = []
    for said in text[len(opening) : -1].split(" and "):
        found = _PART.fullmatch(said)
        if found is None:
            raise ValueError(f"{said!r} is no part of a request to a calendar")
        fields: dict[str, Any] = found.groupdict()
        free_day = fields.pop("free_day")
        fields |= {"later": fields["later"] is not None, "day": fields["day"] or free_day}
        parts.append(Part(**fields))
    return opening, parts
