"""Methods by name: a preset of credit, loss and turns each, with one line of changes."""

from __future__ import annotations

import difflib
from typing import Any, NamedTuple

from .errors import ConfigError

Settings = dict[str, Any]
"""Values by dotted name, ``{"credit.matching": "sinkhorn"}``."""


class Method(NamedTuple):
    """A method in one sentence, and what it changes of `METHOD_DEFAULTS` and of the other settings."""

    description: str
    changes: Settings


METHOD_DEFAULTS: Settings = {
    "credit.reward": "matchtir",
    "credit.matching": "hungarian",
    "credit.integration": "auto",
    "credit.name_match": "exact",
}
"""What every method sets, whatever another one set before."""

_SINGLE = {"rollout.max_turns": 1}

METHODS: dict[str, Method] = {
    "matchtir-km": Method("MatchTIR with hard matching: turn and trajectory level, added", {}),
    "matchtir-ot": Method("MatchTIR with soft matching (optimal transport)", {"credit.matching": "sinkhorn"}),
    "matchtir-km-trajectory": Method(
        "ablation: rewards by turn, advantages of whole trajectories", {"credit.integration": "trajectory"}
    ),
    "matchtir-km-turn": Method("ablation: advantages by turn alone", {"credit.integration": "turn"}),
    "matchtir-km-weighted-sum": Method(
        "variant: trajectory advantage plus the one inside the trajectory",
        {"credit.integration": "weighted_sum"},
    ),
    "matchtir-km-weighted-product": Method(
        "variant: trajectory advantage scaled by the one inside the trajectory",
        {"credit.integration": "weighted_product"},
    ),
    "matchtir-km-reference": Method(
        "the published code: greedy matching, mean of the levels, names without case, mean over tokens",
        {
            "credit.matching": "greedy",
            "credit.integration": "mean",
            "credit.name_match": "casefold",
            "loss.aggregation": "token_mean",
        },
    ),
    "matchtir-km-single": Method("matchtir-km, one turn a rollout", _SINGLE),
    "matchtir-ot-single": Method(
        "matchtir-ot, one turn a rollout", {"credit.matching": "sinkhorn", **_SINGLE}
    ),
    # No grpo-single: a turn that makes calls gives no answer, so only guesses could be rewarded.
    "grpo": Method("GRPO: the answer's F1 rewards the whole rollout", {"credit.reward": "outcome"}),
    "toolrl": Method("ToolRL's reward of names, parameters and values", {"credit.reward": "toolrl"}),
    "toolrl-single": Method("toolrl, one turn a rollout", {"credit.reward": "toolrl", **_SINGLE}),
    "ftrl": Method("FTRL's reward: F1 of the sub-questions that the calls solve", {"credit.reward": "ftrl"}),
    "ftrl-single": Method("ftrl, one turn a rollout", {"credit.reward": "ftrl", **_SINGLE}),
}


def method_settings(name: str) -> Settings:
    """What a method sets.

    Parameters
    ----------
    name : str
        One of `METHODS`.

    Returns
    -------
    dict of str to value
        By dotted name, `METHOD_DEFAULTS` included.

    Raises
    ------
    ConfigError
        If there is no such method; the message names the nearest.

    Examples
    --------
    >>> method_settings("grpo")["credit.reward"]
    'outcome'
    """
    if name not in METHODS:
        near = difflib.get_close_matches(str(name), METHODS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(METHODS)}"
        raise ConfigError(f"method is {name!r}; {hint}")
    return METHOD_DEFAULTS | METHODS[name].changes
