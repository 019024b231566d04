"""BFCL's multi-turn tasks: dialogues over stateful tools, which the package bfcl_eval runs and judges."""

from __future__ import annotations

import ast
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, final

from ..errors import InputError
from ..parse.messages import mapping_at, sequence_at
from ..rows import RawRow
from ..types import Environment, Task, ToolCall, UserTurn
from .bfcl_package import BFCL_CATEGORIES, entries, hint, message_of_added_tools, tools_of
from .fields import checked, field, id_of

BFCL = "bfcl"

_EVALUATION = "bfcl_eval.eval_checker.multi_turn_eval"
_CLASSES = (
    *("gorilla_file_system", "math_api", "message_api", "posting_api"),
    *("ticket_api", "trading_bot", "travel_booking", "vehicle_control"),
)

BFCL_MODULES = (
    f"{_EVALUATION}.multi_turn_checker",
    *(f"{_EVALUATION}.func_source_code.{name}" for name in _CLASSES),
)
"""What a sandbox must import to hold these tasks' environments: ``Sandbox(modules=BFCL_MODULES)``."""

_SPLITS = ("train", "test")
_FOUR = 4  # one scenario in four is for testing


def bfcl_split(number: int) -> Literal["train", "test"]:
    """Which split a scenario belongs to.

    The tasks of one number are variants of one scenario in all four categories, so they go together. Of
    every four numbers in order, 0 to 3, 4 to 7 and so on, one is for testing: of the k-th four, from 0, the
    one at the first byte of SHA-256 of ``bfcl multi-turn k``, modulo 4.

    Parameters
    ----------
    number : int
        At the end of the task's id, from 0 to 199.

    Returns
    -------
    {"train", "test"}
        150 numbers are of the one, 50 of the other.

    Examples
    --------
    >>> [number for number in range(16) if bfcl_split(number) == "test"]
    [0, 6, 11, 15]
    """
    k, place = divmod(number, _FOUR)
    chosen = hashlib.sha256(f"bfcl multi-turn {k}".encode()).digest()[0] % _FOUR
    return "test" if place == chosen else "train"


def bfcl_tasks(
    categories: Sequence[str] = BFCL_CATEGORIES, split: str | None = None, *, irrelevance: bool = False
) -> list[Task]:
    """The multi-turn tasks of the installed package bfcl_eval.

    Parameters
    ----------
    categories : sequence of str
        Some of `BFCL_CATEGORIES`.
    split : {"train", "test"}, optional
        By :func:`bfcl_split`; by default all tasks.
    irrelevance : bool
        Whether a call is wrong in a user turn that needs none, in the categories miss_func and miss_param.
        The package has a check of this and does not use it (version 2026.3.23); False judges as it does.

    Returns
    -------
    list of Task
        200 a category, in order; 150 or 50 with a split.

    Raises
    ------
    ImportError
        If the package is not installed; the message says how to.
    InputError
        If a category or the split is unknown, or the package's files are not as expected.
    """
    source = BfclRows(":".join([BFCL, *categories]), split)
    return [task_from_bfcl(row, index, irrelevance) for index, _, row in source.rows()]


def gold_by_user_turn(task: Task) -> list[tuple[ToolCall, ...]]:
    """The gold calls of a dialogue, user turn by user turn."""
    return [task.gold_calls, *(turn.gold_calls for turn in task.later)]


def sandbox_modules(tasks: Iterable[Task]) -> tuple[str, ...]:
    """What a sandbox must import besides the usual modules, so that it can hold these tasks' environments."""
    source = world_source()
    worlds = any(task.environment is not None and task.environment.source == source for task in tasks)
    return BFCL_MODULES if worlds else ()


def is_bfcl(source: str | os.PathLike[str]) -> bool:
    """Whether this names BFCL's tasks: ``bfcl``, then categories and a split, after a colon each."""
    return isinstance(source, str) and source.split(":")[0] == BFCL and not os.path.lexists(source)


@final
class BfclRows:
    """The entries of the package; they come as the rows of a file do.

    Parameters
    ----------
    source : str
        ``bfcl:multi_turn_base:train`` say. Without a category all four, without a split all numbers.
    split : {"train", "test"}, optional
        Instead of the one in `source`.
    """

    def __init__(self, source: str, split: str | None = None) -> None:
        self.name = source
        words = source.split(":")[1:]
        for word in [*words, *([] if split is None else [split])]:
            if word not in (*BFCL_CATEGORIES, *_SPLITS):
                known = ", ".join((*BFCL_CATEGORIES, *_SPLITS))
                raise InputError(f"{source} names {word!r}, which BFCL's tasks do not have; expected {known}")
        splits = {word for word in [*words, split] if word in _SPLITS}
        if len(splits) > 1:
            raise InputError(f"{source} names the splits train and test; expected one of them, or none")
        chosen = [one for one in BFCL_CATEGORIES if one in words] or BFCL_CATEGORIES
        found = [entry for category in chosen for entry in entries(category)]
        self._rows = [entry for entry in found if not splits or bfcl_split(number_of(entry)) in splits]
        self._done = 0

    def rows(self) -> Iterator[RawRow]:
        """Rows in order; to be called once."""
        for index, entry in enumerate(self._rows):
            yield index, f"{self.name}, row {index}", entry
            self._done = index + 1

    @property
    def progress(self) -> tuple[int, int | None]:
        """Rows read, and rows that there are."""
        return self._done, len(self._rows)

    def close(self) -> None:
        """Let go of the rows."""
        self._rows = []


def number_of(entry: Mapping[str, Any]) -> int:
    """The number of an entry's scenario."""
    name = id_of(entry, "")
    if not name.rpartition("_")[2].isdecimal():
        raise InputError(f"id is {name!r}; expected a category and a number")
    return int(name.rpartition("_")[2])


def task_from_bfcl(row: Mapping[str, Any], index: int, irrelevance: bool = False) -> Task:
    """A task from one entry of the package with its ground truth, the `index`-th of its source."""
    name = id_of(row, f"bfcl-{index}")
    classes = [str(one) for one in sequence_at(field(row, "involved_classes", "names"), "involved_classes")]
    held_out = mapping_at(row.get("missed_function") or {}, "missed_function")
    truth = sequence_at(field(row, "ground_truth", "the calls of each user turn"), "ground_truth")
    questions = sequence_at(field(row, "question", "the messages of each user turn"), "question")
    if len(truth) != len(questions):
        raise InputError(f"ground_truth has {len(truth)} user turns but question {len(questions)}")
    tools = {tool.name: tool for one in classes for tool in tools_of(one)}
    parameters = {key: list(tool.parameters["properties"]) for key, tool in tools.items()}
    since = {one: int(t) for t, names in held_out.items() for one in names if one in tools}
    # The package adds its hint to those that are there from the start, not to those that come later.
    ending = hint()
    for key in tools.keys() - since.keys():
        tools[key] = replace(tools[key], description=tools[key].description + ending)
    turns = []
    for t, (messages, texts) in enumerate(zip(questions, truth, strict=True)):
        said = messages or [{"role": "user", "content": message_of_added_tools()}]
        added = tuple(tools[one] for one, turn in since.items() if turn == t)
        calls = [gold_call(one, parameters) for one in texts]
        # One task of the package needs a tool before it has it. What the model cannot call is no gold call.
        known = tuple(call for call in calls if since.get(call.name, 0) <= t)
        turns.append(UserTurn(tuple(said), added, known))
    first, *later = turns
    arguments = {
        "id": name,
        "involved_classes": classes,
        "initial_config": row.get("initial_config", {}),
        "ground_truth": truth,
        "irrelevance": irrelevance,
    }
    return checked(
        Task(
            name,
            first.messages,
            tuple(tool for key, tool in tools.items() if since.get(key, 0) == 0),
            first.gold_calls,
            kind=name.rpartition("_")[0],
            # The package runs calls whatever their arguments are; one of its own gold calls has a wrong type.
            environment=Environment(world_source(), "World", arguments, judge="judge", checked=False),
            later=tuple(later),
        )
    )


def gold_call(text: str, parameters: Mapping[str, Sequence[str]]) -> ToolCall:
    """A call from Python source, its positional arguments named; raises InputError where it is no call."""
    try:
        node = ast.parse(text, mode="eval").body
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            raise ValueError("no call of a function by its name")
        if node.func.id not in parameters:
            raise ValueError(f"no tool is named {node.func.id}")
        names = parameters[node.func.id]
        if len(node.args) > len(names):
            raise ValueError(f"{len(node.args)} positional arguments but {len(names)} parameters")
        pairs = [*zip(names, node.args, strict=False), *((one.arg, one.value) for one in node.keywords)]
        arguments = {str(key): ast.literal_eval(value) for key, value in pairs if key is not None}
        if len(arguments) != len(pairs) or json.loads(json.dumps(arguments)) != arguments:
            raise ValueError("arguments that JSON cannot hold")
    except (SyntaxError, TypeError, ValueError) as error:
        raise InputError(f"ground_truth holds {text!r:.120}: {error}") from None
    return ToolCall(node.func.id, arguments)


@lru_cache
def world_source() -> str:
    """The source of the environment."""
    return Path(__file__).with_name("bfcl_world.py").read_text("utf-8")
