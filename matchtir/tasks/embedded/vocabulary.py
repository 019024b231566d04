"""The closed vocabulary: the pieces that every text of an embedded task is made of, and how it is cut."""

from __future__ import annotations

import re
from functools import lru_cache

from .phrases import NAME, OPENINGS, SYNONYMS
from .tools import UNITS
from .week import DAYS
from .world import FIRST, HIGH, LOW, RELATIONS, SECOND, TYPES

# Spaces belong to the pieces around words: a word is the same piece in a question, a schema and a call.
_QUESTION = ("Give the ", "Find the ", " of the ", " of ", " and the ", ".")
_SCHEMA = (
    '{"type": "function", "function": {"name": "',
    '", "description": "',
    " of a ",
    '", "parameters": {"type": "object", "properties": {"',
    '": {"type": "string"}}, "required": ["',
    '": {"type": "string"}, "unit": {"type": "string"}}, "required": ["',
    '"]}}}',
)
_CALL = (
    "<tool_call>",
    '{"name": "',
    '", "arguments": {"',
    '": "',
    '", "unit": "',
    '"}}',
    "</tool_call>",
)
_ANSWER = ("<answer>", ", ", "</answer>")
_ERROR = (
    '{"error": "',
    "give ",
    " must be a name",
    "old name; use ",
    "unknown ",
    "; did you mean ",
    "?",
    "unit must be ",
    '"}',
)
_LISTS = ("[", "]", "\n")
_WORDS = (*(word for relation in RELATIONS for word in (relation.name, relation.synonym)), *TYPES, *UNITS)

_PIECES = tuple(
    dict.fromkeys(
        (*_QUESTION, *_SCHEMA, *_CALL, *_ANSWER, *_ERROR, *_LISTS, *_WORDS, *FIRST, *SECOND, *HIGH, *LOW)
    )
)

# What texts of calendar tasks have besides; hours are pieces of HIGH.
_REQUEST = (
    *OPENINGS,
    *(" ", " and ", " the ", " on ", " to ", " at ", " or later", " at the ", " to the "),
    *(" free hour of ", "the day of "),
)
_TOOLS = (
    " a ",
    " free hour of a ",
    '": {"type": "string"}, "day": {"type": "string"}, "hour": {"type": "string"}}, "required": ["',
    '", "day", "hour"]}}}',
    '", "day": "',
    '", "hour": "',
)
_REFUSAL = ("day", "hour", " is full", " is empty", "not booked", "booked; use ", "occupied; use ")
_REPLY = ("done", "none")

_CALENDAR_PIECES = tuple(
    dict.fromkeys((*_REQUEST, *_TOOLS, *_REFUSAL, *_REPLY, *DAYS, NAME, *SYNONYMS, *SYNONYMS.values()))
)


def token_pattern(*, calendar: bool = False) -> str:
    """Regular expression whose matches, left to right, are the pieces of a text; the longest come first.

    Also what a `tokenizers` ``Split(Regex(pattern), behavior="isolated")`` takes before ``WordLevel``.
    `calendar`: with the pieces of calendar tasks.
    """
    return "|".join(map(re.escape, sorted(vocabulary(calendar=calendar), key=len, reverse=True)))


def vocabulary(*, calendar: bool = False) -> tuple[str, ...]:
    """All pieces of all embedded tasks, whatever their configuration, in a fixed order.

    Made of them are questions, tools (``json.dumps`` of the OpenAI form, one per line or as a list), calls
    (``<tool_call>{"name": …, "arguments": {…}}</tool_call>``, with or without line breaks in the markers),
    what the tools answer, errors included, and ``<answer>…</answer>``. A tokenizer adds its own markers, and
    one for unknown text: what a registry says of a call that fits no tool is not in the vocabulary.

    Parameters
    ----------
    calendar : bool
        With the pieces that only calendar tasks have; they come last.

    Returns
    -------
    tuple of str
        Distinct pieces.

    Examples
    --------
    >>> len(vocabulary()), len(vocabulary(calendar=True)) <= 256
    (161, True)
    """
    return _PIECES + _CALENDAR_PIECES if calendar else _PIECES


def tokenize(text: str, *, calendar: bool = False) -> list[str]:
    """Cut a text into pieces of the vocabulary, the longest that fits at each place.

    Parameters
    ----------
    text : str
        Any text.
    calendar : bool
        Use the pieces of calendar tasks too.

    Returns
    -------
    list of str
        Joined they are the text. What is between pieces of the vocabulary stays whole.

    Examples
    --------
    >>> tokenize("Give the mayor of Baldor.")
    ['Give the ', 'mayor', ' of ', 'Bal', 'dor', '.']
    >>> tokenize("mayor of the world")
    ['mayor', ' of the ', 'world']
    >>> tokenize("Now shift Baldor to Tue at 14.", calendar=True)
    ['Now ', 'shift', ' ', 'Bal', 'dor', ' to ', 'Tue', ' at ', '14', '.']
    """
    return [piece for piece in _splitter(calendar).split(text) if piece]


@lru_cache(maxsize=2)
def _splitter(calendar: bool) -> re.Pattern[str]:
    """The pattern as a group, so that a split keeps the pieces."""
    return re.compile(f"({token_pattern(calendar=calendar)})")


TOKEN_PATTERN = token_pattern()
"""The pattern without the calendar's pieces."""
