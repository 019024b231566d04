"""The options of a credit configuration: one for each field of CreditConfig."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any, get_args, get_origin, get_type_hints

from ..credit import CreditConfig

# Field of CreditConfig: its option and help. Types and choices are the config's own.
OPTIONS = {
    "matching": ("--matching", "how calls are matched to gold calls"),
    "penalty": ("--penalty", "an unmatched call gets minus this (hard matching)"),
    "cost": ("--cost", "cost of the transport (sinkhorn)"),
    "reg": ("--reg", "entropic regularisation (sinkhorn)"),
    "tol": ("--tol", "marginal violation at which the transport has converged (sinkhorn)"),
    "max_iter": ("--max-iter", "most iterations of the transport (sinkhorn)"),
    "value_match": ("--value-match", "when two argument values are equal"),
    "name_match": ("--name-match", "when two tool names are equal"),
    "gamma": ("--gamma", "discount from turn to turn"),
    "horizon": ("--horizon", "how far a turn's return reaches in a dialogue"),
    "integration": ("--integration", "how trajectory and turn level become one advantage"),
    "baseline": ("--baseline", "what a turn's return is compared with"),
    "normalize_std": ("--no-std", "do not divide by the standard deviation, as in Dr. GRPO"),
    "eps": ("--eps", "added to standard deviations"),
    "reward": ("--reward", "what is rewarded: each turn, or the whole rollout by another method"),
    "num_threads": ("--threads", "threads of the native core"),
}


def add_credit_options(command: argparse.ArgumentParser) -> None:
    """One option for each field of CreditConfig; one that is not given leaves the preset's value."""
    group = command.add_argument_group("credit")
    group.add_argument(
        "--preset", default="paper", metavar="NAME", help="paper (default), or reference: its published code"
    )
    hints = get_type_hints(CreditConfig)
    for name, (flag, text) in OPTIONS.items():
        default = getattr(CreditConfig(), name)
        if hints[name] is bool:
            group.add_argument(flag, dest=name, action="store_false", default=argparse.SUPPRESS, help=text)
            continue
        kinds = [kind for kind in _leaves(hints[name]) if kind is not type(None)]
        shown: dict[str, Any] = {"type": kinds[0], "metavar": "X"}
        if not isinstance(kinds[0], type):
            shown = {"choices": kinds}
        known = "" if default is None else f" (paper: {default})"
        group.add_argument(flag, dest=name, default=argparse.SUPPRESS, help=text + known, **shown)


def config_of(args: argparse.Namespace) -> CreditConfig:
    """The configuration that the options describe."""
    changes = {name: getattr(args, name) for name in OPTIONS if hasattr(args, name)}
    return CreditConfig.preset(args.preset, **changes)


def settings_of(config: CreditConfig) -> str:
    """What differs from the paper's settings, in words."""
    paper = CreditConfig()
    names = [field.name for field in fields(config)]
    changed = [f"{n}={getattr(config, n)}" for n in names if getattr(config, n) != getattr(paper, n)]
    return "settings: the paper's" + (f", but {', '.join(changed)}" if changed else "")


def _leaves(hint: Any) -> list[Any]:
    """The members of unions and the values of literals, flat."""
    if get_origin(hint) is None:
        return [hint]
    return [leaf for part in get_args(hint) for leaf in _leaves(part)]
