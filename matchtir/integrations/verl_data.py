"""Tasks to verl's parquet: ``python -m matchtir.integrations.verl_data FTRL.parquet -o train.parquet``.

What differs from row to row is JSON text: a table would give all arguments the same names.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..errors import InputError, MatchtirError
from ..rows import pyarrow_modules, whole_file
from ..tasks import read_tasks, task_record
from ..types import Task
from .settings import NEEDS, credit_config

_GOLD = ("gold_calls", "gold_answer", "sub_answers")
_OTHERS = {"later": "later user turns", "environment": "an environment"}


def verl_row(task: Task, index: int, data_source: str, method: str | None = None) -> dict[str, Any]:
    """A task as a row of verl's data sets.

    Parameters
    ----------
    task : Task
    index : int
        Of the row, which verl's dumps name.
    data_source : str
        The name under which verl logs validation.
    method : str, optional
        One of :data:`matchtir.methods.METHODS` that judges this row, whatever judges the others: FTRL's test
        set, say, has sub-answers and no gold calls.

    Returns
    -------
    dict
        `prompt`, `data_source`, `reward_model` with the JSON of what the rollout is judged by, and
        `extra_info` with the JSON of the tools, sources included.

    Raises
    ------
    InputError
        As :func:`matchtir.tasks.task_record`; or the row would not be the task: verl has one user turn and no
        environment, and this table messages of role and text alone.
    """
    for field in ("later", "environment"):
        if getattr(task, field):
            raise InputError(
                f"task {task.id!r} has {_OTHERS[field]}; expected none, since verl's agent loop has none"
            )
    record = task_record(task)
    gold: dict[str, Any] = {name: record.get(name) for name in _GOLD}
    if method is not None:
        credit_config(method)
        gold["method"] = method
    tools = json.dumps(record["tools"]) if task.tools else None
    prompt = [
        _message(message, f"message {m} of task {task.id!r}") for m, message in enumerate(task.messages)
    ]
    return {
        "data_source": data_source,
        "prompt": prompt,
        "ability": "tools",
        "reward_model": {"style": "rule", "ground_truth": json.dumps(gold)},
        "extra_info": {"index": index, "id": task.id, "tools": tools},
    }


def _message(message: Mapping[str, Any], where: str) -> dict[str, str]:
    """A message as the table has it, with nothing lost."""
    others = sorted(key for key in message if key not in ("role", "content") and message[key] is not None)
    if others:
        raise InputError(f"{where} has {', '.join(others)}; expected role and content alone")
    content = message.get("content")
    if not isinstance(content, str):
        raise InputError(f"{where} has a content of type {type(content).__name__}; expected text")
    return {"role": str(message["role"]), "content": content}


def lacking(task: Task, method: str | None = None) -> str | None:
    """The field without which a task cannot be judged by the method, if it has not that.

    Without a method, which is then that of the training, None if it has any of them.

    Examples
    --------
    >>> lacking(Task("t1", ({"role": "user", "content": "2 + 2?"},), gold_answer="4"), "matchtir-km")
    'gold_calls'
    """
    if method is None:
        return None if any(getattr(task, name) for name in _GOLD) else " or ".join(_GOLD)
    needed = NEEDS[credit_config(method).reward]
    return None if getattr(task, needed) else needed


def write_verl(
    path: str | os.PathLike[str],
    tasks: Iterable[Task],
    data_source: str = "matchtir",
    method: str | None = None,
) -> int:
    """Write tasks as verl's parquet; returns how many. The file is whole or not there.

    Raises InputError for a task that cannot be judged, see :func:`lacking`, or as :func:`verl_row`.
    """
    rows = []
    for index, task in enumerate(tasks):
        _check_judged(task, method)
        rows.append(verl_row(task, index, data_source, method))
    _write(path, rows)
    return len(rows)


def _check_judged(task: Task, method: str | None) -> None:
    """Raise InputError if the method cannot judge the task."""
    missing = lacking(task, method)
    if missing:
        by = "anything could be" if method is None else f"method {method} is"
        raise InputError(f"task {task.id!r} has no {missing}, which {by} judged by")


def _write(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows as a table."""
    pyarrow, parquet = pyarrow_modules()
    text = pyarrow.string()
    schema = pyarrow.schema(
        {
            "data_source": text,
            "prompt": pyarrow.list_(pyarrow.struct({"role": text, "content": text})),
            "ability": text,
            "reward_model": pyarrow.struct({"style": text, "ground_truth": text}),
            "extra_info": pyarrow.struct({"index": pyarrow.int64(), "id": text, "tools": text}),
        }
    )
    with whole_file(path) as stream:
        parquet.write_table(pyarrow.Table.from_pylist(list(rows), schema=schema), stream)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m matchtir.integrations.verl_data", description="Write tasks as verl's parquet."
    )
    parser.add_argument("tasks", help="a file of tasks that matchtir reads: FTRL's, ToolHop's or its own")
    parser.add_argument("-o", "--output", required=True, help="the parquet file")
    parser.add_argument("--data-source", default="matchtir", help="name for verl's validation metrics")
    parser.add_argument("--method", help="what judges these rows, if not algorithm.matchtir.method")
    parser.add_argument("--split", help="split of a data set")
    given = parser.parse_args(arguments)
    made: list[dict[str, Any]] = []
    left_out = bare = 0
    try:
        if given.method is not None:
            credit_config(given.method)
        with read_tasks(given.tasks, split=given.split) as rows:
            for row in rows:
                try:
                    if row.task is None:
                        raise InputError(str(row.error))
                    _check_judged(row.task, given.method)
                    made.append(verl_row(row.task, len(made), given.data_source, given.method))
                    bare += not row.task.gold_calls
                except InputError as error:
                    left_out += 1
                    print(f"left out: {error}", file=sys.stderr)
        if not made:
            print(f"no task written: {left_out} left out, and {given.output} not made", file=sys.stderr)
            return 1
        _write(given.output, made)
    except (OSError, MatchtirError) as error:
        print(error, file=sys.stderr)
        return 1
    if bare and given.method is None:
        print(
            f"{bare} of {len(made)} tasks have no gold_calls, which matchtir-km and most others judge by; "
            "--method names what judges these rows",
            file=sys.stderr,
        )
    print(f"{len(made)} tasks in {given.output}" + (f", {left_out} left out" if left_out else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
