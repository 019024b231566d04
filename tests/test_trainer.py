"""The trainer: what a run writes, what it refuses, every method for two steps."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
for needed in ("transformers", "deepspeed", "jsonargparse"):
    pytest.importorskip(needed)

from train_runs import small_config, weights  # noqa: E402

import matchtir as mt  # noqa: E402
from matchtir.errors import ConfigError, InputError, TrainingError  # noqa: E402
from matchtir.methods import METHODS  # noqa: E402
from matchtir.parse import trajectory_from_row  # noqa: E402
from matchtir.rollout.template import ChatTemplate  # noqa: E402
from matchtir.tasks import embedded_tasks, write_tasks  # noqa: E402
from matchtir.train import data, trainer  # noqa: E402
from matchtir.train.embedded import embedded_tokenizer  # noqa: E402
from matchtir.train.trainer import train  # noqa: E402
from matchtir.types import UserTurn  # noqa: E402


class Notes:
    """A watch that remembers."""

    def __init__(self):
        self.told = []

    def __getattr__(self, name):
        return lambda *arguments: self.told.append((name, *arguments))

    def of(self, name):
        return [arguments for kind, *arguments in self.told if kind == name]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of four steps, evaluated every second one."""
    output = tmp_path_factory.mktemp("run") / "run"
    watch = Notes()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    summary = train(small_config(output, evaluation__every=2), watch)
    torch.set_num_threads(before)
    return output, watch, summary


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_run_tells_what_it_does(finished):
    _, watch, summary = finished
    (start,) = watch.of("start")
    assert start[1]["tasks"] == 12
    assert start[1]["resumed"] is None
    assert [step for step, _ in watch.of("step")] == [1, 2, 3, 4]
    assert [step for step, _ in watch.of("evaluation")] == [0, 2, 4]
    assert {name for (name,) in watch.of("phase")} >= {
        "rollouts",
        "credit",
        "update",
        "evaluation",
        "checkpoint",
    }
    assert watch.of("end") == [[summary]]


def test_a_run_records_every_step(finished):
    output, watch, _ = finished
    found = lines(output / "metrics.jsonl")
    assert [line["step"] for line in found] == [1, 2, 3, 4]
    for line, (_, told) in zip(found, watch.of("step"), strict=True):
        assert line["reward"] == told["reward"]
        assert line["sampled_tokens"] == told["sampled_tokens"] > 0
        assert line["seconds"] > line["seconds/rollouts"] > 0
        assert line["update/steps"] + line["update/skipped"] == 2


def test_recorded_rollouts_score_to_what_was_learnt_from(finished):
    output, _, _ = finished
    config = small_config(output)
    for step in (1, 4):
        rows = lines(output / f"rollouts/step-{step:06d}.jsonl")
        assert len(rows) == 12
        credit = mt.assign_credit([trajectory_from_row(row) for row in rows], config.credit)
        assert credit.returns.tolist() == [row["return"] for row in rows]
        assert credit.turn_advantages.tolist() == [row["turn_advantages"] for row in rows]
        assert credit.call_rewards.tolist() == [row["call_rewards"] for row in rows]
        assert any(row["turn_advantages"] != [0.0] * len(row["turn_advantages"]) for row in rows)


def test_summary_holds_before_and_after(finished):
    output, _, summary = finished
    assert json.loads((output / "summary.json").read_text())["after"] == summary["after"]
    for name in ("before", "after"):
        assert summary[name]["rows"][0]["tasks"] == 6
    assert summary["steps"] == 4
    assert sum(summary["seconds_by_phase"].values()) > 0.9 * summary["seconds"]
    assert not summary["interrupted"]


def test_checkpoints_are_models_that_transformers_loads(finished):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    output, _, _ = finished
    folder = output / "checkpoints/step-000004/weights"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) <= model.get_input_embeddings().num_embeddings
    for name, value in weights(output, 4).items():
        assert torch.equal(value.float(), model.state_dict()[name].float()), name
    # The policy was trained: it is not the one that training began with.
    first = weights(output, 3)
    assert any(not torch.equal(first[name], value) for name, value in weights(output, 4).items())


def test_old_checkpoints_go_and_the_best_stays(finished):
    output, _, summary = finished
    there = {int(path.name[-6:]) for path in (output / "checkpoints").glob("step-*")}
    assert there == {3, 4} | ({summary["best"]} - {0})


class Scored:
    """An evaluation with a score of its own."""

    def __init__(self, real, score):
        self.rows, self.score, self.real = real.rows, score, real

    def to_dict(self):
        return {**self.real.to_dict(), "score": self.score}


def test_best_is_the_best_of_the_saved(tmp_path, monkeypatch):
    told = iter((0.1, 0.2, 0.3, 0.9, 0.4, 0.6, 0.2))
    real = trainer.evaluate
    monkeypatch.setattr(trainer, "_score", lambda found: found["score"])
    monkeypatch.setattr(trainer, "evaluate", lambda rollouts: Scored(real(rollouts), next(told)))
    output = tmp_path / "run"
    changes = {"steps": 6, "evaluation__every": 1, "checkpoint__every": 2, "checkpoint__keep": 1}
    summary = train(small_config(output, **changes), Notes())
    assert summary["best"] == 3
    # Steps 2, 4 and 6 were saved: 6 is the newest, and 4 the best of them.
    assert {path.name for path in (output / "checkpoints").glob("step-*")} == {"step-000004", "step-000006"}
    assert json.loads((output / "checkpoints/best.json").read_text())["step"] == 4


def test_rows_that_cannot_be_read_are_named_where_none_can(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"id": "a", "question": "x", "tools": 3}\n')
    with pytest.raises(InputError, match=r"holds no tasks. 1 tasks left out, which cannot be read: .*tools"):
        train(small_config(tmp_path / "run", tasks=str(tmp_path / "t.jsonl")), Notes())


def test_a_run_leaves_no_launchers_variables_to_programs_that_are_started_after_it(finished):
    assert not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} & set(os.environ)


def test_finished_run_is_not_run_again(finished):
    output, _, _ = finished
    before = (output / "metrics.jsonl").read_bytes()
    watch = Notes()
    summary = train(small_config(output, evaluation__every=2), watch)
    assert watch.of("step") == []
    assert summary["steps"] == 4
    assert (output / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(method, tmp_path):
    watch = Notes()
    settings = {"method": method, "steps": 2, "evaluation__at_start": False, "evaluation__at_end": False}
    train(small_config(tmp_path / "run", **settings), watch)
    assert [step for step, _ in watch.of("step")] == [1, 2]
    for _, metrics in watch.of("step"):
        assert metrics["update/skipped"] == 0
        assert np.isfinite(metrics["reward"])


@pytest.mark.parametrize(
    "changes",
    [
        {"loss__beta": 0.01, "update__entropy": 0.001, "update__old_logps": "recompute"},
        {"policy__gradient_checkpointing": True, "update__epochs": 2, "update__micro_batch_tokens": 300},
        {"policy__lora_rank": 4, "loss__beta": 0.01},
        {"policy__dtype": "bfloat16", "update__old_logps": "recompute"},
        {"rollout__batch_size": 5, "deepspeed__stage": 2},
    ],
)
def test_settings_train(changes, tmp_path):
    if "policy__lora_rank" in changes:
        pytest.importorskip("peft")
    watch = Notes()
    train(small_config(tmp_path / "run", steps=2, **changes), watch)
    for _, metrics in watch.of("step"):
        assert metrics["update/skipped"] == 0
        assert ("update/kl" in metrics) == ("loss__beta" in changes)


def test_loss_without_value_stops_and_saves_the_batch(tmp_path):
    watch = Notes()
    with pytest.raises(TrainingError, match=r"3 times in a row; the batch is in .*failed"):
        # The first steps of the optimiser throw the weights out of all proportion.
        train(small_config(tmp_path / "run", update__lr=1e30, update__warmup_steps=0, steps=9), watch)
    (saved,) = (tmp_path / "run/failed").iterdir()
    with np.load(saved) as arrays:
        assert len(arrays["tokens"]) == arrays["offsets"][-1]
        assert len(arrays["task_ids"]) == 12
    assert watch.of("step")[-1][1]["update/skipped"] > 0


def own_tasks(tmp_path, change):
    """A file of twelve embedded tasks, the first of them changed."""
    tasks = embedded_tasks()[:12]
    write_tasks(tmp_path / "tasks.jsonl", [change(tasks[0]), *tasks[1:]])
    return str(tmp_path / "tasks.jsonl")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            lambda t: replace(t, tools=(replace(t.tools[0], source="def x(:"), *t.tools[1:])),
            r"left out, which have a tool .*: \w+: invalid syntax",
        ),
        (
            lambda t: replace(t, tools=(replace(t.tools[0], source="y = 1"), *t.tools[1:])),
            "defines no function",
        ),
        (
            lambda t: replace(t, messages=({"role": "user", "content": "mayor" * 300},)),
            "more than 200 tokens",
        ),
        (lambda t: replace(t, gold_calls=()), "no gold calls"),
    ],
)
def test_tasks_that_cannot_be_used_are_left_out_and_named(change, why, tmp_path):
    watch = Notes()
    source = own_tasks(tmp_path, change)
    settings = {"tasks": source, "steps": 1, "checkpoint__weights": False}
    train(small_config(tmp_path / "run", **settings), watch)
    ((note,),) = watch.of("note")
    assert note.startswith(f"{source}: 1 tasks left out")
    assert embedded_tasks()[0].id in note
    assert re.search(why, note)
    assert watch.of("start")[0][1]["tasks"] == 11


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"update__prompts": 13}, ConfigError, r"update.prompts is 13 and there are 12 tasks"),
        ({"rollout__max_prompt_tokens": 5}, ConfigError, "no task that can be used"),
        ({"model": "nowhere/such-model"}, ConfigError, "nowhere/such-model"),
        ({"tasks": "nowhere.jsonl"}, (InputError, OSError), "nowhere.jsonl"),
        ({"eval_tasks": "nowhere.jsonl"}, (InputError, OSError), "nowhere.jsonl"),
    ],
)
def test_bad_settings_are_refused_before_training(changes, error, match, tmp_path):
    watch = Notes()
    with pytest.raises(error, match=match):
        train(small_config(tmp_path / "run", **changes), watch)
    assert watch.of("step") == []


def test_method_that_needs_what_no_task_has_names_those_that_work(tmp_path):
    write_tasks(tmp_path / "t.jsonl", [replace(task, gold_calls=()) for task in embedded_tasks()[:12]])
    with pytest.raises(ConfigError, match=r"matchtir-km needs gold calls.*grpo, ftrl"):
        train(small_config(tmp_path / "run", tasks=str(tmp_path / "t.jsonl")), Notes())


def test_batches_are_an_order_of_all_tasks():
    count, size = 23, 5
    seen = [data.batch_of(count, size, 3, step) for step in range(8)]
    for epoch in (seen[:4], seen[4:]):
        flat = [i for batch in epoch for i in batch]
        assert len(set(flat)) == 20
        assert set(flat) <= set(range(23))
    assert seen[:4] != seen[4:]
    assert data.batch_of(count, size, 3, 6) == seen[6]
    assert data.batch_of(count, size, 4, 6) != seen[6]
    with pytest.raises(ConfigError, match="24"):
        data.batch_of(count, 24, 3, 0)


def test_task_whose_later_user_turns_cannot_be_posed_is_left_out():
    def dialogue(task, **fields):
        return replace(task, later=(UserTurn(({"role": "user", "content": "Give more."},), **fields),))

    (alone, twice, *others) = embedded_tasks()[:4]
    tasks = [dialogue(alone), dialogue(twice, tools=(twice.tools[0],)), *others]
    kept, dropped = data.usable(tasks, ChatTemplate(embedded_tokenizer()), 200, None)
    assert [task.id for task in kept] == [task.id for task in (alone, *others)]
    ((why, (named,)),) = dropped.items()
    assert why == "have messages that cannot be rendered"
    assert re.match(rf"{twice.id}: .*two tools are named", named)
