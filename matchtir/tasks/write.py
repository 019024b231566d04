"""Tasks out: a file of JSON lines that is whole or not there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable

from ..errors import InputError
from ..rows import whole_file
from ..types import Task
from .own import task_record


def write_tasks(path: str | os.PathLike[str], tasks: Iterable[Task]) -> int:
    """Write tasks as JSON lines of our schema; :func:`read_tasks` gives equal tasks back.

    Parameters
    ----------
    path : str or path
        Appears only when the file is complete; what stood there is replaced.
    tasks : iterable of Task
        Taken one by one. Of gold calls names, arguments and results are kept.

    Returns
    -------
    int
        The number of tasks.

    Raises
    ------
    InputError
        If a task cannot be written, see :func:`task_record`, holds a value that is no JSON, or has the id
        of an earlier one. Nothing is written then.

    Examples
    --------
    >>> import os, tempfile
    >>> task = Task("t1", ({"role": "user", "content": "2 + 2?"},), gold_answer="4")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_tasks(os.path.join(folder, "tasks.jsonl"), [task])
    1
    """
    seen: set[str] = set()
    with whole_file(path) as stream:
        for task in tasks:
            try:
                if task.id in seen:
                    raise InputError("an earlier task has the same id")
                line = json.dumps(task_record(task), allow_nan=False)
            except (TypeError, ValueError, RecursionError) as error:
                raise InputError(f"task {task.id!r} cannot be written: {error}") from error
            seen.add(task.id)
            stream.write(line.encode("ascii") + b"\n")
    return len(seen)
