"""verl's agent loop whose output knows its turns, with the row's own tools, and a check before it starts."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.agent_loop import register as register_agent_loop
from verl.experimental.agent_loop.tool_agent_loop import ToolAgentLoop
from verl.experimental.agent_loop.tool_parser import FunctionCall, ToolParser
from verl.tools.schemas import ToolResponse
from verl.utils import hf_tokenizer
from verl.utils.fs import copy_to_local

from ..errors import InputError
from ..rewards import trajectory_returns
from ..tasks.own import task_from_own
from ..tools import Sandbox, ToolRegistry
from ..types import Ragged, ToolCall
from .turns import TurnReader
from .verl_check import check_config, check_files, check_formats
from .verl_rewards import pack
from .verl_scoring import REWARDS, TURNS
from .verl_settings import Settings

SEVERAL = (
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
        raise InputError(f"{SEVERAL}, and these are {len(output)}")
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
