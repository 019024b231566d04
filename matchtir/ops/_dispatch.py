"""Which backend of an op runs: picked once, logged once, and forceable.

An op is a package ``matchtir.ops.<op>`` with one module a backend; `reference` is written for the
reader and is there wherever the op is. The choice, first that applies: the `backend` argument of the call,
the environment variable ``MATCHTIR_BACKEND``, the first of the op's `BACKENDS` that can be imported and runs
on the device of the data. A backend that was asked for by name and is missing, or does not run on that
device, is an error.
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
    "scatter": ("triton", "native", "reference"),
    "returns": ("triton", "numba", "reference"),
    "policy_loss": ("triton", "numba", "reference"),
    "logprobs": ("triton", "numba", "reference"),
}
# Where a backend runs; those that are not named run everywhere.
_DEVICES = {"native": "cpu", "numba": "cpu", "triton": "cuda"}


@cache
def _load(op: str, backend: str) -> ModuleType | ImportError:
    try:
        return importlib.import_module(f"matchtir.ops.{op}.{backend}")
    except ImportError as error:
        return error


def interpreted() -> bool:
    """Whether Triton's kernels are interpreted, and so run on the CPU: ``TRITON_INTERPRET=1``."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on")


def runs_on(backend: str, device: str) -> bool:
    """Whether a backend takes data of that type of device ("cpu", "cuda") without being asked to."""
    return _DEVICES.get(backend, device) == device


def available(op: str) -> list[str]:
    """Backends of `op` that can be imported here, best first."""
    return [name for name in BACKENDS[op] if isinstance(_load(op, name), ModuleType)]


@cache
def _automatic(op: str, device: str) -> str:
    """The best available backend; the log line appears once because the result is cached."""
    fitting = [name for name in BACKENDS[op] if runs_on(name, device)]
    found = [name for name in fitting if isinstance(_load(op, name), ModuleType)]
    if not found:
        raise BackendError(f"op {op} has no backend that can be loaded here: {_load(op, fitting[-1])}")
    level = logging.DEBUG if found[0] == fitting[0] else logging.WARNING
    _log.log(level, "op %s runs on backend %r of %s", op, found[0], tuple(fitting))
    return found[0]


def _from_environment(op: str) -> str | None:
    """The first backend named in ``MATCHTIR_BACKEND``, commas between, that the op has; None without one.

    Ops differ in their backends, so a name forces the ops that have it; one that no op has is an error.
    """
    names = [name.strip() for name in os.environ.get("MATCHTIR_BACKEND", "").split(",") if name.strip()]
    known = list(dict.fromkeys(name for found in BACKENDS.values() for name in found))
    for name in names:
        if name not in known:
            raise ConfigError(f"MATCHTIR_BACKEND names the backend {name!r}; expected names of {known}")
    return next((name for name in names if name in BACKENDS[op]), None)


def load(op: str, backend: str | None = None, device: str = "cpu") -> ModuleType:
    """The module of the backend that `op` runs on, for data on that type of device.

    Raises
    ------
    ConfigError
        If the op has no backend of that name.
    BackendError
        If the backend that was asked for cannot be imported here, or does not run on the device; or if none
        can be imported.
    """
    name = backend or _from_environment(op) or _automatic(op, device)
    if name not in BACKENDS[op]:
        raise ConfigError(f"op {op} has no backend {name!r}; expected one of {list(BACKENDS[op])}")
    module = _load(op, name)
    if isinstance(module, ImportError):
        raise BackendError(f"backend {name!r} of op {op} was asked for but cannot be loaded: {module}")
    if not runs_on(name, device) and not (name == "triton" and interpreted()):
        hint = "; TRITON_INTERPRET=1 interprets it, slowly" if name == "triton" and device == "cpu" else ""
        raise BackendError(f"backend {name!r} of op {op} does not take data on {device}{hint}")
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
