"""`matchtir report`: rollouts with their credit, and a run's curves, as one HTML page."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..credit import CreditConfig, assign_credit
from ..errors import ConfigError, InputError
from ..report import environment
from ..report.inspector.page import Report, render
from ..report.inspector.rollouts import Shown, describe
from ..report.inspector.run import rollout_charts, run_charts
from ..report.inspector.watch import PageServer
from ..report.terminal import Summary
from ..rows import whole_file
from ..train.run_files import (
    CONFIG,
    METRICS,
    ROLLOUTS,
    files_of_steps,
    read_evaluations,
    read_metrics,
    read_settings,
    step_of,
)
from ..types import Trajectory
from .credit_options import add_credit_options, config_of, settings_of
from .reading import FileRead, add_reading_options, read_file, refuse_input, sources_of
from .say import DONE, FAILED, PARTLY, say, words

_HELP = """\
Write rollouts, their credit turn by turn, and the curves of a training run as one HTML page that opens from
the disk and loads nothing.

FILE is read and scored as `matchtir score` does it, with the same options. RUN is a folder that
`matchtir train` wrote; its rollouts are scored with the run's own settings."""
_EXAMPLES = """\
examples:
  matchtir report --sample
  matchtir report runs/embedded -o report.html
  matchtir report runs/embedded --watch
  matchtir report rollouts.jsonl --matching sinkhorn --tokenizer Qwen/Qwen3-8B

exit codes: 0 all rows shown, or as many as --limit allows; 1 some rows or files are broken;
2 nothing written; 130 interrupted"""
_LIMIT = 5000


def add_command(commands: Any) -> None:
    """The command's own part of the command line."""
    command = commands.add_parser(
        "report",
        help="write rollouts and a run's curves as an HTML page",
        usage="matchtir report [options] RUN | FILE ...",
        description=_HELP,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "-o",
        "--output",
        metavar="HTML",
        help="the page (default: report.html in the run's, or in this folder)",
    )
    command.add_argument(
        "--limit", type=_positive, default=_LIMIT, metavar="N", help=f"rollouts at most (default: {_LIMIT:,})"
    )
    command.add_argument(
        "--tokenizer", metavar="NAME", help="show the tokens of this tokenizer, a folder or a name"
    )
    live = command.add_argument_group("a page that follows its run")
    live.add_argument("--watch", action="store_true", help="serve the page of RUN until Ctrl-C")
    live.add_argument(
        "--host", default="127.0.0.1", help="where to listen (default: %(default)s, this machine only)"
    )
    live.add_argument("--port", type=int, default=0, metavar="N", help="(default: a free one)")
    command.set_defaults(run=_report)
    add_reading_options(command, run="; or RUN, a folder that `matchtir train` wrote")
    add_credit_options(command)


def _report(args: argparse.Namespace) -> int:
    """`matchtir report`."""
    config, sources = config_of(args), sources_of(args)
    tokens = None if args.tokenizer is None else _tokens(args.tokenizer)
    folders = [source for source in sources if Path(source).is_dir()]
    if args.watch and len(folders) != len(sources):
        raise InputError("--watch follows a run; expected the folder that `matchtir train` writes")
    if folders and len(sources) > 1:
        raise InputError(
            f"{len(sources)} sources are given, {folders[0]} among them; expected one run, or files"
        )
    if folders:
        return _of_run(Path(folders[0]), args, config, tokens)
    output = _output(args.output or "report.html")
    refuse_input(str(output), output, sources)
    report, code = _of_files(sources, args, config, tokens)
    if report is None:
        return FAILED
    _write(output, render(report, version=_own_version()), len(report.details))
    return code


def _of_run(folder: Path, args: argparse.Namespace, config: CreditConfig, tokens: Any) -> int:
    """The page of a run, written once or served."""
    if config != CreditConfig():
        raise ConfigError("options of the credit are given; the rollouts of a run have the run's own")
    settings = read_settings(folder)
    if not isinstance(settings.get("credit"), dict):
        raise InputError(f"{folder / CONFIG} has no credit; expected the folder of a run")

    def live_page() -> str:
        state = _version(folder)  # before anything is read, so that no later change is missed
        report, _ = _run_report(folder, settings, args, tokens)
        return render(report, version=_own_version(), live=True, state=state)

    if not args.watch:
        output = _output(args.output or folder / "report.html")
        if args.output is None and output.is_symlink():  # a folder from elsewhere says nothing of other files
            raise InputError(f"{output} is a link, which leads out of the run; expected -o")
        report, code = _run_report(folder, settings, args, tokens)
        _write(output, render(report, version=_own_version()), len(report.details))
        return code
    if args.output is not None:
        raise InputError("-o and --watch are given; expected one of them")
    server = PageServer(args.host, args.port, lambda: _version(folder), live_page)
    if not server.loopback:
        say(f"warning: {args.host} can be reached from other machines, and whoever does reads the rollouts")
    with server:
        server.content(False)  # what is missing is said now, not in the browser
        print(server.url, flush=True)
        server.serve_forever()
    return DONE


def _version(folder: Path) -> str:
    """A text that changes when the run has gone on."""
    files = [folder / METRICS, *files_of_steps(folder / ROLLOUTS), *files_of_steps(folder / "evaluations")]
    newest = [(one.name, one.stat().st_size, one.stat().st_mtime_ns) for one in files if one.is_file()]
    return str(hash(tuple(newest)))


def _run_report(
    folder: Path, settings: dict[str, Any], args: argparse.Namespace, tokens: Any
) -> tuple[Report, int]:
    """What the page of a run shows."""
    config = CreditConfig.from_dict(settings["credit"])
    metrics, evaluations = read_metrics(folder), read_evaluations(folder)
    files = sorted(files_of_steps(folder / ROLLOUTS), key=step_of)
    chosen = _spread(files, args.limit)
    args = argparse.Namespace(**{**vars(args), "format": "jsonl", "quiet": True})
    report, code = _of_files([str(file) for file in chosen], args, config, tokens, empty=True)
    assert report is not None
    facts = [("steps", f"{metrics[-1]['step'] if metrics else 0:,}", f"of {settings.get('steps', 0):,}")]
    facts += [("method", str(settings.get("method")), "")]
    if len(evaluations) > 1:
        first, last = (
            evaluations[step]["rows"][0]["metrics"] for step in (min(evaluations), max(evaluations))
        )
        for name, label in (("solve_f1", "Solve-F1"), ("correct", "right answers")):
            if first.get(name) and last.get(name):
                facts.append((label, f"{last[name]['mean']:.1%}", f"{first[name]['mean']:.1%} before"))
    note = f"from {len(chosen):,} of {len(files):,} steps" if len(chosen) < len(files) else ""
    of_rollouts = [
        (label, value, note if label == "rollouts" else more) for label, value, more in report.facts
    ]
    flat = [
        (f"{part}.{name}" if isinstance(value, dict) else part, str(one))
        for part, value in settings.items()
        for name, one in (value.items() if isinstance(value, dict) else [("", value)])
    ]
    title = f"{settings.get('method')}, {folder.name}"
    charts = [*run_charts(metrics, evaluations), *report.charts]
    return replace(
        report,
        title=title,
        files=[f"{ROLLOUTS}/{Path(name).name}" for name in report.files],
        facts=facts,
        facts_of_rollouts=of_rollouts,
        settings=flat,
        charts=charts,
        method=str(settings.get("method")),
    ), code


def _spread(files: Sequence[Path], limit: int) -> list[Path]:
    """Evenly spread files that hold so many lines at most, the first and the last among them."""
    if not files:
        return []
    with files[0].open("rb") as stream:
        each = max(1, sum(1 for _ in stream))
    count = min(len(files), max(2, limit // each))
    return [files[k] for k in sorted(set(np.linspace(0, len(files) - 1, count).round().astype(int).tolist()))]


def _of_files(
    sources: Sequence[str], args: argparse.Namespace, config: CreditConfig, tokens: Any, empty: bool = False
) -> tuple[Report | None, int]:
    """What the page of rollout files shows; None if nothing can be read and that is no empty page."""
    code, left = DONE, args.limit
    columns: dict[str, list[Any]] = {}
    details: list[dict[str, Any]] = []
    names: list[str] = []
    broken: list[str] = []
    summary = Summary()
    for source in sources:
        try:
            read = _read(source, args, len(names), config)
        except (OSError, ImportError, InputError) as error:
            say(f"error: {words(error)}")
            broken.append(words(error))
            code = PARTLY
            continue
        broken += [str(error) for error in read.broken.values()]
        code = PARTLY if read.broken else code
        items = read.items if empty else _whole_groups(read.items, left)
        if len(items) < len(read.items):
            broken.append(
                f"{read.name}: only {len(items):,} of {len(read.items):,} rollouts are shown (--limit)"
            )
            say(broken[-1])
        if not items:
            continue
        left -= len(items)
        names.append(read.name)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            credit = assign_credit([one.trajectory for one in items], config)
            found, described = describe(items, credit, config, tokens)
        for warning in caught:
            say(f"warning: {read.name}: {warning.message}")
        summary += Summary.of(credit)
        details += described
        for name, values in found.items():
            columns.setdefault(name, []).extend(values)
    if not details:
        if not empty:
            say("nothing can be shown")
            return None, FAILED
        columns, _ = describe([], assign_credit([], config), config)
    names = _without_shared_folders(names)
    report = Report(
        title=", ".join(names) if len(names) <= 2 else f"{len(names)} files",
        columns=columns,
        details=details,
        files=names,
        facts=_facts(summary),
        settings=[
            ("credit", settings_of(config).removeprefix("settings: ")),
            *((f"credit.{name}", str(value)) for name, value in asdict(config).items()),
        ],
        charts=rollout_charts(columns, details),
        broken=broken,
        integration=config.resolved_integration,
    )
    return report, code


def _without_shared_folders(names: Sequence[str]) -> list[str]:
    """Names of files without the folders that all of them are in."""
    parts = [Path(name).parts for name in names]
    shared = 0
    while all(len(one) > shared + 1 for one in parts) and len({one[shared] for one in parts}) == 1:
        shared += 1
    return ["/".join(one[shared:]) for one in parts]


def _read(source: str, args: argparse.Namespace, file: int, config: CreditConfig) -> FileRead[Shown]:
    """The rollouts of a file, with their rows."""

    def take(row: int, trajectory: Trajectory, fields: Any) -> Shown:
        if config.reward == "ftrl" and trajectory.sub_answers is None:
            raise InputError("sub_answers is missing; the reward 'ftrl' needs it")
        return Shown(trajectory, fields, row, file)

    return read_file(source, args, take)


def _whole_groups(items: list[Shown], limit: int) -> list[Shown]:
    """The first rollouts, not more than a limit but for the first group, and no group in parts."""
    kept: set[Any] = set()
    sizes: dict[Any, int] = {}
    for one in items:
        sizes[one.trajectory.group] = sizes.get(one.trajectory.group, 0) + 1
    for group, size in sizes.items():
        if kept and size > limit:
            break
        kept.add(group)
        limit -= size
    return [one for one in items if one.trajectory.group in kept]


def _facts(summary: Summary) -> list[tuple[str, str, str]]:
    """The figures that `matchtir score` prints."""
    calls, groups = max(1, summary.calls), max(1, summary.groups)
    return [
        ("rollouts", f"{summary.rollouts:,}", ""),
        ("groups", f"{summary.groups:,}", f"{summary.silent_groups / groups:.1%} without signal"),
        ("calls", f"{summary.calls:,}", ""),
        ("matched", f"{summary.matched / calls:.1%}", f"{summary.matched:,}"),
        ("malformed", f"{summary.malformed / calls:.1%}", f"{summary.malformed:,}"),
        ("mean return", f"{summary.return_sum / max(1, summary.rollouts):.4f}", ""),
    ]


def _tokens(name: str) -> Callable[[str], list[str]]:
    """From a text to its tokens, by a tokenizer of transformers."""
    from ..train.models import load_tokenizer

    tokenizer = load_tokenizer(name)

    def split(text: str) -> list[str]:
        spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return [text[begin:end] for begin, end in spans]

    return split


def _output(name: str | Path) -> Path:
    """Where the page goes, if it can."""
    path = Path(name)
    if not path.absolute().parent.is_dir():
        raise InputError(f"output {str(name)!r}: there is no folder {str(path.absolute().parent)!r}")
    if path.is_dir():
        raise InputError(f"output {str(name)!r} is a folder; expected the name of a page")
    return path


def _write(path: Path, text: str, rollouts: int) -> None:
    """Write the page, and say where."""
    with whole_file(path) as stream:
        stream.write(text.encode("utf-8", "replace"))
    say(f"wrote {rollouts:,} rollout{'s' * (rollouts != 1)}, {len(text) / 1e6:.1f} MB")
    print(path, file=sys.stdout)


def _own_version() -> str:
    return environment.version("matchtir") or environment.NOT_INSTALLED


def _positive(text: str) -> int:
    """A whole number, 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not 1 or more")
    return int(text)
