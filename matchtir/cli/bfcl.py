"""`matchtir eval bfcl`: the official BFCL benchmark's multi-turn and agentic tasks, by its own code."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from .. import files
from ..errors import ConfigError, InputError
from ..evals import Bootstrap
from ..evals.bfcl.campaign import (
    PAPER,
    TEMPERATURE,
    Model,
    Plan,
    Progress,
    choose,
    evaluate,
    generate,
    make_plan,
    read_ids,
)
from ..evals.bfcl.drive import NO_KEY, PYTHON, PYTHON_VARIABLE, WEB_KEY, Driver, DriverError, Network
from ..evals.bfcl.results import Results, Tidied, open_folder, write_ids
from ..evals.bfcl.scores import Row, read_scores, table, to_dict
from ..evals.bfcl.serving import check_endpoint, served
from ..evals.endpoint import API_KEY
from ..report import terminal
from .progress import shown
from .say import DONE, FAILED, PARTLY, say

_HELP = """\
Measure a model on BFCL's multi-turn and agentic tasks with the official package, bfcl-eval. It runs in an
environment of its own (`make setup-bfcl`), out of process and confined: it asks the model, executes its
calls and judges. The model is served here (--model alone), or is behind an OpenAI-compatible endpoint.

What is done is kept in the output folder, in the official files; the same command goes on with it."""
_EXAMPLES = """\
examples:
  matchtir eval bfcl --model runs/policy --limit 20
  matchtir eval bfcl --endpoint http://127.0.0.1:8000/v1 --model qwen3 --threads 32
  matchtir eval bfcl --endpoint http://127.0.0.1:8000/v1 --handler Qwen/Qwen3-8B-FC --categories multi_turn
  matchtir eval bfcl --endpoint http://127.0.0.1:8000/v1 --model qwen3 --json - | jq '.rows[0]'

exit codes: 0 all tasks evaluated; 1 some tasks left out; 2 nothing evaluated; 130 interrupted"""

_SHOWN_ERRORS = 5
_WEB = "web_search"


def parser() -> argparse.ArgumentParser:
    """The command's own command line."""
    command = argparse.ArgumentParser(
        prog="matchtir eval bfcl",
        usage="matchtir eval bfcl [options] (--model NAME_OR_FOLDER | --endpoint URL [--model NAME])",
        description=_HELP,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def option(flag: str, kind: Any, default: Any, text: str, **more: Any) -> None:
        shown = "" if default is None else f" (default: {default})"
        command.add_argument(flag, type=kind, default=default, help=text + shown, **{"metavar": "X"} | more)

    bootstrap = Bootstrap()
    option("--model", str, None, "name or folder; with --endpoint its name there", metavar="NAME")
    option("--endpoint", str, None, "base URL, http://127.0.0.1:8000/v1 say", metavar="URL")
    option(
        "--handler",
        str,
        None,
        "a name of bfcl-eval's registry, for a handler other than chat with tools",
        metavar="NAME",
    )
    command.add_argument(
        "--categories",
        nargs="+",
        metavar="NAME",
        help=f"(default: the paper's: multi_turn, memory, and web_search if {WEB_KEY} is set)",
    )
    option("--limit", int, None, "only so many tasks of each category, from the first")
    option(
        "--ids",
        str,
        None,
        'only these tasks, JSON: {"multi_turn_base": ["multi_turn_base_0"]}',
        metavar="FILE",
    )
    command.add_argument(
        "-o",
        "--output",
        default="bfcl",
        metavar="FOLDER",
        help="results, scores and logs; the same command resumes (default: bfcl)",
    )
    option("--threads", int, 8, "tasks at a time")
    option("--temperature", float, TEMPERATURE, "of the sampling")
    option("--timeout", float, 30.0, "seconds that the calls of a step may take")
    option("--api-key-variable", str, API_KEY, "environment variable of the key", metavar="NAME")
    option(
        "--bfcl-python",
        str,
        None,
        f"Python of the environment of bfcl-eval (default: {PYTHON}, or ${PYTHON_VARIABLE})",
        metavar="PATH",
    )
    command.add_argument(
        "--allow-errors",
        action="store_true",
        help="count tasks that could not be generated as failed, as the official commands do",
    )
    command.add_argument(
        "--allow-unsafe", action="store_true", help="run where the system cannot confine the official code"
    )
    command.add_argument("--json", metavar="OUT", help="write the scores as JSON; - is standard output")
    option("--bootstrap", int, bootstrap.samples, "resamples of the tasks; 0 for no intervals")
    option("--confidence", float, bootstrap.confidence, "share of the resamples that an interval holds")
    option("--seed", int, bootstrap.seed, "of the resampling")
    command.set_defaults(run=_run)
    return command


def _run(args: argparse.Namespace) -> int:
    """`matchtir eval bfcl`."""
    bootstrap = Bootstrap(args.bootstrap, args.confidence, args.seed)
    _check(args)
    python = args.bfcl_python or os.environ.get(PYTHON_VARIABLE) or PYTHON
    ids = None if args.ids is None else read_ids(args.ids)
    plan = _plan(args, os.path.abspath(python), _categories(args, ids))
    categories = choose(plan.categories, args.limit, ids)
    model = _model(args, plan)
    web = any(category.name.startswith(_WEB) for category in categories)
    key = os.environ.get(args.api_key_variable) or NO_KEY
    if args.endpoint is not None:
        check_endpoint(args.endpoint, key, lists_models=plan.local)
    settings = {
        "model": model.local_model or model.name,
        "handler": model.handler,
        "temperature": model.temperature,
        "bfcl-eval": plan.version,
    }
    folder = Path(args.output).resolve()
    with open_folder(folder, settings):
        driver = Driver(os.path.abspath(python), folder, args.timeout, args.allow_unsafe, say)
        write_ids(folder, categories)
        results = Results(folder / "result" / model.folder, categories)
        stopped = _generate(
            args, driver, results, model, Network(args.endpoint, key, _web_key(web)), plan.local
        )
        code = _settle(args, results, stopped)
        if code == FAILED:
            return code
        scores = folder / "score" / model.folder
        unjudged = [
            f"task {one.task}: {one.error}; it counts as failed"
            for one in _shown(evaluate(driver, results, scores, model), "judging tasks", _count(results))
            if one.error is not None
        ]
        _tell(unjudged)
        found = read_scores(scores, results, categories)
        by = "" if model.handler is None else f", handler {model.handler}"
        title = f"{settings['model']} on BFCL, bfcl-eval {plan.version}{by}"
        rows = table(found, bootstrap)
        _show(rows, to_dict(rows, found, bootstrap), args.json, title)
        return code


def _check(args: argparse.Namespace) -> None:
    """Refuse options that cannot be meant, before anything is started."""
    if args.model is None and (args.endpoint is None or args.handler is None):
        raise InputError("--model is missing; expected --model, --endpoint with --model, or with --handler")
    for name in ("limit", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}; expected at least 1")
    if not 0 < args.timeout < float("inf"):
        raise ConfigError(f"timeout is {args.timeout}; expected seconds, more than 0")
    if not args.temperature >= 0:
        raise ConfigError(f"temperature is {args.temperature}; expected 0 or more")
    output = Path(args.output)
    if output.exists() and not output.is_dir():
        raise InputError(f"output {args.output!r} is no folder")
    if args.json not in (None, files.STDIN) and not Path(args.json).absolute().parent.is_dir():
        raise InputError(
            f"output {args.json!r}: there is no folder {str(Path(args.json).absolute().parent)!r}"
        )


def _categories(args: argparse.Namespace, ids: dict[str, list[str]] | None) -> list[str]:
    """The names of the categories that are asked for; refuses Web Search without its key."""
    asked = args.categories
    if asked is None and ids is not None:
        asked = list(ids)
    elif asked is None:
        asked = [*PAPER, *([_WEB] if os.environ.get(WEB_KEY) else [])]
    if any(name.startswith(_WEB) or name == "agentic" for name in asked) and not os.environ.get(WEB_KEY):
        raise InputError(f"{_WEB} needs a key of SerpAPI; expected it in {WEB_KEY}, or other --categories")
    if ids is not None and (more := set(ids) - set(asked)) and args.categories is not None:
        say(f"{args.ids}: ids of {', '.join(sorted(more))} are left out, which --categories does not name")
    return list(asked)


def _plan(args: argparse.Namespace, python: str, categories: Sequence[str]) -> Plan:
    """What the names mean; nothing is left behind."""
    with tempfile.TemporaryDirectory(prefix="matchtir-bfcl-") as scratch:
        driver = Driver(python, Path(scratch).resolve(), args.timeout, args.allow_unsafe, say)
        return make_plan(driver, categories, args.handler, args.model)


def _model(args: argparse.Namespace, plan: Plan) -> Model:
    """The model as the official code will see it."""
    folder = None if args.model is None or not os.path.isdir(args.model) else os.path.abspath(args.model)
    if args.handler is None:
        name = folder if folder is not None and args.endpoint is None else plan.model
        return Model(name, None, args.temperature)
    if args.model not in (None, plan.model) and not (plan.local and folder is not None):
        raise InputError(
            f"requests of handler {args.handler!r} carry the name {plan.model!r}, not {args.model!r}; "
            + ("expected the model's folder" if plan.local else "expected --endpoint without --model")
        )
    return Model(plan.model, args.handler, args.temperature, folder if plan.local else None)


def _web_key(web: bool) -> str | None:
    """The key of the web searches, where there are any."""
    if not web:
        return None
    say("warning: web searches reach any web server that the model names, those of this network among them")
    return os.environ.get(WEB_KEY)


def _count(results: Results) -> int:
    """How many results there are to judge."""
    tasks = {task for category in results.categories for task in category.tasks}
    return len(tasks & results.found().keys())


def _generate(
    args: argparse.Namespace,
    driver: Driver,
    results: Results,
    model: Model,
    network: Network,
    lists_models: bool,
) -> str | None:
    """Make the results that are missing; returns why it stopped, if it did."""
    _say_tidied(results.tidy(), again=True)
    wanted = {task for category in results.categories for task in category.all}
    missing = len(wanted - results.found().keys())
    if missing < len(wanted):
        say(
            f"{driver.folder}: {len(wanted) - missing:,} of {len(wanted):,} results are there, "
            f"{missing:,} to go"
        )
    if not missing:
        return None
    errors: list[str] = []
    with ExitStack() as stack:
        if network.endpoint is None:
            (driver.folder / "logs").mkdir(exist_ok=True)
            say(f"serving {args.model}")
            source = os.path.abspath(args.model) if os.path.isdir(args.model) else args.model
            endpoint = stack.enter_context(served(source, driver.folder / "logs" / "server.log"))
            check_endpoint(endpoint, network.key, lists_models=lists_models)
            network = Network(endpoint, network.key, network.web_key)
        say(f"{missing:,} tasks and conversations of {model.name}, {args.threads} at a time")
        try:
            made = generate(driver, results, model, network, args.threads)
            for one in _shown(made, "solving tasks", missing):
                if one.error is not None:
                    errors.append(f"task {one.task}: {one.error}")
        except DriverError as error:
            return str(error)
        except KeyboardInterrupt:
            say(
                f"{len(wanted & results.found().keys()):,} of {len(wanted):,} results are there; "
                "the same command makes the others"
            )
            raise
        finally:
            _tell(errors)
    return None


def _settle(args: argparse.Namespace, results: Results, stopped: str | None) -> int:
    """Say what is missing, and take errors out unless they are to count; returns the exit code so far."""
    if stopped is not None:
        say(f"error: {stopped}")
    failed = results.failed()
    if failed:
        say(f"{len(failed):,} tasks count as failed because their calls took too long")
    if not args.allow_errors:
        _say_tidied(results.tidy(), again=False)
    found = results.found()
    tasks = [task for category in results.categories for task in category.tasks]
    missing = sum(task not in found for task in tasks)
    if missing:
        say(f"{missing:,} of {len(tasks):,} tasks are missing; the same command makes them")
    return DONE if not missing else FAILED if missing == len(tasks) else PARTLY


def _say_tidied(tidied: Tidied, *, again: bool) -> None:
    """What was taken out of the result files."""
    what = "generated again" if again else "left out; --allow-errors counts them as failed"
    if tidied.cut:
        say(f"unfinished lines of {tidied.cut:,} bytes are cut off")
    if tidied.errors:
        say(f"{len(tidied.errors):,} tasks could not be generated and are {what}")
    if tidied.dependent:
        say(f"{tidied.dependent:,} results of memories that these or missing conversations fill go too")


def _tell(errors: Sequence[str]) -> None:
    """The first errors."""
    for text in errors[:_SHOWN_ERRORS]:
        say(f"error: {text}")
    if len(errors) > _SHOWN_ERRORS:
        say(f"and {len(errors) - _SHOWN_ERRORS:,} more errors")


def _shown(done: Iterator[Progress], label: str, total: int) -> Iterator[Progress]:
    """The same, with progress on standard error."""
    return shown(done, label, total, lambda seen: f"{label}: {len(seen):,} of {total:,}")


def _show(rows: Sequence[Row], found: dict[str, Any], output: str | None, title: str) -> None:
    """The JSON file where one is wanted, and the table."""
    text = json.dumps(found, indent=2, allow_nan=False)
    if output not in (None, files.STDIN):
        with files.whole_file(Path(os.path.realpath(output))) as stream:
            stream.write(text.encode("ascii") + b"\n")
    elif output is not None:
        print(text)
    Console(stderr=output == files.STDIN, highlight=False).print(_table(rows, found, title))


def _table(rows: Sequence[Row], found: dict[str, Any], title: str) -> Group:
    """A line for each column of the paper and each average."""
    shown = Table(box=box.HORIZONTALS, padding=(0, 0, 0, 1), show_edge=False)
    for heading in ("", "correct", "tasks", "per cent", "interval"):
        shown.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    level = rows[0].level if rows else ""
    for row in rows:
        if row.level != level:
            level = row.level
            shown.add_section()
        interval = "-" if row.low is None or row.high is None else f"{100 * row.low:.1f}-{100 * row.high:.1f}"
        shown.add_row(row.name, f"{row.correct:,}", f"{row.total:,}", f"{100 * row.mean:.2f}", interval)
    notes = []
    for row in rows:
        if row.level == "average" or len(row.of) > 1 or row.name in ("Memory", "Web Search"):
            notes.append(f"{row.name}: mean of {', '.join(row.of)}.")
    if found["samples"]:
        confidence = f"{100 * found['confidence']:g} %"
        notes.append(
            f"Intervals: {confidence}, {found['samples']:,} resamples of the tasks, seed {found['seed']}."
        )
    return Group(Text(terminal.printable(title), "bold"), shown, Text("\n".join(notes), "dim"))
