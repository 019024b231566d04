"""Shared by all tests: where the real data is, and a Hypothesis profile without a time limit."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("matchtir", deadline=None, max_examples=60, derandomize=True)
settings.load_profile("matchtir")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data: ``MATCHTIR_DATA``, or ``shared/data`` beside the checkout."""
    folder = Path(os.environ.get("MATCHTIR_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}; set MATCHTIR_DATA to the folder that holds it")
    return folder
