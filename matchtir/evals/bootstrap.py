"""Confidence intervals of means over tasks, by the percentile bootstrap."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError
from ..types import FloatArray

_DRAWS_AT_ONCE = 1 << 20  # 8 MB of indices, whatever the number of tasks


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """How confidence intervals are found.

    Parameters
    ----------
    samples : int
        Resamples, 2,000 by default; 0 finds no intervals.
    confidence : float
        Share of the resampled means that an interval holds, in (0, 1).
    seed : int
        Of the resampling; the same seed and values give the same intervals.

    Raises
    ------
    ConfigError
        If a setting is impossible.
    """

    samples: int = 2000
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 0:
            raise ConfigError(f"bootstrap samples are {self.samples}; expected 0 or more")
        if not 0.0 < self.confidence < 1.0:
            raise ConfigError(f"confidence is {self.confidence}; expected more than 0 and less than 1")
        if self.seed < 0:
            raise ConfigError(f"seed is {self.seed}; expected 0 or more")

    def intervals(self, values: FloatArray) -> FloatArray:
        """Percentile interval of the mean of each column.

        Tasks (rows) are drawn with replacement, as many as there are, and each column's mean is
        taken over those drawn tasks that have a value. The interval runs from quantile
        ``(1 - confidence) / 2`` of these means to ``1 -`` that, interpolated linearly.

        Parameters
        ----------
        values : ndarray of float64, shape (n, M)
            One row a task, in any order; NaN where a task has no value.

        Returns
        -------
        ndarray of float64, shape (2, M)
            Low and high. NaN for a column with fewer than two values, since a single task says
            nothing of how tasks differ, and everywhere if `samples` is 0. Equal values give an
            interval without width, which says only that no difference was seen.

        References
        ----------
        Efron and Tibshirani, An Introduction to the Bootstrap, 1993, §13.3.

        Examples
        --------
        >>> Bootstrap(seed=1).intervals(np.array([[0.0, 2.0], [1.0, 2.0], [1.0, np.nan]])).tolist()
        [[0.0, 2.0], [1.0, 2.0]]
        """
        found = np.full((2, values.shape[1]), np.nan)
        usable = (~np.isnan(values)).sum(axis=0) >= 2
        if not self.samples or not usable.any():
            return found
        tail = (1.0 - self.confidence) / 2.0
        # In an order of their own: the same tasks give the same interval however they are listed.
        ordered = values[np.lexsort(values.T)]
        means = self._means(ordered[:, usable])
        # A resample that holds no task with a value has no mean; it is left out.
        found[:, usable] = np.nanquantile(means, [tail, 1.0 - tail], axis=0)
        return found

    def _means(self, values: FloatArray) -> FloatArray:
        """Mean of each column in each resample, shape (samples, M)."""
        n = len(values)
        generator = np.random.default_rng(self.seed)
        present = ~np.isnan(values)
        terms = np.hstack([np.where(present, values, 0.0), present])  # (n, 2 M)
        sums = np.empty((self.samples, terms.shape[1]))
        step = max(1, _DRAWS_AT_ONCE // n)
        for begin in range(0, self.samples, step):
            size = min(step, self.samples - begin)
            drawn = generator.integers(0, n, size=(size, n)) + n * np.arange(size)[:, None]
            times = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
            sums[begin : begin + size] = times @ terms
        total, count = np.hsplit(sums, 2)
        return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
