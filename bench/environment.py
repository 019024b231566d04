"""The rows that say where and with what the numbers were made."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from timing import Row

import matchtir


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _commit() -> str:
    """Commit of the checkout, and whether files differ from it."""

    def git(*words: str) -> str:
        folder = Path(__file__).parent
        return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True).stdout

    try:
        changed = " with changes" if git("status", "--porcelain").strip() else ""
        return git("rev-parse", "HEAD").strip() + changed
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def environment(smoke: bool) -> list[Row]:
    """Rows that say where and with what the numbers were made."""
    from matchtir import _core

    info = _core.build_info()
    facts = {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("numpy", "scipy", "POT", "lapx", "torch", "numba")},
        "matchtir": f"{matchtir.__version__}, {info['compiler']}, simd {info['simd_active']}",
        "commit": _commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "sizes": "smoke: tiny slices, times mean nothing" if smoke else "full",
    }
    return [Row("environment", name, value, unit="") for name, value in facts.items()]
