"""Rewards of finished rollouts, and what is read from verl's configuration as OmegaConf has it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..credit import CreditConfig, assign_rewards
from ..errors import InputError
from ..parse import trajectory_from_row
from .settings import NEEDS
from .turns import gold_calls
from .verl_settings import row_credit

try:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
except ImportError as error:
    raise ImportError('this needs verl: pip install "matchtir[verl]"') from error

TURNS = "matchtir_turns"
"""The turns of a rollout, among the extra fields of its output until the rewards are written."""

REWARDS = "turn_rewards"
"""Rewards of turns, among what a reward function returns beside its score; a list or its JSON."""


def configuration(text: str) -> Any:
    """A configuration of verl from its YAML."""
    return OmegaConf.create(text)


def group_size(algorithm: Any) -> int | None:
    """verl's ``rollout.n``, if `algorithm` is part of its whole configuration."""
    if not OmegaConf.is_config(algorithm):
        return None
    try:
        size = OmegaConf.select(algorithm, "..actor_rollout_ref.rollout.n")
    except OmegaConfBaseException:  # it stands alone
        return None
    return None if size is None else int(size)


def rewarded(
    record: Any, ground_truth: Any, credit: CreditConfig, changes: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What a reward function returns for one rollout: its score, turn rewards, and numbers to log.

    A reward of the whole rollout goes to the last turn: only the sum is compared then. A `method` in the
    ground truth is that of its row, with the same `changes`.
    """
    if not isinstance(record, Mapping):
        raise InputError(
            "the rollout came without its turns; expected the agent loop matchtir_tool_agent, or one that "
            "returns matchtir.integrations.verl.with_turns(...)"
        )
    gold = _decoded(ground_truth)
    if isinstance(gold, Mapping) and gold.get("method") is not None:
        credit = row_credit(gold["method"], changes)
    needed = NEEDS[credit.reward]
    if not isinstance(gold, Mapping) or gold.get(needed) is None:
        raise InputError(
            f"ground_truth is {ground_truth!r:.80}; expected an object, or its JSON, with {needed!r}, which "
            "the method judges by (python -m matchtir.integrations.verl_data writes it)"
        )
    messages: list[dict[str, Any]] = []
    for t, text in enumerate(record["texts"]):
        messages.append({"role": "assistant", "content": text})
        if t < len(record["outputs"]):
            messages += [{"role": "tool", "content": seen} for seen in record["outputs"][t]]
    row = {**gold, "gold_calls": gold_calls(gold.get("gold_calls")), "group": 0, "messages": messages}
    rewards = assign_rewards([trajectory_from_row(row, format=record["format"])], credit)
    turns, score = rewards.turn_rewards[0].tolist(), float(rewards.returns[0])
    if credit.reward != "matchtir":
        turns = [0.0] * (len(turns) - 1) + [score] * bool(turns)
    matches = rewards.matches.values
    return {
        "score": score,
        REWARDS: turns,
        "calls": len(matches),
        "matched": float((matches >= 0).mean()) if len(matches) else 0.0,
        "malformed": int(rewards.malformed[0]),
    }


def _decoded(value: Any) -> Any:
    """The value, decoded if it is JSON text; other text is left alone."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value
