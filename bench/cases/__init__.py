"""The cases: each checks the answers, then times them. A wrong answer stops the benchmark."""

from __future__ import annotations

from collections.abc import Callable

from timing import Row

from cases.assignment import hungarian_sweep, hungarian_w1, hungarian_w2, hungarian_w3
from cases.batch import full, scatter_full, threads
from cases.sandbox import hostile, memory, throughput
from cases.similarity import similarity_w1tool
from cases.transport import sinkhorn_small_reg, sinkhorn_w1

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
    "sandbox": throughput,
    "sandbox-hostile": hostile,
    "sandbox-memory": memory,
}
