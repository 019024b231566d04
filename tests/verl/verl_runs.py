"""Small parts of verl with our credit: its configuration, its batches, and rollouts that are written."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import verl
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput
from verl.tools.schemas import OpenAIFunctionToolSchema
from verl.workers.rollout.replica import TokenOutput

import matchtir as mt
from matchtir.integrations.verl_data import verl_row
from matchtir.tasks import embedded_tasks
from matchtir.train.embedded import embedded_tokenizer, load_embedded_policy
from matchtir.types import Task

TOKENIZER = embedded_tokenizer()
END = "<|im_end|>"
OURS = (
    "algorithm.adv_estimator=matchtir",
    "reward.reward_manager.name=matchtir",
    "actor_rollout_ref.rollout.agent.default_agent_loop=matchtir_tool_agent",
)


def settings(*overrides: str) -> Any:
    """verl's own configuration with changes, as its command line makes it."""
    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=[*OURS, *overrides])


def with_changes(config: Any, correction: dict[str, Any]) -> Any:
    """The configuration with other settings of the rollout correction."""
    changed = OmegaConf.create(OmegaConf.to_container(config))
    changed.algorithm.rollout_correction = correction
    return changed


def model_folder(path: Path) -> Path:
    """The embedded policy and its tokenizer as files."""
    model, tokenizer = load_embedded_policy()
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def tasks(count: int = 2) -> list[Task]:
    """Embedded tasks."""
    return list(embedded_tasks())[:count]


def call(name: str, **arguments: Any) -> str:
    """A call as the policy writes it."""
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>{END}"


def solution(task: Task) -> list[str]:
    """The turns that solve a task."""
    made = [call(gold.name, **gold.arguments) for gold in task.gold_calls]
    return [*made, f"<answer>{task.gold_answer}</answer>{END}"]


def scripts(task: Task) -> list[list[str]]:
    """Rollouts of a task: solved, a wrong call, no call, a malformed call, and one that never ends."""
    first, *rest = solution(task)
    other = task.tools[0]
    wrong = call(other.name, **dict.fromkeys(other.parameters["properties"], "Jartor"))
    return [
        [first, *rest],
        [wrong, first, f"<answer>Jartor</answer>{END}"],
        [f"<answer>Jartor</answer>{END}"],
        ['<tool_call>{"name": }</tool_call>' + END, *rest],
        [first] * 40,
    ]


def spoken(text: str) -> str:
    """A turn as it comes out of the tokenizer, which knows little."""
    return str(TOKENIZER.decode(TOKENIZER(text, add_special_tokens=False).input_ids)).removesuffix(END)


class Server:
    """Answers with written turns: the script that a request's prompt belongs to, turn by turn."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = list(texts)
        self.requests: dict[str, int] = {}

    async def generate(self, request_id: str, *, prompt_ids: list[int], **_: Any) -> TokenOutput:
        at = self.requests[request_id] = self.requests.get(request_id, -1) + 1
        ids = TOKENIZER(self.texts[at], add_special_tokens=False).input_ids
        steps = {"min_global_steps": 1, "max_global_steps": 1}
        return TokenOutput(token_ids=ids, log_probs=[-1.0] * len(ids), extra_fields=steps)


class Client(Server):
    """Answers rollout g of a prompt with its script g; rollouts are told apart by when they start."""

    def __init__(self, by_prompt: dict[str, list[list[str]]]) -> None:
        self.by_prompt = by_prompt
        self.started: dict[str, int] = {}
        self.running: dict[str, list[str]] = {}

    async def generate(self, request_id: str, *, prompt_ids: list[int], **others: Any) -> Any:
        if request_id not in self.running:
            text = TOKENIZER.decode(prompt_ids)
            prompt = next(key for key in self.by_prompt if key in text)
            g = self.started[prompt] = self.started.get(prompt, -1) + 1
            self.running[request_id] = list(self.by_prompt[prompt][g])
        self.texts, self.requests = [self.running[request_id].pop(0)], {}
        return await super().generate(request_id, prompt_ids=prompt_ids, **others)


def trajectory(record: Any, task: Task) -> mt.Trajectory:
    """What matchtir makes of a rollout, from the texts that were written."""
    messages = []
    for t, text in enumerate(record["texts"]):
        messages.append({"role": "assistant", "content": text})
        outputs = record["outputs"][t] if t < len(record["outputs"]) else []
        messages += [{"role": "tool", "content": output} for output in outputs]
    turns = mt.parse_messages(messages, format="hermes")
    return mt.Trajectory(turns, task.gold_calls, task.gold_answer, task.id)


def output_of(mask: Sequence[int], extra: dict[str, Any] | None = None) -> AgentLoopOutput:
    """An agent loop's output with this mask."""
    return AgentLoopOutput(
        prompt_ids=[1, 2],
        response_ids=[5] * len(mask),
        response_mask=list(mask),
        metrics=AgentLoopMetrics(),
        extra_fields=extra or {},
    )


def batch_of(rows: Sequence[torch.Tensor], masks: Sequence[Sequence[int]], uids: Sequence[Any]) -> Any:
    """verl's batch of these rows of rewards."""
    pad = torch.nn.utils.rnn.pad_sequence
    tensors = {
        "token_level_rewards": pad(list(rows), batch_first=True),
        "response_mask": pad([torch.tensor(mask) for mask in masks], batch_first=True),
    }
    return verl.DataProto(
        batch=TensorDict(tensors, batch_size=len(rows)),
        non_tensor_batch={"uid": np.array(uids, dtype=object)},
    )


def item_of(task: Task, output: Any, index: int = 0) -> Any:
    """What a reward manager is given of one rollout."""
    row = verl_row(task, index, "embedded")
    responses = torch.tensor([output.response_ids])
    both = torch.tensor([output.prompt_ids + output.response_ids])
    batch = {"responses": responses, "attention_mask": torch.ones_like(both)}
    fields = {name: row[name] for name in ("data_source", "reward_model", "extra_info")}
    fields |= {"tool_extra_fields": output.extra_fields}
    found = {}
    for name, value in fields.items():
        found[name] = np.empty(1, dtype=object)
        found[name][0] = value
    return verl.DataProto(batch=TensorDict(batch, batch_size=1), non_tensor_batch=found)


def function_schema(schema: dict[str, Any]) -> Any:
    """A schema as verl has it."""
    return OpenAIFunctionToolSchema.model_validate(schema)


def run(loop_of: Any, task: Task, extra: dict[str, Any]) -> Any:
    """The output of an agent loop for a task, whose row has more in ``extra_info``."""

    async def go() -> Any:
        row = verl_row(task, 0, "embedded")
        return await loop_of().run({}, raw_prompt=row["prompt"], extra_info=row["extra_info"] | extra)

    return asyncio.run(go())
