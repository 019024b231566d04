"""Matching of predicted with gold calls, and the reward of each call."""

from __future__ import annotations

from typing import Literal

import numpy as np

from .errors import ConfigError
from .ops import greedy, hungarian, sinkhorn, transport_cost
from .types import Ragged, RaggedMatrix

Matching = Literal["hungarian", "greedy", "sinkhorn"]
Cost = Literal["linear", "normalized", "exponential"]


def _hard_rewards(scores: RaggedMatrix, matches: Ragged, penalty: float) -> Ragged:
    """S_ij of each matched call, -penalty of the others."""
    rewards = np.full(len(matches.values), -float(penalty))
    row = np.arange(len(matches.values), dtype=np.int64)
    problem = matches.problem
    cell = scores.offsets[problem] + (row - matches.offsets[problem]) * scores.cols[problem] + matches.values
    matched = matches.values >= 0
    rewards[matched] = scores.values[cell[matched]]
    return Ragged(rewards + 0.0, matches.offsets)  # + 0.0 turns -0.0 into 0.0


def _soft_rewards(scores: RaggedMatrix, plan: RaggedMatrix) -> tuple[Ragged, Ragged]:
    """sum_j Z_ij S_ij of each call, and the gold call with the largest term, -1 where all are 0."""
    calls = Ragged.from_lengths(np.zeros(int(scores.rows.sum())), scores.rows)
    matches = Ragged(np.full(len(calls.values), -1, dtype=np.int64), calls.offsets)
    width = np.repeat(scores.cols, scores.rows)  # cells of each call
    filled = width > 0
    if not filled.any():
        return matches, calls
    starts = np.concatenate([[0], np.cumsum(width)[:-1]])[filled]
    paid = plan.values * scores.values
    calls.values[filled] = np.add.reduceat(paid, starts) + 0.0  # turns -0.0 into 0.0
    most = np.repeat(np.maximum.reduceat(paid, starts), width[filled])
    # Of the cells with the largest term, the first of each call.
    winners = np.flatnonzero((paid == most) & (paid > 0))
    owner = np.repeat(np.arange(len(width)), width)[winners]
    owners, first = np.unique(owner, return_index=True)
    column = winners - np.repeat(np.concatenate([[0], np.cumsum(width)[:-1]]), width)[winners]
    matches.values[owners] = column[first]
    return matches, calls


def match(
    scores: RaggedMatrix,
    *,
    matching: Matching = "hungarian",
    penalty: float = 0.0,
    cost: Cost = "linear",
    reg: float = 0.1,
    tol: float = 1e-9,
    max_iter: int = 1000,
    num_threads: int | None = None,
) -> tuple[Ragged, Ragged]:
    """Match the predicted calls of each rollout with its gold calls and reward them.

    - "hungarian": maximum-weight matching of S; a matched call gets S_ij, an unmatched one -penalty
    - "greedy": one to one as well, by descending score (the published code)
    - "sinkhorn": entropic transport plan Z with marginals 1/m and 1/n; ``r_i = sum_j Z_ij S_ij``

    Parameters
    ----------
    scores : RaggedMatrix
        Similarity S, one block of P_b x K_b a rollout. A pair with ``S_ij = 0`` is no match.
    matching : {"hungarian", "greedy", "sinkhorn"}
    penalty : float
        λ, taken from each unmatched call under hungarian and greedy matching.
    cost : {"linear", "normalized", "exponential"}
        Of the transport problem; see :func:`matchtir.ops.transport_cost`.
    reg : float
        Its entropic regularisation; see :func:`matchtir.ops.sinkhorn`, also for the next two.
    tol : float
        Violation of the marginals at which it has converged.
    max_iter : int
        Most iterations.
    num_threads : int, optional
        As for :func:`matchtir.ops.hungarian`.

    Returns
    -------
    matches : Ragged of int64
        Gold call of each predicted call, or -1. Under sinkhorn the gold call with the largest
        ``Z_ij S_ij``, the first of equals, or -1 where all are 0.
    call_rewards : Ragged of float64
        One per predicted call. Without gold calls, -penalty (hard) or 0 (soft).

    Raises
    ------
    ConfigError
        For an unknown `matching` or an impossible penalty; under sinkhorn also for an unknown `cost`
        or transport settings out of range.
    InputError
        If a score is not finite.

    Warns
    -----
    ConvergenceWarning
        If transport problems stop at `max_iter`.

    References
    ----------
    MatchTIR, arXiv:2601.10712, equations 5-7.
    """
    if not 0 <= penalty < np.inf:
        raise ConfigError(f"penalty is {penalty!r}; expected a finite number, 0 or more")
    if matching == "sinkhorn":
        problem = transport_cost(scores, cost)
        result = sinkhorn(problem, reg=reg, tol=tol, max_iter=max_iter, num_threads=num_threads)
        return _soft_rewards(scores, result.plan)
    if matching not in ("hungarian", "greedy"):
        raise ConfigError(f"matching is {matching!r}; expected 'hungarian', 'greedy' or 'sinkhorn'")
    solve = hungarian if matching == "hungarian" else greedy
    matches = solve(scores, partial=True, num_threads=num_threads)
    return matches, _hard_rewards(scores, matches, penalty)
