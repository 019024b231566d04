"""verl with credit by turn: an advantage estimator and a reward manager; the agent loop is beside it.

    rollout -TurnToolAgentLoop-> turns as text -TurnRewardManager-> turn rewards
        -TurnOutput.as_dict-> one row of rewards -turn_advantages-> advantages of tokens, shape (B, T)

verl carries one number a rollout from a reward function to `rm_scores`, and gives an estimator nothing but
that tensor, the mask, the prompt's uid and the configuration. `TurnOutput` writes the tensor by itself, see
:mod:`matchtir.integrations.verl_rewards`; nothing of verl is patched. What a reward function's score holds
beyond the sum of the turn rewards counts for the whole rollout alone.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..advantages import group_ids, turn_returns
from ..credit import assign_advantages
from ..errors import ConfigError, InputError, MatchtirError
from ..rewards import trajectory_returns
from ..scatter import scatter
from ..types import Ragged
from .settings import credit_config
from .verl_batch import GroupCheck, turns_of_batch
from .verl_check import KL_MESSAGE, check_config, check_function_settings
from .verl_rewards import spans_of_ends
from .verl_scoring import REWARDS, TURNS, group_size, rewarded
from .verl_settings import Settings

TESTED = ("0.9.1",)
"""Versions of verl with which the tests pass."""

try:
    import verl
    from omegaconf import OmegaConf
    from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
    from verl.experimental.agent_loop.tool_agent_loop import ToolAgentLoop
    from verl.experimental.agent_loop.tool_parser import ToolParser
    from verl.experimental.reward_loop.reward_manager import register as register_reward_manager
    from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase
    from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager
    from verl.trainer.ppo.core_algos import register_adv_est

    from .verl_agent_loop import (
        SEVERAL,
        CheckedLoopManager,
        TurnOutput,
        TurnToolAgentLoop,
        with_turn_rewards,
        with_turns,
    )
except ImportError as error:
    raise ImportError(
        f'{error}; this needs verl, tested with {", ".join(TESTED)}: pip install "matchtir[verl]"'
    ) from error

__all__ = [
    "TESTED",
    "CheckedLoopManager",
    "TurnOutput",
    "TurnRewardManager",
    "TurnToolAgentLoop",
    "compute_score",
    "turn_advantages",
    "with_turn_rewards",
    "with_turns",
]

_HOOKS = (
    (AgentLoopOutput, "as_dict", ("self",)),
    (ToolAgentLoop, "run", ("self", "sampling_params")),
    (ToolAgentLoop, "_handle_processing_tools_state", ("self", "agent_data")),
    (ToolAgentLoop, "_call_tool", ("self", "tool_call", "tools_kwargs", "agent_data")),
    (RewardManagerBase, "run_single", ("self", "data")),
    (RewardManagerBase, "assemble_rm_scores", ("data", "scores")),
    (ToolParser, "extract_tool_calls", ("self", "responses_ids", "tools")),
)


def check_host(version: str, hooks: Sequence[tuple[Any, str, Sequence[str]]] = _HOOKS) -> None:
    """Refuse a verl without the methods that are overridden here, and warn of an untested one.

    Raises
    ------
    ImportError
        The message names the method and the tested versions.
    """
    for owner, name, expected in hooks:
        method = getattr(owner, name, None)
        found = () if method is None else tuple(inspect.signature(method).parameters)
        if method is None or found[: len(expected)] != tuple(expected):
            came = "is not there" if method is None else f"takes ({', '.join(found)})"
            raise ImportError(
                f"{owner.__name__}.{name} of verl {version} {came}; expected ({', '.join(expected)}), as in "
                f"the tested versions: {', '.join(TESTED)}"
            )
    if version not in TESTED:
        warnings.warn(
            f"matchtir is tested with verl {', '.join(TESTED)}, and this is {version}",
            UserWarning,
            stacklevel=3,
        )


check_host(verl.__version__)

_logger = logging.getLogger(__name__)
_groups = GroupCheck()


@register_adv_est("matchtir")  # type: ignore[untyped-decorator]
def turn_advantages(
    token_level_rewards: torch.Tensor,
    response_mask: torch.Tensor,
    config: Any = None,
    index: Any = None,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The advantage estimator ``matchtir``.

    Parameters
    ----------
    token_level_rewards : tensor of float, shape (B, T)
        Rows of :class:`TurnOutput`.
    response_mask : tensor, shape (B, T)
        0 where the model did not write the token, or where it was rejected since; turns are those of the
        rollout, and rejected rollouts still count in their group.
    config : mapping, optional
        verl's ``algorithm``.
    index : array of str, shape (B,)
        The uid of each prompt.

    Returns
    -------
    advantages, returns : tensor of float, shape (B, T)
        0 where the mask is 0. Returns are those of turns, R_{i,t}.

    Raises
    ------
    ConfigError
        If a setting is impossible, or the KL penalty is part of the reward.
    InputError
        If rewards did not come by turn, a group is split over batches, or one is not whole and the setting
        `incomplete_groups` is "error".

    Warns
    -----
    UserWarning
        Of the first batch with a group that is not whole; of others the log says so.
    """
    settings = Settings.of(config)
    if config is not None and config.get("use_kl_in_reward", False):
        raise ConfigError(KL_MESSAGE)
    if index is None:
        raise InputError("the batch has no uid; expected the uid of each rollout's prompt")
    rows = token_level_rewards.detach().cpu().numpy()
    own = response_mask.detach().cpu().numpy() != 0
    rewards, ends, others, kept = turns_of_batch(rows, own, index)
    _say(settings)
    uids = [index[b] for b in kept]
    _groups.split(uids, rows[kept], config)
    _groups.sizes(uids, group_size(config), settings.incomplete_groups)
    turns = Ragged.from_lists(rewards)
    ids = group_ids([str(uid) for uid in uids])
    found = assign_advantages(turns, trajectory_returns(turns) + np.array(others), ids, settings.credit).turn
    spans = spans_of_ends(ends)
    tensors = []
    for values in (found, turn_returns(turns, settings.credit.gamma)):
        tokens = np.zeros(rows.shape, dtype=np.float32)
        if kept:
            tokens[kept] = scatter(values, spans, (len(kept), rows.shape[1]))
        tensors.append(torch.from_numpy(np.where(own, tokens, 0.0)).to(token_level_rewards))
    return tensors[0], tensors[1]


_VERLS_ARGUMENTS = (
    "reward_router_address",
    "reward_model_tokenizer",
    "sandbox_fusion_url",
    "concurrent_semaphore",
    "memory_limit_mb",
)
"""What verl gives a reward function besides what it declares."""


def compute_score(
    data_source: Any,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    method: str = "matchtir-km",
    credit: Mapping[str, Any] | None = None,
    **others: Any,
) -> dict[str, Any]:
    """MatchTIR's rewards as a custom reward function, for a reward manager other than ``matchtir``.

    Its settings come through ``reward.custom_reward_function.reward_kwargs``; those under
    ``algorithm.matchtir`` are not seen here. The other arguments are verl's.

    Returns
    -------
    dict
        `score`, `turn_rewards` as JSON text, and `calls`, `matched`, `malformed`.

    Raises
    ------
    ConfigError
        If an argument is neither ours nor one that verl gives a reward function.
    """
    check_function_settings({name: value for name, value in others.items() if name not in _VERLS_ARGUMENTS})
    fields = OmegaConf.to_container(credit, resolve=True) if OmegaConf.is_config(credit) else credit
    found = rewarded((extra_info or {}).get(TURNS), ground_truth, credit_config(method, fields), fields)
    return {**found, REWARDS: json.dumps(found[REWARDS])}


@register_reward_manager("matchtir")
class TurnRewardManager(RewardManagerBase):  # type: ignore[misc]
    """The reward manager ``matchtir``: rewards by turn, from the gold calls of ``reward_model.ground_truth``.

    The score of ``reward.custom_reward_function``, if there is one, is added for the whole rollout.
    """

    def __init__(self, config: Any, tokenizer: Any, compute_score: Any, **others: Any) -> None:
        super().__init__(config, tokenizer, compute_score)
        self._settings = check_config(config)
        _say(self._settings)
        custom = config.reward.get("custom_reward_function") or {}
        self._other = (
            NaiveRewardManager(config, tokenizer, compute_score, **others) if custom.get("path") else None
        )

    async def run_single(self, data: Any) -> dict[str, Any]:
        """Rewards of one rollout, as verl takes them. Errors name the row, for verl only logs them."""
        item = data[-1:][0].non_tensor_batch
        record = (item.get("tool_extra_fields") or {}).get(TURNS)
        gold = (item.get("reward_model") or {}).get("ground_truth")
        settings = self._settings
        try:
            if len(data) > 1:
                raise InputError(f"{SEVERAL}, and these are {len(data)}")
            found = await self.loop.run_in_executor(
                None, rewarded, record, gold, settings.credit, settings.changes
            )
        except MatchtirError as error:
            row = item.get("extra_info") or {}
            named = ", ".join(f"{name} {row[name]}" for name in ("index", "id") if row.get(name) is not None)
            where = f"row ({named or 'no index'}) of data source {str(item.get('data_source'))!r}"
            raise type(error)(f"{where}: {error}") from error
        score, info = found.pop("score"), found
        if self._other is not None:
            other = await self._other.run_single(data)
            if REWARDS in other["reward_extra_info"]:
                raise ConfigError(
                    "the custom reward function returns turn_rewards, and so does reward manager matchtir; "
                    "expected one of them (reward.reward_manager.name=naive leaves them to the function)"
                )
            score += float(other["reward_score"])
            theirs = other["reward_extra_info"].items()
            info |= {f"custom_{name}" if name in info else name: value for name, value in theirs}
        # Text, because rollouts differ in their number of turns and verl makes arrays of numbers.
        info[REWARDS] = json.dumps(info[REWARDS])
        return {"reward_score": score, "reward_extra_info": info}

    @classmethod
    def assemble_rm_scores(cls, data: Any, scores: Any) -> torch.Tensor:
        """Refused: a reward model that shares its GPUs with the policy gives one number a rollout."""
        raise ConfigError(
            "a reward model without a resource pool of its own gives one number a rollout and none a turn; "
            "expected reward.reward_model.enable=False"
        )


@functools.lru_cache(maxsize=8)
def _say_once(credit: str) -> None:
    """Log what turns are credited by."""
    _logger.info("matchtir credits turns by %s", credit)


def _say(settings: Settings) -> None:
    """Log the effective credit, once."""
    _say_once(repr(settings.credit))
