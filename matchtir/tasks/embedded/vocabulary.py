"""The closed vocabulary: the pieces that every text of an embedded task is made of, and how it is cut."""

from __future__ import annotations

import re

from .tools import UNITS
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

TOKEN_PATTERN = "|".join(map(re.escape, sorted(_PIECES, key=len, reverse=True)))
"""Regular expression whose matches, left to right, are the pieces of a text; the longest come first.

Also what a `tokenizers` ``Split(Regex(TOKEN_PATTERN), behavior="isolated")`` takes before ``WordLevel``.
"""

_SPLIT = re.compile(f"({TOKEN_PATTERN})")


def vocabulary() -> tuple[str, ...]:
    """All pieces of all embedded tasks, whatever their configuration, in a fixed order.

    Made of them are questions, tools (``json.dumps`` of the OpenAI form, one a line or as a list), calls
    (``<tool_call>{"name": …, "arguments": {…}}</tool_call>``, with or without line breaks in the markers),
    what the tools answer, errors included, and ``<answer>…</answer>``. A tokenizer adds its own markers, and
    one for unknown text: what a registry says of a call that fits no tool is not in the vocabulary.

    Returns
    -------
    tuple of str
        Distinct pieces.

    Examples
    --------
    >>> len(vocabulary()) <= 256
    True
    """
    return _PIECES


def tokenize(text: str) -> list[str]:
    """Cut a text into pieces of the vocabulary, the longest that fits at each place.

    Parameters
    ----------
    text : str
        Any text.

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
    """
    return [piece for piece in _SPLIT.split(text) if piece]
