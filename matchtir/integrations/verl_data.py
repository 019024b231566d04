"""Tasks to verl's parquet: ``python -m matchtir.integrations.verl_data FTRL.parquet -o train.parquet``.

What differs from row to row is JSON text: a table would give all arguments the same names.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from ..errors import MatchtirError
from ..rows import pyarrow_modules, whole_file
from ..tasks import read_tasks, task_record
from ..types import Task
from .settings import credit_config

_GOLD = ("gold_calls", "gold_answer", "sub_answers")


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
        As :func:`matchtir.tasks.task_record`.
    """
    record = task_record(task)
    gold: dict[str, Any] = {name: record.get(name) for name in _GOLD}
    if method is not None:
        credit_config(method)
        gold["method"] = method
    tools = json.dumps(record["tools"]) if task.tools else None
    prompt = [
        {"role": str(message["role"]), "content": str(message.get("content") or "")}
        for message in task.messages
    ]
    return {
        "data_source": data_source,
        "prompt": prompt,
        "ability": "tools",
        "reward_model": {"style": "rule", "ground_truth": json.dumps(gold)},
        "extra_info": {"index": index, "id": task.id, "tools": tools},
    }


def write_verl(
    path: str | os.PathLike[str],
    tasks: Iterable[Task],
    data_source: str = "matchtir",
    method: str | None = None,
) -> int:
    """Write tasks as verl's parquet; returns how many. The file is whole or not there."""
    pyarrow, parquet = pyarrow_modules()
    rows = [verl_row(task, index, data_source, method) for index, task in enumerate(tasks)]
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
        parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), stream)
    return len(rows)


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
    found: list[Task] = []
    try:
        with read_tasks(given.tasks, split=given.split) as rows:
            for row in rows:
                if row.task is None:
                    print(f"left out: {row.error}", file=sys.stderr)
                else:
                    found.append(row.task)
        count = write_verl(given.output, found, given.data_source, given.method)
    except (OSError, MatchtirError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{count} tasks in {given.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
