"""Runs calls of tools as the published code does: ``exec`` of the source in one unconfined process.

The sandbox's results are compared with what this prints, so it shares no code with the sandbox. It reads a
JSON list of [source, name, arguments] from standard input, and writes a JSON list of [status, JSON text],
one a call, to standard output. Only for sources that are known to be harmless.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from types import FrameType
from typing import Any

SECONDS = 10


class OutOfTimeError(BaseException):
    """The alarm rang. No Exception, so that a tool does not take it for its own."""


class NoSuchKeyError(Exception):
    """A dict has a key that no JSON object can have."""


def outcome(source: str, name: str, arguments: dict[str, Any]) -> tuple[str, str]:
    """What became of a call: ``ok`` and its value, ``error`` and its text, or ``timeout``."""
    namespace: dict[str, Any] = {}
    signal.alarm(SECONDS)
    try:
        exec(source, namespace)
        value = namespace[name](**arguments)
        try:
            text = json.dumps(plain(value))
        except NoSuchKeyError:
            text = json.dumps(str(value))
        return "ok", text
    except OutOfTimeError:
        return "timeout", "null"
    except Exception as error:
        return "error", json.dumps(str(error) or type(error).__name__)
    except BaseException as error:
        kind, words = type(error).__name__, str(error)
        return "error", json.dumps(f"{kind}: {words}" if words else kind)
    finally:
        signal.alarm(0)


def plain(value: Any) -> Any:
    """The value with lists for tuples, texts for keys, and ``str`` of whatever JSON does not know."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key_text(key): plain(item) for key, item in value.items()}
    return str(value)


def key_text(key: Any) -> str:
    """A key as JSON has it. Raises NoSuchKeyError."""
    if isinstance(key, str):
        return key
    if key is None or isinstance(key, bool | int | float):
        return json.dumps(key)
    raise NoSuchKeyError


def _ring(number: int, frame: FrameType | None) -> None:
    raise OutOfTimeError


def main() -> None:
    """Run all calls; what they print is lost."""
    signal.signal(signal.SIGALRM, _ring)
    calls = json.load(sys.stdin)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        found = [outcome(source, name, arguments) for source, name, arguments in calls]
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
