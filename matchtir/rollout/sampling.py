"""Tokens from logits, with a stream of random numbers for each rollout."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..types import FloatArray

_BLOCK = 64


class Streams:
    """One stream of uniform numbers a key (Philox), so that no rollout's draws depend on another's.

    Parameters
    ----------
    keys : sequence of tuple of int, at least 0
    """

    def __init__(self, keys: Sequence[tuple[int, ...]]) -> None:
        seeds = [np.random.SeedSequence(key) for key in keys]
        self._generators = [np.random.Generator(np.random.Philox(seed)) for seed in seeds]
        self._drawn = np.empty((len(keys), _BLOCK))
        self._used = np.full(len(keys), _BLOCK)

    def draw(self, rows: Sequence[int]) -> FloatArray:
        """The next number of each of these streams (none twice), shape (len(rows),), in [0, 1)."""
        chosen = np.asarray(rows, dtype=np.int64)
        for row in chosen[self._used[chosen] == _BLOCK]:
            self._drawn[row] = self._generators[row].random(_BLOCK)
            self._used[row] = 0
        numbers: FloatArray = self._drawn[chosen, self._used[chosen]]
        self._used[chosen] += 1
        return numbers


def choose(logits: Tensor, temperature: float, uniforms: FloatArray | None) -> tuple[Tensor, Tensor]:
    """Sample one token a row by inverting the distribution function.

    Parameters
    ----------
    logits : Tensor, shape (B, V)
    temperature : float
        Divides them.
    uniforms : ndarray, shape (B,), in [0, 1)
        None takes the likeliest token, the lowest id of equal ones.

    Returns
    -------
    tokens : Tensor of int64, shape (B,)
        Never one of probability 0.
    logps : Tensor of float32, shape (B,)
        In nats; NaN where the logits hold NaN.
    """
    logps = torch.log_softmax(logits.float() / temperature, dim=-1)
    if uniforms is None:
        tokens = logps.argmax(dim=-1)
    else:
        sums = logps.double().exp_().cumsum(dim=-1)
        total = sums[:, -1:]
        # Below the total even where the product rounds up to it: what follows has probability 0.
        level = torch.from_numpy(uniforms).to(logits.device)[:, None] * total
        level = torch.minimum(level, torch.nextafter(total, torch.zeros_like(total)))
        # Logits that hold NaN find no token, and their log-probability is NaN whichever is taken.
        tokens = torch.searchsorted(sums, level, right=True)[:, 0].clamp_(max=logits.shape[1] - 1)
    return tokens, logps.gather(1, tokens[:, None])[:, 0]
