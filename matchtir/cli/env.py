"""`matchtir env`: what this installation can do."""

from __future__ import annotations

import argparse
import json
from typing import Any

from rich.console import Console

from ..report import environment
from .say import DONE


def add_command(commands: Any) -> None:
    """The command's own part of the command line."""
    env = commands.add_parser("env", help="show version, compiled features, backends, threads, packages")
    env.add_argument("--json", action="store_true", help="as JSON")
    env.set_defaults(run=_env)


def _env(args: argparse.Namespace) -> int:
    """`matchtir env`."""
    found = environment.describe()
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        Console(highlight=False).print(environment.table(found))
    return DONE
