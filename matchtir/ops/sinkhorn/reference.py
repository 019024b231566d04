"""Entropic optimal transport in the log domain, in plain NumPy, for the reader.

With dual variables f and g the plan is Z_ij = exp((f_i + g_j - C_ij) / reg). Setting the row sums to
a and solving for f, then the column sums to b and solving for g, gives

    f_i = reg log a_i - reg log sum_j exp((g_j - C_ij) / reg)
    g_j = reg log b_j - reg log sum_i exp((f_i - C_ij) / reg)

which is repeated until the rows agree too. Cuturi, NeurIPS 2013, arXiv:1306.0895.
"""

from __future__ import annotations

import numpy as np

from ...errors import InputError
from ...types import FloatArray, IntArray, RaggedMatrix, offsets_of


def _log_sum_exp(x: FloatArray, axis: int) -> FloatArray:
    """log(sum(exp(x))) along an axis; minus infinity where all of x is."""
    most = x.max(axis=axis, keepdims=True)
    shift = np.where(np.isfinite(most), most, 0.0)
    with np.errstate(divide="ignore"):
        total: FloatArray = np.log(np.exp(x - shift).sum(axis=axis)) + shift.squeeze(axis)
    return total


def _solve(
    cost: FloatArray, a: FloatArray, b: FloatArray, reg: float, tol: float, max_iter: int
) -> tuple[FloatArray, int, float]:
    """Plan (m, n), iterations and violation for cost (m, n), marginals a (m,) and b (n,)."""
    with np.errstate(divide="ignore"):
        log_a, log_b = np.log(a), np.log(b)
    x = -cost / reg
    g = np.where(b > 0, 0.0, -np.inf)
    iteration = 0
    while True:
        iteration += 1
        f = np.where(a > 0, log_a - _log_sum_exp(x + g, axis=1), -np.inf)
        g = np.where(b > 0, log_b - _log_sum_exp(x + f[:, None], axis=0), -np.inf)
        plan = np.exp(x + f[:, None] + g)
        violation = float(np.abs(plan.sum(axis=1) - a).sum())
        if violation <= tol or iteration == max_iter:
            return plan, iteration, violation


def sinkhorn(
    cost: RaggedMatrix,
    marginals: tuple[FloatArray, FloatArray] | None,
    reg: float,
    tol: float,
    max_iter: int,
    threads: int,
) -> tuple[RaggedMatrix, IntArray, FloatArray]:
    plan = np.empty_like(cost.values)
    iterations = np.zeros(len(cost), dtype=np.int64)
    violation = np.zeros(len(cost))
    row_starts, col_starts = offsets_of(cost.rows), offsets_of(cost.cols)
    for k, c in enumerate(cost):
        m, n = c.shape
        bad = np.argwhere(~(np.abs(c) <= 1e150))
        if len(bad):
            i, j = bad[0]
            name = "NaN" if np.isnan(c[i, j]) else f"{c[i, j]:g}"
            raise InputError(
                f"cost[{k}] holds {name} at ({i}, {j}); expected finite values of magnitude at most 1e150"
            )
        if m == 0 or n == 0:
            continue
        if marginals is None:
            a, b = np.full(m, 1.0 / m), np.full(n, 1.0 / n)
        else:
            a = marginals[0][row_starts[k] : row_starts[k + 1]]
            b = marginals[1][col_starts[k] : col_starts[k + 1]]
        mass = a.sum()
        a, b = a / mass, b / b.sum()
        a, b = np.where(a < 1e-100, 0.0, a), np.where(b < 1e-100, 0.0, b)
        z, iterations[k], violation[k] = _solve(c, a, b, reg, tol / mass, max_iter)
        z, violation[k] = z * mass, violation[k] * mass
        plan[cost.offsets[k] : cost.offsets[k + 1]] = z.ravel()
    return RaggedMatrix(plan, cost.rows, cost.cols), iterations, violation
