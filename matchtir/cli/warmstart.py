"""`matchtir warmstart`: the policy that training on the embedded tasks starts from."""

from __future__ import annotations

import argparse
import os
from typing import Any

from ..tasks.embedded import MIXES
from ..train.model_source import TRAIN, needs
from .say import DONE, say

_HELP = """\
Train the policy for the embedded tasks from nothing on scripted demonstrations, which make mistakes on
purpose, and write it as a Hugging Face folder of less than 1 MB. `matchtir train` comes with the one of
seed 0 and the sparse mix; others are for comparisons over seeds, and for the calendar's tasks, whose policy
has a vocabulary of its own. It takes a few minutes on one core, the calendar's about ten."""
_EXAMPLES = """\
examples:
  matchtir warmstart -o warm-1 --seed 1
  matchtir train --model warm-1 --seed 1
  matchtir warmstart -o calendar-1 --seed 1 --mix calendar
  matchtir train --model calendar-1 --seed 1 --data.mix calendar

exit codes: 0 written; 2 not learnt, or nothing could be written; 130 interrupted"""


def add_command(commands: Any) -> None:
    """The command's own part of the command line."""
    command = commands.add_parser(
        "warmstart",
        help="make the policy that training on the embedded tasks starts from",
        usage="matchtir warmstart -o FOLDER [--seed N] [--mix sparse|easy|calendar]",
        description=_HELP,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("-o", "--output", required=True, metavar="FOLDER", help="a new or an empty folder")
    command.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of weights and demonstrations (default: 0)"
    )
    command.add_argument(
        "--mix", choices=tuple(MIXES), default="sparse", help="of the tasks it ends with (default: sparse)"
    )
    command.set_defaults(run=_warmstart)


def _warmstart(args: argparse.Namespace) -> int:
    """`matchtir warmstart`."""
    # DeepSpeed, which transformers imports where it is installed, says otherwise that it found no GPU.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with needs("the warm start needs torch and transformers", TRAIN):
        from ..train.embedded import warm_start
    record = warm_start(args.seed, args.output, say, mix=args.mix)
    steps = sum(stage["steps"] for stage in record["stages"])
    say(f"wrote {args.output}: {steps} steps, final loss {record['stages'][-1]['loss']:.3f}")
    return DONE
