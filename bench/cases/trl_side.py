"""TRL's side of `trl_step.py`: its `GRPOTrainer`, with an environment for each task.

An environment is a class whose methods are the task's tools; the data set's column `environment` picks it.
That is TRL's own way to give samples different tools. They run as functions in this process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from inspect import Parameter, Signature
from typing import Any

from checks import check
from transformers import PreTrainedTokenizerBase, PrinterCallback

from matchtir import CreditConfig, Trajectory, assign_credit
from matchtir.parse import parse_messages
from matchtir.rollout.template import ChatTemplate
from matchtir.tools import ToolRegistry
from matchtir.train.embedded import load_embedded_policy
from matchtir.train.embedded.demonstrations import run_embedded_tool
from matchtir.types import Task, Tool, ToolCall

TURNS, RESPONSE, MINIBATCHES, LR = 6, 300, 2, 1e-3
"""Of both sides."""
_OUTCOME = CreditConfig(reward="outcome")

# A description of each argument is required by TRL, and unknown to the policy: its template leaves them out.
_ARGUMENT = "-"
_TOOL = "(tool | tojson)"
_TOOL_AS_OURS = f"(tool | tojson | replace(', \"description\": \"{_ARGUMENT}\"', ''))"
# As TRL has them for the models it knows.
_RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|assistant|>",
    "fields": {
        "tool_calls": {
            "open": "<tool_call>",
            "close_pattern": r"</tool_call>\s*",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"<\|im_end\|>\s*", "content": "text"},
    },
}


@dataclass
class Seen:
    """What one side did, round by round: means over rollouts."""

    rollouts: list[int] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)
    turns: list[float] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)

    def add(self, trajectories: Sequence[Trajectory]) -> list[float]:
        """Count the turns, and return the F1 of each answer, which is TRL's reward."""
        returns = assign_credit(trajectories, _OUTCOME).returns
        self.rollouts.append(len(trajectories))
        self.turns.append(sum(len(one.turns) for one in trajectories) / len(trajectories))
        self.answered.append(float(returns.mean()))
        return [float(x) for x in returns]


def trl_tokenizer() -> PreTrainedTokenizerBase:
    """The embedded policy's, with what TRL needs of a model that it does not know."""
    tokenizer = load_embedded_policy()[1]
    tokenizer.padding_side = "left"
    tokenizer.chat_template = tokenizer.chat_template.replace(_TOOL, _TOOL_AS_OURS)
    tokenizer.response_template = _RESPONSE_TEMPLATE
    return tokenizer


def trl_trainer(tasks: Sequence[Task], group: int, rounds: int, folder: str, seen: Seen) -> Any:
    """TRL's trainer for so many rounds of rollouts; its reward function tells `seen` what they were."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    model, tokenizer = load_embedded_policy()[0], trl_tokenizer()
    environments = {task.id: environment_of(task) for task in tasks}
    by_id = {task.id: task for task in tasks}

    def reward(completions: list[Any], environment: list[str], **others: Any) -> list[float]:
        found = [_trajectory(by_id[name], made) for name, made in zip(environment, completions, strict=True)]
        return seen.add(found)

    same_prompts(tasks, environments, tokenizer)
    rows = [{"prompt": list(task.messages), "environment": task.id} for task in tasks]
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=GRPOConfig(**_trl_settings(len(tasks) * group // MINIBATCHES, group, rounds, folder)),
        # One epoch: a new one costs some.
        train_dataset=Dataset.from_list(rows * rounds),
        processing_class=tokenizer,
        environment_factory=environments,
    )
    trainer.remove_callback(PrinterCallback)
    kind = trainer.accelerator.distributed_type.value
    check(kind == "NO", f"TRL trains distributed ({kind}); expected one process without a wrapper")
    return trainer


def _trl_settings(batch: int, group: int, rounds: int, folder: str) -> dict[str, Any]:
    """What is ours in TRL's words."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": batch,
        "steps_per_generation": MINIBATCHES,
        "gradient_accumulation_steps": 1,
        "num_generations": group,
        "max_steps": MINIBATCHES * rounds,
        "max_completion_length": RESPONSE,
        "max_tool_calling_iterations": TURNS - 1,
        "temperature": 1.0,
        "shuffle_dataset": False,
        "loss_type": "grpo",
        "beta": 0.0,
        "epsilon": 0.2,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "adam_beta2": 0.95,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "logging_steps": MINIBATCHES,
        "report_to": "none",
        "disable_tqdm": True,
    }


def sorted_tools(task: Task) -> Task:
    """The task with its tools by name: the order in which TRL lists an environment's."""
    return replace(task, tools=tuple(sorted(task.tools, key=lambda tool: tool.name)))


def environment_of(task: Task) -> type:
    """TRL's environment of one task: a class whose methods are the tools."""

    def reset(self: Any, **row: Any) -> None:
        """Nothing to do: the tools keep no state."""

    members: dict[str, Any] = {tool.name: _method(tool) for tool in task.tools}
    return type("Environment", (), members | {"reset": reset})


def _method(tool: Tool) -> Callable[..., str]:
    """A tool as TRL wants it, a method with hints and docstring; what it returns is what our side shows."""
    here = replace(tool, source=None, function=lambda **arguments: run_embedded_tool(tool, arguments))
    registry = ToolRegistry([here])

    def method(self: Any, **arguments: Any) -> str:
        return registry.run([ToolCall(tool.name, arguments)])[0].text

    names, required = list(tool.parameters["properties"]), tool.parameters["required"]
    kind = Parameter.POSITIONAL_OR_KEYWORD
    parameters = [
        Parameter(name, kind, annotation=str, default=Parameter.empty if name in required else "")
        for name in names
    ]
    method.__name__ = tool.name
    described = "\n".join(f"    {name}: {_ARGUMENT}" for name in names)
    method.__doc__ = f"{tool.description}\n\nArgs:\n{described}"
    method.__annotations__ = dict.fromkeys(names, str)
    method.__signature__ = Signature([Parameter("self", kind), *parameters])  # type: ignore[attr-defined]
    return method


def same_prompts(
    tasks: Sequence[Task], environments: dict[str, type], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Stop unless TRL's prompts are ours, token by token."""
    template = ChatTemplate(load_embedded_policy()[1])
    for task in tasks:
        environment = environments[task.id]()
        tools = [getattr(environment, tool.name) for tool in task.tools]
        theirs = tokenizer.apply_chat_template(
            list(task.messages), tools=tools, add_generation_prompt=True, return_dict=False
        )
        ours = template.prompt(task.messages, ToolRegistry(task.tools).schemas())
        check(list(theirs) == list(ours), f"prompt of {task.id}: {tokenizer.decode(theirs)}")


def _trajectory(task: Task, completion: Sequence[Any]) -> Trajectory:
    """What TRL sampled, as we judge it."""
    turns = parse_messages(completion)
    return Trajectory(turns, task.gold_calls, task.gold_answer, task.id, None, task.sub_answers, task.kind)
