"""verl with credit by turn: an advantage estimator, a reward manager and an agent loop, all named for it.

    rollout -TurnToolAgentLoop-> turns as text -TurnRewardManager-> turn rewards
        -TurnOutput.as_dict-> one row of rewards -turn_advantages-> advantages of tokens, shape (B, T)

verl carries one number a rollout from a reward function to `rm_scores`, and gives an estimator nothing but
that tensor, the mask, the prompt's uid and the configuration. `TurnOutput` writes the tensor by itself, see
:mod:`matchtir.integrations.verl_rewards`; nothing of verl is patched. What a reward function's score holds
beyond the sum of the turn rewards counts for the whole rollout alone.
"""

from __future__ import annotations

import asyncio
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
from ..tasks.own import task_from_own
from ..tools import Sandbox, ToolRegistry
from ..types import Ragged, ToolCall
from .settings import credit_config
from .turns import TurnReader
from .verl_batch import GroupCheck, turns_of_batch
from .verl_check import KL_MESSAGE, check_config, check_files, check_formats, check_function_settings
from .verl_rewards import pack, spans_of_ends
from .verl_scoring import REWARDS, TURNS, group_size, rewarded
from .verl_settings import Settings

TESTED = ("0.9.1",)
"""Versions of verl with which the tests pass."""

try:
    import verl
    from omegaconf import OmegaConf
    from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
    from verl.experimental.agent_loop.agent_loop import register as register_agent_loop
    from verl.experimental.agent_loop.tool_agent_loop import ToolAgentLoop
    from verl.experimental.agent_loop.tool_parser import FunctionCall, ToolParser
    from verl.experimental.reward_loop.reward_manager import register as register_reward_manager
    from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase
    from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager
    from verl.tools.schemas import ToolResponse
    from verl.trainer.ppo.core_algos import register_adv_est
    from verl.utils import hf_tokenizer
    from verl.utils.fs import copy_to_local
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


_SEVERAL = (
    "an agent loop that returns several outputs of a rollout has no rewards by turn; expected one output"
)


class TurnOutput(AgentLoopOutput):  # type: ignore[misc]
    """verl's output of an agent loop, which writes its rewards by turn. Made by :func:`with_turns`."""

    def as_dict(self) -> dict[str, Any]:
        """verl's, with ``rm_scores`` as :func:`matchtir.integrations.verl_rewards.pack` writes them.

        Raises
        ------
        InputError
            If there is a reward and none by turn.
        """
        output: dict[str, Any] = super().as_dict()
        if "rm_scores" not in output or not len(output["rm_scores"]):
            return output
        extra = output["extra_fields"] = dict(output["extra_fields"])
        record = extra.pop(TURNS)
        info = extra["reward_extra_info"] = dict(extra.get("reward_extra_info") or {})
        if REWARDS not in info:
            raise InputError(
                f"the reward of the rollout came without {REWARDS!r}; expected reward.reward_manager.name="
                "matchtir, or a reward function that returns {'score': ..., 'turn_rewards': [...]}"
            )
        rewards = info.pop(REWARDS)
        rewards = np.asarray(json.loads(rewards) if isinstance(rewards, str) else rewards, dtype=np.float64)
        score = float(self.reward_score)
        other = score - trajectory_returns(Ragged.from_lists([rewards.tolist()]))[0]
        if abs(other) <= 1e-9 * max(1.0, abs(score), float(np.abs(rewards).sum())):
            other = 0.0  # the same sum, taken in another order
        ends = [end - 1 for _, end in record["spans"]]
        row = pack(rewards, ends, len(output["rm_scores"]), other)
        output["rm_scores"] = torch.from_numpy(row)
        return output


def with_turns(
    output: Any, tokenizer: Any, tool_format: str | None = None, tool_outputs: Sequence[Sequence[str]] = ()
) -> TurnOutput:
    """An agent loop's output that knows its turns: the last line of the `run` of a loop of your own.

    Parameters
    ----------
    output : AgentLoopOutput
        The runs of its `response_mask` are the turns.
    tokenizer : tokenizer of transformers
    tool_format : str, optional
        Parser of the calls; None: found from the chat template.
    tool_outputs : sequence of sequence of str
        What the tools returned after each turn; the reward "ftrl" needs it.

    Returns
    -------
    TurnOutput

    Raises
    ------
    InputError
        If there are several outputs.
    """
    if isinstance(output, (list, tuple)):
        raise InputError(f"{_SEVERAL}, and these are {len(output)}")
    reader = _reader(tokenizer, tool_format)
    trajectory, spans = reader.read(output.response_ids, output.response_mask, {"group": 0})
    record = {
        "format": reader.format,
        "spans": spans.tolist(),
        "texts": [turn.text for turn in trajectory.turns],
        "outputs": [list(texts) for texts in tool_outputs][: len(spans)],
    }
    values = {name: getattr(output, name) for name in type(output).model_fields}
    values["extra_fields"] = {**output.extra_fields, TURNS: record}
    found: TurnOutput = TurnOutput.model_construct(
        _fields_set={*output.model_fields_set, "extra_fields"}, **values
    )
    return found


def with_turn_rewards(
    output: TurnOutput, turn_rewards: Sequence[float], score: float | None = None
) -> TurnOutput:
    """Rewards that an agent loop knows by itself; no reward manager is asked then.

    Parameters
    ----------
    output : TurnOutput
        Changed and returned.
    turn_rewards : sequence of float, length N
    score : float, optional
        Of the whole rollout; by default the sum. What it holds beyond the sum is compared by rollout alone.
    """
    rewards = [float(reward) for reward in turn_rewards]
    output.reward_score = float(sum(rewards) if score is None else score)
    output.extra_fields["reward_extra_info"] = {
        **output.extra_fields.get("reward_extra_info", {}),
        REWARDS: rewards,
    }
    return output


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
                raise InputError(f"{_SEVERAL}, and these are {len(data)}")
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


class _MadeCall(FunctionCall):  # type: ignore[misc]
    """A call as verl has it, and as it was read."""

    made: Any = None


class _CallReader(ToolParser):  # type: ignore[misc]
    """Finds the calls that the rewards will see, malformed ones too."""

    def __init__(self, tokenizer: Any, reader: TurnReader) -> None:
        super().__init__(tokenizer)
        self._reader = reader

    async def extract_tool_calls(
        self, responses_ids: list[int], tools: Any = None
    ) -> tuple[str, list[FunctionCall]]:
        """Text and calls of a turn."""
        turns = self._reader.read(responses_ids, None, {"group": 0})[0].turns
        calls = turns[0].calls if turns else ()
        return turns[0].text if turns else "", [
            _MadeCall(name=call.name, arguments=json.dumps(dict(call.arguments)), made=call) for call in calls
        ]


@register_agent_loop("matchtir_tool_agent")
class TurnToolAgentLoop(ToolAgentLoop):  # type: ignore[misc]
    """The agent loop ``matchtir_tool_agent``: verl's ``tool_agent``, whose output knows its turns.

    A row whose ``extra_info.tools`` is a list of tools with their Python sources, as JSON, has these tools:
    their calls run in a sandbox. Other rows have the tools of verl's configuration.
    """

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._settings = Settings.of(self.config.algorithm)
        self._registry: ToolRegistry | None = None
        self._seen: dict[int, str] = {}
        self._outputs: list[list[str]] = []

    async def run(self, sampling_params: dict[str, Any], **row: Any) -> TurnOutput:
        """One rollout."""
        text = (row.get("extra_info") or {}).get("tools")
        if text is not None and not isinstance(text, str):
            raise InputError(
                f"extra_info.tools is of type {type(text).__name__}; expected JSON text of a list of tools "
                "(python -m matchtir.integrations.verl_data writes it)"
            )
        reader = _reader(self.tokenizer, self._settings.tool_format)
        if text:
            self._registry = _registry(text)
            self.tools: dict[str, Any] = {}
            self.tool_schemas = self._registry.schemas()
            self.tool_parser = _CallReader(self.tokenizer, reader)
        else:
            _check_formats_once(self.tool_parser_name, reader.format)
        output = await super().run(sampling_params, **row)
        return with_turns(output, self.tokenizer, self._settings.tool_format, self._outputs)

    async def _handle_processing_tools_state(self, agent_data: Any) -> Any:
        """verl's; runs the calls of a turn side by side before, and keeps what they came to."""
        calls = agent_data.tool_calls[: self.max_parallel_calls]
        if self._registry is not None:
            made: list[ToolCall] = [call.made for call in calls]
            box = _box(json.dumps(dict(self._settings.sandbox or {}), sort_keys=True))
            found = await asyncio.to_thread(self._registry.run, made, box)
            self._seen = {id(call): one.text for call, one in zip(calls, found, strict=True)}
        before = len(agent_data.messages)
        state = await super()._handle_processing_tools_state(agent_data)
        added = [message for message in agent_data.messages[before:] if message["role"] == "tool"]
        self._outputs.append([str(message["content"]) for message in added])
        return state

    async def _call_tool(self, tool_call: Any, tools_kwargs: Any, agent_data: Any) -> Any:
        """verl's; the row's own tools have run already."""
        if self._registry is None:
            return await super()._call_tool(tool_call, tools_kwargs, agent_data)
        text = self._seen[id(tool_call)]
        limit, side = self.max_tool_response_length, self.tool_response_truncate_side
        if len(text) > limit:
            head = {"left": 0, "right": limit}.get(side, limit // 2)
            text = f"{text[:head]}...(truncated)...{text[len(text) - (limit - head) :]}"
        return ToolResponse(text=text), 0.0, {}


class CheckedLoopManager:
    """verl's manager of agent loops, made after a check of configuration and data.

    ``+actor_rollout_ref.rollout.agent.agent_loop_manager_class=matchtir.integrations.verl.CheckedLoopManager``
    is where verl lets us stop a run before its first rollout.
    """

    @classmethod
    def create(cls, config: Any, **others: Any) -> Any:
        """verl's own manager; raises as :func:`matchtir.integrations.verl_check.check_config`.

        Also where the calls that the model's chat template writes cannot be read.
        """
        settings = check_config(config)
        check_files(config, settings)
        model = config.actor_rollout_ref.model
        tokenizer = hf_tokenizer(
            copy_to_local(model.get("tokenizer_path") or model.path),
            trust_remote_code=bool(model.get("trust_remote_code")),
        )
        if model.get("custom_chat_template"):
            tokenizer.chat_template = model.custom_chat_template
        _reader(tokenizer, settings.tool_format)
        from verl.trainer.ppo.v1 import AgentLoopManagerTQ  # of the trainer alone, and slow

        return AgentLoopManagerTQ.create(config=config, **others)


_check_formats_once = functools.cache(check_formats)


@functools.lru_cache(maxsize=8)
def _say_once(credit: str) -> None:
    """Log what turns are credited by."""
    _logger.info("matchtir credits turns by %s", credit)


def _say(settings: Settings) -> None:
    """Log the effective credit, once."""
    _say_once(repr(settings.credit))


@functools.lru_cache(maxsize=8)
def _reader(tokenizer: Any, tool_format: str | None) -> TurnReader:
    """Reader of turns; finding the format renders the chat template several times."""
    return TurnReader(tokenizer, tool_format)


@functools.lru_cache(maxsize=1024)
def _registry(text: str) -> ToolRegistry:
    """Tools of a row, from their JSON; the rollouts of a group share them."""
    return ToolRegistry(task_from_own({"question": "", "tools": text}, 0).tools)


@functools.lru_cache(maxsize=1)
def _box(settings: str) -> Sandbox:
    """The sandbox of this process."""
    return Sandbox(**json.loads(settings))
