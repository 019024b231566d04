"""Interleaved timing, quantiles, the result row, its table and its JSON."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

Call = Callable[[], object]
WIDTH = 100


@dataclass(frozen=True)
class Times:
    """Seconds of each run of one side."""

    runs: tuple[float, ...]

    @property
    def median(self) -> float:
        return float(np.median(self.runs))

    @property
    def quantiles(self) -> tuple[float, float] | None:
        """20 % and 80 %; None for a single run, which has no spread."""
        if len(self.runs) < 2:
            return None
        low, high = np.quantile(self.runs, (0.2, 0.8))
        return float(low), float(high)

    def summary(self) -> dict[str, Any]:
        """For the JSON file, in seconds."""
        return {"median_s": self.median, "q20_q80_s": self.quantiles, "runs": len(self.runs)}


def once(call: Call) -> float:
    """Seconds of one run; the result is released inside, as it is for every side."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def interleave(
    sides: Mapping[str, Call], *, budget: float = 4.0, least: int = 5, most: int = 31, warm: bool = True
) -> dict[str, Times]:
    """Time the sides in turn, so that a drift of the machine meets all of them.

    A timed call follows an untimed one of the same side, so that no side pays for the garbage and the
    caches that its neighbour left. Rounds go on for `budget` seconds, but at least `least` and at most
    `most` of them.
    """
    if warm:
        for call in sides.values():
            call()
    gc.collect()
    runs: dict[str, list[float]] = {name: [] for name in sides}
    start = time.perf_counter()
    rounds = 0
    while rounds < least or (rounds < most and time.perf_counter() - start < budget):
        for name, call in sides.items():
            call()
            runs[name].append(once(call))
        rounds += 1
    return {name: Times(tuple(seconds)) for name, seconds in runs.items()}


def interleave_parts(parts: Sequence[Call], ours: Call) -> tuple[Times, Times]:
    """Time a peer too slow to repeat: its parts once each, our whole work after each part.

    Returns the peer's one total, and our runs.
    """
    parts[0]()
    ours()
    gc.collect()
    total, runs = 0.0, []
    for part in parts:
        total += once(part)
        ours()
        runs.append(once(ours))
    return Times((total,)), Times(tuple(runs))


def fastest(candidates: Mapping[str, Call]) -> tuple[str, dict[str, float]]:
    """The fastest candidate by a warm run each, and the seconds of all.

    A candidate whose first run takes over 4 times the best is not run again.
    """
    seconds: dict[str, float] = {}
    for name, call in candidates.items():
        first = once(call)
        best = min(seconds.values(), default=first)
        seconds[name] = first if first > 4 * best else min(first, once(call), once(call))
    return min(seconds, key=lambda name: seconds[name]), seconds


def peak_extra(call: Call) -> int | None:
    """Bytes by which `call` raises the resident set at its peak, its result included.

    None where the system cannot reset the high-water mark (it needs Linux). Memory the process holds
    but does not use is given back first, or it would hide what the call takes.
    """

    def status(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024

    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS")
    except (OSError, AttributeError, StopIteration):
        return None
    result = call()
    after = status("VmHWM")
    del result
    return max(0, after - before)


@dataclass(frozen=True)
class Row:
    """One line of the table and one object of the JSON file.

    `value` is measured against `target` (at least) and `aim`; `better` says which way is good.
    """

    case: str
    metric: str
    value: float | int | str
    target: float | None = None
    aim: float | None = None
    unit: str = "x"
    better: Literal["higher", "lower"] = "higher"
    quantiles: tuple[float, float] | None = None
    peer_name: str | None = None
    ours: dict[str, Any] | None = None
    peer: dict[str, Any] | None = None
    candidates: dict[str, float] | None = None

    @property
    def verdict(self) -> str | None:
        """Whether the target is reached; None where there is none."""
        if self.target is None or isinstance(self.value, str):
            return None
        good = self.value >= self.target if self.better == "higher" else self.value <= self.target
        return "reached" if good else "missed"


def speedup(
    case: str,
    metric: str,
    peer: Times,
    ours: Times,
    *,
    target: float | None = None,
    aim: float | None = None,
    peer_name: str | None = None,
    candidates: dict[str, float] | None = None,
) -> Row:
    """Row of a ratio: median time of the peer over ours, with the spread of the single rounds' ratios."""
    if len(peer.runs) == len(ours.runs) and len(ours.runs) > 1:
        ratios = np.divide(peer.runs, ours.runs)
    else:
        ratios = peer.median / np.array(ours.runs)
    low, high = np.quantile(ratios, (0.2, 0.8))
    return Row(
        case,
        metric,
        peer.median / ours.median,
        target,
        aim,
        quantiles=(float(low), float(high)) if len(ratios) > 1 else None,
        peer_name=peer_name,
        ours=ours.summary(),
        peer=peer.summary(),
        candidates=candidates,
    )


def _number(x: float | int | str | None) -> str:
    """Three figures, in at most 7 characters for what occurs here."""
    if x is None:
        return "—"
    if isinstance(x, str):
        return x
    if isinstance(x, int) or x == 0 or abs(x) >= 100:
        return f"{x:,.0f}"
    return f"{x:.3g}" if abs(x) >= 1e-3 else f"{x:.1e}"


def _milliseconds(summary: dict[str, Any] | None) -> str:
    return "" if summary is None else _number(1e3 * summary["median_s"])


def table(rows: Sequence[Row], judged: bool = True) -> str:
    """The rows as text, at most 100 columns wide; cases are headings."""
    line = "{:<40.40} {:>10} {:>13} {:>7} {:>7} {:>4} {:>4} {:>8}".format
    lines = [line("", "value", "20–80 %", "ours ms", "peer ms", "need", "aim", ""), "-" * WIDTH]
    case = None
    for row in rows:
        if row.case != case:
            case = row.case
            lines.append(case)
        name = f"  {row.metric}" + (f" ({row.peer_name})" if row.peer_name else "")
        if row.case == "environment":
            lines.append(f"  {row.metric:<12}{row.value}"[:WIDTH])
            continue
        spread = "–".join(map(_number, row.quantiles)) if row.quantiles else ""
        value = f"{_number(row.value)} {row.unit}" if row.unit != "x" else f"{_number(row.value)}×"
        verdict = (row.verdict if judged else None) or "—"
        milliseconds = _milliseconds(row.ours), _milliseconds(row.peer)
        lines.append(line(name, value, spread, *milliseconds, _number(row.target), _number(row.aim), verdict))
    return "\n".join(lines)


def write_json(rows: Sequence[Row], path: Path) -> None:
    """A list of objects with `case`, `metric`, `value`, `target` and more; complete, or not there."""
    text = json.dumps([asdict(row) | {"verdict": row.verdict} for row in rows], indent=1, ensure_ascii=False)
    part = path.with_name(path.name + ".part")
    part.write_text(text + "\n", encoding="utf-8")
    os.replace(part, path)
