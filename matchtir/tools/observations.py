"""What a model is shown of a call's end, and how a failure is told from it."""

from __future__ import annotations

import copy
import json
import re
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..types import Tool, ToolCall
from .sandbox import Result

_OPENING_ERROR = "Error"
_TEXT_TOKENS = re.compile(
    r"""(?P<string>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|(?P<lone>['"])|(?P<space>\s+)|[\[\](){},:]|[^\s'"\[\](){},:]+""",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Observation:
    """What a call came to.

    Attributes
    ----------
    text : str
        What the model is shown: a string as the tool returned it, another value as JSON, a failure as the
        JSON object ``{"error": "<message>"}``. It can always be encoded as UTF-8.
    failed : bool
        Whether the call failed; the same that :func:`call_failed` finds in the text.
    seconds : float
        Wall-clock time of the tool, 0 for a call that never ran.
    """

    text: str
    failed: bool
    seconds: float = 0.0


def call_failed(call: ToolCall) -> bool:
    """Tell from a saved call whether it failed.

    Parameters
    ----------
    call : ToolCall
        With the `result` that the tool gave.

    Returns
    -------
    bool
        True if the call is malformed, or its result is an object with the key "error" (JSON, or the ``str``
        of a Python dict, cut off or not), or text that starts with "Error". False for a well-formed call
        without a result: nothing is known against it.

    Examples
    --------
    >>> [call_failed(ToolCall("f", result=text)) for text in ('{"error": "no"}', "{'error': 'no'}", "4")]
    [True, True, False]
    """
    return call.malformed is not None or (call.result is not None and _tells_error(call.result))


def run_function(tool: Tool, call: ToolCall) -> Observation:
    """Call a function of this process; what it raises is its answer."""
    if tool.function is None:
        return failure(f"{tool.name} cannot be run: only its schema is known")
    start = time.perf_counter()
    try:
        # A copy: a tool may change what it is given, and the call is the model's record.
        text = _value_text(tool.function(**copy.deepcopy(dict(call.arguments))))
    except Exception as error:
        return failure(_error_text(error), time.perf_counter() - start)
    return _observation(text, time.perf_counter() - start)


def from_result(result: Result) -> Observation:
    """What the sandbox says, as the model sees it."""
    if result.status != "ok":
        return failure(result.error or f"the call ended with status {result.status}", result.seconds)
    try:
        text = _value_text(result.value)
    except Exception as error:  # nested so deeply that it was read and cannot be written
        return failure(f"the value cannot be shown: {_error_text(error)}", result.seconds)
    return _observation(text, result.seconds)


def failure(message: str, seconds: float = 0.0) -> Observation:
    """An observation of a call that failed."""
    return _observation(json.dumps({"error": message}, ensure_ascii=False), seconds)


def _observation(text: str, seconds: float) -> Observation:
    """An observation; whether it failed is read from its text, so that a saved one tells the same."""
    text = utf8(text)
    return Observation(text, _tells_error(text), seconds)


def _value_text(value: Any) -> str:
    """A string as it is, another value as JSON, what JSON does not know as its `str`."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, default=_json_value)
    except (TypeError, ValueError, RecursionError):
        return str(value)


def _json_value(value: Any) -> Any:
    """NumPy's numbers and arrays as Python's, anything else as text."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else str(value)


def _error_text(error: Exception) -> str:
    """The text of an exception; its name where it has none, or none that can be had."""
    try:
        return str(error) or type(error).__name__
    except Exception:
        return type(error).__name__


def _tells_error(text: str) -> bool:
    """Whether text starts with "Error", or is an object (JSON or Python's) whose keys have "error"."""
    text = text.lstrip()
    if text.startswith(_OPENING_ERROR):
        return True
    if not text.startswith("{") or "error" not in text:
        return False
    depth, last, is_key = 0, "", False
    # Tokens, not a parser: linear whatever the text is, and a text that was cut off still tells.
    for token in _TEXT_TOKENS.finditer(text):
        word = token[0]
        if token["space"]:
            continue
        if token["lone"] or (depth == 1 and word == "}"):
            return False
        if is_key and word == ":":
            return True
        is_key = depth == 1 and last in ("{", ",") and word in ('"error"', "'error'")
        depth += (word in ("{", "[", "(")) - (word in ("}", "]", ")"))
        last = word
    return False


def utf8(text: str) -> str:
    """Text that UTF-8 can encode: surrogates that make no pair become U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
