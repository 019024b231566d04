"""`matchtir export`: the model of a run as a Hugging Face folder."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..train.checkpoints import STATE, WEIGHTS, Checkpoints
from ..train.disk import new_folder, whole_folder
from ..train.run_files import CHECKPOINTS, CONFIG, read_settings
from ..train.settings import resolve
from .say import DONE, say

_ADAPTERS = "adapter_config.json"
_HELP = """\
Write the model of a run, or of one of its checkpoints, as a folder that transformers, vLLM and others load.

Of a run it is the checkpoint of the best evaluation, or the newest if none was evaluated. A checkpoint that
holds weights is copied; else the weights are put together from what the processes saved.

Do not export a stranger's run: what the processes saved is pickles, and the settings of a run name its model,
perhaps with code of its own."""
_EXAMPLES = """\
examples:
  matchtir export runs/embedded -o model
  matchtir export runs/embedded --which newest -o model
  matchtir export runs/embedded/checkpoints/step-000040 -o model"""


def add_command(commands: Any) -> None:
    """The command's own part of the command line."""
    command = commands.add_parser(
        "export",
        help="write the model of a training run as a Hugging Face folder",
        usage="matchtir export RUN_OR_CHECKPOINT -o FOLDER",
        description=_HELP,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "source", metavar="RUN_OR_CHECKPOINT", help="folder of a run, or one of its checkpoints"
    )
    command.add_argument("-o", "--output", required=True, metavar="FOLDER", help="a new or an empty folder")
    command.add_argument(
        "--which", choices=("best", "newest"), help="checkpoint of a run (default: best, if one is marked)"
    )
    command.add_argument("--merge", action="store_true", help="merge adapters of LoRA into their model")
    command.set_defaults(run=_export)


def _export(args: argparse.Namespace) -> int:
    """`matchtir export`."""
    checkpoint = _checkpoint(Path(args.source), args.which)
    with whole_folder(new_folder(args.output)) as folder:
        weights = checkpoint / WEIGHTS
        if weights.is_dir() and not (args.merge and (weights / _ADAPTERS).is_file()):
            shutil.copytree(weights, folder)
        else:
            _put_together(checkpoint, folder, args.merge)
    say(f"wrote {args.output}, the model of {checkpoint}")
    return DONE


def _checkpoint(source: Path, which: str | None) -> Path:
    """The checkpoint that is meant."""
    if not source.is_dir():
        raise InputError(f"{source} is no folder; expected that of a run, or of a checkpoint")
    if any((source / name).is_dir() for name in (STATE, WEIGHTS)):
        if which is not None:
            raise InputError(f"{source} is one checkpoint; --which {which} is for the folder of a run")
        return source
    if not (source / CONFIG).is_file():
        raise InputError(f"{source} is neither a run ({CONFIG} is missing) nor a checkpoint of one ({STATE})")
    checkpoints = Checkpoints(source / CHECKPOINTS)
    best = checkpoints.best()
    if which == "best" and best is None:
        raise InputError(f"{source} has no checkpoint that is marked as best; expected --which newest")
    steps = checkpoints.steps()
    if not steps:
        raise InputError(f"{source} has no checkpoint yet")
    step = steps[-1] if which == "newest" or best is None else best["step"]
    return checkpoints.path(step)


def _put_together(checkpoint: Path, folder: Path, merge: bool) -> None:
    """A Hugging Face folder from the state of a checkpoint and the settings of its run."""
    run = checkpoint.resolve().parents[1]
    if not (run / CONFIG).is_file():
        raise InputError(
            f"{checkpoint} has no {WEIGHTS}, and {run / CONFIG}, which names its model, is missing"
        )
    config = resolve(read_settings(run))
    from ..train.deepspeed import consolidate
    from ..train.models import load_model, save_model

    weights = consolidate(checkpoint)
    model, tokenizer = load_model(config.model, config.policy, seed=config.seed)
    save_model(model, tokenizer, folder, state_dict=weights, merge=merge)
