"""The command `matchtir`: `train` a model, `score` and `eval` rollouts, `explain` one, show the `env`.

Results go to standard output; what was recognised, broken rows, warnings and progress go to standard
error. Exit codes: 0 everything was scored; 1 something was left out; 2 nothing could be done; 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from ..errors import MatchtirError
from ..report import environment
from . import env, evaluate, export, report, score, train, warmstart
from .say import BROKEN_PIPE, DONE, FAILED, INTERRUPTED, PARTLY, say, words

__all__ = ["BROKEN_PIPE", "DONE", "FAILED", "INTERRUPTED", "PARTLY", "main", "parser", "run"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with the given arguments (`sys.argv` by default) and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that is not UTF-8 shows an escape; without this it would end the run.
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    try:
        args = parser().parse_args(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else DONE
    try:
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read us has left. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (MatchtirError, ImportError, OSError, MemoryError) as error:
        say(f"error: {words(error)}")
        return FAILED


def run() -> NoReturn:
    """Run the command and leave Python with its exit code."""
    sys.exit(main())


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = environment.version("matchtir") or environment.NOT_INSTALLED
    command = argparse.ArgumentParser(
        prog="matchtir", description="Turn-level credit for rollouts of models that call tools."
    )
    command.add_argument("--version", action="version", version=f"matchtir {found}")
    commands = command.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for part in (train, score, evaluate, report, export, warmstart, env):
        part.add_command(commands)
    return command
