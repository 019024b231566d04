"""Transport: entropic plans against POT."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import peers
import workloads
from checks import check
from timing import Row, fastest, interleave, interleave_parts, speedup

from cases.rows import memory_rows, rounds, seconds_row
from matchtir.errors import ConvergenceWarning
from matchtir.ops import SinkhornResult, sinkhorn
from matchtir.types import Array, RaggedMatrix


def solve_transport(costs: RaggedMatrix, reg: float, num_threads: int = 1) -> SinkhornResult:
    """Our solver; plans that stop at the limit are counted here, so that the warning says nothing new."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return sinkhorn(costs, reg=reg, tol=1e-9, num_threads=num_threads)


def _has_converged(plan: Array) -> bool:
    """Whether a plan has the uniform marginals to 1e-8; the peers stop by the 2-norm, we by the 1-norm."""
    m, n = plan.shape
    off = np.abs(plan.sum(axis=1) - 1 / m).sum() + np.abs(plan.sum(axis=0) - 1 / n).sum()
    return bool(off <= 1e-8)


def check_plans(ours: SinkhornResult, plans: Sequence[Array], who: str) -> int:
    """Plans agree to 1e-6 where both have converged; returns how many did."""
    compared = 0
    for b, (mine, theirs) in enumerate(zip(ours.plan, plans, strict=True)):
        if ours.converged[b] and _has_converged(theirs):
            worst = float(np.abs(mine - theirs).max())
            check(worst <= 1e-6, f"{who} and matchtir disagree by {worst:.1e} in the plan of problem {b}")
            compared += 1
    check(compared >= 0.9 * len(plans), f"{who}: only {compared} of {len(plans)} plans converged in both")
    return compared


def check_plan(b: int, plan: Array, costs: Array, reg: float, converged: bool) -> None:
    """A plan is the optimum if it has the marginals and ``reg log Z + C`` is a sum f_i + g_j.

    Rows have theirs only where the solver says that it converged. Cells below 1e-250 lose digits, and
    are left out of the second test.
    """
    m, n = plan.shape
    check(bool(np.abs(plan.sum(axis=0) - 1 / n).max() <= 1e-9), f"column sums of plan {b} are off")
    rows = float(np.abs(plan.sum(axis=1) - 1 / m).sum())
    check(
        not converged or rows <= 2e-9,
        f"plan {b} is said to have converged, but its rows are off by {rows:.1e}",
    )
    i, j = np.unravel_index(np.argmax(plan), plan.shape)
    kept = (plan > 1e-250) & (plan[i] > 1e-250) & (plan[:, j : j + 1] > 1e-250)
    duals = reg * np.log(np.where(plan > 0, plan, 1)) + costs
    rest = np.abs(duals - duals[i] - duals[:, j : j + 1] + duals[i, j])[kept].max()
    check(bool(rest <= 1e-9), f"plan {b} is not of the form exp((f_i + g_j - C_ij) / reg), by {rest:.1e}")


def sinkhorn_w1(smoke: bool) -> list[Row]:
    """W1 at regularisation 0.1 against POT's loop and POT's batch."""
    case = "sinkhorn W1: reg 0.1, tol 1e-9"
    costs = [-scores for scores in workloads.w1(2 if smoke else 256)]
    ragged = RaggedMatrix.from_blocks(costs)
    marginals = peers.uniform_marginals(costs)
    shapes = peers.by_shape(costs)
    stacks = [stack for _, stack in shapes.values()]

    def ours() -> object:
        return solve_transport(ragged, 0.1)

    result = solve_transport(ragged, 0.1)
    kept: list[list[Array]] = []
    size = max(1, len(costs) // 16)
    parts = [
        lambda i=i: kept.append(peers.pot_loop(costs[i : i + size], marginals[i : i + size], 0.1))
        for i in range(0, len(costs), size)
    ]
    loop, ours_beside_loop = interleave_parts(parts, ours)
    # The first part ran once more, to warm up.
    compared = check_plans(result, [plan for part in kept[1:] for plan in part], "ot.sinkhorn")

    calls: dict[str, Callable[[], list[Array]]] = {
        method: lambda method=method: peers.pot_batch(stacks, 0.1, method)
        for method in ("sinkhorn", "log_sinkhorn")
    }
    fast, seconds = fastest(calls)
    plans: list[Array] = [np.empty(0)] * len(costs)
    for (index, _), stack in zip(shapes.values(), calls[fast](), strict=True):
        for b, plan in zip(index, stack, strict=True):
            plans[b] = plan
    check_plans(result, plans, "ot.batch.solve_batch")
    times = interleave({"POT": calls[fast], "ours": ours}, **rounds(smoke) or {"budget": 6.0})
    return [
        speedup(case, "vs ot.sinkhorn loop", loop, ours_beside_loop, target=350, aim=800),
        speedup(
            case,
            "vs POT solve_batch by shape",
            times["POT"],
            times["ours"],
            target=75,
            aim=170,
            peer_name=fast,
            candidates=seconds,
        ),
        Row(case, f"converged, ours, of {len(costs):,}", int(result.converged.sum()), unit=""),
        Row(case, f"compared with ot.sinkhorn, of {len(costs):,}", compared, unit=""),
        *memory_rows(case, ours),
    ]


def sinkhorn_small_reg(smoke: bool) -> list[Row]:
    """W1 at regularisation 0.001: what is finite, and what converges within 1,000 steps."""
    case = "sinkhorn W1: reg 0.001, at most 1,000 steps"
    costs = [-scores for scores in workloads.w1(2 if smoke else 256)]
    ragged = RaggedMatrix.from_blocks(costs)
    result = solve_transport(ragged, 0.001)
    cells = result.plan.values
    for b, (plan, block) in enumerate(zip(result.plan, ragged, strict=True)):
        check_plan(b, plan, block, 0.001, bool(result.converged[b]))
    first = costs[:512]
    with np.errstate(all="ignore"):
        theirs = peers.pot_loop(first, peers.uniform_marginals(first), 0.001)
    broken = sum(not np.isfinite(plan).all() for plan in theirs)
    times = interleave({"ours": lambda: solve_transport(ragged, 0.001)}, **rounds(smoke))
    return [
        Row(case, "non-finite values, ours", int((~np.isfinite(cells)).sum()), 0, 0, "", "lower"),
        Row(case, f"non-finite plans, ot.sinkhorn, of {len(first)}", broken, unit=""),
        Row(case, f"converged, ours, of {len(costs):,}", int(result.converged.sum()), unit=""),
        seconds_row(case, "time, ours", times["ours"]),
    ]
