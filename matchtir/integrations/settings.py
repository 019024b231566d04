"""A host's settings as a credit configuration: a method by name, and single fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..credit import CreditConfig
from ..errors import ConfigError
from ..methods import METHODS, method_settings

_PREFIX = "credit."

NEEDS = {"matchtir": "gold_calls", "toolrl": "gold_calls", "outcome": "gold_answer", "ftrl": "sub_answers"}
"""By reward: the field of a rollout's row without which nothing can be judged."""


def credit_config(method: str = "matchtir-km", changes: Mapping[str, Any] | None = None) -> CreditConfig:
    """Configuration of a method, with changes.

    Parameters
    ----------
    method : str
        One of :data:`matchtir.methods.METHODS`.
    changes : mapping, optional
        Fields of :class:`matchtir.CreditConfig`.

    Returns
    -------
    CreditConfig

    Raises
    ------
    ConfigError
        If there is no such method or field, a value is impossible, or the method also sets what belongs to
        the host: its loss or its number of turns.

    Examples
    --------
    >>> credit_config("matchtir-ot", {"gamma": 1.0}).matching
    'sinkhorn'
    """
    if not isinstance(method, str):
        raise ConfigError(f"method is {method!r:.60}; expected a name, one of {', '.join(METHODS)}")
    settings = method_settings(method)
    others = [name for name in settings if not name.startswith(_PREFIX)]
    if others:
        plain = method.removesuffix("-single")
        instead = f"method {plain!r}, and that" if plain != method else "the fields of credit alone, and that"
        raise ConfigError(
            f"method {method!r} sets {', '.join(others)} too, which belongs to the trainer; expected "
            f"{instead} in the trainer's own settings"
        )
    credit = {name.removeprefix(_PREFIX): value for name, value in settings.items()}
    return CreditConfig.from_dict({**credit, **(changes or {})})
