"""Sets of tasks: read from FTRL's files, ToolHop's, our own or the hub; written as our own; made from a seed.

The Python sources of tools are data here. Only :mod:`matchtir.tools` runs them.
"""

from .embedded import EmbeddedConfig, embedded_tasks
from .own import task_record
from .read import TASK_FORMATS, TaskFile, TaskRow, read_tasks
from .write import write_tasks

__all__ = [
    "TASK_FORMATS",
    "EmbeddedConfig",
    "TaskFile",
    "TaskRow",
    "embedded_tasks",
    "read_tasks",
    "task_record",
    "write_tasks",
]
