"""How the CPU's work is cut: into windows of flat tokens, of a dtype that the kernels read, for some threads.

Threads take whole windows, whose sums are added up afterwards in their order: how many there are changes
nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .._threads import share
from .segments import COLUMNS, Layout, reduce_columns, turns_of_blocks

Floats = npt.NDArray[Any]
Kernel = Callable[..., Any]

WINDOW = 32_768
"""Tokens of a window; also what is converted at a time where Numba cannot read the dtype."""

PER_THREAD = 2**19
"""Tokens that are worth a thread: they take about half a millisecond, and its start a fifth of one."""


def wide(parts: tuple[Tensor | None, ...], begin: int, end: int, dtype: torch.dtype) -> list[Floats]:
    """Tokens `begin` to `end` of each in a dtype that Numba reads; nothing for None."""
    empty = torch.empty(0, dtype=dtype)
    return [(empty if x is None else x[begin:end].to(dtype)).numpy() for x in parts]


def tokens(
    kernel: Kernel, logps: Tensor, old_logps: Tensor, ref_logps: Tensor | None, rollout_logps: Tensor | None,
    place: Layout, table: Tensor, rollout_cap: float | None, per_token: bool, kind: int, kl_grad: bool,
    grad: Tensor, threads: int,
) -> Tensor:  # fmt: skip
    """COLUMNS of the whole; the gradient in units of the scale is written to `grad` if that is not empty."""
    dtype = torch.float64 if logps.dtype == torch.float64 else torch.float32
    rows, parts = table.to(dtype).numpy(), (logps, old_logps, ref_logps, rollout_logps)
    total, bounds = len(logps), place.bounds.numpy()
    count = max(1, -(-total // WINDOW))
    first, last = (x.numpy() for x in turns_of_blocks(place, count, WINDOW))
    sums = torch.empty(count, COLUMNS, dtype=torch.float64)
    cap = rows.dtype.type(np.inf if rollout_cap is None else rollout_cap)
    options = (bounds, rows, first, last, cap, per_token, kind, kl_grad)

    def whole(begin: int, end: int) -> None:
        arrays = wide(parts, 0, total, dtype)
        kernel(*arrays, *options, grad.numpy(), sums.numpy(), 0, total, WINDOW, begin, end)

    def converted(begin: int, end: int) -> None:
        for w in range(begin, end):
            here, stop = w * WINDOW, min((w + 1) * WINDOW, total)
            slopes = torch.empty(stop - here if len(grad) else 0, dtype=dtype)
            arrays = wide(parts, here, stop, dtype)
            kernel(*arrays, *options, slopes.numpy(), sums.numpy(), here, total, WINDOW, w, w + 1)
            if len(grad):
                grad[here:stop].copy_(slopes)

    direct = all(x is None or x.dtype == dtype for x in parts)
    share(whole if direct else converted, count, min(threads, total // PER_THREAD))
    return reduce_columns(sums)


def turn_sums(
    kernel: Kernel,
    logps: Tensor,
    old_logps: Tensor,
    rollout_logps: Tensor | None,
    place: Layout,
    rollout_cap: float | None,
    threads: int,
) -> Tensor:
    """Per turn the sums of log ratio, importance weight, k3 and truncated tokens, float64 (N, 4)."""
    dtype = torch.float64 if logps.dtype == torch.float64 else torch.float32
    parts, bounds = (logps, old_logps, rollout_logps), place.bounds.numpy()
    sums = torch.zeros(len(bounds), 4, dtype=torch.float64)
    cap = np.dtype("f8" if dtype == torch.float64 else "f4").type(
        np.inf if rollout_cap is None else rollout_cap
    )
    direct = all(x is None or x.dtype == dtype for x in parts)
    rows, turns = place.rows.tolist(), place.offsets.tolist()

    def work(begin: int, end: int) -> None:
        steps = [(begin, end)] if direct else [(b, b + 1) for b in range(begin, end)]
        for b, e in steps:
            base = rows[b] if not direct else 0
            arrays = wide(parts, base, rows[e] if not direct else len(logps), dtype)
            kernel(*arrays, bounds, cap, sums.numpy(), base, turns[b], turns[e])

    share(work, len(turns) - 1, min(threads, len(logps) // PER_THREAD))
    return sums
