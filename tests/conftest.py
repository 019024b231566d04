"""Shared by all tests: where the real data is, and a Hypothesis profile without a time limit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

if not Path("/dev/nvidiactl").exists():
    # Read when a kernel is defined: without a GPU the kernels are interpreted.
    os.environ.setdefault("TRITON_INTERPRET", "1")

settings.register_profile("matchtir", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("matchtir")


def _real(*parts: str) -> Path:
    """A file of real data in ``MATCHTIR_DATA``, or in ``shared/data`` beside the checkout; skips without."""
    folder = Path(os.environ.get("MATCHTIR_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")
    path = folder.joinpath(*parts)
    if not path.is_file():
        pytest.skip(f"no {path}; set MATCHTIR_DATA to the folder that holds it")
    return path


@pytest.fixture(scope="session")
def tau_bench_path() -> Path:
    """200 real rollouts of a benchmark of airline agents, OpenAI messages."""
    return _real("tau-bench", "gpt-4o-airline.json")


@pytest.fixture(scope="session")
def ftrl_path() -> Path:
    """FTRL's 200 test tasks, parquet."""
    return _real("ftrl", "test.parquet")
