"""What goes into the sandbox and what comes out: calls and results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from ...errors import InputError

Status = Literal["ok", "error", "timeout", "memory", "crash", "output"]

STATUSES: tuple[Status, ...] = ("ok", "error", "timeout", "memory", "crash", "output")
"""By the numbers that `worker.wire` gives them."""


class Call(NamedTuple):
    """One call of a tool: its Python source, the name of the function in it, and the arguments."""

    source: str
    name: str
    arguments: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a call. A failed call is data too; nothing is raised for it.

    Attributes
    ----------
    status : {"ok", "error", "timeout", "memory", "crash", "output"}
        ``error``: the tool raised, or its source does not compile. ``timeout``: killed at the deadline.
        ``memory``: it asked for more than it may have. ``crash``: its process died or spoke nonsense.
        ``output``: what it returned, or its error's text, is longer than `max_output`.
    value : JSON value
        What the tool returned, as JSON knows it: tuples are lists, and what JSON does not know is its
        ``str``. None unless `status` is ``ok``.
    error : str or None
        ``str(exception)`` for ``error``, otherwise what happened; None if `status` is ``ok``.
    seconds : float
        Wall-clock time of the call.
    """

    status: Status
    value: Any = None
    error: str | None = None
    seconds: float = field(default=0.0, compare=False)


def pack_call(source: str, name: str, arguments: Mapping[str, Any], where: str) -> bytes:
    """A call of a source's function as a child reads it. Raises InputError."""
    return _packed({"source": source, "name": name}, arguments, where)


def pack_method(name: str, arguments: Mapping[str, Any], where: str) -> bytes:
    """A call of an object's method as a child reads it. Raises InputError."""
    return _packed({"name": name}, arguments, where)


def _packed(fields: Mapping[str, Any], arguments: Mapping[str, Any], where: str) -> bytes:
    """Fields that must be strings, and arguments, as a JSON list."""
    for name, value in fields.items():
        if not isinstance(value, str):
            raise InputError(f"{name} of {where} is {type(value).__name__}; expected a string")
    try:
        return json.dumps([*fields.values(), dict(arguments)]).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"arguments of {where} are no JSON object: {error}") from None
