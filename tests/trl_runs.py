"""Small runs of TRL's trainer with our credit: tasks, written rollouts, and what a run computed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

from cases.trl_side import environment_of, sorted_tools, trl_tokenizer
from datasets import Dataset

from matchtir.integrations.trl import GRPOConfig, GRPOTrainer
from matchtir.tasks import embedded_tasks
from matchtir.train.embedded import load_embedded_policy
from matchtir.types import Task

GROUP = 4
SETTINGS: dict[str, Any] = {
    "per_device_train_batch_size": 2 * GROUP,
    "steps_per_generation": 1,
    "gradient_accumulation_steps": 1,
    "num_generations": GROUP,
    "max_steps": 2,
    "max_completion_length": 200,
    "max_tool_calling_iterations": 3,
    "shuffle_dataset": False,
    "loss_type": "grpo",
    "beta": 0.0,
    "learning_rate": 1e-3,
    "bf16": False,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "dataloader_pin_memory": False,
    "save_strategy": "no",
    "logging_steps": 1,
    "report_to": "none",
    "disable_tqdm": True,
}


def tasks(count: int = 4) -> list[Task]:
    """Embedded tasks, with their tools in TRL's order."""
    return [sorted_tools(task) for task in embedded_tasks()[:count]]


def gold(task: Task) -> list[dict[str, Any]]:
    """The gold calls as a column holds them."""
    return [{"name": call.name, "arguments": dict(call.arguments)} for call in task.gold_calls]


def rows(given: Sequence[Task]) -> list[dict[str, Any]]:
    """A data set of tasks."""
    return [
        {
            "prompt": list(task.messages),
            "environment": task.id,
            "ground_truth": gold(task),
            "answer": task.gold_answer,
        }
        for task in given
    ]


class Watched(GRPOTrainer):
    """Keeps what the hooks were given and made."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.batches: list[dict[str, Any]] = []

    def _generate(self, prompts: list[Any]) -> Any:
        output = super()._generate(prompts)
        self._seen = {"ids": output[1], "mask": output[2], "completions": output[3]}
        return output

    def _calculate_rewards(self, inputs: list[Any], *others: Any) -> Any:
        rewards = super()._calculate_rewards(inputs, *others)
        self._seen |= {"inputs": list(inputs), "rewards": rewards}
        return rewards

    def _generate_and_score_completions(self, inputs: list[Any]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        self.batches.append({**self._seen, "output": dict(output)})
        return output


def trainer(
    folder: Path,
    data: Sequence[dict[str, Any]],
    *,
    kind: type = Watched,
    args: type = GRPOConfig,
    **changes: Any,
) -> Any:
    """A trainer of the embedded policy; changes are settings, or arguments of the trainer."""
    known = {"reward_funcs", "tools", "environment_factory", "rollout_func", "eval_dataset", "callbacks"}
    arguments = {name: changes.pop(name) for name in known & set(changes)}
    return kind(
        model=load_embedded_policy()[0],
        args=args(output_dir=str(folder), **(SETTINGS | changes)),
        train_dataset=Dataset.from_list(list(data)),
        processing_class=trl_tokenizer(),
        **arguments,
    )


def environments(given: Sequence[Task]) -> dict[str, type]:
    """TRL's way to give each task its own tools."""
    return {task.id: environment_of(task) for task in given}


class Script:
    """A `rollout_func` of written rollouts: parts between "§", with "|" before what the environment wrote."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        self.round = 0

    def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        tokenizer = trainer.processing_class
        first = trainer.accelerator.process_index * len(prompts)
        ids: list[list[int]] = []
        masks: list[list[int]] = []
        for text in (self.texts[(first + i) % len(self.texts)] for i in range(len(prompts))):
            ids.append([])
            masks.append([])
            for part in text.split("§"):
                found = tokenizer(part.lstrip("|"), add_special_tokens=False)["input_ids"]
                ids[-1] += found
                masks[-1] += [0 if part.startswith("|") else 1] * len(found)
        rendered = [
            tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
            for prompt in prompts
        ]
        return {"prompt_ids": rendered, "completion_ids": ids, "logprobs": None, "env_mask": masks}
