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
from collections.abc import Callable, Sequence
from pathlib import Path

from cases.assignment import hungarian_sweep, hungarian_w1, hungarian_w2, hungarian_w3
from cases.batch import full, scatter_full, threads
from cases.instances import crossing, latency
from cases.loss import logprobs, policy_loss, returns_scatter
from cases.sandbox import hostile, memory, throughput
from cases.similarity import similarity_w1tool
from cases.training import rollouts, update_memory
from cases.transport import sinkhorn_small_reg, sinkhorn_w1
from cases.trl_step import step_vs_trl
from checks import WrongAnswerError
from environment import environment
from timing import Row, table, write_json

from matchtir.ops import _dispatch

CASES: dict[str, Callable[[bool], list[Row]]] = {
    "hungarian-w1": hungarian_w1,
    "hungarian-w2": hungarian_w2,
    "hungarian-w3": hungarian_w3,
    "hungarian-sweep": hungarian_sweep,
    "sinkhorn-w1": sinkhorn_w1,
    "sinkhorn-small-reg": sinkhorn_small_reg,
    "similarity-w1tool": similarity_w1tool,
    "scatter-full": scatter_full,
    "full": full,
    "threads": threads,
    "policy-loss": policy_loss,
    "logprobs": logprobs,
    "returns-scatter": returns_scatter,
    "rollouts": rollouts,
    "update-memory": update_memory,
    "step-vs-trl": step_vs_trl,
    "sandbox": throughput,
    "sandbox-hostile": hostile,
    "sandbox-memory": memory,
    "environments": latency,
    "environments-crossing": crossing,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time matchtir against its peers, answers checked first.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to FILE, a JSON list")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(CASES), help=", ".join(CASES))
    parser.add_argument("--smoke", action="store_true", help="tiny slices: answers only, no time is judged")
    options = parser.parse_args(arguments)
    native = [op for op, names in _dispatch.BACKENDS.items() if "native" in names]
    slow = [op for op in native if not _dispatch.load(op).__name__.endswith(".native")]
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
