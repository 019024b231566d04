"""`matchtir report`: rollouts with their credit, and a run's curves, as one HTML page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..credit import CreditConfig
from ..errors import ConfigError, InputError
from ..report import environment
from ..report.inspector.page import Report, render
from ..report.inspector.run import run_charts
from ..report.inspector.watch import PageServer
from ..rows import whole_file
from ..train.run_files import (
    CONFIG,
    EVALUATIONS,
    METRICS,
    ROLLOUTS,
    files_of_steps,
    read_evaluations,
    read_metrics,
    read_settings,
    step_of,
)
from .credit_options import add_credit_options, config_of
from .reading import add_reading_options, refuse_input, sources_of
from .report_files import PageFile, report_of_files, state_of
from .say import DONE, FAILED, say

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
    report, code = report_of_files(sources, args, config, tokens)
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

    known: dict[str, tuple[Any, PageFile]] = {}

    def live_page() -> str:
        state = _version(folder)  # before anything is read, so that no later change is missed
        report, _ = _run_report(folder, settings, args, tokens, known)
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
    files = [folder / METRICS, *files_of_steps(folder / ROLLOUTS), *files_of_steps(folder / EVALUATIONS)]
    newest = [(one.name, *state_of(one)) for one in files if one.is_file()]
    return str(hash(tuple(newest)))


def _run_report(
    folder: Path,
    settings: dict[str, Any],
    args: argparse.Namespace,
    tokens: Any,
    known: dict[str, tuple[Any, PageFile]] | None = None,
) -> tuple[Report, int]:
    """What the page of a run shows; `known` as for :func:`report_of_files`."""
    config = CreditConfig.from_dict(settings["credit"])
    metrics, evaluations = read_metrics(folder), read_evaluations(folder)
    files = sorted(files_of_steps(folder / ROLLOUTS), key=step_of)
    chosen = _spread(files, args.limit)
    args = argparse.Namespace(**{**vars(args), "format": "jsonl", "quiet": True})
    sources = [str(file) for file in chosen]
    report, code = report_of_files(sources, args, config, tokens, empty=True, known=known)
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
    """Every k-th file and the last one: two, or more that together hold no more lines than the limit.

    As a run goes on, k seldom changes, so that the rollouts of a page stay.
    """
    if not files:
        return []
    with files[0].open("rb") as stream:
        each = max(1, sum(1 for _ in stream))
    most = max(2, limit // each)
    k = 1 if len(files) <= most else -(-(len(files) - 1) // (most - 1))
    return [*files[:-1:k], files[-1]]


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
