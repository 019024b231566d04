"""Ragged batch of entropic optimal-transport problems, and the costs made from similarities."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal

import numpy as np

from ...errors import ConfigError, ConvergenceWarning, InputError
from ...types import FloatArray, IntArray, Ragged, RaggedMatrix
from .. import _dispatch

__all__ = ["SinkhornResult", "sinkhorn", "transport_cost"]

Cost = Literal["linear", "normalized", "exponential"]


@dataclass(frozen=True, slots=True)
class SinkhornResult:
    """Plans of a batch and how well they converged.

    Attributes
    ----------
    plan : RaggedMatrix of float64
        Z of every problem, the shape of its cost. Column sums are exact to rounding.
    iterations : ndarray of int64, shape (B,)
        Row-and-column updates; 0 for a problem without rows or columns.
    violation : ndarray of float64, shape (B,)
        ``sum_i |sum_j Z_ij - a_i|`` at the end.
    converged : ndarray of bool, shape (B,)
        ``violation <= tol``.
    """

    plan: RaggedMatrix
    iterations: IntArray
    violation: FloatArray
    converged: np.ndarray[tuple[int], np.dtype[np.bool_]]


def transport_cost(scores: RaggedMatrix, cost: Cost = "linear", *, eps: float = 1e-6) -> RaggedMatrix:
    """Transport cost C of similarities S, problem by problem.

    - "linear": ``-S``
    - "normalized": ``1 - (S - min S) / (max S - min S + eps)``
    - "exponential": ``-exp(S)``

    Parameters
    ----------
    scores : RaggedMatrix
        S, one block of m x n a problem. Minimum and maximum are taken over the block.
    cost : {"linear", "normalized", "exponential"}
    eps : float
        Keeps the normalised cost finite where all scores of a block are equal (it is 1 there).

    Returns
    -------
    RaggedMatrix of float64

    Raises
    ------
    ConfigError
        For an unknown `cost`.

    References
    ----------
    MatchTIR, arXiv:2601.10712, equation 6 and its ablation of costs.
    """
    s = scores.values.astype(np.float64)
    if cost == "linear":
        values = -s
    elif cost == "exponential":
        values = -np.exp(s)
    elif cost == "normalized":
        sizes = scores.rows * scores.cols
        filled = sizes > 0
        starts = scores.offsets[:-1][filled]
        least, most = np.zeros(len(scores)), np.zeros(len(scores))
        if len(starts):
            least[filled] = np.minimum.reduceat(s, starts)
            most[filled] = np.maximum.reduceat(s, starts)
        problem = np.repeat(np.arange(len(scores)), sizes)
        values = 1.0 - (s - least[problem]) / (most - least + eps)[problem]
    else:
        raise ConfigError(f"cost is {cost!r}; expected 'linear', 'normalized' or 'exponential'")
    return RaggedMatrix(values, scores.rows, scores.cols)


def _check_marginals(a: Ragged, b: Ragged, cost: RaggedMatrix) -> tuple[FloatArray, FloatArray]:
    """Marginals as float64, refused unless of the problem's sizes, finite, not negative, equal in sum."""
    sums = []
    for name, marginal, sizes in (("a", a, cost.rows), ("b", b, cost.cols)):
        if len(marginal) != len(cost) or (marginal.lengths != sizes).any():
            raise InputError(f"marginal {name} must have one entry a {'row' if name == 'a' else 'column'}")
        bad = ~(np.isfinite(marginal.values) & (marginal.values >= 0))
        if bad.any():
            k = int(np.argmax(bad))
            problem = int(marginal.problem[k])
            raise InputError(
                f"{name}[{problem}] holds {marginal.values[k]} at {k - marginal.offsets[problem]}; "
                "expected finite, non-negative mass"
            )
        sums.append(np.bincount(marginal.problem, marginal.values, minlength=len(cost)))
    solved = (cost.rows > 0) & (cost.cols > 0)
    equal = np.abs(sums[0] - sums[1]) <= 1e-9 * np.maximum(sums[0], sums[1])  # false where one is infinite
    wrong = solved & ~(equal & (sums[0] > 0))
    if wrong.any():
        k = int(np.argmax(wrong))
        raise InputError(
            f"marginals of problem {k} sum to {sums[0][k]:g} and {sums[1][k]:g}; "
            "expected equal and positive sums, finite"
        )
    return a.values.astype(np.float64), b.values.astype(np.float64)


def sinkhorn(
    cost: RaggedMatrix,
    a: Ragged | None = None,
    b: Ragged | None = None,
    *,
    reg: float = 0.1,
    tol: float = 1e-9,
    max_iter: int = 1000,
    num_threads: int | None = None,
    backend: str | None = None,
) -> SinkhornResult:
    """Entropic optimal transport of every problem of a batch.

    ``minimise <Z, C> - reg H(Z)  subject to  Z 1 = a,  Z^T 1 = b,  Z >= 0``, by alternate scaling of
    rows and columns. Scalings that grow large are absorbed into the dual variables, so that the plan
    is finite at any regularisation, however small. Problems of up to 64 columns that scaling does
    not finish soon get Newton steps on the dual in between: a dozen steps in place of hundreds.

    Parameters
    ----------
    cost : RaggedMatrix
        C, one block of m x n a problem, finite and at most 1e150 in magnitude; m and n may be 0.
    a, b : Ragged of float64, optional
        Marginals, one of m and one of n entries a problem, non-negative, equal in sum. Both or
        neither; default 1/m and 1/n. Entries below 1e-100 of the sum count as 0.
    reg : float
        Regularisation, in the unit of the cost; positive.
    tol : float
        A problem stops when ``sum_i |sum_j Z_ij - a_i| <= tol``; not negative.
    max_iter : int
        Most row-and-column updates of a problem; at least 1. A few dozen do unless `reg` is below
        about 1e-4 of the costs' range.
    num_threads : int, optional
        As for :func:`matchtir.ops.hungarian`. A problem's plan does not depend on its batch.
    backend : {"native", "reference"}, optional
        Force a backend.

    Returns
    -------
    SinkhornResult
        A problem without rows or columns has an empty plan and counts as converged.

    Raises
    ------
    ConfigError
        If `reg`, `tol` or `max_iter` is out of range.
    InputError
        For a cost or a marginal that is not as described; the message names problem and cell.

    Warns
    -----
    ConvergenceWarning
        Once a batch, if problems stopped at `max_iter`: how many, and the worst violation.

    References
    ----------
    Cuturi, NeurIPS 2013, arXiv:1306.0895; Schmitzer, SIAM Journal on Scientific Computing 41 (2019),
    doi:10.1137/16M1106018; Brauer, Clason, Lorenz and Wirth, arXiv:1710.06635.
    """
    if not (isinstance(reg, Real) and 1e-290 <= reg < np.inf):
        raise ConfigError(f"reg is {reg!r}; expected a positive number (1e-290 or more)")
    if not (isinstance(tol, Real) and 0 <= tol < np.inf):
        raise ConfigError(f"tol is {tol!r}; expected a number that is not negative")
    if isinstance(max_iter, bool) or not isinstance(max_iter, Integral) or not 1 <= max_iter <= 2**62:
        raise ConfigError(f"max_iter is {max_iter!r}; expected a positive integer")
    if (a is None) != (b is None):
        raise InputError("only one of the marginals a and b was given; expected both or neither")
    marginals = None if a is None or b is None else _check_marginals(a, b, cost)
    module = _dispatch.load("sinkhorn", backend)
    wide = RaggedMatrix(cost.values.astype(np.float64, copy=False), cost.rows, cost.cols)
    plan, iterations, violation = module.sinkhorn(
        wide, marginals, float(reg), float(tol), int(max_iter), _dispatch.threads(num_threads)
    )
    converged = violation <= tol
    if not converged.all():
        worst = int(np.argmax(violation))
        warnings.warn(
            f"{int((~converged).sum())} of {len(cost)} transport problems stopped at max_iter={max_iter} "
            f"before tol={tol:g}; worst marginal violation {violation[worst]:.3g} (problem {worst}). "
            "Raise max_iter or reg, or tol.",
            ConvergenceWarning,
            stacklevel=2,
        )
    return SinkhornResult(plan, iterations, violation, converged)
