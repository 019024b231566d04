"""Runs the driver in an environment without matchtir: the packages above it are made up, and empty."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path

_ABOVE = ("", "evals", "evals.bfcl", "tools", "tools.sandbox")


def make_packages(root: Path) -> None:
    """Let the driver and the sandbox's worker be imported by their names, and nothing above them be run."""
    for name in _ABOVE:
        package = types.ModuleType(".".join(filter(None, ("matchtir", name))))
        package.__path__ = [str(root.joinpath(*filter(None, name.split("."))))]
        sys.modules[package.__name__] = package


if __name__ == "__main__":
    make_packages(Path(__file__).resolve().parents[3])
    importlib.import_module("matchtir.evals.bfcl.driver.main").main()
