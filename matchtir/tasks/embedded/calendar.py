"""Stateful tasks from a seed: a week of appointments, and a user who speaks one to three times."""

from __future__ import annotations

import inspect

from ...types import Environment, Task, Tool, UserTurn
from . import week
from .config import CALENDAR, EmbeddedConfig
from .phrases import SYNONYMS
from .user_turns import Maker
from .world import Draw, Names

_SOURCE = inspect.getsource(week)
_PLACE = {"person": {"type": "string"}}
_DAY = {"day": {"type": "string"}}
_SLOT = {**_PLACE, **_DAY, "hour": {"type": "string"}}
_ARGUMENTS = {
    "find": _PLACE,
    "earliest": _DAY,
    "latest": _DAY,
    "opener": _DAY,
    "closer": _DAY,
    "book": _SLOT,
    "move": _SLOT,
    "cancel": _PLACE,
}
_DESCRIPTIONS = {
    "find": "{} a person",
    "earliest": "{} free hour of a day",
    "latest": "{} free hour of a day",
    "opener": "{} of a day",
    "closer": "{} of a day",
    "book": "{} a person",
    "move": "{} a person",
    "cancel": "{} a person",
}


def calendar_task(config: EmbeddedConfig, split: str, index: int) -> Task:
    """One task; its draws depend on seed, split and index alone."""
    draw = Draw(f"{config.seed}/{CALENDAR}/{split}/{index}")
    maker = Maker(draw, Names(draw, split), config)
    count = draw.between(*config.user_turns)
    turns = [maker.user_turn(to_come) for to_come in reversed(range(count))]
    messages = [({"role": "user", "content": turn.text},) for turn in turns]
    return Task(
        id=f"{split}-{CALENDAR}-{index:04d}",
        messages=messages[0],
        tools=_tools(draw),
        gold_calls=turns[0].calls,
        gold_answer=turns[0].answer,
        kind=CALENDAR,
        environment=Environment(
            _SOURCE,
            "Calendar",
            {
                "people": maker.people,
                "slots": maker.slots,
                "former": maker.former,
                "expected": [{"slots": turn.left, "answer": turn.asked} for turn in turns],
            },
            "judge",
        ),
        later=tuple(
            UserTurn(said, gold_calls=turn.calls, gold_answer=turn.answer)
            for said, turn in zip(messages[1:], turns[1:], strict=True)
        ),
    )


def _tools(draw: Draw) -> tuple[Tool, ...]:
    """All tools, in random order, as schemas."""
    return tuple(
        Tool(
            name,
            _DESCRIPTIONS[name].format(SYNONYMS[name]),
            {"type": "object", "properties": _ARGUMENTS[name], "required": list(_ARGUMENTS[name])},
        )
        for name in draw.shuffled(list(SYNONYMS))
    )
