"""The command `matchtir`: `score` rollout files, `explain` one rollout, describe the `env`.

Results go to standard output; what was recognised, broken rows, warnings and progress go to standard
error. Exit codes: 0 everything was scored; 1 something was left out; 2 nothing could be done; 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from rich.console import Console

from . import files
from .credit import CreditConfig, assign_credit
from .errors import InputError, MatchtirError
from .parse import formats as text_formats
from .report import environment, terminal
from .types import Credit, Trajectory

DONE, PARTLY, FAILED, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 130, 141

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

# Field of CreditConfig: its option and help. Types and choices are the config's own.
_OPTIONS = {
    "matching": ("--matching", "how calls are matched to gold calls"),
    "penalty": ("--penalty", "an unmatched call gets minus this (hard matching)"),
    "cost": ("--cost", "cost of the transport (sinkhorn)"),
    "reg": ("--reg", "entropic regularisation (sinkhorn)"),
    "tol": ("--tol", "marginal violation at which the transport has converged (sinkhorn)"),
    "max_iter": ("--max-iter", "most iterations of the transport (sinkhorn)"),
    "value_match": ("--value-match", "when two argument values are equal"),
    "name_match": ("--name-match", "when two tool names are equal"),
    "gamma": ("--gamma", "discount from turn to turn"),
    "integration": ("--integration", "how trajectory and turn level become one advantage"),
    "baseline": ("--baseline", "what a turn's return is compared with"),
    "normalize_std": ("--no-std", "do not divide by the standard deviation, as in Dr. GRPO"),
    "eps": ("--eps", "added to standard deviations"),
    "reward": ("--reward", "what is rewarded: each turn, or the whole rollout by another method"),
    "num_threads": ("--threads", "threads of the native core"),
}


@dataclass(frozen=True, slots=True)
class _Scored:
    """A scored file: index and group of each rollout in it, and their credit."""

    name: str
    rows: list[int]
    groups: list[str | int]
    credit: Credit


@dataclass(frozen=True, slots=True)
class _Read:
    """What a file holds: rollouts with their rows, and why the broken rows are none."""

    name: str
    rows: list[int]
    rollouts: list[Trajectory]
    broken: dict[int, MatchtirError]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with the given arguments (`sys.argv` by default) and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that is not UTF-8 shows an escape; without this it would end the run.
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    try:
        args = _parser().parse_args(argv)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else DONE
    try:
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read us has left. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except (MatchtirError, ImportError, OSError, MemoryError) as error:
        _say(f"error: {_words(error)}")
        return FAILED


def run() -> NoReturn:
    """Run the command and leave Python with its exit code."""
    sys.exit(main())


def _score(args: argparse.Namespace) -> int:
    """`matchtir score`."""
    config, sources = _config(args), _sources(args)
    _check_output(args.output, sources)
    scored: list[_Scored] = []
    code = DONE
    for source in sources:
        try:
            read = _read(source, args, config)
            if read.broken:
                code = PARTLY
                if args.strict:
                    return code
            if read.rollouts:
                scored.append(_credit(read, config))
        except (OSError, ImportError, InputError) as error:
            _say(f"error: {_words(error)}")
            if args.strict:
                return FAILED
            code = PARTLY
    if not scored:
        _say("nothing could be scored")
        return FAILED
    _write(args.output, scored, several=len(sources) > 1)
    summary = sum((terminal.Summary.of(one.credit) for one in scored), terminal.Summary())
    title = scored[0].name if len(scored) == 1 else f"{len(scored)} files"
    console = Console(stderr=args.output == files.STDIN, highlight=False)
    console.print(terminal.summary_table(summary, title, _settings(config)))
    return code


def _explain(args: argparse.Namespace) -> int:
    """`matchtir explain`."""
    config, sources = _config(args), _sources(args)
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
        read.rollouts[b],
        credit,
        b,
        where=f"{read.name}, row {args.row}",
        width=None if args.full else width,
    )
    return DONE


def _env(args: argparse.Namespace) -> int:
    """`matchtir env`."""
    found = environment.describe()
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        Console(highlight=False).print(environment.table(found))
    return DONE


def _read(source: str, args: argparse.Namespace, config: CreditConfig, keep: int | None = None) -> _Read:
    """Read a file and report its broken rows; texts are kept for the row `keep` only."""
    rows: list[int] = []
    rollouts: list[Trajectory] = []
    broken: dict[int, MatchtirError] = {}
    errors = Console(stderr=True, highlight=False)
    with files.read_rollouts(
        source, format=args.format, text_format=args.text_format, repair=args.repair
    ) as opened:
        name = "sample" if source == str(files.sample_path()) else opened.name
        _say(f"{name}: {'recognised' if args.format is None else 'read'} as {opened.format}")
        label = f"reading {os.path.basename(name)}"
        for row in terminal.track(opened, errors, label, lambda: opened.progress):
            error: MatchtirError | None = row.error
            if row.trajectory is not None and config.reward == "ftrl" and row.trajectory.sub_answers is None:
                error = InputError(
                    f"{name}, row {row.row}: sub_answers is missing; the reward 'ftrl' needs it"
                )
            if error is not None:
                broken[row.row] = error
                if getattr(args, "strict", False):
                    break
            elif row.trajectory is not None:
                rows.append(row.row)
                needs_results = config.reward == "ftrl"
                slim = row.trajectory if row.row == keep else _slim(row.trajectory, needs_results)
                rollouts.append(slim)
    if getattr(args, "strict", False) and broken:
        _say(f"{next(iter(broken.values()))} (--strict stops here)")
    else:
        _say_broken(name, broken, len(rows))
    return _Read(name, rows, rollouts, broken)


def _slim(trajectory: Trajectory, needs_results: bool) -> Trajectory:
    """A rollout without the texts that no reward looks at; they are most of a file."""
    turns = []
    for turn in trajectory.turns:
        calls = (replace(c, raw=None, result=c.result if needs_results else None) for c in turn.calls)
        turns.append(replace(turn, calls=tuple(calls), text="", reasoning=None))
    return replace(trajectory, turns=tuple(turns))


def _say_broken(name: str, broken: dict[int, MatchtirError], read: int) -> None:
    """Report broken rows, one a line; in one line where the whole file is broken in the same way."""
    reasons = {str(error).partition(": ")[2] for error in broken.values()}
    if len(broken) > 1 and not read and len(reasons) == 1:
        _say(f"{name}: all {len(broken)} rows: {reasons.pop()}")
        return
    for error in broken.values():
        _say(str(error))
    if broken:
        rows = "row is" if len(broken) == 1 else "rows are"
        _say(f"{name}: {len(broken):,} broken {rows} left out, {read:,} read")


def _credit(read: _Read, config: CreditConfig) -> _Scored:
    """Score what was read from a file; warnings become lines on standard error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            credit = assign_credit(read.rollouts, config)
        except InputError as error:
            raise InputError(f"{read.name}: {error}") from error
    for warning in caught:
        _say(f"warning: {read.name}: {warning.message}")
    return _Scored(read.name, read.rows, [rollout.group for rollout in read.rollouts], credit)


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
    _say(f"wrote {count:,} rows to {output}")


def _check_output(output: str | None, sources: list[str]) -> None:
    """Refuse an output that cannot be written or would replace an input."""
    if output is None or output == files.STDIN:
        return
    target = files.check_output(output)
    for source in sources:
        if target.exists() and os.path.exists(source) and os.path.samefile(source, target):
            raise InputError(f"output {output!r} is the input {source!r}; expected another file")


def _sources(args: argparse.Namespace) -> list[str]:
    """The files to read."""
    sources = [str(files.sample_path())] if args.sample else []
    sources += args.files
    if not sources:
        raise InputError("no file is given; expected FILE, - for standard input, or --sample")
    return sources


def _config(args: argparse.Namespace) -> CreditConfig:
    """The configuration that the options describe."""
    changes = {name: getattr(args, name) for name in _OPTIONS if hasattr(args, name)}
    return CreditConfig.preset(args.preset, **changes)


def _settings(config: CreditConfig) -> str:
    """What differs from the paper's settings, in words."""
    paper = CreditConfig()
    names = [field.name for field in fields(config)]
    changed = [f"{n}={getattr(config, n)}" for n in names if getattr(config, n) != getattr(paper, n)]
    return "settings: the paper's" + (f", but {', '.join(changed)}" if changed else "")


def _words(error: BaseException) -> str:
    """An error in words, without Python's and the system's numbers."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    return str(error) or ("out of memory" if isinstance(error, MemoryError) else type(error).__name__)


def _say(text: str) -> None:
    """One line on standard error."""
    print(f"matchtir: {terminal.printable(text)}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="matchtir", description="Turn-level credit for rollouts of models that call tools."
    )
    version = environment.version("matchtir") or environment.NOT_INSTALLED
    parser.add_argument("--version", action="version", version=f"matchtir {version}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    layout: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter}

    score = commands.add_parser(
        "score",
        help="score rollout files",
        usage="matchtir score [options] FILE ...",
        description=_SCORE_HELP,
        epilog=_SCORE_EXAMPLES,
        **layout,
    )
    score.add_argument("files", nargs="*", metavar="FILE", help="rollout file, or - for standard input")
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
    explain.add_argument("files", nargs="*", metavar="FILE", help="rollout file, or - for standard input")
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
        _add_reading_options(command)
        _add_credit_options(command)

    env = commands.add_parser("env", help="show version, compiled features, backends, threads, packages")
    env.add_argument("--json", action="store_true", help="as JSON")
    env.set_defaults(run=_env)
    return parser


def _add_reading_options(command: argparse.ArgumentParser) -> None:
    """Options that say what a file holds."""
    group = command.add_argument_group("reading")
    group.add_argument("--sample", action="store_true", help="the sample rollouts that come with matchtir")
    group.add_argument("--format", choices=files.FORMATS, help="what FILE holds (default: its content tells)")
    group.add_argument("--text-format", choices=text_formats(), help="how raw text of turns is parsed")
    group.add_argument("--repair", action="store_true", help="repair calls that are no JSON")


def _add_credit_options(command: argparse.ArgumentParser) -> None:
    """One option for each field of CreditConfig; one that is not given leaves the preset's value."""
    group = command.add_argument_group("credit")
    group.add_argument(
        "--preset", default="paper", metavar="NAME", help="paper (default), or reference: its published code"
    )
    hints = get_type_hints(CreditConfig)
    for name, (flag, text) in _OPTIONS.items():
        default = getattr(CreditConfig(), name)
        if hints[name] is bool:
            group.add_argument(flag, dest=name, action="store_false", default=argparse.SUPPRESS, help=text)
            continue
        kinds = [kind for kind in _leaves(hints[name]) if kind is not type(None)]
        shown: dict[str, Any] = {"type": kinds[0], "metavar": "X"}
        if not isinstance(kinds[0], type):
            shown = {"choices": kinds}
        known = "" if default is None else f" (paper: {default})"
        group.add_argument(flag, dest=name, default=argparse.SUPPRESS, help=text + known, **shown)


def _leaves(hint: Any) -> list[Any]:
    """The members of unions and the values of literals, flat."""
    if get_origin(hint) is None:
        return [hint]
    return [leaf for part in get_args(hint) for leaf in _leaves(part)]
