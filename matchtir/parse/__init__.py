"""From a rollout's text, messages or row to turns and calls.

A malformed call is data: it stays a call, in its place, marked with the reason. Only a row or a
message that is not built as documented raises.
"""

from __future__ import annotations

from .messages import parse_messages
from .registry import TurnParser, formats, parse_turn, register
from .row import trajectory_from_row

__all__ = ["TurnParser", "formats", "parse_messages", "parse_turn", "register", "trajectory_from_row"]
