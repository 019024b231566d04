"""Sets of tasks: read of FTRL, ToolHop, BFCL, our own or the hub; written as our own; made from a seed.

The Python sources of tools are data here. Only :mod:`matchtir.tools` runs them.
"""

from .bfcl import BFCL_MODULES, bfcl_split, bfcl_tasks, gold_by_user_turn, sandbox_modules
from .bfcl_package import BFCL_CATEGORIES
from .embedded import EmbeddedConfig, embedded_tasks
from .own import task_record
from .read import TASK_FORMATS, TaskFile, TaskRow, read_tasks
from .write import write_tasks

__all__ = [
    "BFCL_CATEGORIES",
    "BFCL_MODULES",
    "TASK_FORMATS",
    "EmbeddedConfig",
    "TaskFile",
    "TaskRow",
    "bfcl_split",
    "bfcl_tasks",
    "embedded_tasks",
    "gold_by_user_turn",
    "read_tasks",
    "sandbox_modules",
    "task_record",
    "write_tasks",
]
