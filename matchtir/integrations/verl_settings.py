"""What stands under ``algorithm.matchtir`` in verl's configuration."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..credit import CreditConfig
from ..errors import ConfigError
from ..parse import formats
from ..tools import Sandbox
from .settings import credit_config

_OF_METHOD = ("reward", "matching", "integration")
"""Fields of a credit configuration that make a method what it is."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What ``algorithm.matchtir`` may hold.

    Parameters
    ----------
    credit : CreditConfig
        Of ``method`` (default ``matchtir-km``) and the fields under ``credit``. `normalize_std` follows
        ``algorithm.norm_adv_by_std_in_grpo`` unless it is given; `gamma` does not follow ``algorithm.gamma``.
    tool_format : str or None
        Parser of the calls; None: found from the chat template.
    incomplete_groups : {"warn", "error"}
        What to do where a group has not ``rollout.n`` rollouts. verl leaves rollouts out that failed.
    sandbox : mapping
        Arguments of :class:`matchtir.tools.Sandbox`, one for each worker of the agent loop.
    changes : mapping
        The fields that were given, for rows with a method of their own.
    """

    credit: CreditConfig
    tool_format: str | None = None
    incomplete_groups: str = "warn"
    sandbox: Mapping[str, Any] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, algorithm: Any) -> Settings:
        """Read from verl's ``algorithm``; raises ConfigError for what is not known or not possible."""
        get = {}.get if algorithm is None else algorithm.get
        values = _mapping("algorithm.matchtir", get("matchtir"), "algorithm.matchtir.method=matchtir-ot")
        unknown = sorted(set(values) - {"method", "credit", "tool_format", "incomplete_groups", "sandbox"})
        if unknown:
            raise ConfigError(
                f"algorithm.matchtir has {', '.join(unknown)}; expected some of method, credit, tool_format, "
                "incomplete_groups, sandbox (fields of CreditConfig go under credit)"
            )
        changes = _mapping(
            "algorithm.matchtir.credit", values.get("credit"), "algorithm.matchtir.credit.gamma=0.9"
        )
        if get("norm_adv_by_std_in_grpo", True) is False:
            changes = {"normalize_std": False, **changes}
        found = cls(
            credit_config(values.get("method", "matchtir-km"), changes),
            values.get("tool_format"),
            values.get("incomplete_groups", "warn"),
            checked_sandbox(values.get("sandbox")),
            changes,
        )
        if found.incomplete_groups not in ("warn", "error"):
            raise ConfigError(
                f"algorithm.matchtir.incomplete_groups is {found.incomplete_groups!r}; "
                "expected 'warn' or 'error'"
            )
        if found.tool_format not in (None, *formats()):
            raise ConfigError(
                f"algorithm.matchtir.tool_format is {found.tool_format!r}; expected one of "
                f"{', '.join(formats())}"
            )
        return found


def _mapping(name: str, value: Any, example: str) -> dict[str, Any]:
    """A node of the configuration as a dict; None is an empty one."""
    if value is not None and not isinstance(value, Mapping):
        raise ConfigError(f"{name} is {value!r}; expected names with values below it, as +{example}")
    return {str(key): _plain(entry) for key, entry in (value or {}).items()}


def _plain(value: Any) -> Any:
    """The value without OmegaConf's kinds of mappings and lists."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(entry) for entry in value]
    return value


def checked_sandbox(value: Any) -> dict[str, Any]:
    """Arguments of the sandbox; raises ConfigError for those that it would refuse at the first call."""
    name = "algorithm.matchtir.sandbox"
    given = _mapping(name, value, f"{name}.workers=4")
    known = list(inspect.signature(Sandbox).parameters)
    for key, entry in given.items():
        number = isinstance(entry, (int, float)) and not isinstance(entry, bool)
        if key not in known:
            raise ConfigError(f"{name} has {key}; expected some of {', '.join(known)}")
        if key in ("workers", "memory_mb", "max_output"):
            good, expected = number and isinstance(entry, int) and entry > 0, "a positive integer"
        elif key == "timeout":
            good, expected = number and math.isfinite(entry) and entry > 0, "a positive number of seconds"
        elif key == "modules":
            good = isinstance(entry, list) and all(isinstance(one, str) for one in entry)
            expected = "a list of module names"
        elif key == "allow_unsafe":
            good, expected = isinstance(entry, bool), "True or False"
        else:
            continue
        if not good:
            raise ConfigError(f"{name}.{key} is {entry!r}; expected {expected}")
    return given


def row_credit(method: str, changes: Mapping[str, Any] | None) -> CreditConfig:
    """Configuration of a row that names its method: with the changes that are not what makes a method."""
    kept = {name: value for name, value in (changes or {}).items() if name not in _OF_METHOD}
    return credit_config(method, kept)
