"""`matchtir eval`: how good the rollouts of files are, with confidence intervals."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from .. import files
from ..errors import InputError
from ..evals import Bootstrap, Evaluation, Measured, measure, summarize
from ..report.evaluation import evaluation_tables
from . import bfcl
from .endpoint import add_endpoint_options, is_live, live_rollouts
from .reading import add_reading_options, read_file, refuse_input, sources_of
from .say import DONE, FAILED, PARTLY, say, words

_HELP = """\
Say how good rollouts are: sub-questions solved (Solve-P, Solve-R, Solve-F1), correct answers, calls, failed
calls, turns; overall, by kind of task and by difficulty, with bootstrap confidence intervals.

FILE is as for `matchtir score`. Solve metrics need sub_answers and the results of the calls; correct answers
need gold_answer. Every task counts alike: rollouts of one group are averaged first. Groups of the same name
in two files are two tasks.

`matchtir eval bfcl` measures a model on the official BFCL benchmark; --help after it says how. A file of that
name is ./bfcl."""
_EXAMPLES = """\
examples:
  matchtir eval --sample
  matchtir eval rollouts.jsonl --json metrics.json
  matchtir eval --endpoint http://127.0.0.1:8000/v1 --model qwen3 --tasks embedded -o rollouts.jsonl
  matchtir eval step-*.parquet --confidence 0.9 --bootstrap 10000 --json - | jq '.rows[0].metrics.solve_f1'

exit codes: 0 all rows evaluated; 1 some rows or files left out; 2 nothing evaluated; 130 interrupted"""


def add_command(commands: Any) -> None:
    """The command's own part of the command line."""
    command = commands.add_parser(
        "eval",
        help="evaluate rollout files",
        usage="matchtir eval [options] (FILE ... | --endpoint URL --model NAME --tasks PATH)",
        description=_HELP,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--json", metavar="OUT", help="write the metrics as JSON; - is standard output")
    add_reading_options(command)
    _add_interval_options(command)
    add_endpoint_options(command)
    command.set_defaults(run=_eval)
    _let_bfcl_parse(command)


def _let_bfcl_parse(command: argparse.ArgumentParser) -> None:
    """Give the arguments of `matchtir eval bfcl` to its own parser."""
    parse = command.parse_known_args

    def either(args: Any = None, namespace: Any = None) -> Any:
        if args and args[0] == "bfcl":
            return bfcl.parser().parse_known_args(args[1:], namespace)
        return parse(args, namespace)

    command.parse_known_args = either  # type: ignore[method-assign]


def _add_interval_options(command: argparse.ArgumentParser) -> None:
    """How confidence intervals are found."""
    group = command.add_argument_group("confidence intervals")
    default = Bootstrap()
    for flag, kind, value, text in (
        ("--bootstrap", int, default.samples, "resamples of the tasks; 0 for no intervals"),
        ("--confidence", float, default.confidence, "share of the resamples that an interval holds"),
        ("--seed", int, default.seed, "of the resampling"),
    ):
        group.add_argument(flag, type=kind, default=value, metavar="X", help=f"{text} (default: {value})")


def _eval(args: argparse.Namespace) -> int:
    """`matchtir eval`: of files, or of rollouts that are made first."""
    if not is_live(args):
        return _eval_files(args)
    # What is wrong with the other options is said before the rollouts are made, and not after.
    Bootstrap(args.bootstrap, args.confidence, args.seed)
    _check_json(args.json, [args.output] if args.output else [])
    with live_rollouts(args) as (path, code):
        args.files = [path]
        return code if path is None else max(code, _eval_files(args))


def _eval_files(args: argparse.Namespace) -> int:
    """`matchtir eval` of files."""
    bootstrap = Bootstrap(args.bootstrap, args.confidence, args.seed)
    sources = sources_of(args)
    target = _check_json(args.json, sources)
    measured: list[Measured] = []
    names: list[str] = []
    code = DONE
    for source in sources:
        try:
            read = read_file(source, args, lambda _, trajectory, __: measure(trajectory))
        except (OSError, ImportError, InputError) as error:
            say(f"error: {words(error)}")
            code = PARTLY
            continue
        if read.broken:
            code = PARTLY
        if read.items:
            names.append(read.name)
            several = len(sources) > 1
            measured += [replace(one, task=(source, one.task)) if several else one for one in read.items]
    if not measured:
        say("nothing could be evaluated")
        return FAILED
    title = names[0] if len(names) == 1 else f"{len(names)} files"
    try:
        evaluation = summarize(measured, bootstrap)
    except InputError as error:
        raise InputError(f"{title}: {error}") from error
    _show(evaluation, title, args.json, target)
    return code


def _check_json(output: str | None, sources: list[str]) -> Path | None:
    """Where the JSON file will be; refuses one that cannot be written or would replace an input."""
    if output is None or output == files.STDIN:
        return None
    target = Path(os.path.realpath(output))
    if not target.parent.is_dir():
        raise InputError(f"output {output!r}: there is no folder {str(target.parent)!r}")
    if target.exists() and not target.is_file():
        raise InputError(f"output {output!r} exists and is no ordinary file")
    refuse_input(output, target, sources)
    return target


def _show(evaluation: Evaluation, title: str, output: str | None, target: Path | None) -> None:
    """Warnings, the JSON file where one is wanted, and the tables."""
    for note in evaluation.notes:
        say(f"warning: {title}: {note}")
    found = evaluation.to_dict()
    text = json.dumps(found, indent=2, allow_nan=False)
    if target is not None:
        with files.whole_file(target) as stream:
            stream.write(text.encode("ascii") + b"\n")
    elif output is not None:
        print(text)
    Console(stderr=output == files.STDIN, highlight=False).print(evaluation_tables(found, title))
