"""`matchtir eval --endpoint`: rollouts of a model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from .. import files
from ..errors import ConfigError, InputError
from ..evals.campaign import Finished, Settings, remaining, run_tasks
from ..evals.chat import ChatError
from ..evals.endpoint import API_KEY, Endpoint
from ..evals.journal import Journal, tasks_digest
from ..tasks import read_tasks, sandbox_modules
from ..tasks.embedded import embedded_tasks
from ..tools import Sandbox
from ..types import Task
from .progress import shown
from .say import DONE, FAILED, PARTLY, say

EMBEDDED = "embedded"

_SHOWN_ERRORS = 5


def add_endpoint_options(command: argparse.ArgumentParser) -> None:
    """Options that say which model is asked, what, and how."""
    group = command.add_argument_group("live evaluation of a model behind an OpenAI-compatible endpoint")

    def option(flag: str, kind: Any, default: Any, text: str, **more: Any) -> None:
        shown = "" if default is None else f" (default: {default})"
        group.add_argument(flag, type=kind, default=default, help=text + shown, **{"metavar": "X"} | more)

    option("--endpoint", str, None, "base URL, http://127.0.0.1:8000/v1 say", metavar="URL")
    option("--model", str, None, "the model's name there", metavar="NAME")
    option(
        "--tasks", str, None, f"file of tasks, or {EMBEDDED}: those that come with matchtir", metavar="PATH"
    )
    group.add_argument(
        "-o", "--output", metavar="FILE", help="keep the rollouts (JSON lines); the same command resumes them"
    )
    group.add_argument("--fresh", action="store_true", help="start over, whatever FILE holds")
    option("--samples", int, 1, "rollouts of each task")
    option("--limit", int, None, "only so many tasks, from the first")
    option("--concurrency", int, Settings().concurrency, "rollouts at a time")
    option("--max-turns", int, Settings().max_turns, "turns of a rollout")
    option("--temperature", float, None, "of the sampling (default: the server's)")
    option("--max-tokens", int, None, "of an answer (default: the server's)")
    option("--sampling-seed", int, None, "seed of the requests; sample k gets this plus k")
    option("--extra", _json_object, {}, "further fields of the request", metavar="JSON")
    option("--api-key-variable", str, API_KEY, "environment variable of the key", metavar="NAME")
    option("--request-timeout", float, Endpoint.timeout, "seconds a request may take")
    option("--retries", int, Endpoint.retries, "how often a failed request is tried again")
    option("--workers", int, 2, "processes of the sandbox in which tools run")
    option("--timeout", float, 10.0, "seconds a tool may take")
    group.add_argument(
        "--allow-unsafe", action="store_true", help="run tools where the system cannot confine them"
    )


def is_live(args: argparse.Namespace) -> bool:
    """Whether rollouts are to be made, and not only read."""
    return any(getattr(args, name) is not None for name in ("endpoint", "model", "tasks", "output"))


@contextmanager
def live_rollouts(args: argparse.Namespace) -> Iterator[tuple[str | None, int]]:
    """Make the rollouts that the options ask for.

    Yields the file that holds them, None if it holds none, and the exit code so far. Without `-o` the file
    is a temporary one.
    """
    endpoint, settings = _endpoint(args), _settings(args)
    _check_output(args)
    tasks, broken = _tasks(args.tasks)
    run = {
        **endpoint.settings,
        "tasks": tasks_digest(tasks),
        "max_turns": settings.max_turns,
        "text_format": settings.text_format,
        "timeout": args.timeout,
    }
    with ExitStack() as stack:
        folder = "" if args.output else stack.enter_context(tempfile.TemporaryDirectory())
        path = args.output or os.path.join(folder, "rollouts.jsonl")
        journal = stack.enter_context(Journal(path, run, fresh=args.fresh))
        if journal.cut:
            say(f"{path}: an unfinished line of {journal.cut:,} bytes is cut off")
        code = _fill(journal, tasks[: args.limit], endpoint, settings, args)
        yield (path if journal.done else None), (PARTLY if broken and code == DONE else code)


def _fill(
    journal: Journal, tasks: list[Task], endpoint: Endpoint, settings: Settings, args: argparse.Namespace
) -> int:
    """Make the rollouts that the file lacks; returns the exit code."""
    jobs = remaining(tasks, journal.done, settings.samples)
    whole = len(tasks) * settings.samples
    if len(jobs) < whole:
        say(f"{journal.path}: {whole - len(jobs):,} of {whole:,} rollouts are there, {len(jobs):,} to go")
    if jobs:
        say(f"{len(jobs):,} rollouts of {args.model} at {args.endpoint}, {settings.concurrency} at a time")
    missing = len(jobs)
    errors: list[str] = []
    try:
        with ExitStack() as stack:
            box = None
            if jobs and any(map(_needs_sandbox, tasks)):
                box = stack.enter_context(
                    Sandbox(
                        workers=args.workers,
                        timeout=args.timeout,
                        modules=sandbox_modules(tasks),
                        allow_unsafe=args.allow_unsafe,
                    )
                )
            made = run_tasks(jobs, endpoint.policy, box, journal, settings)
            for one in shown(made, "solving tasks", len(jobs), lambda seen: _line(seen, len(jobs))):
                if one.error is None:
                    missing -= 1
                else:
                    errors.append(f"task {one.key[0]}, sample {one.key[1]}: {one.error}")
    except ChatError as error:
        errors.insert(0, str(error))
    except KeyboardInterrupt:
        say(f"{whole - missing:,} of {whole:,} rollouts are done; {_how_to_resume(args)}")
        raise
    for text in errors[:_SHOWN_ERRORS]:
        say(f"error: {text}")
    if missing and journal.done:
        say(f"{missing:,} of {whole:,} rollouts are missing; {_how_to_resume(args)}")
    return DONE if not missing else PARTLY if journal.done else FAILED


def _needs_sandbox(task: Task) -> bool:
    """Whether it has an environment, or a tool that is source."""
    tools = [*task.tools, *(tool for turn in task.later for tool in turn.tools)]
    return task.environment is not None or any(tool.source is not None for tool in tools)


def _line(seen: list[Finished], whole: int) -> str:
    """How far the rollouts are, in words."""
    failed = sum(one.error is not None for one in seen)
    return f"{len(seen):,} of {whole:,} rollouts, {failed:,} failed"


def _how_to_resume(args: argparse.Namespace) -> str:
    """What to do about rollouts that are missing."""
    if args.output:
        return "the same command makes the others" + (", without --fresh" if args.fresh else "")
    return "nothing is kept without -o"


def _endpoint(args: argparse.Namespace) -> Endpoint:
    """The endpoint that the options name."""
    for name in ("endpoint", "model", "tasks"):
        if getattr(args, name) is None:
            raise InputError(f"--{name} is missing; --endpoint, --model and --tasks go together")
    if args.files or args.sample:
        raise InputError("--endpoint makes rollouts itself; expected no FILE and no --sample")
    return Endpoint(
        args.endpoint,
        args.model,
        api_key_variable=args.api_key_variable,
        timeout=args.request_timeout,
        retries=args.retries,
        temperature=args.temperature,
        max_tokens=args.max_tokens,
        seed=args.sampling_seed,
        extra=args.extra,
    )


def _settings(args: argparse.Namespace) -> Settings:
    """How many rollouts, and how long."""
    if args.limit is not None and args.limit < 1:
        raise ConfigError(f"limit is {args.limit}; expected at least 1")
    return Settings(args.samples, args.concurrency, args.max_turns, args.text_format)


def _check_output(args: argparse.Namespace) -> None:
    """Refuse a file of rollouts that would replace something else."""
    output = args.output
    if output is None:
        return
    if output == files.STDIN:
        raise InputError("output '-' is standard output; expected a file, to which a run can go back")
    for other, what in ((args.tasks, "tasks"), (args.json, "metrics")):
        if other is not None and os.path.realpath(other) == os.path.realpath(output):
            raise InputError(f"output {output!r} is the file of {what} too; expected another file")
    if os.path.exists(output) and not os.path.isfile(output):
        raise InputError(f"output {output!r} exists and is no ordinary file")


def _tasks(source: str) -> tuple[list[Task], int]:
    """The tasks to solve, and how many rows of the file are none."""
    if source == EMBEDDED:
        return embedded_tasks(split="test"), 0
    tasks: list[Task] = []
    broken: list[str] = []
    with read_tasks(source) as opened:
        for row in opened:
            if row.task is not None:
                tasks.append(row.task)
            else:
                broken.append(str(row.error))
    for text in broken[:_SHOWN_ERRORS]:
        say(text)
    if broken:
        say(f"{source}: {len(broken):,} broken rows left out, {len(tasks):,} tasks read")
    if not tasks:
        raise InputError(f"{source} holds no tasks")
    return tasks, len(broken)


def _json_object(text: str) -> dict[str, Any]:
    """The value of an option that is a JSON object."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object")
    return value
