"""Credit by turn inside TRL's trainer: real runs of the embedded policy with tools."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip(
    "trl", reason='TRL needs pip install "matchtir[trl]", and Python 3.11 with the other tests'
)
pytest.importorskip("deepspeed", reason='the embedded policy needs pip install "matchtir[train]"')
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
import trl
from datasets import Dataset
from trl_runs import GROUP, SETTINGS, Script, Watched, environments, rows, tasks, trainer, trl_tokenizer

import matchtir as mt
from matchtir.errors import ConfigError, InputError
from matchtir.integrations import trl as adapter
from matchtir.integrations.settings import credit_config
from matchtir.integrations.trl import GRPOTrainer
from matchtir.parse import parse_messages
from matchtir.train.embedded import load_embedded_policy

ROOT = Path(__file__).parents[1]
TWO = tasks(2)
CALL = '<tool_call>{{"name": "{}", "arguments": {{"{}": "{}"}}}}</tool_call><|im_end|>'


def expected(batch: dict[str, Any], config: mt.CreditConfig, bonus: Any = 0.0) -> np.ndarray:
    """Advantages of the tokens of a batch, from TRL's own messages and not from its tokens."""
    by_id = {task.id: task for task in TWO}
    found = []
    for row, messages in zip(batch["inputs"], batch["completions"], strict=True):
        task = by_id[row["environment"]]
        found.append(mt.Trajectory(parse_messages(messages), task.gold_calls, task.gold_answer, task.id))
    rewards = mt.assign_rewards(found, config)
    ids = mt.assign_credit(found, config).group_ids
    turns = mt.assign_advantages(rewards.turn_rewards, rewards.returns + bonus, ids, config).turn
    output = batch["output"]
    spans = mt.spans_from_mask(output["completion_mask"] * output["tool_mask"])
    return mt.scatter(turns, spans, tuple(output["completion_ids"].shape))


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("matchtir-km", None),
        ("matchtir-ot", '{"gamma": 0.5}'),
        ("matchtir-km-weighted-product", {"penalty": 0.3}),
        ("grpo", None),
        ("toolrl", None),
    ],
)
def test_credit_of_a_run_is_that_of_its_rollouts(tmp_path: Path, method: str, fields: Any) -> None:
    run = trainer(
        tmp_path, rows(TWO), environment_factory=environments(TWO), credit_method=method, credit_fields=fields
    )
    run.train()
    assert len(run.batches) == 2
    for batch in run.batches:
        advantages = batch["output"]["advantages"]
        assert advantages.dtype == torch.float32
        changes = json.loads(fields) if isinstance(fields, str) else fields
        want = expected(batch, credit_config(method, changes))
        np.testing.assert_allclose(advantages.numpy(), want, rtol=1e-6, atol=1e-7)
    assert any(batch["output"]["advantages"].abs().sum() > 0 for batch in run.batches)


def test_loss_differs_from_trl_by_the_advantages_alone(tmp_path: Path) -> None:
    # With trajectory advantages, and TRL's epsilon, both trainers must come to one loss.
    run = trainer(
        tmp_path,
        rows(TWO),
        environment_factory=environments(TWO),
        credit_method="matchtir-km-trajectory",
        credit_fields={"eps": 1e-4},
        max_steps=1,
    )
    run.train()
    output = run.batches[0]["output"]
    mask = (output["completion_mask"] * output["tool_mask"]).float()
    rewards = run.batches[0]["rewards"][:, 0].view(-1, GROUP)
    scaled = ((rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)).flatten()
    assert scaled.abs().sum() > 0
    torch.testing.assert_close(output["advantages"], scaled[:, None] * mask, rtol=1e-5, atol=1e-6)
    # The loss itself is 0 for advantages of mean 0, so gradients are compared.
    gradients = []
    for inputs in (output, {**output, "advantages": scaled}):
        run.model.zero_grad()
        run._compute_loss(run.model, inputs).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in run.model.parameters() if p.grad is not None]))
    assert gradients[0].abs().max() > 1e-3
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)
    # Whatever the advantages are, the ratio is 1 here, so the loss is their mean over own tokens.
    for advantages in (output["advantages"], torch.randn(output["advantages"].shape)):
        found = run._compute_loss(run.model, {**output, "advantages": advantages})
        want = -((advantages * mask).sum(1) / mask.sum(1)).mean()
        assert found.item() == pytest.approx(want.item(), abs=1e-6)


@pytest.mark.parametrize("loss", ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "vespo", "luspo"])
def test_every_loss_of_trl_takes_advantages_of_tokens(tmp_path: Path, loss: str) -> None:
    run = trainer(
        tmp_path, rows(TWO), environment_factory=environments(TWO), loss_type=loss, max_steps=1, beta=0.01
    )
    run.train()
    assert np.isfinite(run.state.log_history[0]["loss"])


def test_other_rewards_add_to_the_trajectory_level(tmp_path: Path) -> None:
    def length(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [float(len(ids)) for ids in completion_ids]

    run = trainer(
        tmp_path,
        rows(TWO),
        environment_factory=environments(TWO),
        reward_funcs=[length],
        reward_weights=[0.25],
        max_steps=1,
    )
    run.train()
    batch = run.batches[0]
    bonus = 0.25 * np.array([len(ids) for ids in batch["ids"]])
    want = expected(batch, mt.CreditConfig(), bonus)
    np.testing.assert_allclose(batch["output"]["advantages"].numpy(), want, rtol=1e-5, atol=1e-6)
    assert not np.allclose(want, expected(batch, mt.CreditConfig()))
    logged = run.state.log_history[0]
    assert logged["rewards/length/mean"] == pytest.approx(np.mean([len(ids) for ids in batch["ids"]]))
    assert "rewards/matchtir/mean" in logged


def test_reward_of_an_environment_adds_too(tmp_path: Path) -> None:
    kinds, numbers = environments(TWO), itertools.count()
    for kind in kinds.values():
        kind.get_reward = lambda self: float(next(numbers))
    run = trainer(tmp_path, rows(TWO), environment_factory=kinds, max_steps=1)
    run.train()
    rewards = run.batches[0]["rewards"]
    assert run.reward_func_names[run._column] == "matchtir"
    bonus = np.nansum(np.delete(rewards.double().numpy(), run._column, axis=1), axis=1)
    want = expected(run.batches[0], mt.CreditConfig(), bonus)
    np.testing.assert_allclose(run.batches[0]["output"]["advantages"].numpy(), want, rtol=1e-5, atol=1e-6)


def test_reward_of_ftrl_reads_what_the_tools_returned(tmp_path: Path) -> None:
    data = rows(TWO)
    for row, task in zip(data, TWO, strict=True):
        row["unsolved"] = json.dumps(task.sub_answers)
    data[1]["unsolved"] = None
    run = trainer(
        tmp_path,
        data,
        environment_factory=environments(TWO),
        credit_method="ftrl",
        sub_answers_column="unsolved",
        max_steps=1,
    )
    run.train()
    batch = run.batches[0]
    found = [
        mt.Trajectory(parse_messages(messages), sub_answers=TWO[0].sub_answers)
        for messages in batch["completions"][:GROUP]
    ]
    want = mt.assign_rewards(found, mt.CreditConfig(reward="ftrl")).returns
    assert batch["rewards"][:GROUP, 0].tolist() == pytest.approx(want.tolist())
    assert want.any()
    assert batch["rewards"][GROUP:, 0].isnan().all()


def test_gold_calls_that_are_none_are_refused_with_their_row(tmp_path: Path) -> None:
    data = [{**row, "ground_truth": '["port"]'} for row in rows(TWO)]
    run = trainer(tmp_path, data, environment_factory=environments(TWO))
    with pytest.raises(InputError, match=r"the row with prompt \[\{.*gold_calls\[0\]"):
        run.train()


@pytest.mark.parametrize(
    "changes", [{"scale_rewards": "batch"}, {"multi_objective_aggregation": "normalize_then_sum"}]
)
def test_scaling_of_trl_decides_the_trajectory_level(tmp_path: Path, changes: dict[str, Any]) -> None:
    run = trainer(tmp_path, rows(TWO), environment_factory=environments(TWO), max_steps=1, **changes)
    run.train()
    batch = run.batches[0]
    returns = batch["rewards"][:, 0].double()
    grouped = returns.view(-1, GROUP)
    if "scale_rewards" in changes:
        whole = (returns - grouped.mean(1).repeat_interleave(GROUP)) / (returns.std() + 1e-4)
    else:
        by_group = (
            (grouped - grouped.mean(1, keepdim=True)) / (grouped.std(1, keepdim=True) + 1e-4)
        ).flatten()
        whole = (by_group - by_group.mean()) / (by_group.std() + 1e-4)
    level = expected(batch, mt.CreditConfig(integration="turn"))
    mask = (batch["output"]["completion_mask"] * batch["output"]["tool_mask"]).numpy()
    want = (whole.numpy()[:, None] + level) * mask
    np.testing.assert_allclose(batch["output"]["advantages"].numpy(), want, rtol=1e-4, atol=1e-5)


def test_rewards_unscaled_by_trl_are_unscaled_in_turns(tmp_path: Path) -> None:
    run = trainer(
        tmp_path, rows(TWO), environment_factory=environments(TWO), scale_rewards="none", max_steps=1
    )
    run.train()
    want = expected(run.batches[0], mt.CreditConfig(normalize_std=False))
    np.testing.assert_allclose(run.batches[0]["output"]["advantages"].numpy(), want, rtol=1e-6, atol=1e-7)


def test_functions_as_tools_and_plain_settings_of_trl(tmp_path: Path) -> None:
    task = TWO[0]
    environment = environments([task])[task.id]()
    tools = [getattr(environment, tool.name) for tool in task.tools]
    data = [{name: value for name, value in rows([task])[0].items() if name != "environment"}]
    run = trainer(tmp_path, data * 2, args=trl.GRPOConfig, tools=tools, max_steps=1)
    run.train()
    batch = run.batches[0]
    for row in batch["inputs"]:
        row["environment"] = task.id
    assert batch["output"]["tool_mask"].min() == 0
    # Both groups are of the same prompt, and still two groups.
    by_group = []
    for half in (slice(0, GROUP), slice(GROUP, None)):
        part = {name: batch[name][half] for name in ("inputs", "completions")}
        names = ("completion_mask", "tool_mask", "completion_ids")
        part["output"] = {name: batch["output"][name][half] for name in names}
        by_group.append(expected(part, mt.CreditConfig()))
    np.testing.assert_allclose(
        batch["output"]["advantages"].numpy(), np.concatenate(by_group), rtol=1e-6, atol=1e-7
    )


def pairs() -> list[Any]:
    """Tasks of two calls of one argument each."""
    return [
        t for t in tasks(40) if len(t.gold_calls) == 2 and all(len(c.arguments) == 1 for c in t.gold_calls)
    ]


def script_of(task: Any) -> list[str]:
    """Four rollouts of a task: right, wrong in the middle, malformed, and without calls."""
    first, second = task.gold_calls[:2]
    (key, value), (key2, value2) = next(iter(first.arguments.items())), next(iter(second.arguments.items()))
    right, last = CALL.format(first.name, key, value), CALL.format(second.name, key2, value2)
    answer = f"<answer>{task.gold_answer}</answer><|im_end|>"
    seen = "§|<|tool|>Baldor<|assistant|>§"
    return [
        right + seen + last + seen + answer,
        right + seen + CALL.format("port", "ship", "Baldor") + seen + answer,
        '<tool_call>{"name": "port", "arguments": </tool_call><|im_end|>' + seen + answer,
        "<answer>1</answer><|im_end|>",
    ]


def test_custom_rollouts_have_the_turns_of_their_mask(tmp_path: Path) -> None:
    task = pairs()[0]
    run = trainer(
        tmp_path,
        rows([task]),
        rollout_func=Script(script_of(task)),
        per_device_train_batch_size=GROUP,
        max_steps=1,
    )
    run.train()
    rewards = run._own.rewards
    assert [len(turns) for turns in rewards.turn_rewards] == [3, 3, 2, 1]
    assert rewards.turn_rewards[0].tolist() == [1.0, 1.0, 1.0]
    assert rewards.malformed.tolist() == [0, 0, 1, 0]
    credit = mt.assign_credit(
        [
            {
                "group": 0,
                "turns": [part.removesuffix("<|im_end|>") for part in text.split("§") if part[0] != "|"],
                "gold_calls": [{"name": c.name, "arguments": dict(c.arguments)} for c in task.gold_calls],
                "gold_answer": task.gold_answer,
            }
            for text in script_of(task)
        ]
    )
    np.testing.assert_allclose(rewards.turn_rewards.values, credit.turn_rewards.values)
    advantages = run.batches[0]["output"]["advantages"].numpy()
    for b, (spans, row) in enumerate(zip(run._own.spans, advantages, strict=True)):
        for (start, end), value in zip(spans, credit.turn_advantages[b], strict=True):
            np.testing.assert_allclose(row[start:end], value, rtol=1e-6)
        own = np.zeros(len(row), dtype=bool)
        for start, end in spans:
            own[start:end] = True
        assert (row[~own] == 0).all()
    logged = run.state.log_history[0]
    assert logged["credit/malformed"] == pytest.approx(1 / 5)
    assert logged["credit/turn_reward"] == pytest.approx(credit.turn_rewards.values.mean())
    assert logged["credit/groups_without_signal"] == 0
    fourth = [turns[0] for turns in credit.turn_advantages]
    assert logged["credit/advantage_turn_1"] == pytest.approx(np.mean(fourth), abs=1e-7)


def test_table_of_completions_shows_the_mean_over_own_tokens(tmp_path: Path) -> None:
    run = trainer(
        tmp_path, rows(TWO), environment_factory=environments(TWO), max_steps=1, log_completions=True
    )
    run.train()
    output = run.batches[0]["output"]
    mask = output["completion_mask"] * output["tool_mask"]
    want = ((output["advantages"] * mask).sum(1) / mask.sum(1)).tolist()
    assert list(run._logs["advantages"]) == pytest.approx(want, abs=1e-6)
    (table,) = (tmp_path / "completions").glob("*.parquet")
    assert Dataset.from_parquet(str(table))["advantage"][:] == pytest.approx(want, abs=1e-6)


def test_rows_without_gold_calls_get_the_other_rewards_alone(tmp_path: Path) -> None:
    def by_length(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [float(len(ids)) for ids in completion_ids]

    data = rows(TWO)
    data[1]["ground_truth"] = None
    run = trainer(tmp_path, data, environment_factory=environments(TWO), reward_funcs=by_length, max_steps=1)
    run.train()
    assert run.batches[0]["rewards"][:, 1].isnan().tolist() == [False] * GROUP + [True] * GROUP
    advantages, mask = run.batches[0]["output"]["advantages"], run.batches[0]["output"]["tool_mask"]
    lengths = np.array([float(len(ids)) for ids in run.batches[0]["ids"][GROUP:]])
    want = mt.assign_advantages(
        mt.Ragged.from_lists([[0.0]] * GROUP), lengths, [0] * GROUP, mt.CreditConfig()
    ).trajectory
    for row, own, value in zip(advantages[GROUP:], mask[GROUP:], want, strict=True):
        np.testing.assert_allclose(row[0].item(), value, rtol=1e-5, atol=1e-6)
        assert own[0] == 1


def test_rollouts_that_nobody_judges_are_compared_with_nobody(tmp_path: Path) -> None:
    def some(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
        return [None if b % GROUP > 1 else float(b) for b in range(len(completion_ids))]

    data = rows(TWO)
    data[1]["ground_truth"] = None
    run = trainer(tmp_path, data, environment_factory=environments(TWO), reward_funcs=some, max_steps=1)
    run.train()
    advantages, mask = run.batches[0]["output"]["advantages"], run.batches[0]["output"]["tool_mask"]
    # As TRL has it: the mean of the two that are judged, and nothing for the others.
    want = [-(0.5**0.5), 0.5**0.5, 0.0, 0.0]
    for row, own, value in zip(advantages[GROUP:], mask[GROUP:], want, strict=True):
        assert own[0] == 1
        assert row[0].item() == pytest.approx(value, abs=1e-4)
    logged = run.state.log_history[0]
    assert logged["credit/turn_reward"] == pytest.approx(
        run._own.rewards.turn_rewards.values[: _turns(run)].mean()
    )


def _turns(run: Any) -> int:
    """Turns of the first group."""
    return int(run._own.rewards.turn_rewards.offsets[GROUP])


def test_evaluation_during_training_keeps_its_own_groups_whatever_generation_does(tmp_path: Path) -> None:
    class Leaves(Watched):
        """Generation that leaves the model in training mode, as continuous batching does."""

        def _generate_single_turn(self, *args: Any, **named: Any) -> Any:
            found = super()._generate_single_turn(*args, **named)
            self.model.train()
            return found

    run = trainer(
        tmp_path,
        rows(TWO),
        kind=Leaves,
        environment_factory=environments(TWO),
        eval_dataset=Dataset.from_list(rows(TWO)),
        eval_strategy="steps",
        eval_steps=1,
        num_generations_eval=2,
        per_device_eval_batch_size=4,
        max_steps=1,
    )
    run.train()
    assert run._all.group_ids.tolist() == [0, 0, 1, 1]
    assert run._mode == "eval"


def test_evaluation_without_gold_is_warned_of_and_goes_on(tmp_path: Path) -> None:
    def length(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [float(len(ids)) for ids in completion_ids]

    bare = [{"prompt": row["prompt"], "environment": row["environment"]} for row in rows(TWO)]
    run = trainer(
        tmp_path,
        rows(TWO),
        environment_factory=environments(TWO),
        reward_funcs=length,
        eval_dataset=Dataset.from_list(bare),
        per_device_eval_batch_size=8,
        max_steps=1,
    )
    with pytest.warns(UserWarning, match="no column 'ground_truth' in evaluation"):
        found = run.evaluate()
    assert found["eval_rewards/length/mean"] > 0


def test_ftrl_goes_on_where_no_call_was_run(tmp_path: Path) -> None:
    data = rows(TWO)
    for row, task in zip(data, TWO, strict=True):
        row["sub_answers"] = {name: list(answers) for name, answers in task.sub_answers.items()}
    run = trainer(
        tmp_path,
        data,
        environment_factory=environments(TWO),
        credit_method="ftrl",
        max_tool_calling_iterations=0,
        max_steps=1,
    )
    run.train()
    assert run._own.rewards.matches.values.size > 0
    with pytest.raises(ConfigError, match="expected another method"):
        trainer(tmp_path, data, credit_method="ftrl", rollout_func=Script(["<answer>1</answer>"]))
    others = (None, None, None, None, (None, None), None, None, None, Script(["<answer>1</answer>"]))
    with pytest.raises(ConfigError, match="expected another method"):
        GRPOTrainer(None, None, run.args, run.train_dataset, *others)


def test_calls_are_those_of_trl_where_there_is_no_parser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any) -> Any:
        raise ConfigError("no parser")

    monkeypatch.setattr("matchtir.integrations.turns.call_format", none)
    run = trainer(tmp_path, rows(TWO), environment_factory=environments(TWO), max_steps=1)
    assert run._reader.format == "messages"
    run.train()
    want = expected(run.batches[0], mt.CreditConfig())
    np.testing.assert_allclose(run.batches[0]["output"]["advantages"].numpy(), want, rtol=1e-6, atol=1e-7)


def test_gold_of_the_data_set_is_not_what_a_rollout_function_returns(tmp_path: Path) -> None:
    task = pairs()[0]

    class Answers(Script):
        def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
            return {**super().__call__(prompts, trainer), "answer": ["nothing"] * len(prompts)}

    settings = {"per_device_train_batch_size": GROUP, "max_steps": 1}
    run = trainer(tmp_path, rows([task]), rollout_func=Answers(script_of(task)), **settings)
    run.train()
    assert run._own.rewards.turn_rewards[0].tolist() == [1.0, 1.0, 1.0]


def test_gold_may_come_from_a_rollout_function(tmp_path: Path) -> None:
    task = pairs()[0]

    class Golds(Script):
        def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
            gold = [json.dumps(rows([task])[0]["ground_truth"])] * len(prompts)
            return {**super().__call__(prompts, trainer), "ground_truth": gold, "answer": task.gold_answer}

    data = [{"prompt": row["prompt"]} for row in rows([task])]
    settings = {"per_device_train_batch_size": GROUP, "max_steps": 1}
    run = trainer(tmp_path, data, rollout_func=Golds(script_of(task)), **settings)
    run.train()
    assert run._own.rewards.turn_rewards[0].tolist() == [1.0, 1.0, 1.0]


def test_steps_per_generation_and_iterations_take_the_tokens_of_their_rollouts(tmp_path: Path) -> None:
    run = trainer(
        tmp_path,
        rows(TWO),
        environment_factory=environments(TWO),
        per_device_train_batch_size=GROUP,
        steps_per_generation=2,
        num_iterations=2,
        gradient_accumulation_steps=2,
        mask_truncated_completions=True,
        max_steps=2,
    )
    run.train()
    assert len(run.batches) == 1
    want = expected(run.batches[0], mt.CreditConfig())
    np.testing.assert_allclose(run.batches[0]["output"]["advantages"].numpy(), want, rtol=1e-6, atol=1e-7)
    # What is trained on is the same tokens with the same advantages, in another order.
    trained = {
        (tuple(ids), tuple(np.round(row, 5)))
        for part in run._buffered_inputs
        for ids, row in zip(part["completion_ids"].tolist(), part["advantages"].tolist(), strict=True)
    }
    output = run.batches[0]["output"]
    made = zip(output["completion_ids"].tolist(), output["advantages"].tolist(), strict=True)
    assert trained == {(tuple(ids), tuple(np.round(row, 5))) for ids, row in made}


def test_evaluation_is_credited_with_groups_of_its_own_size(tmp_path: Path) -> None:
    run = trainer(
        tmp_path,
        rows(TWO),
        environment_factory=environments(TWO),
        eval_dataset=Dataset.from_list(rows(TWO)),
        num_generations_eval=2,
        per_device_eval_batch_size=4,
        max_steps=1,
    )
    found = run.evaluate()
    assert run._all.group_ids.tolist() == [0, 0, 1, 1]
    assert np.isfinite(found["eval_credit/turn_reward"])


def test_column_that_is_missing_is_named(tmp_path: Path) -> None:
    data = [{"prompt": row["prompt"], "gold": row["ground_truth"]} for row in rows(TWO)]
    with pytest.raises(
        ConfigError, match=r"no column 'ground_truth'.* it has prompt, gold .*gold_calls_column"
    ):
        trainer(tmp_path, data)
    with pytest.warns(UserWarning, match="no column 'answer': answers are not rewarded"):
        trainer(tmp_path, data, gold_calls_column="gold")
    with pytest.raises(ConfigError, match="no column 'answer'"):
        trainer(tmp_path, data, credit_method="grpo")
    with pytest.raises(ConfigError, match="no column 'solutoin'"):
        trainer(tmp_path, data, gold_calls_column="gold", gold_answer_column="solutoin")
    with pytest.raises(ConfigError, match="train_dataset is None"):
        GRPOTrainer(load_embedded_policy()[0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"credit_method": "matchtir-kn"}, "did you mean 'matchtir-km'"),
        ({"credit_method": "matchtir-km-single"}, "rollout.max_turns too, which belongs to the trainer"),
        ({"credit_fields": '{"gamma": 2}'}, "gamma is 2"),
        ({"credit_fields": "{gamma"}, "no JSON"),
        ({"credit_fields": {"gama": 1}}, "gama"),
        ({"tool_format": "hermez"}, "tool_format is 'hermez'; expected one of hermes"),
    ],
)
def test_settings_that_are_impossible_are_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        trainer(tmp_path, rows(TWO), environment_factory=environments(TWO), **changes)


def test_group_split_over_batches_is_refused(tmp_path: Path) -> None:
    run = trainer(tmp_path, rows(TWO), environment_factory=environments(TWO))
    data = rows(TWO)
    run.model.train()
    with pytest.raises(InputError, match=r"rollouts 0 and 3 of the batch are judged by different gold"):
        run._generate_and_score_completions([data[0]] * 3 + [data[1]] * 5)
    with pytest.raises(InputError, match="6 rollouts are no whole groups of 4"):
        adapter._check_groups([1] * 6, 4)


def test_settings_come_from_files_and_command_lines_of_trl(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        f"output_dir: {tmp_path}\nuse_cpu: true\nbf16: false\ncredit_method: matchtir-ot\n"
        "credit_fields: {reg: 0.2}\ngold_answer_column: final\n"
    )
    parser = trl.TrlParser((adapter.GRPOConfig,))
    (found,) = parser.parse_args_and_config(["--config", str(config)])
    settings = adapter._Settings.of(found)
    assert (settings.credit.matching, settings.credit.reg) == ("sinkhorn", 0.2)
    assert settings.columns["gold_answer"] == "final"
    (found,) = parser.parse_args_and_config(["--config", str(config), "--credit_fields", '{"gamma": 0.8}'])
    assert adapter._Settings.of(found).credit.gamma == 0.8


def test_unknown_trl_is_refused_or_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"tested with TRL 1\.16, and this is 1\.99\.0"):
        adapter.check_host("1.99.0", trl.GRPOTrainer)
    other = types.new_class("GRPOTrainer")
    other._generate = lambda self, prompts: None
    other._calculate_rewards = lambda self, inputs: None
    with pytest.raises(
        ImportError, match=r"_calculate_rewards of TRL 2\.0 takes \(self, inputs\); .*tested .*1\.16"
    ):
        adapter.check_host("2.0", other)


def test_run_is_saved_resumed_and_tracked(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def go(folder: Path, resume: bool = False, **changes: Any) -> dict[str, torch.Tensor]:
        changes = {
            "max_steps": 4,
            "save_strategy": "steps",
            "save_steps": 2,
            "lr_scheduler_type": "constant",
        } | changes
        run = trainer(folder, rows(tasks(8)), environment_factory=environments(tasks(8)), **changes)
        run.train(resume_from_checkpoint=resume)
        return {name: weights.detach().clone() for name, weights in run.model.named_parameters()}

    whole = go(tmp_path / "whole")
    go(tmp_path / "parts", max_steps=2)
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(tmp_path / "events")
    try:
        again = go(tmp_path / "parts", resume=True, report_to="tensorboard")
    finally:
        del os.environ["TENSORBOARD_LOGGING_DIR"]
    for name, weights in whole.items():
        torch.testing.assert_close(again[name], weights)
    events = EventAccumulator(str(next((tmp_path / "events").rglob("events*")).parent)).Reload()
    assert {"train/credit/turn_reward", "train/credit/matched"} <= set(events.Tags()["scalars"])


@pytest.mark.slow
def test_two_processes_with_deepspeed_have_the_advantages_of_one(tmp_path: Path) -> None:
    def go(processes: int) -> list[Any]:
        output = tmp_path / f"{processes}.json"
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            f"--nproc_per_node={processes}",
            "--standalone",
        ]
        environment = {
            **{
                k: v
                for k, v in os.environ.items()
                if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
            },
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
        }
        done = subprocess.run(
            [*command, str(ROOT / "tests" / "trl_worker.py"), str(tmp_path / str(processes)), str(output)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return list(json.loads(output.read_text()))

    one, two = go(1), go(2)
    assert len(one) == 2
    for alone, both in zip(one, two, strict=True):
        np.testing.assert_allclose(both["advantages"], alone["advantages"], rtol=1e-6, atol=1e-7)
        assert both["logged"] == pytest.approx(alone["logged"])
        assert np.abs(alone["advantages"]).sum() > 0


def test_example_of_the_documentation_trains(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "trl.md").read_text(encoding="utf-8")
    (code,) = (
        block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "integrations.trl" in block
    )
    load_embedded_policy()[0].save_pretrained(tmp_path / "policy")
    trl_tokenizer().save_pretrained(tmp_path / "policy")
    small = "num_generations=4, per_device_train_batch_size=4, max_steps=1, use_cpu=True, bf16=False"
    for old, new in (
        ('"Qwen/Qwen3-0.6B"', repr(str(tmp_path / "policy"))),
        ('"runs/trl"', repr(str(tmp_path / "run"))),
        ("num_generations=8", f"{small}, max_completion_length=60, report_to='none'"),
    ):
        assert code.count(old) == 1
        code = code.replace(old, new)
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(code, "docs/trl.md", "exec"), names)
    assert names["trainer"].state.log_history[0]["credit/turn_reward"] is not None


def test_embedded_policy_is_what_is_trained(tmp_path: Path) -> None:
    before = load_embedded_policy()[0]
    run = trainer(tmp_path, rows(TWO), environment_factory=environments(TWO))
    run.train()
    after = dict(run.model.named_parameters())
    assert any(not torch.equal(weights, after[name]) for name, weights in before.named_parameters())
    assert SETTINGS["max_steps"] == run.state.global_step
