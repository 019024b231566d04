"""`matchtir score` and `matchtir explain`: credit for rollout files, and one rollout turn by turn."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from rich.console import Console

from .. import files
from ..credit import CreditConfig, assign_credit
from ..errors import InputError
from ..report import terminal
from ..types import Credit, Trajectory
from .credit_options import add_credit_options, config_of, settings_of
from .reading import FileRead, add_reading_options, read_file, refuse_input, sources_of
from .say import DONE, FAILED, PARTLY, say, words

_SCORE_HELP = """\
Give every turn of every rollout its reward and advantage.

FILE is JSON lines, a JSON array of OpenAI-message rollouts, tau-bench's results, or parquet; JSON may be
gzipped, and - is standard input. Groups are compared within a file, not across files. Without -o only the
summary is shown."""
_SCORE_EXAMPLES = """\
examples:
  matchtir score --sample
  matchtir score rollouts.jsonl -o scores.jsonl
  matchtir score step-*.parquet -o scores.parquet --matching sinkhorn --reg 0.05
  cat rollouts.jsonl | matchtir score - -o - | jq .turn_advantages

exit codes: 0 all rows scored; 1 some rows or files left out; 2 nothing scored; 130 interrupted"""
_EXPLAIN_EXAMPLES = """\
examples:
  matchtir explain --sample --row 6
  matchtir explain rollouts.jsonl --row 0 --preset reference | less"""


@dataclass(frozen=True, slots=True)
class _Scored:
    """A scored file: index and group of each rollout in it, and their credit."""

    name: str
    rows: list[int]
    groups: list[str | int]
    credit: Credit


def add_command(commands: Any) -> None:
    """The two commands' own part of the command line."""
    layout: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    score = commands.add_parser(
        "score",
        help="score rollout files",
        usage="matchtir score [options] FILE ...",
        description=_SCORE_HELP,
        epilog=_SCORE_EXAMPLES,
        **layout,
    )
    score.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help=f"write one object a rollout ({', '.join(files.OUTPUT_SUFFIXES)}); - is standard output",
    )
    score.add_argument(
        "--strict",
        action="store_true",
        help="stop at the first broken row (exit code 1) or file (2); nothing is written",
    )
    score.set_defaults(run=_score)

    explain = commands.add_parser(
        "explain",
        help="show one rollout turn by turn",
        usage="matchtir explain [options] FILE --row N",
        description="Show one rollout turn by turn: calls, gold matches, rewards and advantages.",
        epilog=_EXPLAIN_EXAMPLES,
        **layout,
    )
    explain.add_argument(
        "--row",
        type=int,
        required=True,
        metavar="N",
        help="index in the file from 0, as `row` of a score file",
    )
    explain.add_argument("--full", action="store_true", help="do not cut lines to the terminal's width")
    explain.set_defaults(run=_explain)

    for command in (score, explain):
        add_reading_options(command)
        add_credit_options(command)


def _score(args: argparse.Namespace) -> int:
    """`matchtir score`."""
    config, sources = config_of(args), sources_of(args)
    if args.output not in (None, files.STDIN):
        refuse_input(args.output, files.check_output(args.output), sources)
    scored: list[_Scored] = []
    code = DONE
    for source in sources:
        try:
            read = _read(source, args, config)
            if read.broken:
                code = PARTLY
                if args.strict:
                    return code
            if read.items:
                scored.append(_credit(read, config))
        except (OSError, ImportError, InputError) as error:
            say(f"error: {words(error)}")
            if args.strict:
                return FAILED
            code = PARTLY
    if not scored:
        say("nothing could be scored")
        return FAILED
    _write(args.output, scored, several=len(sources) > 1)
    summary = sum((terminal.Summary.of(one.credit) for one in scored), terminal.Summary())
    title = scored[0].name if len(scored) == 1 else f"{len(scored)} files"
    console = Console(stderr=args.output == files.STDIN, highlight=False)
    console.print(terminal.summary_table(summary, title, settings_of(config)))
    return code


def _explain(args: argparse.Namespace) -> int:
    """`matchtir explain`."""
    config, sources = config_of(args), sources_of(args)
    if len(sources) > 1:
        raise InputError(f"{len(sources)} files are given; expected one")
    read = _read(sources[0], args, config, keep=args.row)
    count = len(read.rows) + len(read.broken)
    if not 0 <= args.row < count:
        raise InputError(f"--row is {args.row}; expected 0 to {count - 1}, the rows of {read.name}")
    if args.row in read.broken:
        return PARTLY
    b = read.rows.index(args.row)
    credit = _credit(read, config).credit
    console = Console(highlight=False)
    width = console.width if console.is_terminal or "COLUMNS" in os.environ else None
    terminal.print_rollout(
        console,
        read.items[b],
        credit,
        b,
        where=f"{read.name}, row {args.row}",
        width=None if args.full else width,
    )
    return DONE


def _read(
    source: str, args: argparse.Namespace, config: CreditConfig, keep: int | None = None
) -> FileRead[Trajectory]:
    """Read a file; texts are kept for the row `keep` only."""
    needs_results = config.reward == "ftrl"

    def take(row: int, trajectory: Trajectory, _: Any) -> Trajectory:
        if needs_results and trajectory.sub_answers is None:
            raise InputError("sub_answers is missing; the reward 'ftrl' needs it")
        return trajectory if row == keep else _slim(trajectory, needs_results)

    return read_file(source, args, take)


def _slim(trajectory: Trajectory, needs_results: bool) -> Trajectory:
    """A rollout without the texts that no reward looks at; they are most of a file."""
    turns = []
    for turn in trajectory.turns:
        calls = (replace(c, raw=None, result=c.result if needs_results else None) for c in turn.calls)
        turns.append(replace(turn, calls=tuple(calls), text="", reasoning=None))
    return replace(trajectory, turns=tuple(turns))


def _credit(read: FileRead[Trajectory], config: CreditConfig) -> _Scored:
    """Score what was read from a file; warnings become lines on standard error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            credit = assign_credit(read.items, config)
        except InputError as error:
            raise InputError(f"{read.name}: {error}") from error
    for warning in caught:
        say(f"warning: {read.name}: {warning.message}")
    return _Scored(read.name, read.rows, [rollout.group for rollout in read.items], credit)


def _write(output: str | None, scored: list[_Scored], several: bool) -> None:
    """Write the scores where they are wanted."""
    if output is None:
        return
    records: Iterator[dict[str, Any]] = chain.from_iterable(
        files.score_records(one.credit, one.rows, one.groups, file=one.name if several else None)
        for one in scored
    )
    if output == files.STDIN:
        sys.stdout.flush()
        for record in records:
            sys.stdout.buffer.write(files.json_line(record))
        sys.stdout.buffer.flush()
        return
    groups = (group for one in scored for group in one.groups)
    text_groups = not all(isinstance(group, int) and -(2**63) <= group < 2**63 for group in groups)
    count = files.write_scores(output, records, text_groups=text_groups)
    say(f"wrote {count:,} rows to {output}")
