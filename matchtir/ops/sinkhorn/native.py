"""The C++ core's transport plans."""

from __future__ import annotations

import numpy as np

import matchtir._core as _core

from ...types import FloatArray, IntArray, RaggedMatrix, offsets_of


def sinkhorn(
    cost: RaggedMatrix,
    marginals: tuple[FloatArray, FloatArray] | None,
    reg: float,
    tol: float,
    max_iter: int,
    threads: int,
) -> tuple[RaggedMatrix, IntArray, FloatArray]:
    plan = np.empty_like(cost.values)
    iterations = np.empty(len(cost), dtype=np.int64)
    violation = np.empty(len(cost))
    a, b = marginals if marginals is not None else (None, None)
    _core.sinkhorn(
        cost.values,
        cost.rows,
        cost.cols,
        cost.offsets,
        a,
        cost.row_offsets,
        b,
        offsets_of(cost.cols),
        reg,
        tol,
        max_iter,
        threads,
        plan,
        iterations,
        violation,
    )
    return RaggedMatrix(plan, cost.rows, cost.cols), iterations, violation
