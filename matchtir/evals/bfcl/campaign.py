"""The way of a run: which tasks, their results by the official code, and its verdicts on them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InputError
from .drive import Driver, HungError, Network
from .results import Category, Results

TEMPERATURE = 0.001
"""The official commands' own."""

PAPER = (
    *("multi_turn_base", "multi_turn_miss_func", "multi_turn_miss_param", "multi_turn_long_context"),
    *("memory_kv", "memory_vector", "memory_rec_sum"),
)
"""The paper's categories without Web Search, which needs a key."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What there is: the categories, the version of bfcl-eval, and the handler.

    Attributes
    ----------
    categories : tuple of Category
        With all their tasks.
    version : str
        Of bfcl-eval.
    local : bool
        Whether the handler writes prompts itself, with the model's tokenizer.
    model : str
        The name that requests carry.
    """

    categories: tuple[Category, ...]
    version: str
    local: bool
    model: str


@dataclass(frozen=True, slots=True)
class Progress:
    """A task that is done, and what went wrong with it if anything did."""

    task: str
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """How the official code sees the model.

    Parameters
    ----------
    name : str
        The name that requests carry.
    handler : str, optional
        A name of the official registry; None registers the model as one behind a chat endpoint with tools.
    temperature : float
        Of the sampling.
    local_model : str, optional
        Folder of the model, for handlers that need its tokenizer.
    """

    name: str
    handler: str | None = None
    temperature: float = TEMPERATURE
    local_model: str | None = None

    @property
    def label(self) -> str:
        """Its name in the official registry; that of its folders has "_" for each "/"."""
        if self.handler is not None:
            return self.handler
        name = self.name.rstrip("/").rpartition("/")[2] if Path(self.name).is_dir() else self.name
        label = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
        return label if re.match("[A-Za-z_]", label) else f"m_{label}"

    @property
    def folder(self) -> str:
        """The name of its folders."""
        return self.label.replace("/", "_")

    @property
    def job(self) -> dict[str, Any]:
        """As the driver takes it."""
        return {"model": self.name, "handler": self.handler, "label": self.label}


def make_plan(driver: Driver, categories: Sequence[str], handler: str | None, model: str | None) -> Plan:
    """Ask the official code what the names mean; raises InputError for names it does not know."""
    found: Mapping[str, Any] = {}
    version = ""
    for event in driver.run("plan", None, categories=list(categories), handler=handler, model=model):
        version = event.get("version", version)
        found = event.get("plan", found)
    return Plan(
        tuple(
            Category(
                one["name"],
                one["folder"],
                one["prefix"],
                tuple(one["tasks"]),
                {scenario: tuple(ids) for scenario, ids in one["before"].items()},
                one["scenarios"],
            )
            for one in found["categories"]
        ),
        version,
        bool(found["handler"]["local"]),
        str(found["handler"]["model"]),
    )


def read_ids(path: str) -> dict[str, list[str]]:
    """A list of tasks as the official commands read it, by category. Raises InputError, OSError."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(found, dict) or not all(
            isinstance(ids, list) and all(isinstance(one, str) for one in ids) for ids in found.values()
        ):
            raise ValueError("no object of lists")
    except ValueError as error:
        raise InputError(
            f'ids {path!r} is not JSON such as {{"multi_turn_base": ["multi_turn_base_0"]}}: {error}'
        ) from None
    return {name: ids for name, ids in found.items() if ids}


def choose(
    categories: Sequence[Category], limit: int | None, ids: Mapping[str, Sequence[str]] | None
) -> list[Category]:
    """The categories with the tasks that are wanted; raises InputError for ids that there are not."""
    chosen = []
    for category in categories:
        tasks: Sequence[str] = category.tasks
        if ids is not None:
            asked = ids.get(category.name, ())
            unknown = [one for one in asked if one not in category.all]
            if unknown:
                like = f"expected one like {category.tasks[0]!r}"
                raise InputError(f"id {unknown[0]!r} is no task of {category.name}; {like}")
            tasks = [one for one in category.tasks if one in asked]
        tasks = tasks[:limit]
        if tasks:
            chosen.append(category.chosen(tasks))
    if not chosen:
        raise InputError("no tasks are left; expected ids of the categories that are asked for")
    return chosen


def generate(
    driver: Driver, results: Results, model: Model, network: Network, threads: int
) -> Iterator[Progress]:
    """Have the official code make the results that are missing.

    A task whose calls take too long ends the official code; it is recorded as failed, and the others go on.

    Parameters
    ----------
    driver : Driver
        The official code.
    results : Results
        Of the tasks that are wanted, tidied.
    model : Model
        What is asked.
    network : Network
        Where it is.
    threads : int
        Tasks at a time.

    Yields
    ------
    Progress
        One per task.

    Raises
    ------
    InputError, DriverError
        As :meth:`Driver.run`.
    """
    owners = {task: category for category in results.categories for task in category.all}
    job = {
        **model.job,
        "tasks": list(owners),
        "categories": [category.name for category in results.categories],
        "temperature": model.temperature,
        "threads": threads,
        "local_model": model.local_model,
    }
    read = [model.local_model] if model.local_model is not None else []
    while owners.keys() - results.found().keys():
        try:
            for event in driver.run("generate", "generate.log", network, read, **job):
                if "task" in event:
                    yield Progress(event["task"], event["error"])
            return
        except HungError as hung:
            results.tidy()
            results.fail(owners[hung.task], hung.task, hung.reason)
            yield Progress(hung.task, hung.reason)


def evaluate(driver: Driver, results: Results, scores: Path, model: Model) -> Iterator[Progress]:
    """Have the official code judge the results that are there.

    Parameters
    ----------
    driver : Driver
        The official code.
    results : Results
        What to judge.
    scores : Path
        The model's folder of scores.
    model : Model
        Whose results they are.

    Yields
    ------
    Progress
        One per task; an error says that it counts as failed because it could not be judged.

    Raises
    ------
    InputError, DriverError
        As :meth:`Driver.run`.
    """
    there = [category for category in results.categories if results.file(category).exists()]
    for category in there:  # of results that were others
        (scores / category.folder / f"{category.prefix}_{category.name}_score.json").unlink(missing_ok=True)
    failed: dict[str, str] = {}
    told: set[str] = set()
    job = {**model.job, "categories": [category.name for category in there]}
    while there:
        read = [model.local_model] if model.local_model is not None else []
        try:
            for event in driver.run("evaluate", "evaluate.log", None, read, failed=failed, **job):
                if "failed" in event:
                    yield Progress(event["failed"], event["reason"])
                elif "task" in event and event["task"] not in told:
                    told.add(event["task"])
                    yield Progress(event["task"])
            return
        except HungError as hung:
            failed[hung.task] = hung.reason
            yield Progress(hung.task, hung.reason)
