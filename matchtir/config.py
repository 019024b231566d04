"""What the configurations have in common: checks of their fields, and reading them from a settings file."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import fields
from numbers import Integral
from typing import Any, NamedTuple, TypeVar

from .errors import ConfigError

Config = TypeVar("Config")


class Number(NamedTuple):
    """What a field may be: `numbers.Real` or `Integral`, in words, the test of it, which NaN fails."""

    kind: type[Any]
    expected: str
    allowed: Callable[[Any], bool]
    optional: bool = False


def check_fields(config: Any, choices: Mapping[str, tuple[str, ...]], numbers: Mapping[str, Number]) -> None:
    """Check named fields of a frozen dataclass, and make its numbers Python's own.

    Raises ConfigError with the field's name, what came and what is allowed.
    """
    for name, words in choices.items():
        value = getattr(config, name)
        if not isinstance(value, str) or value not in words:
            raise ConfigError(f"{name} is {value!r}; expected one of {', '.join(words)}")
    for name, number in numbers.items():
        value = getattr(config, name)
        if value is None and number.optional:
            continue
        if isinstance(value, bool) or not isinstance(value, number.kind) or not number.allowed(value):
            raise ConfigError(f"{name} is {value!r}; expected {number.expected}")
        object.__setattr__(config, name, int(value) if number.kind is Integral else float(value))


def from_dict(cls: Callable[..., Config], values: Mapping[str, Any]) -> Config:
    """A configuration from names and values. Raises ConfigError for an unknown name, with the nearest one."""
    known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise ConfigError(f"unknown setting {name!r}; {hint}")
    return cls(**values)
