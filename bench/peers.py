"""What we are compared with: SciPy, lapx, POT, and plain Python. Named peers, each called at its best.

Everything a peer needs in another form than ours (padded stacks, costs for scores, marginals) is
made by the caller before the clock starts.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import lap
import numpy as np
import ot
import ot.batch
from scipy.optimize import linear_sum_assignment

from matchtir.types import Array, IntArray, Ragged, Trajectory

Pairs = tuple[IntArray, IntArray]  # rows and their columns


def scipy_loop(blocks: Sequence[Array]) -> list[Pairs]:
    """SciPy's assignment, problem by problem."""
    return [linear_sum_assignment(scores, maximize=True) for scores in blocks]


# Every solver of lapx with its options of precision. Batches are run with one thread.
_LAPX: dict[str, tuple[str, dict[str, Any]]] = {
    name: (name, {})
    for name in (
        *("lapjv", "lapjvx", "lapjvxa", "lapjvc", "lapjvs", "lapjvsa", "lapjvh", "lapjvr"),
        *("lapjvx_batch", "lapjvxa_batch", "lapjvs_batch", "lapjvsa_batch", "lapjvh_batch", "lapjvr_batch"),
    )
}
_LAPX |= {
    f"{name} float64": (name, {"prefer_float32": False})
    for name in ("lapjvs", "lapjvsa", "lapjvs_batch", "lapjvsa_batch")
}
_LAPX |= {
    f"{name} float32": (name, {"precision": "float32"})
    for name in ("lapjvh", "lapjvr", "lapjvh_batch", "lapjvr_batch")
}
LAPX_SOLVERS = tuple(_LAPX)
# These work in float32 whatever they are given, so that their optimum is one to 1e-6 only.
LAPX_FLOAT32 = {
    *(name for name in LAPX_SOLVERS if name.endswith("float32")),
    *("lapjvs", "lapjvsa", "lapjvs_batch", "lapjvsa_batch"),
}


def lapx_raw(solver: str, costs: Array) -> Callable[[], Any]:
    """The call of a lapx solver on costs of shape (B, m, n), minimised; what it returns is lapx's."""
    name, options = _LAPX[solver]
    options = {"return_cost": False, **options}
    if costs.shape[1] != costs.shape[2]:
        options["extend_cost"] = True
    solve = getattr(lap, name)
    if name.endswith("_batch"):
        return lambda: solve(costs, n_threads=1, **options)
    return lambda: [solve(cost, **options) for cost in costs]


def lapx_pairs(solver: str, result: Any) -> list[Pairs]:
    """What a lapx solver returned, as rows and columns of each problem."""
    name = _LAPX[solver][0]
    kind = name.removesuffix("_batch")
    if kind in ("lapjvxa", "lapjvsa"):  # one (K, 2) array a problem
        return [(pairs[:, 0], pairs[:, 1]) for pairs in result]
    problems = list(zip(*result, strict=True)) if name.endswith("_batch") else result
    if kind == "lapjv":  # the column of each row, and the row of each column
        return [(np.flatnonzero(x >= 0), x[x >= 0]) for x, _ in problems]
    return [(rows, cols) for rows, cols in problems]


def padded(blocks: Sequence[Array], layout: str) -> Array:
    """Costs for lapx's batches, which need one shape: ``-scores``, and 0 where there is no pair.

    With scores that are not negative, padding changes no optimum. Layouts: "20x20" square; "20x10"
    the largest shape; "10x20" the same transposed.
    """
    if layout == "10x20":
        blocks = [scores.T for scores in blocks]
    m, n = map(int, layout.split("x"))
    costs = np.zeros((len(blocks), m, n))
    for b, scores in enumerate(blocks):
        costs[b, : scores.shape[0], : scores.shape[1]] = -scores
    return costs


LAYOUTS = ("20x20", "20x10", "10x20")


def by_shape(blocks: Sequence[Array]) -> dict[tuple[int, ...], tuple[list[int], Array]]:
    """Problems of one shape stacked: their indices, and the stack."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for b, block in enumerate(blocks):
        groups.setdefault(block.shape, []).append(b)
    return {shape: (index, np.stack([blocks[b] for b in index])) for shape, index in groups.items()}


Uniform = list[tuple[Array, Array]]


def uniform_marginals(costs: Sequence[Array]) -> Uniform:
    """1/m and 1/n of each problem."""
    return [(np.full(m, 1 / m), np.full(n, 1 / n)) for m, n in (cost.shape for cost in costs)]


def pot_loop(costs: Sequence[Array], marginals: Uniform, reg: float, tol: float = 1e-9) -> list[Array]:
    """POT's `ot.sinkhorn`, problem by problem."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [
            ot.sinkhorn(a, b, cost, reg, stopThr=tol, numItermax=1000, warn=False)
            for cost, (a, b) in zip(costs, marginals, strict=True)
        ]


def pot_batch(stacks: Sequence[Array], reg: float, method: str, tol: float = 1e-9) -> list[Array]:
    """POT's `ot.batch.solve_batch`, one call a shape; no gradients are asked for."""
    return [
        ot.batch.solve_batch(costs, reg, max_iter=1000, tol=tol, method=method, grad="detach").plan
        for costs in stacks
    ]


def json_equal(a: Any, b: Any) -> bool:
    """Whether two values are the same JSON value: 1 is 1.0, true is not 1, key order does not matter."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(json_equal(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(json_equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def pair_similarity(predicted: tuple[str, str], gold: tuple[str, str], names_first: bool = False) -> float:
    """Similarity of two calls whose arguments are JSON text; `names_first` parses equal names only."""
    if names_first and predicted[0] != gold[0]:
        return 0.0
    p, g = json.loads(predicted[1]), json.loads(gold[1])
    if predicted[0] != gold[0]:
        return 0.0
    union = p.keys() | g.keys()
    jaccard = len(p.keys() & g.keys()) / len(union) if union else 1.0
    equal = sum(1 for key in g if key in p and json_equal(p[key], g[key]))
    return (1 + jaccard + equal) / (2 + len(g))


def similarity_loop(
    predicted: Sequence[Sequence[tuple[str, str]]],
    gold: Sequence[Sequence[tuple[str, str]]],
    names_first: bool = False,
) -> list[list[list[float]]]:
    """Similarity of each rollout's calls with its gold calls, pair by pair."""
    return [
        [[pair_similarity(p, g, names_first) for g in golds] for p in calls]
        for calls, golds in zip(predicted, gold, strict=True)
    ]


def _normalised(values: Array) -> Array:
    """Over one group; a single value is compared with mean 0 and deviation 1."""
    if len(values) == 1:
        return values / (1 + 1e-6)
    if np.ptp(values) < 1e-12:
        return np.zeros(len(values))
    return (values - values.mean()) / (values.std(ddof=1) + 1e-6)


def group_advantages(rollouts: Sequence[Trajectory], call_rewards: Ragged, gamma: float = 0.9) -> Array:
    """Turn advantages of one group, shape (rollouts, turns), in loops, from its calls' rewards."""
    rewards = np.zeros((len(rollouts), len(rollouts[0].turns)))
    for i, rollout in enumerate(rollouts):
        paid = iter(call_rewards[i].tolist())
        for t, turn in enumerate(rollout.turns):
            if turn.calls:
                rewards[i, t] = np.mean([next(paid) for _ in turn.calls])
            elif turn.answer is not None:
                said, true = set(turn.answer.split()), set((rollout.gold_answer or "").split())
                rewards[i, t] = 2 * len(said & true) / (len(said) + len(true))
    returns = np.zeros_like(rewards)
    following = np.zeros(len(rollouts))
    for t in range(rewards.shape[1])[::-1]:
        following = returns[:, t] = rewards[:, t] + gamma * following
    whole = _normalised(rewards.sum(axis=1))
    return np.stack([whole + _normalised(column) for column in returns.T], axis=1)
