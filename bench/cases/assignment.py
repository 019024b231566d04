"""Assignment: the greatest weight against SciPy and lapx."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import peers
import workloads
from checks import check
from timing import Call, Row, fastest, interleave, speedup

from cases.rows import memory_rows, rounds
from matchtir.ops import hungarian
from matchtir.types import Array, Ragged, RaggedMatrix


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
        **rounds(smoke),
    )
    ours = times["ours"]
    name = f"padded to {fast}"
    lapx = "vs lapjvh_batch"
    return [
        speedup(case, "vs SciPy loop", times["SciPy"], ours, target=8, aim=15),
        speedup(case, lapx, times["fast"], ours, target=4, aim=8, peer_name=name, candidates=seconds),
        speedup(case, f"{lapx}, square", times["square"], ours, peer_name="20x20"),
        speedup(case, f"{lapx}, by shape", times["shapes"], ours),
        *memory_rows(case, lambda: hungarian(scores, num_threads=1)),
    ]


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
    sides: dict[str, Call] = {"SciPy": lambda: peers.scipy_loop(blocks)}
    sides |= {name: calls[name] for name in dict.fromkeys([fast, *named])}
    sides["ours"] = lambda: hungarian(ragged, num_threads=1)
    times = interleave(sides, **rounds(smoke))
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
    return [*rows, *memory_rows(case, lambda: hungarian(ragged, num_threads=1))]


def hungarian_w3(smoke: bool) -> list[Row]:
    """W3 against SciPy, lapx's `lapjvs` and the best of lapx."""
    scores = workloads.w3(40 if smoke else 2000)[None]
    case = f"hungarian W3: one uniform problem of {scores.shape[1]} × {scores.shape[2]}"
    ragged = workloads.stack(scores)
    targets = {"SciPy": (4.5, 7.0), "best": (0.8, 1.2), "lapjvs": (0.8, 1.2)}
    rows = _square(case, scores, smoke, targets)
    return [*rows, *memory_rows(case, lambda: hungarian(ragged, num_threads=1))]


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
