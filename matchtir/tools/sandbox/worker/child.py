"""Runs calls in a forked child: the only place where the source of a tool is executed."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable, Sequence
from types import CodeType
from typing import Any

from . import wire

_to_json = json.JSONEncoder(default=str).encode

Call = tuple[str, str, dict[str, Any]]
"""Source, name, arguments."""


def decode(call: bytes) -> Call:
    """A call from its JSON."""
    source, name, arguments = json.loads(call)
    return source, name, arguments


def run_calls(calls: Sequence[Call | bytes], pipe: int, max_output: int) -> None:
    """Run the calls in order and write a frame for each; those that are not decoded yet are decoded here."""
    compiled: dict[str, CodeType] = {}
    for call in calls:
        status, payload = _run(call, max_output, compiled)
        wire.write_all(pipe, wire.FRAME.pack(status, len(payload)) + payload)


def _run(call: Call | bytes, max_output: int, compiled: dict[str, CodeType]) -> tuple[int, bytes]:
    """Status of one call, and its value or its error's text, as JSON."""

    def value() -> Any:
        source, name, arguments = decode(call) if isinstance(call, bytes) else call
        if source not in compiled:
            compiled[source] = compile(source, "<string>", "exec", dont_inherit=True)
        return function_of(compiled[source], name)(**arguments)

    return answer(value, max_output)


def answer(value: Callable[[], Any], max_output: int) -> tuple[int, bytes]:
    """Status and payload of what is worked out by `value`, whatever that does."""
    try:
        payload = encode(value())
        status = wire.OK
    except MemoryError:
        return wire.MEMORY, b'"asked for more memory than it may have"'
    except BaseException as error:  # SystemExit and KeyboardInterrupt are the tool's own here
        status, payload = wire.ERROR, _error_text(error)
    if len(payload) > max_output:
        words = "what it returned" if status == wire.OK else "the text of its error"
        return wire.OUTPUT, f'"{words} takes {len(payload):,} bytes; the limit is {max_output:,}"'.encode()
    return status, payload


def function_of(code: CodeType, name: str) -> Callable[..., Any]:
    """The function of that name that the source defines."""
    namespace: dict[str, Any] = {"__name__": "tool", "__builtins__": builtins}
    exec(code, namespace)
    if name not in namespace:
        raise NameError(f"the source defines no function {name!r}")
    function: Callable[..., Any] = namespace[name]
    return function


def encode(value: Any) -> bytes:
    """A value as JSON. What JSON does not know becomes its ``str``, and a dict with such keys all of it."""
    try:
        return _to_json(value).encode()
    except TypeError:
        return json.dumps(str(value)).encode()


def _error_text(error: BaseException) -> bytes:
    """``str(error)``, or what there is to say where that is empty, no exception proper, or fails itself."""
    kind = type(error).__name__
    try:
        text = str(error)
    except MemoryError:
        return json.dumps(f"{kind}, whose text takes more memory than there is").encode()
    except BaseException as second:
        return json.dumps(f"{kind}, whose text raises {type(second).__name__}").encode()
    if not isinstance(error, Exception):
        text = f"{kind}: {text}" if text else kind
    return json.dumps(text or kind).encode()
