"""From rewards to advantages: over a prompt's rollouts as a whole, turn by turn, and both together.

A group is the rollouts of one prompt. Standard deviations are those of a sample (n - 1). Values that
are all equal get advantage exactly 0, which is decided by comparing the values: their mean may differ
from them in the last bit, and dividing that bit by ``eps`` would turn it into a signal.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from .errors import ConfigError, InputError
from .types import FloatArray, IntArray, Ragged

Baseline = Literal["turn_index", "pooled", "leave_one_out"]
Integration = Literal["sum", "mean", "weighted_product", "weighted_sum", "trajectory", "turn"]

# Weight of the turn's own quality in the weighted product (MatchTIR, appendix C).
_PRODUCT_WEIGHT = 0.1


def group_ids(groups: Sequence[Hashable]) -> IntArray:
    """Number groups by first appearance.

    Parameters
    ----------
    groups : sequence of hashable, length B
        The prompt of each rollout; the number 1 and the text "1" are two prompts.

    Returns
    -------
    ndarray of int64, shape (B,)

    Raises
    ------
    InputError
        If a group is not hashable.

    Examples
    --------
    >>> group_ids(["b", "a", "b", 7]).tolist()
    [0, 1, 0, 2]
    """
    numbers: dict[Hashable, int] = {}
    ids = np.empty(len(groups), dtype=np.int64)
    for b, group in enumerate(groups):
        try:
            ids[b] = numbers.setdefault(group, len(numbers))
        except TypeError as error:
            raise InputError(f"groups[{b}] is {group!r:.80}; expected a hashable value") from error
    return ids


def trajectory_advantages(
    returns: npt.ArrayLike, group_ids: npt.ArrayLike, *, normalize_std: bool = True, eps: float = 1e-6
) -> FloatArray:
    """Advantage of each rollout over its group: ``A_i^g = (R_i - mean) / (std + eps)``.

    Parameters
    ----------
    returns : array_like of float, shape (B,)
        R_i.
    group_ids : array_like of int, shape (B,)
        Which rollouts belong together.
    normalize_std : bool
        False leaves the division out (Dr. GRPO, arXiv 2503.20783).
    eps : float
        Added to the standard deviation.

    Returns
    -------
    ndarray of float64, shape (B,)
        Exactly 0 in a group whose returns are all equal, so in a group of one.

    Raises
    ------
    InputError
        If shapes differ, ids are no integers, or a return is not finite.

    References
    ----------
    MatchTIR, arXiv 2601.10712, eq. 10; GRPO, arXiv 2402.03300, §4.1.2.

    Examples
    --------
    >>> trajectory_advantages([1.0, 3.0, 5.0, 5.0], [0, 0, 1, 1], normalize_std=False).tolist()
    [-1.0, 1.0, 0.0, 0.0]
    """
    values = _finite(returns, "returns")
    ids = _dense_ids(group_ids, len(values))
    return _normalize(values, ids, normalize_std, eps)


def turn_returns(turn_rewards: Ragged, gamma: float) -> Ragged:
    """Discounted return from each turn on: ``R_{i,t} = Σ_{k≥t} gamma^{k-t} r_k``.

    Computed from the last turn back as ``R_t = r_t + gamma R_{t+1}``, for all rollouts at once.

    Parameters
    ----------
    turn_rewards : Ragged of float, one entry a turn
    gamma : float
        In [0, 1]. 0 gives the rewards themselves.

    Returns
    -------
    Ragged of float64, one entry a turn

    Raises
    ------
    ConfigError
        If gamma is outside [0, 1].

    References
    ----------
    MatchTIR, arXiv 2601.10712, eq. 11.

    Examples
    --------
    >>> turn_returns(Ragged.from_lists([[1.0, 0.0, 4.0], [2.0]]), 0.5).tolist()
    [[2.0, 2.0, 4.0], [2.0]]
    """
    if not 0.0 <= gamma <= 1.0:
        raise ConfigError(f"gamma is {gamma!r}; expected a number in [0, 1]")
    values = np.array(turn_rewards.values, dtype=np.float64)
    lengths = turn_rewards.lengths
    # Longest first, so that the rollouts that reach a turn are a prefix: the work is the number of
    # turns, not rollouts times the longest.
    order = np.argsort(-lengths, kind="stable")
    starts = turn_rewards.offsets[:-1][order]
    reach = len(lengths) - np.cumsum(np.bincount(lengths))  # rollouts with more than t turns, at t
    for t in range(len(reach) - 3, -1, -1):
        here = starts[: reach[t + 1]] + t
        values[here] += gamma * values[here + 1]
    return Ragged(values, turn_rewards.offsets)


def turn_level_advantages(
    turn_returns: Ragged,
    group_ids: npt.ArrayLike,
    *,
    baseline: Baseline = "turn_index",
    normalize_std: bool = True,
    eps: float = 1e-6,
) -> Ragged:
    """Advantage of each turn: its return compared with other turns of the rollout's group.

    ``A_{i,t}^l = (R_{i,t} - b) / (s + eps)`` with, by `baseline`,

    - ``"turn_index"``, the paper's: b and s are mean and standard deviation over the group's
      rollouts that reach turn t. Where only one does, b = 0 and s = 1.
    - ``"pooled"``: b and s over all turns of all the group's rollouts together.
    - ``"leave_one_out"``: b is the mean over the group's *other* rollouts, s the standard
      deviation over all of the group; a rollout that ended before t counts with the return it
      has from there on, 0. In a group of one there is no other rollout, and the advantage is 0.

    Parameters
    ----------
    turn_returns : Ragged of float, one entry a turn
        R_{i,t}, see :func:`turn_returns`.
    group_ids : array_like of int, shape (B,)
        Which rollouts belong together.
    baseline : {"turn_index", "pooled", "leave_one_out"}
        What a turn is compared with. ``docs/advantages.md`` says what each costs.
    normalize_std : bool
        False leaves the division out. ``"leave_one_out"`` is unbiased only then.
    eps : float
        Added to the standard deviation.

    Returns
    -------
    Ragged of float64, one entry a turn
        Exactly 0 where all values that are compared are equal.

    Raises
    ------
    InputError
        If lengths differ, ids are no integers, or a return is not finite.
    ConfigError
        If the baseline is unknown.

    References
    ----------
    turn_index: MatchTIR, arXiv 2601.10712, eq. 11. pooled: process supervision in DeepSeekMath,
    arXiv 2402.03300, §4.1.3, which pools step rewards where this pools returns. leave_one_out:
    Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free!"; Ahmadian et al.,
    arXiv 2402.14740.

    Examples
    --------
    >>> returns = Ragged.from_lists([[3.0, 2.0], [1.0]])
    >>> turn_level_advantages(returns, [0, 0], normalize_std=False).tolist()
    [[1.0, 2.0], [-1.0]]
    >>> turn_level_advantages(returns, [0, 0], baseline="leave_one_out", normalize_std=False).tolist()
    [[2.0, 2.0], [-2.0]]
    """
    if baseline not in get_args(Baseline):
        raise ConfigError(f"baseline is {baseline!r}; expected one of {', '.join(get_args(Baseline))}")
    values = _finite(turn_returns.values, "turn_returns.values")
    ids = _dense_ids(group_ids, len(turn_returns))
    lengths = turn_returns.lengths
    if baseline == "pooled":
        pooled = _normalize(values, np.repeat(ids, lengths), normalize_std, eps)
        return Ragged(pooled, turn_returns.offsets)
    cells = _turn_cells(turn_returns, ids)
    if baseline == "turn_index":
        advantages = _normalize(values, cells, normalize_std, eps)
        alone = np.bincount(cells)[cells] == 1
        advantages[alone] = values[alone] / (1.0 + eps) if normalize_std else values[alone]
    else:
        size = np.bincount(ids)[np.repeat(ids, lengths)]  # rollouts of the turn's group, per turn
        advantages = _leave_one_out(values, cells, size, normalize_std, eps)
    return Ragged(advantages, turn_returns.offsets)


def integrate(
    trajectory_advantages: npt.ArrayLike,
    turn_level_advantages: Ragged,
    turn_rewards: Ragged,
    *,
    integration: Integration = "sum",
    eps: float = 1e-6,
) -> Ragged:
    """Advantage that every token of a turn gets, from the two levels.

    With A^g of the rollout, A^l of the turn, and A^loc the turn's reward normalised over the turns
    of its own rollout (mean, sample standard deviation + eps; 0 if all its rewards are equal):

    - ``"sum"``, the paper's: A^g + A^l
    - ``"mean"``, the published code's: (A^g + A^l) / 2
    - ``"weighted_product"``: (1 + 0.1 sgn(A^g) A^loc) A^g
    - ``"weighted_sum"``: A^g + A^loc
    - ``"trajectory"``: A^g; ``"turn"``: A^l

    Parameters
    ----------
    trajectory_advantages : array_like of float, shape (B,)
        A^g.
    turn_level_advantages : Ragged of float, one entry a turn
        A^l.
    turn_rewards : Ragged of float, one entry a turn
        What A^loc is made of.
    integration : str
        One of the names above.
    eps : float
        Added to the standard deviation in A^loc.

    Returns
    -------
    Ragged of float64, one entry a turn

    Raises
    ------
    InputError
        If the arguments describe different rollouts, or values are not finite.
    ConfigError
        If the integration is unknown.

    References
    ----------
    MatchTIR, arXiv 2601.10712, §3.3 and appendix C.

    Examples
    --------
    >>> level = Ragged.from_lists([[1.0, -1.0], [0.5]])
    >>> integrate([1.0, -1.0], level, level).tolist()
    [[2.0, 0.0], [-0.5]]
    """
    if integration not in get_args(Integration):
        raise ConfigError(
            f"integration is {integration!r}; expected one of {', '.join(get_args(Integration))}"
        )
    whole = _finite(trajectory_advantages, "trajectory_advantages")
    level = _finite(turn_level_advantages.values, "turn_level_advantages.values")
    rewards = _finite(turn_rewards.values, "turn_rewards.values")
    offsets = turn_level_advantages.offsets
    if whole.shape != (len(offsets) - 1,) or not np.array_equal(offsets, turn_rewards.offsets):
        raise InputError(
            f"trajectory_advantages describes {len(whole)} rollouts, turn_level_advantages "
            f"{len(offsets) - 1} with {len(level)} turns, turn_rewards {len(turn_rewards)} with "
            f"{len(rewards)}; expected the same rollouts and turns in each"
        )
    rollout = turn_level_advantages.problem
    per_turn = whole[rollout]
    values: FloatArray
    if integration == "sum":
        values = per_turn + level
    elif integration == "mean":
        values = (per_turn + level) / 2.0
    elif integration == "trajectory":
        values = per_turn
    elif integration == "turn":
        values = level.copy()
    else:
        local = _normalize(rewards, rollout, True, eps)
        if integration == "weighted_sum":
            values = per_turn + local
        else:
            values = (1.0 + _PRODUCT_WEIGHT * np.sign(per_turn) * local) * per_turn
    return Ragged(values, offsets)


def _finite(values: npt.ArrayLike, name: str) -> FloatArray:
    """Values as float64, shape (L,), refused where one is not finite."""
    array: FloatArray = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise InputError(f"{name} has shape {array.shape}; expected one dimension")
    finite = np.isfinite(array)
    if not finite.all():
        at = int(np.argmin(finite))
        raise InputError(f"{name}[{at}] is {array[at]}; expected a finite number")
    return array


def _dense_ids(group_ids: npt.ArrayLike, batch: int) -> IntArray:
    """Group ids [B] as numbers below B, so that counting by id needs no more than B entries."""
    ids: npt.NDArray[Any] = np.asarray(group_ids)
    if ids.shape != (batch,) or (batch and not np.issubdtype(ids.dtype, np.integer)):
        raise InputError(
            f"group_ids has shape {ids.shape} and dtype {ids.dtype}; expected integers of shape ({batch},)"
        )
    if batch and (ids.min() < 0 or ids.max() >= batch):
        ids = np.unique(ids, return_inverse=True)[1]
    return ids.astype(np.int64, copy=False)


def _turn_cells(turns: Ragged, ids: IntArray) -> IntArray:
    """Number of each turn's cell (group, turn index), shape (L,); below L, whatever the lengths are."""
    lengths = turns.lengths
    longest = np.zeros(len(ids), dtype=np.int64)  # turns of the longest rollout, per group
    np.maximum.at(longest, ids, lengths)
    first = np.cumsum(longest) - longest
    index = np.arange(len(turns.values), dtype=np.int64) - np.repeat(turns.offsets[:-1], lengths)
    cells: IntArray = np.repeat(first[ids], lengths) + index
    return cells


def _unequal(values: FloatArray, cells: IntArray) -> npt.NDArray[np.bool_]:
    """Whether a cell holds two different values, shape (cells,)."""
    member = np.zeros(int(cells.max(initial=-1)) + 1)
    member[cells] = values  # any one of the cell's values
    different: npt.NDArray[np.bool_] = (
        np.bincount(cells, weights=values != member[cells], minlength=len(member)) > 0
    )
    return different


def _normalize(values: FloatArray, cells: IntArray, by_std: bool, eps: float) -> FloatArray:
    """(value - mean) / (std + eps) inside each cell, shape (L,); 0 where a cell's values are all equal."""
    count = np.bincount(cells)
    mean = np.bincount(cells, weights=values) / np.maximum(count, 1)
    centred: FloatArray = np.where(_unequal(values, cells)[cells], values - mean[cells], 0.0)
    if not by_std:
        return centred
    std = np.sqrt(np.bincount(cells, weights=centred**2) / np.maximum(count - 1, 1))
    scaled: FloatArray = centred / (std[cells] + eps)
    return scaled


def _leave_one_out(
    values: FloatArray, cells: IntArray, size: IntArray, by_std: bool, eps: float
) -> FloatArray:
    """Value minus the mean of the group's other rollouts at its turn, shape (L,); `size` is G, per turn."""
    count = np.bincount(cells)[cells]
    mean = np.bincount(cells, weights=values)[cells] / size  # those that have ended add 0
    others = np.maximum(size - 1, 1)
    # R - (S - R) / (G - 1) = G / (G - 1) (R - S / G)
    advantages: FloatArray = (values - mean) * size / others
    # Where some rollout has ended, equal values are not all that is compared, unless they are 0: then
    # the line above is exact.
    advantages[~_unequal(values, cells)[cells] & (count == size)] = 0.0
    if by_std:
        squares = np.bincount(cells, weights=(values - mean) ** 2)[cells] + (size - count) * mean**2
        advantages /= np.sqrt(squares / others) + eps
    return advantages
