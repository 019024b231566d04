"""Compile every Triton kernel for GPUs that need not be there: `python bench/compile.py [--json FILE]`.

Prints registers a thread, spilled bytes and shared memory of each kernel, for each of the argument types and
block sizes that its `SIGNATURES` name. Exit code 1 if a kernel does not compile.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "0"  # an interpreted kernel cannot be compiled
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import argparse
import importlib
import json
import re
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from matchtir.ops import _dispatch

CAPABILITIES = (80, 90, 100)  # A100, H100, B200
_USAGE = {
    "registers": re.compile(r"Used (\d+) registers"),
    "spill_stores": re.compile(r"(\d+) bytes spill stores"),
    "spill_loads": re.compile(r"(\d+) bytes spill loads"),
}


@dataclass(frozen=True)
class Compiled:
    """One kernel, compiled: bytes, and registers of one thread; None where the assembler does not tell."""

    op: str
    kernel: str
    variant: str
    capability: int
    warps: int
    shared: int
    registers: int | None
    spill_stores: int | None
    spill_loads: int | None


def compile_kernel(
    op: str, name: str, kernel: Any, variant: tuple[dict[str, str], dict[str, Any]], warps: int
) -> list[Compiled]:
    """One kernel for every capability."""
    types, constants = variant
    words = ", ".join(
        [*(t for t in types.values() if t != "constexpr"), *(f"{k}={v}" for k, v in constants.items())]
    )
    found = []
    for capability in CAPABILITIES:
        source = ASTSource(fn=kernel, signature=types, constexprs=constants)
        compiled = triton.compile(
            source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps}
        )
        usage = _usage(compiled.asm["ptx"])
        metadata = compiled.metadata
        found.append(Compiled(op, name, words, capability, metadata.num_warps, metadata.shared, **usage))
    return found


def _usage(ptx: str) -> dict[str, int | None]:
    """What an assembler that comes with Triton says of one kernel; some versions bring an older one too."""
    target = re.search(r"\.target (\w+)", ptx)
    programs = sorted((Path(triton.__file__).parent / "backends/nvidia/bin").glob("ptxas*"), reverse=True)
    said = "Triton brings no ptxas" if target else "the PTX names no target"
    with tempfile.TemporaryDirectory() as place:
        file = Path(place, "kernel.ptx")
        file.write_text(ptx)
        for program in programs if target else ():
            command = [program, "-v", f"--gpu-name={target[1]}", file, "-o", file.with_suffix(".cubin")]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode == 0:
                matches = {name: pattern.search(done.stderr) for name, pattern in _USAGE.items()}
                return {name: int(match[1]) if match else None for name, match in matches.items()}
            said = done.stderr.strip()
    raise RuntimeError(f"no ptxas takes the kernel: {said}")


def compile_all() -> tuple[list[Compiled], list[str]]:
    """All kernels of all ops, and what went wrong."""
    found, failed = [], []
    for op in (op for op, names in _dispatch.BACKENDS.items() if "triton" in names):
        module = importlib.import_module(f"matchtir.ops.{op}.triton")
        warps = getattr(module, "WARPS", 4)  # 4 is Triton's own choice
        for name, variants in module.SIGNATURES.items():
            for variant in variants:
                try:
                    found += compile_kernel(op, name, getattr(module, name), variant, warps)
                except Exception as error:  # a compiler raises anything; the other kernels still count
                    failed.append(f"{op}.{name} {variant}: {type(error).__name__}: {error}")
    return found, failed


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile every Triton kernel, without a GPU.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found to FILE, a JSON list")
    options = parser.parse_args()
    found, failed = compile_all()
    line = "{:<12} {:<28} sm_{:<4} {:>5} {:>9} {:>8} {:>8}  {}".format
    print(
        line("op", "kernel", "", "warps", "registers", "spilled", "shared", "variant").replace("sm_", "   ")
    )
    for x in found:
        spilled = "?" if x.spill_stores is None else x.spill_stores
        print(line(x.op, x.kernel, x.capability, x.warps, x.registers or "?", spilled, x.shared, x.variant))
    for words in failed:
        print(f"failed: {words}", file=sys.stderr)
    if options.json:
        options.json.write_text(json.dumps([asdict(x) for x in found], indent=1) + "\n", encoding="utf-8")
    return 1 if failed or not found else 0


if __name__ == "__main__":
    sys.exit(main())
