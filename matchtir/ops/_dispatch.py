"""Which backend of an op runs: picked once, logged once, and forceable.

An op is a package ``matchtir.ops.<op>`` with one module a backend; `reference` is written for the
reader and is always there. The choice, first that applies: the `backend` argument of the call, the
environment variable ``MATCHTIR_BACKEND``, the first available of the op's `BACKENDS`. A backend
that was asked for by name and is missing is an error.
"""

from __future__ import annotations

import importlib
import logging
import os
from functools import cache
from numbers import Integral
from types import ModuleType

from ..errors import BackendError, ConfigError

# No batch is cut into more pieces than it has problems, so more would not be used anyway.
_MOST_THREADS = 65_536

_log = logging.getLogger("matchtir")

# Per op, best first.
BACKENDS: dict[str, tuple[str, ...]] = {
    "hungarian": ("native", "reference"),
    "sinkhorn": ("native", "reference"),
    "similarity": ("native", "reference"),
    "scatter": ("native", "reference"),
}


@cache
def _load(op: str, backend: str) -> ModuleType | ImportError:
    try:
        return importlib.import_module(f"matchtir.ops.{op}.{backend}")
    except ImportError as error:
        return error


def available(op: str) -> list[str]:
    """Backends of `op` that can run here, best first."""
    return [name for name in BACKENDS[op] if isinstance(_load(op, name), ModuleType)]


@cache
def _automatic(op: str) -> str:
    """The best available backend; the log line appears once because the result is cached."""
    best = available(op)[0]
    level = logging.DEBUG if best == BACKENDS[op][0] else logging.WARNING
    _log.log(level, "op %s runs on backend %r of %s", op, best, BACKENDS[op])
    return best


def load(op: str, backend: str | None = None) -> ModuleType:
    """The module of the backend that `op` runs on.

    Raises
    ------
    ConfigError
        If the op has no backend of that name.
    BackendError
        If the backend that was asked for cannot be imported here.
    """
    name = backend or os.environ.get("MATCHTIR_BACKEND") or _automatic(op)
    if name not in BACKENDS[op]:
        raise ConfigError(f"op {op} has no backend {name!r}; expected one of {list(BACKENDS[op])}")
    module = _load(op, name)
    if isinstance(module, ImportError):
        raise BackendError(f"backend {name!r} of op {op} was asked for but cannot be loaded: {module}")
    return module


def threads(num_threads: int | None) -> int:
    """Number of threads: the argument, else ``MATCHTIR_NUM_THREADS``, else 1.

    One is the default because a training node runs a process for each device, and each would
    otherwise take all cores.
    """
    if num_threads is None:
        text = os.environ.get("MATCHTIR_NUM_THREADS", "1")
        if not (text.isascii() and text.isdigit() and int(text) > 0):
            raise ConfigError(f"MATCHTIR_NUM_THREADS is {text!r}; expected a positive integer")
        num_threads = int(text)
    elif isinstance(num_threads, bool) or not isinstance(num_threads, Integral) or num_threads < 1:
        raise ConfigError(f"num_threads is {num_threads!r}; expected a positive integer or None")
    return min(int(num_threads), _MOST_THREADS)
