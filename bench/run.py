"""The benchmark: `python bench/run.py`. See README.md beside it."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    # One thread everywhere; libraries read this when they are first imported.
    for _library in ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "NUMBA", "MATCHTIR"):
        os.environ[f"{_library}_NUM_THREADS"] = "1"
    os.environ["VECLIB_MAXIMUM_THREADS"] = "1"
    # POT works on NumPy here; without this it imports what else is installed.
    for _library in ("PYTORCH", "JAX", "CUPY", "TENSORFLOW"):
        os.environ[f"POT_BACKEND_DISABLE_{_library}"] = "1"

import argparse
import platform
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cases import CASES
from checks import WrongAnswerError
from timing import Row, table, write_json

import matchtir
from matchtir.ops import _dispatch


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
        **{name: _version(name) for name in ("numpy", "scipy", "POT", "lapx")},
        "matchtir": f"{matchtir.__version__}, {info['compiler']}, simd {info['simd_active']}",
        "commit": _commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "sizes": "smoke: tiny slices, times mean nothing" if smoke else "full",
    }
    return [Row("environment", name, value, unit="") for name, value in facts.items()]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time matchtir against its peers, answers checked first.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to FILE, a JSON list")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(CASES), help=", ".join(CASES))
    parser.add_argument("--smoke", action="store_true", help="tiny slices: answers only, no time is judged")
    options = parser.parse_args(arguments)
    slow = [op for op in _dispatch.BACKENDS if not _dispatch.load(op).__name__.endswith(".native")]
    if slow:
        print(f"bench: {', '.join(slow)} would not run on the compiled core", file=sys.stderr)
        return 1
    rows = environment(options.smoke)
    for name in options.only or CASES:
        print(f"{name} …", file=sys.stderr, flush=True)
        try:
            rows += CASES[name](options.smoke)
        except WrongAnswerError as error:
            print(f"bench: {name}: wrong answer: {error}", file=sys.stderr)
            return 1
    print(table(rows, judged=not options.smoke))
    if options.json:
        write_json(rows, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
