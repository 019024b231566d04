"""What this installation of matchtir can do, for `matchtir env` and bug reports."""

from __future__ import annotations

import importlib
import os
import platform
import sys
import warnings
from importlib import metadata
from typing import Any

import numpy as np
from rich.table import Table

from ..errors import MatchtirError
from ..tools import Sandbox

OPTIONAL_PACKAGES = (
    *("torch", "triton", "numba", "pyarrow", "json-repair"),
    *("rich", "scipy", "transformers", "renderers"),
)
NOT_INSTALLED = "not installed, running from the sources"
_BUILD_HINT = "not built: run `pip install .` (or `pip install -e .`) with a C++20 compiler"


def describe() -> dict[str, Any]:
    """Version, interpreter, compiled core, backends, threads, sandbox and optional packages, as JSON values.

    Backends are loaded and the sandbox is started, to see what works here; packages are looked up by their
    metadata.
    """
    return {
        "matchtir": version("matchtir") or NOT_INSTALLED,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "core": _core(),
        "backends": _backends(),
        "threads": _threads(),
        "sandbox": _sandbox(),
        "packages": {name: version(name) for name in OPTIONAL_PACKAGES},
    }


def version(package: str) -> str | None:
    """Version of an installed package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _core() -> dict[str, Any]:
    """How the compiled core was built, or why there is none."""
    try:
        core = importlib.import_module("matchtir._core")
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "matchtir._core"
        return {"available": False, "reason": _BUILD_HINT if missing else f"does not load: {error}"}
    return {"available": True, **core.build_info()}


def _backends() -> dict[str, Any]:
    """Backends of each op and which one runs, or why that cannot be told."""
    try:
        ops = importlib.import_module("matchtir.ops")
        found: dict[str, Any] = ops.backends()
    except (ImportError, MatchtirError) as error:
        return {"error": str(error)}
    return found


def _threads() -> dict[str, Any]:
    """Processors of the machine, how many this process may use, and how many threads the core starts."""
    machine = os.cpu_count() or 1
    # Containers and job schedulers pin processes to fewer; macOS does not tell.
    usable = len(os.sched_getaffinity(0)) if sys.platform == "linux" else machine
    try:
        default = importlib.import_module("matchtir.ops._dispatch").threads(None)
    except (ImportError, MatchtirError) as error:
        default = str(error)
    return {"processors": machine, "usable": usable, "default": default}


def _sandbox() -> dict[str, Any]:
    """Which layers of the sandbox hold here, each after an attempt to get through it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they say stands in the report
            with Sandbox(workers=1, allow_unsafe=True) as box:
                report, safe = box.report, box.safe
    except MatchtirError as error:
        return {"available": False, "reason": str(error)}
    report["landlock"] = f"version {report['landlock']} of its interface" if report["landlock"] else False
    layers = ("seccomp", "seccomp_reason", "landlock", "landlock_reason", "memory", "no_new_privileges")
    shown = {layer: report[layer] for layer in (*layers, "privileges") if layer in report}
    return {"available": True, "safe": safe, **shown}


def table(found: dict[str, Any]) -> Table:
    """What :func:`describe` found, as a table of names and values."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column(overflow="fold")
    for name in ("matchtir", "python", "numpy", "platform"):
        grid.add_row(name, str(found[name]))
    for section in ("core", "backends", "threads", "sandbox", "packages"):
        grid.add_row("", "")
        grid.add_row(section, "")
        for name, value in found[section].items():
            grid.add_row(f"  {name}", _words(value))
    return grid


def _words(value: Any) -> str:
    """A value in words: lists with commas, the backends of an op with the one that runs."""
    if isinstance(value, dict) and "active" in value:
        return f"{value['active']}  (available: {_words(value.get('available', []))})"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    if value is None:
        return "not found"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value) or "none"
