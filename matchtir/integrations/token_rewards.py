"""Rewards and advantages of turns as trainers hold them: one number a token, shape (B, T)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import torch

from ..advantages import group_ids
from ..credit import CreditConfig, assign_advantages
from ..errors import InputError
from ..rewards import trajectory_returns
from ..scatter import scatter, spans_from_mask
from ..types import FloatArray, IntArray, Ragged


def at_turn_ends(turn_rewards: FloatArray, spans: IntArray, length: int) -> list[float]:
    """Rewards of one rollout's turns, each at the last token of its turn.

    Parameters
    ----------
    turn_rewards : ndarray of float, shape (N,)
    spans : ndarray of int64, shape (N, 2)
        Half-open ranges of the turns; none is empty.
    length : int
        T, tokens of the response.

    Returns
    -------
    list of float, length T
        0 elsewhere.

    Examples
    --------
    >>> at_turn_ends(np.array([1.0, 0.5]), np.array([[0, 2], [3, 4]]), 5)
    [0.0, 1.0, 0.0, 0.5, 0.0]
    """
    found = np.zeros(length)
    found[np.asarray(spans, dtype=np.int64).reshape(-1, 2)[:, 1] - 1] = turn_rewards
    return [float(x) for x in found]


def token_advantages(
    token_rewards: torch.Tensor,
    mask: torch.Tensor,
    groups: Sequence[Hashable],
    config: CreditConfig | None = None,
) -> torch.Tensor:
    """Advantages of tokens, from rewards of turns.

    Parameters
    ----------
    token_rewards : tensor of float, shape (B, T)
        A turn's reward is the sum over its tokens, see :func:`at_turn_ends`.
    mask : tensor, shape (B, T)
        Not 0 where the model wrote the token; its runs are the turns. A mask from which tokens have been
        rejected since then has other runs.
    groups : sequence of hashable, length B
        The prompt of each rollout; all rollouts of a group must be here.
    config : CreditConfig, optional
        Rollouts are compared by the sum of their turns' rewards.

    Returns
    -------
    tensor, shape (B, T), of the dtype and on the device of `token_rewards`
        0 where the mask is 0.

    Raises
    ------
    InputError
        If the shapes differ.

    Examples
    --------
    >>> rewards = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    >>> config = CreditConfig(normalize_std=False, integration="trajectory")
    >>> token_advantages(rewards, torch.tensor([[1, 1, 0], [1, 1, 1]]), ["a", "a"], config).tolist()
    [[1.0, 1.0, 0.0], [-1.0, -1.0, -1.0]]
    """
    shape = tuple(token_rewards.shape)
    if tuple(mask.shape) != shape or len(shape) != 2 or len(groups) != shape[0]:
        raise InputError(
            f"token_rewards has shape {shape}, mask {tuple(mask.shape)}, and there are {len(groups)} groups; "
            "expected (B, T), (B, T) and B"
        )
    spans = spans_from_mask(mask.detach().cpu())
    # One entry more, because the last span may end where the batch does.
    flat = np.append(token_rewards.detach().double().cpu().numpy(), 0.0)
    bounds = spans.values.reshape(-1, 2) + (spans.problem * shape[1])[:, None]
    # Sums of runs, of which one entry is not 0: so equal rewards stay equal to the last bit.
    sums = np.add.reduceat(flat, bounds.ravel())[::2] if len(bounds) else np.empty(0)
    rewards = Ragged(sums, spans.offsets)
    advantages = assign_advantages(rewards, trajectory_returns(rewards), group_ids(groups), config).turn
    dtype = np.float64 if token_rewards.dtype == torch.float64 else np.float32
    return torch.from_numpy(scatter(advantages, spans, shape, dtype=dtype)).to(token_rewards)
