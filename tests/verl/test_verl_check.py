"""What is refused before training, from verl's own configuration and its data files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

pytest.importorskip("verl.trainer", reason='verl needs pip install "matchtir[verl]"')

import pyarrow
import verl_runs as runs
from docs_stand_ins import write_task_file
from omegaconf import OmegaConf
from pyarrow import parquet
from verl.trainer.ppo.reward import load_reward_manager
from verl.utils.import_utils import load_class_from_fqn

from matchtir.errors import ConfigError, InputError
from matchtir.integrations import verl_check
from matchtir.integrations.verl import CheckedLoopManager
from matchtir.integrations.verl_check import check_config, check_files, check_formats
from matchtir.integrations.verl_data import verl_row, write_verl

LOOP = "actor_rollout_ref.rollout.agent.default_agent_loop"
FUNCTION = "reward.custom_reward_function"
OWN_FUNCTION = ("reward.reward_manager.name=naive", f"{FUNCTION}.path=pkg://matchtir.integrations.verl")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+algorithm.matchtir.methd=grpo"], "algorithm.matchtir has methd"),
        (["+algorithm.matchtir.sandbox.worker=2"], "sandbox has worker"),
        (["algorithm.use_kl_in_reward=True"], "use_kl_loss=True"),
        (["trainer.use_v1=False"], "expected verl's V1 trainer"),
        (["reward.reward_model.enable=True"], "reward.reward_model.enable is True"),
        (["reward.reward_manager.name=naive"], "expected reward.reward_manager.name=matchtir"),
        ([OWN_FUNCTION[1]], "expected one of them"),
        ([*OWN_FUNCTION, f"+{FUNCTION}.reward_kwargs.metod=ftrl"], "reward_kwargs has metod"),
        ([*OWN_FUNCTION, f"+{FUNCTION}.reward_kwargs.method=ftrll"], "did you mean 'ftrl'"),
    ],
)
def test_configurations_without_credit_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        check_config(runs.settings(*overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        [*OWN_FUNCTION, f"+{FUNCTION}.reward_kwargs.method=ftrl"],
        ["algorithm.adv_estimator=grpo", f"{LOOP}=tool_agent", "algorithm.use_kl_in_reward=True"],
        [
            "reward.reward_model.enable=True",
            "reward.reward_model.enable_resource_pool=True",
            f"{FUNCTION}.path=mine.py",
        ],
    ],
)
def test_configurations_with_credit_pass(overrides):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_config(runs.settings(*overrides))


def test_agent_loops_must_know_turns(tmp_path):
    file = tmp_path / "train.parquet"
    train = f"data.train_files={file}"
    stock = f"{LOOP}=tool_agent"
    with pytest.warns(UserWarning, match="default_agent_loop is 'tool_agent'; expected matchtir_tool_agent"):
        check_config(runs.settings(stock, train))
    write_verl(file, runs.tasks(1))
    with pytest.raises(ConfigError, match=r"is 'tool_agent'; .* the rows name no agent_name"):
        check_config(runs.settings(stock, train))
    with pytest.warns(UserWarning, match="default_agent_loop is 'mine'"):
        check_config(runs.settings(f"{LOOP}=mine", train))
    parquet.write_table(pyarrow.table({"agent_name": ["matchtir_tool_agent"]}), file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_config(runs.settings(stock, train))


def rows_in(file, *truths):
    """A file of verl's with these ground truths."""
    rows = [verl_row(task, i, "embedded") for i, task in enumerate(runs.tasks(len(truths)))]
    for row, truth in zip(rows, truths, strict=True):
        row["reward_model"]["ground_truth"] = row["reward_model"]["ground_truth"] if truth is None else truth
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)


def test_rows_that_cannot_be_judged_are_counted_and_named(tmp_path):
    train, test = tmp_path / "train.parquet", tmp_path / "test.parquet"
    config = runs.settings(f"data.train_files=[{train}]", f"data.val_files={test}")
    rows_in(train, None, None)
    rows_in(test, None, json.dumps({"sub_answers": {"x": ["1"]}, "method": "ftrl"}))
    assert check_files(config, check_config(config)) == []
    rows_in(test, None, json.dumps({"sub_answers": {"x": ["1"]}}), "42")
    said = r"test.parquet: 2 of 3 rows cannot .*row 1 has no gold_calls; row 2 has the ground_truth '42'"
    with pytest.raises(InputError, match=said):
        check_files(config, check_config(config))
    test.unlink()
    assert check_files(config, check_config(config)) == [str(test)]


def test_wrong_configuration_stops_workers_and_the_trainer():
    config = runs.settings("algorithm.use_kl_in_reward=True")
    with pytest.raises(ConfigError, match="use_kl_loss"):
        load_reward_manager(config, runs.TOKENIZER)
    manager = load_class_from_fqn("matchtir.integrations.verl.CheckedLoopManager", "AgentLoopManager")
    with pytest.raises(ConfigError, match="use_kl_loss"):
        manager.create(config=config, llm_client=None, teacher_client=None, reward_loop_worker_handles=None)


def test_chat_template_that_cannot_be_read_stops_the_trainer(tmp_path):
    config = runs.settings(
        f"actor_rollout_ref.model.path={runs.model_folder(tmp_path)}",
        "+algorithm.matchtir.tool_format=llama3",
    )
    with pytest.raises(ConfigError, match="llama3"):
        CheckedLoopManager.create(config=config)


def test_formats_are_compared_where_both_are_known():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for verls, ours in (("hermes", "hermes"), ("hermes", "qwen3"), ("mine", "llama3")):
            check_formats(verls, ours)
    with pytest.warns(UserWarning, match=r"multi_turn\.format is 'hermes', .* read calls as 'llama3'"):
        check_formats("hermes", "llama3")


class Composed:
    """What verl's command writes."""

    returncode = 0

    def __init__(self, config):
        self.stdout = OmegaConf.to_yaml(config)


def test_command_says_what_is_wrong(monkeypatch, capsys):
    def run_with(*overrides):
        monkeypatch.setattr(
            verl_check.subprocess, "run", lambda *_, **__: Composed(runs.settings(*overrides))
        )
        return verl_check.main(["algorithm.adv_estimator=matchtir"])

    assert run_with("+algorithm.matchtir.method=matchtir-ot") == 0
    out, err = capsys.readouterr()
    assert "matching='sinkhorn'" in out
    assert "not looked into" in err
    assert run_with("+algorithm.matchtir.methd=grpo") == 1
    assert "algorithm.matchtir has methd" in capsys.readouterr().err
    assert verl_check.main([]) == 2


def test_commands_of_the_documentation_pass_the_check(tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "verl.md").read_text(encoding="utf-8")
    marked = r"<!-- run by tests/verl/test_verl_check\.py: .*? -->\n```sh\n(.*?)```"
    settings, check, option, data, recipe = re.findall(marked, text, re.S)
    for name in ("FTRL_train", "FTRL_test"):
        write_task_file(tmp_path / f"{name}.parquet")
    written = run_in(tmp_path, data)
    assert written.returncode == 0, written.stderr
    assert [parquet.read_metadata(tmp_path / f"{name}.parquet").num_rows for name in ("train", "test")] == [
        6,
        6,
    ]
    for command in (settings, check, f"{recipe.rstrip()} {option.strip()}"):
        command = command.replace("verl.trainer.main_ppo", "matchtir.integrations.verl_check")
        done = run_in(tmp_path, command.replace(" ... ", " ").replace(" ...\n", "\n"))
        assert done.returncode == 0, done.stderr[-3000:]
        assert "matching='hungarian'" in done.stdout


def run_in(folder, command):
    """Run a command of a page in a folder, with this Python."""
    python = f"{sys.executable} -m "
    return subprocess.run(
        ["bash", "-e", "-c", command.replace("python -m ", python)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
