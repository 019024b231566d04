"""Every Triton kernel compiles for NVIDIA's last three generations, on a machine without a GPU."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from matchtir.ops import _dispatch

pytest.importorskip("triton")

PROGRAM = Path(__file__).parents[1] / "bench/compile.py"
_FEW_BYTES = 64  # of a thread: a counter or two; a block that does not fit takes hundreds
OPS = [op for op, names in _dispatch.BACKENDS.items() if "triton" in names]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> list[dict]:
    if not PROGRAM.exists():
        pytest.skip("bench/ is not here")
    folder = tmp_path_factory.mktemp("compiled")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(folder / "cache")}
    command = [sys.executable, str(PROGRAM), "--json", str(folder / "kernels.json")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "kernels.json").read_text())


@pytest.mark.parametrize("op", OPS)
def test_every_kernel_is_named_for_compilation(op):
    # Each is a function of the module with the word kernel in its name; helpers are compiled inside them.
    module = importlib.import_module(f"matchtir.ops.{op}.triton")
    kernels = {
        name
        for name, thing in vars(module).items()
        if "kernel" in name and type(thing).__module__.startswith("triton.")
    }
    assert kernels
    assert kernels == set(module.SIGNATURES)
    assert all(module.SIGNATURES.values())


@pytest.mark.parametrize("op", OPS)
def test_every_kernel_compiles_and_hardly_spills(op, compiled):
    module = importlib.import_module(f"matchtir.ops.{op}.triton")
    for name, variants in module.SIGNATURES.items():
        found = [x for x in compiled if (x["op"], x["kernel"]) == (op, name)]
        assert sorted(x["capability"] for x in found) == sorted([80, 90, 100] * len(variants))
        for x in found:
            assert 0 < x["registers"] <= 255
            assert x["spill_stores"] <= _FEW_BYTES, x
            assert x["spill_loads"] <= _FEW_BYTES, x
