"""The embedded task set: questions over small invented worlds, made from a seed.

Every task has a world of its own, and its tools are Python sources that hold a slice of it. So nothing can be
learnt by heart: an answer is found by calling tools and copying names out of what they answered. The
vocabulary is closed and small enough for a policy of a few hundred thousand parameters. Tasks of the calendar
have tools that change a state, and several user turns.
"""

from __future__ import annotations

from .config import CALENDAR, KINDS, MIXES, EmbeddedConfig
from .generate import embedded_tasks
from .vocabulary import TOKEN_PATTERN, token_pattern, tokenize, vocabulary

__all__ = [
    "CALENDAR",
    "KINDS",
    "MIXES",
    "TOKEN_PATTERN",
    "EmbeddedConfig",
    "embedded_tasks",
    "token_pattern",
    "tokenize",
    "vocabulary",
]
