"""The formats by name, and the door for one more."""

from __future__ import annotations

from typing import Protocol

from ..errors import ConfigError
from ..types import Turn
from .hermes import parse_hermes
from .llama3 import parse_llama3
from .mistral import parse_mistral
from .repair import load_repair


class TurnParser(Protocol):
    """Reads the text of one assistant turn. It never raises on text, and a broken call is a call."""

    def __call__(self, text: str, *, repair: bool = False) -> Turn: ...


_PARSERS: dict[str, TurnParser] = {
    "hermes": parse_hermes,
    "llama3": parse_llama3,
    "mistral": parse_mistral,
    "qwen3": parse_hermes,
}


def formats() -> tuple[str, ...]:
    """Names of the text formats that :func:`parse_turn` knows, sorted."""
    return tuple(sorted(_PARSERS))


def register(name: str, parser: TurnParser, *, replace: bool = False) -> None:
    """Add a text format under a name.

    Parameters
    ----------
    name : str
        What ``format=`` says.
    parser : TurnParser
        ``parser(text, repair=False) -> Turn``. It must raise on no text, and must keep each
        call that opened, malformed where it is broken.
    replace : bool
        Allow a name that is already taken.

    Raises
    ------
    ConfigError
        If `name` is empty or no string, or is taken and `replace` is false.
    """
    if not isinstance(name, str) or not name:
        raise ConfigError(f"name is {name!r}; expected a string that is not empty")
    if name in _PARSERS and not replace:
        raise ConfigError(f"format {name!r} is registered already; pass replace=True to replace it")
    _PARSERS[name] = parser


def parser_of(format: str) -> TurnParser:
    """The parser of a format.

    Raises
    ------
    ConfigError
        If no format has this name; the message lists those that there are.
    """
    parser = _PARSERS.get(format) if isinstance(format, str) else None
    if parser is None:
        raise ConfigError(f"format is {format!r}; expected one of {', '.join(formats())}")
    return parser


def parse_turn(text: str, format: str = "hermes", *, repair: bool = False) -> Turn:
    """Read the text of one assistant turn: reasoning, calls, or the answer.

    Parameters
    ----------
    text : str
        What the model wrote, special tokens included. It may start inside a think block that
        the chat template opened.
    format : str
        One of :func:`formats`.
    repair : bool
        Repair calls that are malformed JSON, with `json_repair`, and mark them `repaired`.

    Returns
    -------
    Turn
        `calls` in the order of the text, malformed ones in their place with the reason;
        `answer` what stands in the last ``<answer>…</answer>`` if there are no calls, else
        None; `text` as it came; `reasoning` what the think blocks hold, None without one.

    Raises
    ------
    ConfigError
        If `format` is unknown.
    ImportError
        If `repair` is true and `json_repair` is not installed.

    Notes
    -----
    No text raises, and time is linear in its length. Empty text is a turn without calls and
    answer. A think block that never closes reaches to the end: no calls, no answer.

    Examples
    --------
    >>> turn = parse_turn('<think>look</think><tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>')
    >>> turn.calls[0].name, turn.calls[0].arguments, turn.reasoning
    ('f', {'x': 1}, 'look')
    >>> parse_turn('<tool_call>{"name": 3}</tool_call>').calls[0].malformed
    '"name" is a number; expected a string'
    """
    parser = parser_of(format)
    if repair:
        load_repair()
    return parser(text, repair=repair)
