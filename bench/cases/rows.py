"""What the cases share: how often a side is timed, and rows of seconds and of memory."""

from __future__ import annotations

from typing import Any

from timing import Call, Row, Times, peak_extra


def rounds(smoke: bool) -> dict[str, Any]:
    """How often a side is timed."""
    return {"budget": 0.0, "least": 1} if smoke else {}


def seconds_row(case: str, metric: str, times: Times, **goal: float) -> Row:
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


def memory_rows(case: str, call: Call) -> list[Row]:
    """The row of peak extra memory, where the system can tell it."""
    taken = peak_extra(call)
    return (
        [] if taken is None else [Row(case, "extra memory at the peak", round(taken / 2**20, 1), unit="MiB")]
    )
