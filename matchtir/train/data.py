"""Which tasks a run trains on: read, checked against the method and the model, and put in order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..credit import CreditConfig
from ..errors import ConfigError, InputError
from ..rollout.judged_by import all_gold_calls
from ..rollout.loop import Template
from ..rollout.own_tools import with_new_tools
from ..tasks import EmbeddedConfig, embedded_tasks, read_tasks
from ..tools import Call, Sandbox, ToolRegistry
from ..types import Task, Tool
from .config import EMBEDDED, DataConfig

Dropped = dict[str, list[str]]
"""Why tasks are left out, and their names."""

_LISTED = 3
# What a reward needs, and a method that has this reward.
_NEEDS = {
    "matchtir": ("gold calls", "matchtir-km"),
    "toolrl": ("gold calls", "toolrl"),
    "outcome": ("gold answers", "grpo"),
    "ftrl": ("sub-answers", "ftrl"),
}
_CHECK = """
def check(source, name):
    scope = {}
    exec(compile(source, name, "exec"), scope)
    if not callable(scope.get(name)):
        raise NameError(f"it defines no function {name}")
"""


def load_tasks(source: str, split: str, data: DataConfig) -> tuple[list[Task], Dropped]:
    """Tasks of a file, or the embedded ones.

    Parameters
    ----------
    source : str
        "embedded", or a file.
    split : {"train", "test"}
        Of the embedded tasks, and which limit of `data` counts.
    data : DataConfig

    Returns
    -------
    tasks : list of Task
    dropped : dict of str to list of str
        Rows that could not be read.

    Raises
    ------
    InputError
        If nothing is left, or two tasks have one id.
    """
    dropped: Dropped = {}
    limit = data.limit if split == "train" else data.eval_limit
    if source == EMBEDDED:
        return embedded_tasks(EmbeddedConfig(seed=data.seed, mix=data.mix), split)[:limit], dropped
    tasks: list[Task] = []
    with read_tasks(source) as opened:
        for row in opened:
            if row.task is None:
                dropped.setdefault("cannot be read", []).append(str(row.error))
            else:
                tasks.append(row.task)
    ids = [task.id for task in tasks]
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise InputError(f"{source}: two tasks have the id {twice!r:.60}; expected each once")
    if not tasks:
        raise InputError(". ".join([f"{source} holds no tasks", *describe(dropped)]))
    return tasks[:limit], dropped


def usable(
    tasks: Sequence[Task], template: Template, max_prompt_tokens: int, box: Sandbox | None
) -> tuple[list[Task], Dropped]:
    """The tasks that can be posed: whose tools and environment compile and whose prompt is not too long.

    `box` compiles the sources, each different one once; without it they are taken as they are.
    """
    broken = {} if box is None else _broken_sources(tasks, box)
    kept: list[Task] = []
    dropped: Dropped = {}
    for task in tasks:
        faults = [fault for pair in _sources(task) if (fault := broken.get(pair))]
        if faults:
            why = "have a tool or an environment that cannot be used"
            dropped.setdefault(why, []).append(f"{task.id}: {faults[0]}")
            continue
        try:
            length = len(template.prompt(task.messages, ToolRegistry(task.tools).schemas()))
            ToolRegistry(_all_tools(task))
            for turn in task.later:
                template.user_turn(with_new_tools(turn.messages, ToolRegistry(turn.tools).schemas()))
        except InputError as error:
            dropped.setdefault("have messages that cannot be rendered", []).append(f"{task.id}: {error}")
            continue
        if length > max_prompt_tokens:
            why = f"have a prompt of more than {max_prompt_tokens:,} tokens"
            dropped.setdefault(why, []).append(f"{task.id}: {length:,}")
        else:
            kept.append(task)
    return kept, dropped


def _all_tools(task: Task) -> list[Tool]:
    """The tools of all user turns."""
    return [*task.tools, *(tool for turn in task.later for tool in turn.tools)]


def _sources(task: Task) -> list[tuple[str, str]]:
    """Source and name of a task's tools and environment."""
    found = [(tool.source, tool.name) for tool in _all_tools(task) if tool.source is not None]
    return found if task.environment is None else [*found, (task.environment.source, task.environment.name)]


def _broken_sources(tasks: Sequence[Task], box: Sandbox) -> dict[tuple[str, str], str]:
    """Sources that cannot be run or do not define what they should, and why, by source and name."""
    found = sorted({pair for task in tasks for pair in _sources(task)})
    calls = [Call(_CHECK, "check", {"source": source, "name": name}) for source, name in found]
    results = box.map(calls)
    return {
        pair: f"{pair[1]}: {result.error or result.status}"
        for pair, result in zip(found, results, strict=True)
        if result.status != "ok"
    }


def judged(tasks: Sequence[Task], credit: CreditConfig, method: str) -> tuple[list[Task], Dropped]:
    """The tasks that the method can reward.

    Raises ConfigError if it is none; the message says which methods these tasks have what they need for.
    """
    what = _NEEDS[credit.reward][0]
    kept = [task for task in tasks if _has(task, credit.reward)]
    if not kept:
        others = [able for name, (_, able) in _NEEDS.items() if any(_has(task, name) for task in tasks)]
        raise ConfigError(
            f"method {method} needs {what}, and none of the {len(tasks)} tasks has them; expected "
            + (f"one of the methods {', '.join(others)}, which do not need them" if others else "other tasks")
        )
    missing = [task.id for task in tasks if not _has(task, credit.reward)]
    return kept, ({f"have no {what}": missing} if missing else {})


def _has(task: Task, reward: str) -> bool:
    """Whether a task holds what a reward needs."""
    if reward == "outcome":
        judged = task.environment is not None and task.environment.judge is not None
        return judged or any([task.gold_answer, *(turn.gold_answer for turn in task.later)])
    return bool(all_gold_calls(task) if reward in ("matchtir", "toolrl") else task.sub_answers)


def describe(dropped: Dropped) -> list[str]:
    """One line a reason, with the first names."""
    lines = []
    for why, names in dropped.items():
        shown = "; ".join(names[:_LISTED]) + ("; …" if len(names) > _LISTED else "")
        lines.append(f"{len(names):,} tasks left out, which {why}: {shown}")
    return lines


def batch_of(count: int, size: int, seed: int, step: int) -> list[int]:
    """Indices of the tasks of a training step, different from each other.

    Each epoch is an order of its own, drawn from the seed, cut into whole batches; so a step's tasks depend
    on nothing but these arguments.

    Raises ConfigError if there are fewer tasks than a batch takes.
    """
    if count < size:
        raise ConfigError(
            f"update.prompts is {size} and there are {count} tasks; expected no more than these"
        )
    epoch, place = divmod(step, count // size)
    order = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, epoch)))).permutation(count)
    return [int(i) for i in order[place * size : (place + 1) * size]]
