"""The invented worlds: relations, names, numbers, and the facts of one task."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

NUMBER = "number"
TYPES = ("person", "town", "firm", "ship")
SPLITS = ("train", "test")

Value = str | int
Facts = dict[str, dict[str, Value]]
"""Name of a relation to entity to value."""

_T = TypeVar("_T")


class Relation(NamedTuple):
    """A function from entities of one type to entities of another, or to numbers.

    `name` names its tool, `synonym` stands in the tool's description; questions use either. `sibling` is the
    relation that it is easily confused with: same domain, same range.
    """

    name: str
    synonym: str
    domain: str
    range: str
    sibling: str


def _pair(domain: str, range: str, first: str, second: str) -> tuple[Relation, Relation]:
    """Two confusable relations, each written as name/synonym."""
    (a, a_synonym), (b, b_synonym) = first.split("/"), second.split("/")
    return Relation(a, a_synonym, domain, range, b), Relation(b, b_synonym, domain, range, a)


RELATIONS = (
    *_pair("town", "person", "mayor/leader", "deputy/assistant"),
    *_pair("person", "town", "birthplace/cradle", "residence/home"),
    *_pair("firm", "person", "founder/creator", "director/boss"),
    *_pair("person", "firm", "employer/workplace", "sponsor/backer"),
    *_pair("firm", "town", "seat/headquarters", "factory/plant"),
    *_pair("ship", "person", "captain/skipper", "owner/holder"),
    *_pair("ship", "town", "port/harbour", "shipyard/dockyard"),
    *_pair("town", "ship", "ferry/shuttle", "lifeboat/rescuer"),
    *_pair("town", NUMBER, "height/altitude", "width/breadth"),
    *_pair("ship", NUMBER, "length/span", "depth/draught"),
)
"""Twenty relations in ten confusable pairs."""

BY_NAME = {relation.name: relation for relation in RELATIONS}


def _threes(letters: str) -> tuple[str, ...]:
    """The letters, cut into pieces of three."""
    return tuple(letters[i : i + 3] for i in range(0, len(letters), 3))


FIRST = _threes("BalCorDunFelGarHolJarKelLorMerNorPelQuoRasSolTamUrsVelWenYorZanAriEdaIsk")
SECOND = _threes("bancildorfengushanjikkarlimmotnelpaxrinstatorulfvenwicyanzetadeethonyiko")
HIGH = tuple(str(number) for number in range(11, 27))
LOW = tuple(str(number) for number in range(51, 67))
"""Names are a piece of FIRST and one of SECOND, numbers one of HIGH and one of LOW."""

OTHERS = 3
"""Entities of each type that a world has besides those of the gold calls."""


class Draw:
    """Draws from a seed, by `random()` alone, whose sequence Python promises to keep."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed).random

    def below(self, bound: int) -> int:
        """An integer from 0 to `bound` - 1."""
        return int(self._random() * bound)

    def between(self, least: int, most: int) -> int:
        """An integer from `least` to `most`."""
        return least + self.below(most - least + 1)

    def chance(self, share: float) -> bool:
        """True with probability `share`."""
        return self._random() < share

    def choice(self, items: Sequence[_T]) -> _T:
        """One of the items."""
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[_T]) -> list[_T]:
        """The items in another order."""
        mixed = list(items)
        for i in range(len(mixed) - 1, 0, -1):
            j = self.below(i + 1)
            mixed[i], mixed[j] = mixed[j], mixed[i]
        return mixed


class Names:
    """Names and numbers for one task, none given twice.

    The 24 x 24 names lie on 24 diagonals, ``(i + j) % 24``. Every third diagonal is for testing, the others
    for training, and in both the four types take turns. So the splits share every piece and no name, whatever
    the seed, and a name has one type. Inside a task no two names begin with the same piece.
    """

    def __init__(self, draw: Draw, split: str) -> None:
        self._draw = draw
        self._first = draw.shuffled(range(len(FIRST)))
        diagonals = [k for k in range(len(FIRST)) if (k % 3 == 0) == (split == "test")]
        self._diagonals = {kind: diagonals[i :: len(TYPES)] for i, kind in enumerate(TYPES)}
        self._numbers: set[int] = set()

    def new(self, kind: str) -> str:
        """A new name for an entity of this type."""
        i = self._first.pop()
        return FIRST[i] + SECOND[(self._draw.choice(self._diagonals[kind]) - i) % len(FIRST)]

    def number(self) -> int:
        """A new number of four digits."""
        while True:
            number = int(self._draw.choice(HIGH) + self._draw.choice(LOW))
            if number not in self._numbers:
                self._numbers.add(number)
                return number


def add_facts(
    draw: Draw, names: Names, gold: Facts, known: dict[str, list[str]], offered: Sequence[str]
) -> Facts:
    """All facts of the offered relations, about all entities that the task's world has.

    A value of a gold fact is the value of no other fact: a wrong call leads to other entities, and from those
    no way leads back.

    Parameters
    ----------
    gold
        The facts that the gold calls ask for.
    known
        Type to the entities of the gold calls.
    offered
        Names of the relations that get a tool.
    """
    others = {kind: [names.new(kind) for _ in range(OTHERS)] for kind in TYPES}
    facts: Facts = {}
    for relation in RELATIONS:
        if relation.name not in offered:
            continue
        fixed = gold.get(relation.name, {})
        values: dict[str, Value] = {}
        for entity in draw.shuffled(known[relation.domain] + others[relation.domain]):
            if entity in fixed:
                values[entity] = fixed[entity]
            elif relation.range == NUMBER:
                values[entity] = names.number()
            else:
                values[entity] = draw.choice(others[relation.range])
        facts[relation.name] = values
    return facts
