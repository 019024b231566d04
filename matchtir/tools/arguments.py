"""The check of a call's arguments against the tool's JSON schema, which may be sloppy, as real ones are."""

from __future__ import annotations

import importlib
import json
import math
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import islice
from typing import Any

from ..errors import InputError
from .observations import utf8

MAX_MESSAGE = 500
"""Characters of a message about a call; a longer one is cut, and says so."""

MAX_DEPTH = 64
"""Objects and arrays inside one another that the arguments of a call may have."""

_MAX_ERRORS = 5
_MAX_VALUE = 80  # characters shown of a value, or of a name that the model made up
_MAX_UNIQUE = 1_000  # items of an array that `uniqueItems` compares; it takes the square of them
_MAX_REGEX_STEPS = 1e7  # a tenth of a second
_MAX_REGEX = 1_000  # characters of a pattern; to look at one takes the square of them
_MAX_STEPS = 100_000  # keywords of a schema that one check looks at; a second or two
_STEP_MESSAGE = 64  # characters of an error, which shows a whole value, that count as one step

_TYPE_NAMES = {
    "dict": "object",
    "map": "object",
    "list": "array",
    "tuple": "array",
    "str": "string",
    "int": "integer",
    "long": "integer",
    "float": "number",
    "double": "number",
    "bool": "boolean",
}
_TYPES = {"array", "boolean", "integer", "null", "number", "object", "string"}
_SCHEMA_MAPS = {"properties", "$defs", "definitions", "dependentSchemas"}
_SCHEMA_LISTS = {"allOf", "anyOf", "oneOf", "prefixItems"}
_SCHEMAS = {"items", "unevaluatedItems", "contains", "additionalProperties", "unevaluatedProperties"}
_SCHEMAS |= {"propertyNames", "not", "if", "then", "else"}
_NUMBERS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
_COUNTS = {"minLength", "maxLength", "minItems", "maxItems", "minContains", "maxContains"}
_COUNTS |= {"minProperties", "maxProperties"}
# A schema's own address and dialect would let it leave this document and this check; each reference to
# an anchor would have the whole document searched.
_NEVER = {"$id", "$schema", "$anchor", "$dynamicAnchor", "patternProperties"}

# A regular expression's escapes and classes, which are one character each; its groups that repeat, or
# that comments and free spacing may hide; its loops; its forks.
_REGEX_ATOM = re.compile(r"\\.|\[\^?\]?[^\]\\]*(?:\\.[^\]\\]*)*\]", re.DOTALL)
_REGEX_REPEATED_GROUP = re.compile(r"\)[*+{]|\(\?(?:#|[a-zA-Z]*x)")
_REGEX_LOOP = re.compile(r"[*+]|\{\d*,\d*\}")
_REGEX_FORK = re.compile(r"[?|]")


@lru_cache(maxsize=8_192)
def validator_of(text: str) -> Any:
    """The validator of a schema given as JSON; raises InputError where it is none of an object."""
    schema = json.loads(text)
    if not isinstance(schema, dict):
        raise InputError(f"got {type(schema).__name__}; expected a JSON schema of type object")
    parts = _repair(schema)
    kind = schema.setdefault("type", "object")
    if kind != "object" and "object" not in kind:
        raise InputError(f"type is {kind!r:.80}; expected 'object'")
    validator_class = _validator_class()
    referencing = importlib.import_module("referencing")
    specification = importlib.import_module("referencing.jsonschema").DRAFT202012
    # An empty registry fetches nothing: no reference leaves the document.
    empty = referencing.Registry()
    resolver = empty.with_resource("", specification.create_resource(schema)).resolver()
    for part in parts:
        for key in {"$ref", "$dynamicRef"} & part.keys():
            if not _resolves(resolver, part[key]):
                del part[key]
    return validator_class(schema, registry=empty)


@lru_cache(maxsize=1)
def _validator_class() -> Any:
    """The validator of draft 2020-12, but for what a model's value or the schema could make slow."""
    try:
        jsonschema = importlib.import_module("jsonschema")
    except ImportError:
        raise ImportError('a ToolRegistry needs jsonschema: pip install "matchtir[tools]"') from None
    base = jsonschema.Draft202012Validator
    pattern, unique_items = base.VALIDATORS["pattern"], base.VALIDATORS["uniqueItems"]

    def quick_pattern(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any]:
        if isinstance(instance, str) and _is_quick(value, len(instance)):
            yield from pattern(validator, value, instance, schema)

    def quick_unique_items(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any]:
        if isinstance(instance, list) and len(instance) <= _MAX_UNIQUE:
            yield from unique_items(validator, value, instance, schema)

    keywords = {**base.VALIDATORS, "pattern": quick_pattern, "uniqueItems": quick_unique_items}
    return jsonschema.validators.extend(base, {name: _counted(check) for name, check in keywords.items()})


class _TooLongError(Exception):
    """A check takes more steps than it may: schemas that refer to one another can ask for 2^n."""


_left = threading.local()  # of the steps of this thread's check


def _counted(check: Callable[..., Any]) -> Callable[..., Any]:
    """A keyword's check that counts as a step, and its errors as more."""

    def counted(*arguments: Any) -> Iterator[Any]:
        _spend(1)
        for error in check(*arguments) or ():
            _spend(len(error.message) // _STEP_MESSAGE)
            yield error

    return counted


def _spend(steps: int) -> None:
    """Take steps from those that are left."""
    _left.steps -= steps
    if _left.steps < 0:
        raise _TooLongError


def _is_quick(pattern: str, length: int) -> bool:
    """Whether the regular expression ends soon on every string of this length.

    Without a repeated group, each loop stops at one of the string's places and each fork takes one of two
    ways, so steps <= (length + 1)^(1 + loops) * 2^forks; with one, they may grow as a power of the length.
    """
    if len(pattern) > _MAX_REGEX:
        return False
    bare = _REGEX_ATOM.sub("x", pattern)
    if _REGEX_REPEATED_GROUP.search(bare):
        return False
    loops, forks = len(_REGEX_LOOP.findall(bare)), len(_REGEX_FORK.findall(bare))
    return math.log(length + 1) * (1 + loops) + math.log(2) * forks <= math.log(_MAX_REGEX_STEPS)


def _repair(schema: Any) -> list[dict[str, Any]]:
    """Take from a schema, in place, what JSON Schema does not allow and what is never checked.

    Returns the schema and all schemas inside it.
    """
    if not isinstance(schema, dict):
        return []
    if "patternProperties" in schema:
        # What is additional to the patterns is not known without them.
        schema.pop("additionalProperties", None)
        schema.pop("unevaluatedProperties", None)
    if isinstance(kinds := schema.get("type"), str | list):
        known = [_TYPE_NAMES.get(str(kind), kind) for kind in ([kinds] if isinstance(kinds, str) else kinds)]
        schema["type"] = known[0] if len(known) == 1 else known
    parts = [schema]
    for key, value in list(schema.items()):
        if key in _NEVER or not _is_allowed(key, value):
            del schema[key]
        elif key in _SCHEMA_MAPS:
            for name, part in value.items():
                value[name] = part if isinstance(part, dict | bool) else {}
                parts += _repair(value[name])
        elif key in _SCHEMA_LISTS or key in _SCHEMAS:
            for part in value if key in _SCHEMA_LISTS else [value]:
                parts += _repair(part)
    return parts


def _is_allowed(key: str, value: Any) -> bool:
    """Whether JSON Schema takes the value for this keyword, as far as our validator reads it."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if key in _NUMBERS:
        return is_number and (key != "multipleOf" or value > 0)
    if key in _COUNTS:
        return is_number and value >= 0 and (isinstance(value, int) or value.is_integer())
    if key in _SCHEMAS:
        return isinstance(value, dict | bool)
    if key in _SCHEMA_LISTS:
        return isinstance(value, list) and bool(value) and all(isinstance(x, dict | bool) for x in value)
    if key in _SCHEMA_MAPS:
        return isinstance(value, dict)
    if key == "type":
        kinds = value if isinstance(value, list) and value else [value]
        return all(isinstance(kind, str) and kind in _TYPES for kind in kinds)
    if key == "required":
        return _is_strings(value)
    if key == "dependentRequired":
        return isinstance(value, dict) and all(map(_is_strings, value.values()))
    if key == "pattern":
        return isinstance(value, str) and _is_regex(value)
    expected = {"enum": list, "uniqueItems": bool}.get(key, object)
    return isinstance(value, expected)


def _is_strings(value: Any) -> bool:
    """Whether the value is a list of strings."""
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def _is_regex(pattern: str) -> bool:
    """Whether Python can compile the pattern."""
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError):
        return False
    return True


def _resolves(resolver: Any, reference: Any) -> bool:
    """Whether a reference leads, by its path, to a schema of the same document."""
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        return False
    try:
        found = resolver.lookup(reference).contents
    except Exception:  # whatever it trips over on its way, it leads nowhere
        return False
    return isinstance(found, dict | bool)


def fault_of(validator: Any, arguments: Mapping[str, Any]) -> str | None:
    """What follows "arguments of the tool" where they do not fit its schema."""
    if _is_deep(arguments):
        return f" are nested too deeply; at most {MAX_DEPTH} levels"
    _left.steps = _MAX_STEPS
    try:
        errors = validator.iter_errors(dict(arguments))
        found = [_described(error, error.absolute_path) for error in islice(errors, _MAX_ERRORS + 1)]
    except _TooLongError:
        return " cannot be checked: it would take too long"
    except Exception as error:
        # A number too large to divide, a schema that refers to itself: the check gives up, nobody else does.
        return f" cannot be checked: {type(error).__name__}"
    more = "; and more" if len(found) > _MAX_ERRORS else ""
    return f": {'; '.join(found[:_MAX_ERRORS])}{more}" if found else None


def _described(error: Any, path: Iterable[Any]) -> str:
    """An error and its place, as far as `path` tells it."""
    shown = repr(error.instance)
    short = shortened(shown)
    message = error.message
    if message.startswith(shown):
        message = short + message[len(shown) :]
    if error.context:
        # Nothing of anyOf or oneOf fits; say why, alternative by alternative.
        told = (_described(part, part.relative_path) for part in islice(error.context, _MAX_ERRORS))
        reasons = dict.fromkeys(text.removeprefix(f"{short} ") for text in told)
        message = f"{short} fits no alternative: {' | '.join(reasons)}"
    where = "".join(f"[{step}]" if isinstance(step, int) else f".{shortened(str(step))}" for step in path)
    return f"{where.removeprefix('.')}: {message}" if where else str(message)


def _is_deep(value: Any) -> bool:
    """Whether objects and arrays stand in one another deeper than `MAX_DEPTH`."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, Mapping | list)
            for inner in (outer.values() if isinstance(outer, Mapping) else outer)
        ]
        if not level:
            return False
    return True


def plain_mapping(value: Any) -> dict[Any, Any]:
    """Any mapping as one that JSON knows."""
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is no JSON value")


def shortened(text: str) -> str:
    """Text with its end cut off where it is long."""
    return text if len(text) <= _MAX_VALUE else text[: _MAX_VALUE - 1] + "…"


def cut(message: str) -> str:
    """A message of at most `MAX_MESSAGE` characters."""
    if len(message) > MAX_MESSAGE:
        mark = f" … (cut, {len(message):,} characters)"
        message = message[: MAX_MESSAGE - len(mark)] + mark
    return utf8(message)
