"""From defaults, a method, a file and the command line to one checked configuration."""

from __future__ import annotations

import difflib
import importlib.resources
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from ..config import from_dict
from ..errors import ConfigError
from ..methods import METHODS, Settings, method_settings
from .config import TrainConfig

_OVERRIDES = "deepspeed.overrides"


def sections() -> dict[str, type[Any]]:
    """The parts of a configuration that have settings of their own, by name: their classes."""
    hints: dict[str, Any] = get_type_hints(TrainConfig)
    return {name: hint for name, hint in hints.items() if isinstance(hint, type) and is_dataclass(hint)}


def known_settings() -> list[str]:
    """Dotted names of all settings, in the order of the configuration."""
    parts = sections()
    names: list[str] = []
    for field in fields(TrainConfig):
        part = parts.get(field.name)
        names += [field.name] if part is None else [f"{field.name}.{one.name}" for one in fields(part)]
    return names


def resolve(*layers: Mapping[str, Any]) -> TrainConfig:
    """One configuration from several layers.

    A later layer wins over an earlier one. A method counts where it is named: it wins over what earlier
    layers set, and what its own layer and later ones set wins over it. Of several methods the last counts.

    Parameters
    ----------
    *layers : mapping
        Values by name, nested or dotted: the file's, say, then the command line's.

    Returns
    -------
    TrainConfig
        What no layer sets has its default.

    Raises
    ------
    ConfigError
        If a name is unknown (with the nearest one), a value impossible, or a part no mapping; or if an
        earlier layer holds what only its own method sets, as the file of a run does.

    Examples
    --------
    >>> file = {"method": "grpo", "credit": {"gamma": 0.5}, "rollout": {"max_turns": 6}}
    >>> resolve(file, {"method": "ftrl-single"}).rollout.max_turns
    1
    >>> resolve(file, {"method": "ftrl-single", "rollout.max_turns": 2}).rollout.max_turns
    2
    """
    flat = [dict(_flat(layer)) for layer in layers]
    if not any("method" in layer for layer in flat):
        flat.insert(0, {"method": TrainConfig().method})
    last = max(i for i, layer in enumerate(flat) if "method" in layer)
    chosen = method_settings(flat[last]["method"])
    _check_leftovers(flat[:last], {**chosen, **{name: 0 for layer in flat[last:] for name in layer}})
    flat.insert(last, chosen)
    merged: Settings = {}
    for layer in flat:
        overrides = deep_merge(merged.get(_OVERRIDES, {}), layer.get(_OVERRIDES, {}))
        merged |= layer
        if overrides:
            merged[_OVERRIDES] = overrides
    return _build(merged)


def _check_leftovers(earlier: list[Settings], settled: Mapping[str, Any]) -> None:
    """Refuse settings that an earlier layer has from its own method, and that nothing after it settles."""
    for layer in earlier:
        method = METHODS.get(layer.get("method", ""))
        for name, value in method.changes.items() if method else ():
            if name not in settled and layer.get(name) == value:
                raise ConfigError(
                    f"{name} is {value!r}, which the file has from its method {layer['method']!r}; with "
                    f"another method expected --{name} too, or a file without it"
                )


def config_file(name: str) -> Path:
    """A settings file: a path, or the name of one that comes with matchtir. Raises ConfigError if neither."""
    path = Path(name)
    if path.is_file():
        return path
    folder = Path(str(importlib.resources.files("matchtir.train") / "configs"))
    shipped = {file.stem: file for file in sorted(folder.glob("*.yaml"))}
    if name in shipped:
        return shipped[name]
    raise ConfigError(f"config is {name!r}; expected a file, or one of {', '.join(shipped)}")


def unknown_setting(name: str) -> ConfigError:
    """What is said of a name that is no setting."""
    known = known_settings()
    # The right setting under the wrong part is further away in letters than it is in thought.
    near = [one for one in known if one.rpartition(".")[2] == name.rpartition(".")[2]]
    near = near or difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "`matchtir train --help` lists them"
    return ConfigError(f"unknown setting {name!r}; {hint}")


def _flat(layer: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Values by dotted name."""
    known, parts = known_settings(), sections()
    for name, value in layer.items():
        if name not in parts:
            values = {name: value}
        elif isinstance(value, Mapping):
            values = {f"{name}.{inner}": one for inner, one in value.items()}
        else:
            raise ConfigError(f"{name} is {value!r}; expected settings by name, {{...}}")
        for dotted, one in values.items():
            if dotted not in known:
                raise unknown_setting(dotted)
            yield dotted, _nested(one) if dotted == _OVERRIDES and isinstance(one, Mapping) else one


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping whose dotted names are taken apart, as the command line may hold them."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        outer, dot, inner = str(name).partition(".")
        if dot:
            value = {inner: value}
        found = deep_merge(found, {outer: _nested(value) if isinstance(value, Mapping) else value})
    return found


def deep_merge(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The old mapping with what the new one sets, at all depths."""
    found = dict(old)
    for name, value in new.items():
        both = isinstance(value, Mapping) and isinstance(found.get(name), Mapping)
        found[name] = deep_merge(found[name], value) if both else value
    return found


def _build(merged: Settings) -> TrainConfig:
    """A configuration from dotted names; what it says of a value begins with the whole name."""
    values: dict[str, Any] = {}
    for part, kind in sections().items():
        begin = f"{part}."
        chosen = {name[len(begin) :]: one for name, one in merged.items() if name.startswith(begin)}
        try:
            values[part] = from_dict(kind, chosen)
        except ConfigError as error:
            raise ConfigError(f"{begin}{error}") from error
    values |= {name: one for name, one in merged.items() if "." not in name}
    if isinstance(values.get("report_to"), list):  # as JSON has it
        values["report_to"] = tuple(values["report_to"])
    return from_dict(TrainConfig, values)
