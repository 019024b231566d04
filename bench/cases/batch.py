"""A whole batch: scatter, everything together, and one thread against two."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import peers
import workloads
from checks import check
from timing import Row, Times, interleave, speedup

import matchtir as mt
import matchtir.credit as stages
from cases.assignment import weights
from cases.rows import memory_rows, rounds, seconds_row
from cases.transport import solve_transport
from matchtir.ops import hungarian
from matchtir.types import Array, Ragged, RaggedMatrix


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
        **rounds(smoke),
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
    times = interleave(sides, **rounds(smoke) or {"budget": 6.0})
    with _clocked(parts):
        for _ in range(1 if smoke else 7):
            in_parts()
    names = {"rest": "rewards and advantages", "match": "matching"}
    return [
        seconds_row(case, "everything, preallocated output", times["kept"], target=1.0, aim=0.4),
        seconds_row(case, "everything, new output", times["new"], target=1.0, aim=0.4),
        *[seconds_row(case, f"part: {names.get(name, name)}", Times(tuple(s))) for name, s in parts.items()],
        *memory_rows(case, lambda: into(out)),
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
            {"one": lambda solve=solve: solve(1), "two": lambda solve=solve: solve(2)}, **rounds(smoke)
        )
        rows.append(speedup("two threads", f"{name}, vs one thread", times["one"], times["two"]))
    return rows
