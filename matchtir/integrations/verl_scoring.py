"""Settings of the adapter for verl, rewards of finished rollouts, and checks of a batch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..credit import CreditConfig, assign_rewards
from ..errors import ConfigError, InputError
from ..parse import formats, trajectory_from_row
from .settings import NEEDS, credit_config
from .turns import gold_calls
from .verl_rewards import unpack

try:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
except ImportError as error:
    raise ImportError('this needs verl: pip install "matchtir[verl]"') from error

TURNS = "matchtir_turns"
"""The turns of a rollout, among the extra fields of its output until the rewards are written."""

REWARDS = "turn_rewards"
"""Rewards of turns, among what a reward function returns beside its score; a list or its JSON."""


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
    incomplete_groups : {"error", "allow"}
        What to do where a group has not ``rollout.n`` rollouts. verl leaves rollouts out that failed.
    sandbox : mapping
        Arguments of :class:`matchtir.tools.Sandbox`, one for each worker of the agent loop.
    """

    credit: CreditConfig
    tool_format: str | None = None
    incomplete_groups: str = "error"
    sandbox: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, algorithm: Any) -> Settings:
        """Read from verl's ``algorithm``; raises ConfigError for what is not known or not possible."""
        get = {}.get if algorithm is None else algorithm.get
        node = get("matchtir") or {}
        values = dict(OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node)
        method, changes = values.pop("method", "matchtir-km"), values.pop("credit", None) or {}
        unknown = sorted(set(values) - {"tool_format", "incomplete_groups", "sandbox"})
        if unknown:
            raise ConfigError(
                f"algorithm.matchtir has {', '.join(unknown)}; expected some of method, credit, tool_format, "
                "incomplete_groups, sandbox (fields of CreditConfig go under credit)"
            )
        if get("norm_adv_by_std_in_grpo", True) is False:
            changes = {"normalize_std": False, **changes}
        found = cls(credit_config(method, changes), **values)
        if found.incomplete_groups not in ("error", "allow"):
            raise ConfigError(
                f"algorithm.matchtir.incomplete_groups is {found.incomplete_groups!r}; "
                "expected 'error' or 'allow'"
            )
        if found.tool_format not in (None, *formats()):
            raise ConfigError(
                f"algorithm.matchtir.tool_format is {found.tool_format!r}; expected one of "
                f"{', '.join(formats())}"
            )
        return found


def rewarded(record: Any, ground_truth: Any, credit: CreditConfig) -> dict[str, Any]:
    """What a reward function returns for one rollout: its score, turn rewards, and numbers to log.

    A reward of the whole rollout goes to the last turn: only the sum is compared then. A `method` in the
    ground truth is that of its row.
    """
    if not isinstance(record, Mapping):
        raise InputError(
            "the rollout came without its turns; expected the agent loop matchtir_tool_agent, or one that "
            "returns matchtir.integrations.verl.with_turns(...)"
        )
    gold = _decoded(ground_truth)
    if isinstance(gold, Mapping) and gold.get("method") is not None:
        credit = credit_config(gold["method"])
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


def turns_of_batch(
    rows: np.ndarray[Any, Any], own: np.ndarray[Any, Any], uids: Sequence[Any]
) -> tuple[list[list[float]], list[list[int]], list[float], list[int]]:
    """Rewards and ends of turns, other rewards, and the row of each rollout in `rows` and `own`, (B, T).

    Rows that verl fills a batch up with are no rollouts. Raises InputError for a row without turns.
    """
    rewards, ends, others, kept = [], [], [], []
    for b, (row, mask) in enumerate(zip(rows, own, strict=True)):
        found = unpack(row)
        if found is None and not mask.any() and not row.any():
            continue  # verl fills a batch up with rows of nothing
        if found is None:
            raise InputError(
                f"rollout {b} of the batch (uid {uids[b]}) has no rewards of turns; expected an agent loop "
                "that returns TurnOutput, as matchtir_tool_agent does (actor_rollout_ref.rollout.agent."
                "default_agent_loop, or the column agent_name), and verl's V1 trainer (trainer.use_v1=True)"
            )
        if mask[found[1][-1] + 1 :].any():
            raise InputError(
                f"rollout {b} of the batch (uid {uids[b]}) has own tokens after its last turn: its rewards "
                "were changed on the way to the estimator"
            )
        rewards.append(found[0])
        ends.append(found[1])
        others.append(found[2])
        kept.append(b)
    return rewards, ends, others, kept


def check_groups(uids: Sequence[Any], config: Any, settings: Settings) -> None:
    """Refuse a batch with part of a group, where the size of groups is known."""
    if settings.incomplete_groups == "allow" or not OmegaConf.is_config(config):
        return
    try:
        size = OmegaConf.select(config, "..actor_rollout_ref.rollout.n")
    except OmegaConfBaseException:  # `config` stands alone, outside verl's whole configuration
        return
    for uid, count in zip(*np.unique([str(uid) for uid in uids], return_counts=True), strict=True):
        if size is not None and count != size:
            raise InputError(
                f"the group with uid {uid} has {count} rollouts in this batch; expected rollout.n = {size}. "
                "The group was split over batches, or rollouts of it failed; with "
                "+algorithm.matchtir.incomplete_groups=allow those that are there are compared"
            )
