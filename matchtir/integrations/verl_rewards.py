"""Rewards of turns inside the one reward tensor that verl hands to an advantage estimator, shape (B, T).

A row of that tensor is float32 and reaches the estimator as it was written; the mask beside it may have lost
tokens on the way, and nothing else of the rollout comes along. So a row says where turns end and what they
earned, whatever the mask says. A cell is *marked* if it is not zero or is the negative zero; all other cells
hold the positive zero, so that the sum of a row is the score of its rollout.

- Cell 0 is always marked and holds what counts for the whole rollout alone.
- The last cell of each turn is marked and holds the turn's reward, rounded to float32.
- The cell before it may hold what rounding lost. It belongs to no other turn: between two turns stands at
  least one token of somebody else.
- A first turn of three tokens or less has no such cell: its reward is that of float32.
- If the first turn is cell 0 alone, cell 1 speaks for it. A response of one token has one cell, which holds
  the sum of both.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..types import FloatArray, Ragged

_FIRST_LOW = 2
"""Cells before this one never hold what rounding lost."""


def pack(
    turn_rewards: Sequence[float] | FloatArray, ends: Sequence[int], length: int, other: float = 0.0
) -> npt.NDArray[np.float32]:
    """A row of one rollout.

    Parameters
    ----------
    turn_rewards : sequence of float, length N
    ends : sequence of int, length N
        Index of each turn's last token; rises by 2 at least.
    length : int
        T, tokens of the response.
    other : float
        What counts for the whole rollout and for no turn.

    Returns
    -------
    ndarray of float32, shape (T,)

    Raises
    ------
    InputError
        If rewards and turns do not belong together, or a reward is not finite in float32.

    Examples
    --------
    >>> pack([1.0, 0.0], [2, 5], 7).tolist()
    [-0.0, 0.0, 1.0, 0.0, 0.0, -0.0, 0.0]
    """
    rewards = np.asarray(turn_rewards, dtype=np.float64)
    places = np.asarray(ends, dtype=np.int64)
    if rewards.ndim != 1 or rewards.shape != places.shape:
        raise InputError(f"{rewards.size} rewards came for {places.size} turns; expected one per turn")
    row = np.zeros(length, dtype=np.float32)
    if not length:
        return row
    if len(places) and (places[0] < 0 or places[-1] >= length or (np.diff(places) < 2).any()):
        raise InputError(
            f"turns end at {places.tolist()} of {length} tokens; expected ends with gaps between"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        cells = np.append(rewards, other).astype(np.float32)
    if not np.isfinite(cells).all():
        at = int(np.argmin(np.isfinite(cells)))
        raise InputError(f"reward {at} is {np.append(rewards, other)[at]}; expected finite values of float32")
    if length == 1:
        row[0] = _marked(np.float32(rewards.sum() + other))
        return row
    places = np.maximum(places, 1)
    low = (rewards - cells[:-1]).astype(np.float32)
    has_low = places > _FIRST_LOW
    row[places[has_low] - 1] = low[has_low] + np.float32(0.0)  # not the negative zero
    row[places] = [_marked(cell) for cell in cells[:-1]]
    row[0] = _marked(cells[-1])
    return row


def unpack(row: npt.NDArray[np.floating]) -> tuple[list[float], list[int], float] | None:
    """What :func:`pack` wrote, read from its row, which may be padded with zeros.

    Returns
    -------
    rewards, ends, other, or None
        None if :func:`pack` did not write the row.

    Examples
    --------
    >>> unpack(pack([1 / 3, 0.0], [2, 5], 7, other=0.5))
    ([0.3333333432674408, 0.0], [2, 5], 0.5)
    """
    marked = np.flatnonzero((row != 0) | np.signbit(row)).tolist()
    if not marked or marked[0] != 0:
        return None
    if len(marked) == 1:
        return [float(row[0])], [0], 0.0
    rewards: list[float] = []
    ends: list[int] = []
    k = len(marked) - 1
    while k > 0:
        end = marked[k]
        reward = float(row[end])
        k -= 1
        if marked[k] == end - 1 >= _FIRST_LOW:
            reward += float(row[end - 1])
            k -= 1
        rewards.append(reward + 0.0)
        ends.append(end)
    return rewards[::-1], ends[::-1], float(row[0]) + 0.0


def spans_of_ends(ends: Sequence[Sequence[int]]) -> Ragged:
    """Cells of turns, each from the one after the turn before to its own end, tokens of others included.

    Examples
    --------
    >>> spans_of_ends([[2, 5]]).tolist()
    [[[0, 3], [3, 6]]]
    """
    rows = [np.asarray(one, dtype=np.int64) + 1 for one in ends]
    spans = [np.stack([np.concatenate([[0], row[:-1]])[: len(row)], row], axis=1) for row in rows]
    flat = np.concatenate(spans) if spans else np.empty((0, 2), dtype=np.int64)
    return Ragged.from_lengths(flat, [len(row) for row in rows])


def _marked(value: np.float32) -> np.float32:
    """The value, marked."""
    return np.float32(-0.0) if value == 0 else value
