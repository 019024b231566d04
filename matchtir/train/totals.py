"""Averages of an update over micro-batches, steps and processes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .batches import Batch
from .processes import reduce, world_size

# Of policy_loss's metrics: parts of the loss add up over micro-batches, the others are means over own tokens.
_PARTS = ("policy_loss", "kl_loss", "entropy_loss")
_MEANS = (
    "clip_fraction_low",
    "clip_fraction_high",
    "clip_fraction_dual",
    "ratio_mean",
    "approx_kl_old",
    "kl",
    "rollout_weight_mean",
    "rollout_truncated_fraction",
    "entropy",
)
_COUNTS = ("own_tokens", "tokens", "padding")


class Totals:
    """Sums of metrics, on the device until they are asked for."""

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(len(_PARTS + _MEANS + _COUNTS), dtype=torch.float64, device=device)
        self.extremes = torch.full((2,), math.inf, dtype=torch.float64, device=device)  # min, -max
        self.steps = self.skipped = 0
        self.grad_norm = 0.0
        self.lr = math.nan

    def add_batch(self, batch: Batch, metrics: dict[str, Tensor], bonus: Tensor, entropies: Tensor) -> None:
        """Add a micro-batch on this process."""
        own = len(batch.places)
        tokens = batch.tokens.numel()
        zero = bonus.new_zeros(())
        values = {**metrics, "entropy_loss": bonus, "entropy": entropies.sum() / max(own, 1)}
        parts = [values.get(name, zero) for name in _PARTS]
        means = [values.get(name, zero) * own for name in _MEANS]
        counts = [zero + count for count in (own, tokens, batch.padding)]
        self.sums += torch.stack([value.double() for value in parts + means + counts])
        if own:
            ends = torch.stack([metrics["ratio_min"], -metrics["ratio_max"]])
            self.extremes = torch.minimum(self.extremes, ends.double())

    def add_step(self, found: Totals, grad_norm: float, lr: float) -> None:
        """Add a step that was done."""
        self.sums += found.sums
        self.extremes = torch.minimum(self.extremes, found.extremes)
        self.steps += 1
        self.grad_norm += grad_norm
        self.lr = lr

    def metrics(self, hidden: set[str]) -> dict[str, float]:
        """What :meth:`Updater.update` returns, over all processes; the host waits for the device once."""
        reduce(self.sums)
        reduce(self.extremes, "min")
        numbers = torch.cat([self.sums, self.extremes]).tolist()
        names = (*_PARTS, *_MEANS, *_COUNTS, "ratio_min", "ratio_max")
        made: dict[str, float] = dict(zip(names, numbers, strict=True))
        for name in _PARTS:
            made[name] = _ratio(made[name], self.steps * world_size())
        for name in _MEANS:
            made[name] = _ratio(made[name], made["own_tokens"])
        made["padding"] = _ratio(made["padding"], made["tokens"])
        some = made["own_tokens"] > 0
        made["ratio_min"], made["ratio_max"] = (
            (made["ratio_min"], -made["ratio_max"]) if some else (math.nan, math.nan)
        )
        made["grad_norm"] = _ratio(self.grad_norm, self.steps)
        made |= {"lr": self.lr, "steps": self.steps, "skipped": self.skipped}
        return {name: value for name, value in made.items() if name not in hidden}


def _ratio(total: float, count: float) -> float:
    """total / count, NaN of nothing."""
    return total / count if count else math.nan
