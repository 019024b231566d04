"""What spans and offsets must be before a kernel may rely on them; of arrays on the host."""

from __future__ import annotations

import numpy as np

from ..errors import InputError
from ..types import IntArray


def check_offsets(offsets: IntArray, name: str, least: int, most: int) -> None:
    """Refuse offsets (B + 1,) that do not rise from 0 to an end in [least, most]."""
    if offsets[0] != 0 or (np.diff(offsets) < 0).any() or not least <= offsets[-1] <= most:
        end = str(most) if least == most else f"at most {most}"
        raise InputError(f"{name} must rise from 0 to {end}; got {offsets.tolist()!s:.80}")


def check_spans(spans: IntArray, offsets: IntArray, widths: IntArray) -> None:
    """Refuse spans (N, 2) that leave their rollout's row, `widths` (B,) tokens wide, or overlap in it."""
    rollout = np.repeat(np.arange(len(widths)), np.diff(offsets))
    start, end = spans[:, 0], spans[:, 1]
    unfit = (start < 0) | (end < start) | (end > widths[rollout])
    overlap = np.zeros(len(spans), dtype=bool)
    filled = np.flatnonzero(start < end)
    before, after = filled[:-1], filled[1:]
    overlap[after] = (rollout[before] == rollout[after]) & (start[after] < end[before])
    wrong = unfit | overlap
    if not wrong.any():
        return
    k = int(np.argmax(wrong))
    b = int(rollout[k])
    where = f"spans[{k}] = [{start[k]}, {end[k]}) (rollout {b}, turn {k - offsets[b]})"
    if unfit[k]:
        raise InputError(f"{where} does not fit; expected 0 <= start <= end <= {widths[b]}")
    raise InputError(
        f"{where} starts before the span before it ends; expected spans in order, without overlap"
    )
