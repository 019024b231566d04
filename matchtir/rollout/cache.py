"""Keys and values of a batch whose rows are of different lengths, kept while turns come and go."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

_GROWTH = 1.25


class Window:
    """Which rows of the cache a forward pass reads and writes, and where.

    Attributes
    ----------
    rows : Tensor of int64, shape (b,)
        Rows of the cache.
    positions : Tensor of int64, shape (b, w)
        Where the pass's tokens go. What lies there, and behind, is overwritten or never read.
    length : int
        Keys that are read: those at 0 to length - 1.
    whole : bool
        Whether the rows are all rows, in order.
    """

    def __init__(self, rows: Tensor, positions: Tensor, length: int, whole: bool) -> None:
        self.rows, self.positions, self.length, self.whole = rows, positions, length, whole

    def mask(self) -> Tensor:
        """True where a query may look: at its own position and before, shape (b, 1, w, length)."""
        keys = torch.arange(self.length, device=self.positions.device)
        return (keys <= self.positions[:, :, None])[:, None]


class _RowsLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's keys and values, each (S, capacity, heads, size): a token lies in one piece."""

    def __init__(self, cache: RowCache) -> None:
        super().__init__()
        self._cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make room, now that heads and sizes are known."""
        size, capacity = self._cache.size, self._cache.capacity
        for name, states in (("keys", key_states), ("values", value_states)):
            shape = (size, capacity, states.shape[1], states.shape[3])
            setattr(self, name, torch.zeros(shape, dtype=states.dtype, device=states.device))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Write the window's keys and values; return all that its rows hold."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        window = self._cache.window
        return self._put(self.keys, key_states, window), self._put(self.values, value_states, window)

    def _put(self, kept: Tensor, new: Tensor, window: Window) -> Tensor:
        """Write (b, heads, w, size) into the rows; return (b, heads, length, size)."""
        kept[window.rows[:, None], window.positions] = new.transpose(1, 2)
        read = kept[:, : window.length]
        return (read if window.whole else read[window.rows]).transpose(1, 2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the mask, which is always given."""
        return self._cache.window.length, 0

    def get_seq_length(self) -> int:
        """Keys before the window; positions are always given."""
        return self._cache.window.length - int(self._cache.window.positions.shape[1])

    def get_max_length(self) -> int:
        """No limit."""
        return -1


class RowCache(Cache):  # type: ignore[misc]
    """A cache of S rows with room for `capacity` tokens each, that grows.

    Set `window` before each forward pass. transformers calls the rest.
    """

    def __init__(self, layers: int, size: int, capacity: int) -> None:
        super().__init__(layers=[_RowsLayer(self) for _ in range(layers)])
        self.size, self.capacity = size, capacity
        self.window: Window

    def reserve(self, capacity: int) -> None:
        """Make room for so many tokens a row, and some more."""
        if capacity <= self.capacity:
            return
        more = int(capacity * _GROWTH) - self.capacity
        self._replace(lambda kept: torch.nn.functional.pad(kept, (0, 0, 0, 0, 0, more)))
        self.capacity += more

    def copy_rows(self, source: Tensor, target: Tensor, length: int) -> None:
        """Copy the first `length` tokens of rows to other rows, both shape (n,)."""
        for layer in self.layers:
            for kept in (layer.keys, layer.values):
                kept[target, :length] = kept[source, :length]

    def keep_rows(self, rows: Tensor) -> None:
        """Forget all other rows; these become rows 0, 1, …"""
        self._replace(lambda kept: kept[rows])
        self.size = len(rows)

    def _replace(self, change: Any) -> None:
        """Replace the keys and values of all layers, one after the other."""
        for layer in self.layers:
            if layer.is_initialized:
                layer.keys, layer.values = change(layer.keys), change(layer.values)
