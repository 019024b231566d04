"""The cases: each checks the answers, then times them. A wrong answer stops the benchmark."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import peers
import timing
import workloads
from timing import Row, Times, fastest, interleave, interleave_parts, peak_extra, speedup

import matchtir as mt
import matchtir.credit as stages
from matchtir.errors import ConvergenceWarning
from matchtir.ops import SinkhornResult, hungarian, sinkhorn
from matchtir.types import Array, Ragged, RaggedMatrix


class WrongAnswerError(Exception):
    """Two solvers that must agree do not."""


def check(right: bool, message: str) -> None:
    """Stop with a message where an answer is wrong; unlike an assertion it runs under -O too."""
    if not right:
        raise WrongAnswerError(message)


def _memory(case: str, call: timing.Call) -> list[Row]:
    """The row of peak extra memory, where the system can tell it."""
    taken = peak_extra(call)
    return (
        [] if taken is None else [Row(case, "extra memory at the peak", round(taken / 2**20, 1), unit="MiB")]
    )


# --- assignment ---------------------------------------------------------------------------------


def weights(blocks: Sequence[Array], pairs: Sequence[peers.Pairs], who: str) -> Array:
    """Weight of each problem's assignment, shape (B,); it must be one-to-one and of full size."""
    found = np.empty(len(blocks))
    for b, (scores, (rows, cols)) in enumerate(zip(blocks, pairs, strict=True)):
        size = min(scores.shape)
        whole = len(rows) == len(set(rows.tolist())) == len(set(cols.tolist())) == size
        check(whole, f"{who}: problem {b} of shape {scores.shape} is not assigned one-to-one, {size} pairs")
        found[b] = scores[rows, cols].sum(dtype=np.float64)
    return found


def our_pairs(matches: Ragged) -> list[peers.Pairs]:
    """Our matches as rows and columns."""
    return [(np.flatnonzero(m >= 0), m[m >= 0]) for m in matches]


def check_weights(blocks: Sequence[Array], ours: Ragged) -> Array:
    """Our assignments against SciPy's, problem by problem; returns the greatest weights."""
    best = weights(blocks, peers.scipy_loop(blocks), "SciPy")
    found = weights(blocks, our_pairs(ours), "matchtir")
    worst = float(np.max(np.abs(found - best) / np.maximum(1, np.abs(best)), initial=0))
    check(worst <= 1e-9, f"matchtir's assignments weigh other than SciPy's, by {worst:.1e} of the weight")
    return best


def check_lapx(solver: str, blocks: Sequence[Array], best: Array, result: Any) -> None:
    """A lapx solver's assignments of square problems against the greatest weights."""
    found = weights(blocks, peers.lapx_pairs(solver, result), f"lapx {solver}")
    loose = solver in peers.LAPX_FLOAT32 or blocks[0].dtype == np.float32
    scale = np.maximum(1, np.abs(best)) if not loose else np.maximum(len(blocks[0]), np.abs(best))
    worst = float(np.max(np.abs(found - best) / scale, initial=0))
    check(worst <= (1e-6 if loose else 1e-9), f"lapx {solver} misses the greatest weight by {worst:.1e}")


def hungarian_w1(smoke: bool) -> list[Row]:
    """W1 against a SciPy loop and against lapx's batch, padded in three ways and grouped by shape."""
    blocks = workloads.w1(2 if smoke else 256)
    case = f"hungarian W1: {len(blocks):,} problems up to 20 × 10"
    scores = RaggedMatrix.from_blocks(blocks)
    best = check_weights(blocks, hungarian(scores, num_threads=1))
    pads = {layout: peers.padded(blocks, layout) for layout in peers.LAYOUTS}
    calls = {layout: peers.lapx_raw("lapjvh_batch", costs) for layout, costs in pads.items()}
    for layout, costs in pads.items():
        pairs = peers.lapx_pairs("lapjvh_batch", calls[layout]())
        found = weights(list(-costs), pairs, f"lapx lapjvh_batch {layout}")
        same = np.allclose(found, best, rtol=1e-9, atol=1e-9)
        check(bool(same), f"lapx lapjvh_batch, padded {layout}, misses the greatest weight")
    groups = [peers.lapx_raw("lapjvh_batch", -stack) for _, stack in peers.by_shape(blocks).values()]
    fast, seconds = fastest(calls)
    times = interleave(
        {
            "SciPy": lambda: peers.scipy_loop(blocks),
            "fast": calls[fast],
            "square": calls["20x20"],
            "shapes": lambda: [call() for call in groups],
            "ours": lambda: hungarian(scores, num_threads=1),
        },
        **_rounds(smoke),
    )
    ours = times["ours"]
    name = f"padded to {fast}"
    lapx = "vs lapjvh_batch"
    return [
        speedup(case, "vs SciPy loop", times["SciPy"], ours, target=8, aim=15),
        speedup(case, lapx, times["fast"], ours, target=4, aim=8, peer_name=name, candidates=seconds),
        speedup(case, f"{lapx}, square", times["square"], ours, peer_name="20x20"),
        speedup(case, f"{lapx}, by shape", times["shapes"], ours),
        *_memory(case, lambda: hungarian(scores, num_threads=1)),
    ]


def _rounds(smoke: bool) -> dict[str, Any]:
    """How often a side is timed."""
    return {"budget": 0.0, "least": 1} if smoke else {}


def _square(case: str, scores: Array, smoke: bool, targets: dict[str, tuple[float, float]]) -> list[Row]:
    """Square problems against SciPy and against the fastest lapx solver, and any named in `targets`."""
    blocks = list(scores)
    ragged = workloads.stack(scores)
    best = check_weights(blocks, hungarian(ragged, num_threads=1))
    # Costs from 0 up, as the solvers of lapx like them.
    costs = np.ascontiguousarray(scores.max() - scores)
    names = [name for name in peers.LAPX_SOLVERS if name.endswith("batch") or len(blocks) <= 512]
    calls = {name: peers.lapx_raw(name, costs) for name in names}
    fast, seconds = fastest(calls)
    named = [name for name in targets if name in peers.LAPX_SOLVERS]
    for name in names if smoke else {fast, *named}:
        check_lapx(name, blocks, best, calls[name]())
    sides: dict[str, timing.Call] = {"SciPy": lambda: peers.scipy_loop(blocks)}
    sides |= {name: calls[name] for name in dict.fromkeys([fast, *named])}
    sides["ours"] = lambda: hungarian(ragged, num_threads=1)
    times = interleave(sides, **_rounds(smoke))
    goal = {name: dict(zip(("target", "aim"), pair, strict=True)) for name, pair in targets.items()}
    ours = times["ours"]
    return [
        speedup(case, "vs SciPy loop", times["SciPy"], ours, **goal.get("SciPy", {})),
        speedup(
            case,
            "vs best lapx",
            times[fast],
            ours,
            peer_name=fast,
            candidates=seconds,
            **goal.get("best", {}),
        ),
        *[speedup(case, f"vs lapx {name}", times[name], ours, **goal[name]) for name in named],
    ]


def hungarian_w2(smoke: bool) -> list[Row]:
    """W2 against SciPy and the best of lapx."""
    scores = workloads.w2(4 if smoke else 512)
    case = f"hungarian W2: {len(scores)} uniform problems of 64 × 64"
    ragged = workloads.stack(scores)
    rows = _square(case, scores, smoke, {"SciPy": (5, 8), "best": (1.5, 2.5)})
    return [*rows, *_memory(case, lambda: hungarian(ragged, num_threads=1))]


def hungarian_w3(smoke: bool) -> list[Row]:
    """W3 against SciPy, lapx's `lapjvs` and the best of lapx."""
    scores = workloads.w3(40 if smoke else 2000)[None]
    case = f"hungarian W3: one uniform problem of {scores.shape[1]} × {scores.shape[2]}"
    ragged = workloads.stack(scores)
    targets = {"SciPy": (4.5, 7.0), "best": (0.8, 1.2), "lapjvs": (0.8, 1.2)}
    rows = _square(case, scores, smoke, targets)
    return [*rows, *_memory(case, lambda: hungarian(ragged, num_threads=1))]


def hungarian_sweep(smoke: bool) -> list[Row]:
    """Other sizes and kinds of score, those where we lose among them."""
    rows = []
    for name, scores in workloads.sweep(smoke).items():
        limits = {"budget": 0.0, "least": 1} if smoke else {"budget": 0.6, "least": 5, "most": 15}
        rows += _sweep_rows(f"sweep: {len(scores)} × {name}", scores, smoke, limits)
    return rows


def _sweep_rows(case: str, scores: Array, smoke: bool, limits: dict[str, Any]) -> list[Row]:
    """As `_square`, for less time, against those lapx solvers that answer rightly."""
    blocks = list(scores)
    ragged = workloads.stack(scores)
    best = check_weights(blocks, hungarian(ragged, num_threads=1))
    costs = np.ascontiguousarray(scores.max() - scores)
    names = [name for name in peers.LAPX_SOLVERS if name.endswith("batch") or len(blocks) <= 1024]
    calls = {name: peers.lapx_raw(name, costs) for name in names}
    fast, seconds = fastest(calls)
    check_lapx(fast, blocks, best, calls[fast]())
    times = interleave(
        {
            "SciPy": lambda: peers.scipy_loop(blocks),
            "lapx": calls[fast],
            "ours": lambda: hungarian(ragged, num_threads=1),
        },
        **limits,
    )
    return [
        speedup(case, "vs SciPy loop", times["SciPy"], times["ours"]),
        speedup(case, "vs best lapx", times["lapx"], times["ours"], peer_name=fast, candidates=seconds),
    ]


# --- transport ----------------------------------------------------------------------------------


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
    times = interleave({"POT": calls[fast], "ours": ours}, **_rounds(smoke) or {"budget": 6.0})
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
        *_memory(case, ours),
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
    times = interleave({"ours": lambda: solve_transport(ragged, 0.001)}, **_rounds(smoke))
    return [
        Row(case, "non-finite values, ours", int((~np.isfinite(cells)).sum()), 0, 0, "", "lower"),
        Row(case, f"non-finite plans, ot.sinkhorn, of {len(first)}", broken, unit=""),
        Row(case, f"converged, ours, of {len(costs):,}", int(result.converged.sum()), unit=""),
        _seconds(case, "time, ours", times["ours"]),
    ]


# --- similarity ---------------------------------------------------------------------------------


def similarity_w1tool(smoke: bool) -> list[Row]:
    """W1tool against Python that parses both calls of each pair; ours from parsed calls, and from text."""
    tools = workloads.w1tool(2 if smoke else 256)
    case = f"similarity W1tool: {len(tools.predicted):,} rollouts, {tools.pairs:,} pairs"
    gold_of = [tools.gold[b // workloads.GROUP] for b in range(len(tools.predicted))]

    def ours() -> RaggedMatrix:
        gold = [workloads.parsed(calls) for calls in tools.gold]
        shared = [gold[b // workloads.GROUP] for b in range(len(tools.predicted))]
        return mt.similarity([workloads.parsed(calls) for calls in tools.predicted], shared, num_threads=1)

    gold_parsed = [workloads.parsed(calls) for calls in tools.gold]
    predicted_parsed = [workloads.parsed(calls) for calls in tools.predicted]
    shared_parsed = [gold_parsed[b // workloads.GROUP] for b in range(len(tools.predicted))]

    def from_parsed() -> RaggedMatrix:
        return mt.similarity(predicted_parsed, shared_parsed, num_threads=1)

    blocks = ours()
    check(bool((from_parsed().values == blocks.values).all()), "calls parsed before give other similarities")
    for b, block in enumerate(peers.similarity_loop(tools.predicted, gold_of)):
        same = np.abs(np.array(block) - blocks[b]).max() <= 1e-12
        check(bool(same), f"similarity of rollout {b} differs from plain Python's")
    size = max(1, len(gold_of) // 8)
    rows = []
    for names_first, metric in (
        (False, "vs Python, parsing each pair"),
        (True, "vs Python, parsing equal names"),
    ):
        parts = [
            lambda i=i, names_first=names_first: peers.similarity_loop(
                tools.predicted[i : i + size], gold_of[i : i + size], names_first
            )
            for i in range(0, len(gold_of), size)
        ]
        peer, mine = interleave_parts(parts, ours)
        beside = interleave({"ours": from_parsed}, **_rounds(smoke))["ours"]
        goal = {} if names_first else {"target": 20.0, "aim": 30.0}
        rows.append(speedup(case, metric, peer, beside, **goal))
        rows.append(speedup(case, f"{metric} *", peer, mine))
    texts = [text for calls in tools.predicted for _, text in calls]
    parsing = interleave({"json": lambda: [json.loads(text) for text in texts]}, **_rounds(smoke))
    return [*rows, _seconds(case, "of it json.loads of the predicted", parsing["json"]), *_memory(case, ours)]


# --- everything ---------------------------------------------------------------------------------


def _seconds(case: str, metric: str, times: Times, **goal: float) -> Row:
    """Row of a time of ours."""
    return Row(
        case,
        metric,
        times.median,
        unit="s",
        better="lower",
        quantiles=times.quantiles,
        ours=times.summary(),
        **goal,  # type: ignore[arg-type]
    )


def _full(smoke: bool) -> workloads.Full:
    return workloads.full(2, 600) if smoke else workloads.full()


def check_tokens(values: Ragged, spans: Ragged, out: Array) -> None:
    """Every token of every row: its turn's value inside a span, 0 outside, as float32."""
    for b, row in enumerate(out):
        expected = np.zeros(out.shape[1], dtype=np.float32)
        for value, (start, end) in zip(values[b], spans[b], strict=True):
            expected[start:end] = value
        check(bool((row == expected).all()), f"row {b} of the scattered tokens is wrong")


def scatter_full(smoke: bool) -> list[Row]:
    """Scatter into a preallocated array, measured in fills of the same array."""
    work = _full(smoke)
    rows, tokens = work.shape
    case = f"scatter of Full: {rows:,} × {tokens:,} float32"
    values = Ragged(np.random.default_rng(6).standard_normal(rows * workloads.TURNS), work.spans.offsets)
    out = np.full(work.shape, np.nan, dtype=np.float32)
    mt.scatter(values, work.spans, out=out, num_threads=1)
    check_tokens(values, work.spans, out)
    times = interleave(
        {
            "fill": lambda: out.fill(1.0),
            "ours": lambda: mt.scatter(values, work.spans, out=out, num_threads=1),
        },
        **_rounds(smoke),
    )
    inverse = speedup(case, "", times["ours"], times["fill"])
    return [
        Row(
            case,
            "time over a fill of the array",
            inverse.value,
            2,
            1.3,
            better="lower",
            quantiles=inverse.quantiles,
            ours=times["ours"].summary(),
            peer=times["fill"].summary(),
        )
    ]


@contextmanager
def _clocked(spent: dict[str, list[float]]) -> Iterator[None]:
    """Inside, `assign_credit` adds the seconds of its similarity and its matching to `spent`."""
    kept = {"similarity": stages.similarity, "match": stages.match}

    def clocked(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = kept[name](*args, **kwargs)
            spent[name].append(time.perf_counter() - start)
            return result

        return call

    for name in kept:
        setattr(stages, name, clocked(name))
    try:
        yield
    finally:
        for name, function in kept.items():
            setattr(stages, name, function)


def check_credit(work: workloads.Full, credit: mt.Credit, groups: int) -> None:
    """Matching against SciPy, and the first groups' advantages against loops over their rewards."""
    blocks = list(credit.similarity)
    best = weights(blocks, peers.scipy_loop(blocks), "SciPy")
    found = [rewards.sum() for rewards in credit.call_rewards]
    check(bool(np.allclose(found, best, atol=1e-9)), "matched similarity differs from SciPy's")
    for g in range(groups):
        rows = range(g * workloads.GROUP, (g + 1) * workloads.GROUP)
        rewards = Ragged.from_lists([credit.call_rewards[b].tolist() for b in rows])
        plain = peers.group_advantages([work.rollouts[b] for b in rows], rewards)
        mine = np.stack([credit.turn_advantages[b] for b in rows])
        worst = float(np.abs(plain - mine).max())
        check(worst <= 1e-6, f"advantages of group {g} differ from the plain loops' by {worst:.1e}")


def full(smoke: bool) -> list[Row]:
    """From parsed calls and spans to token advantages, by the paper's configuration, and its parts."""
    work = _full(smoke)
    rows, tokens = work.shape
    case = f"Full: {rows:,} rollouts × {workloads.TURNS} turns × {tokens:,} tokens"
    config = mt.CreditConfig(num_threads=1)
    out = np.full(work.shape, np.nan, dtype=np.float32)
    parts: dict[str, list[float]] = {"similarity": [], "match": [], "rest": [], "scatter": []}

    def into(target: Array | None) -> Array:
        credit = mt.assign_credit(work.rollouts, config)
        return mt.scatter(credit.turn_advantages, work.spans, work.shape, out=target, num_threads=1)

    def in_parts() -> None:
        start = time.perf_counter()
        credit = mt.assign_credit(work.rollouts, config)
        middle = time.perf_counter()
        mt.scatter(credit.turn_advantages, work.spans, out=out, num_threads=1)
        parts["scatter"].append(time.perf_counter() - middle)
        parts["rest"].append(middle - start - parts["similarity"][-1] - parts["match"][-1])

    credit = mt.assign_credit(work.rollouts, config)
    check_credit(work, credit, len(work.rollouts) // workloads.GROUP)
    check_tokens(credit.turn_advantages, work.spans, into(out))
    check(bool((into(None) == out).all()), "a new output differs from the preallocated one")
    sides = {"kept": lambda: into(out), "new": lambda: into(None)}
    times = interleave(sides, **_rounds(smoke) or {"budget": 6.0})
    with _clocked(parts):
        for _ in range(1 if smoke else 7):
            in_parts()
    names = {"rest": "rewards and advantages", "match": "matching"}
    return [
        _seconds(case, "everything, preallocated output", times["kept"], target=1.0, aim=0.4),
        _seconds(case, "everything, new output", times["new"], target=1.0, aim=0.4),
        *[_seconds(case, f"part: {names.get(name, name)}", Times(tuple(s))) for name, s in parts.items()],
        *_memory(case, lambda: into(out)),
    ]


def threads(smoke: bool) -> list[Row]:
    """One thread against two; the results must be the same to the bit."""
    assign = workloads.stack(workloads.w2(4 if smoke else 512))
    costs = RaggedMatrix.from_blocks([-scores for scores in workloads.w1(2 if smoke else 256)])
    solvers: dict[str, Callable[[int], Array]] = {
        "hungarian W2": lambda k: hungarian(assign, num_threads=k).values,
        "sinkhorn W1, reg 0.1": lambda k: solve_transport(costs, 0.1, k).plan.values,
    }
    rows = []
    for name, solve in solvers.items():
        check(bool((solve(1) == solve(2)).all()), f"{name}: two threads give another result than one")
        times = interleave(
            {"one": lambda solve=solve: solve(1), "two": lambda solve=solve: solve(2)}, **_rounds(smoke)
        )
        rows.append(speedup("two threads", f"{name}, vs one thread", times["one"], times["two"]))
    return rows


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
}
