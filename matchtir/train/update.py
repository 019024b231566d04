"""A step's rollouts and their credit become steps of the optimiser.

rollouts, credit -make_minibatches-> batches -policy-> log-probabilities -policy_loss-> gradient -> step
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError
from ..loss import ModelOutputs, policy_loss
from ..rollout.records import Rollout
from ..types import Credit, Ragged, offsets_of
from .batches import Batch
from .config import TrainConfig
from .deepspeed import Engine
from .minibatches import Minibatch, make_minibatches
from .processes import rank, world_size
from .reference import Reference
from .totals import Totals

PATIENCE = 3
"""Steps of the optimiser in a row without a finite gradient after which a run should stop."""

_Fixed = tuple[Tensor | None, Tensor | None]


class Updater:
    """Changes the policy by the rollouts of a step. All processes call it together.

    Parameters
    ----------
    engine : Engine
    config : TrainConfig
        Its parts `update` and `loss`, the temperature of `rollout`, and ``policy.attn_implementation``: for
        flash-attn rollouts are packed, else padded.
    reference : Reference, optional
        Needed where ``loss.beta`` is above 0; without one there is no metric ``kl``.

    Attributes
    ----------
    skipped_in_a_row : int
        Steps of the optimiser that were left out since the last one that was done. At `PATIENCE` an update
        ends early, and the run should write its batch (:func:`save_batch`) and stop.

    Raises
    ------
    ConfigError
        If there is a KL term and no reference.
    """

    def __init__(self, engine: Engine, config: TrainConfig, reference: Reference | None = None) -> None:
        if config.loss.beta and reference is None:
            raise ConfigError(
                f"loss.beta is {config.loss.beta} and there is no reference model; expected one"
            )
        self.skipped_in_a_row = 0
        self._engine = engine
        self._config = config
        self._reference = reference

    def update(self, rollouts: Sequence[Rollout], credit: Credit | Ragged) -> dict[str, float]:
        """Go through the rollouts `epochs` times, in `minibatches` steps of the optimiser each time.

        The gradient of a step is that of the loss over its whole minibatch, however that is cut into
        micro-batches and shared out among processes. A step whose loss or gradient is not finite on any
        process is left out on all of them.

        Parameters
        ----------
        rollouts : sequence of Rollout
            All rollouts of the step, on every process the same in the same order.
        credit : Credit, or Ragged of float
            One advantage a turn.

        Returns
        -------
        dict of str to float
            The same on every process. Over the steps that were done:

            ``policy_loss``, ``kl_loss`` (with a reference) and ``entropy_loss``, parts of the loss, and
            ``grad_norm`` before it was cut: means over the steps.
            ``entropy`` in nats, ``ratio_mean``, ``clip_fraction_low``, ``_high`` and ``_dual``,
            ``approx_kl_old``, ``kl`` (with a reference), ``rollout_weight_mean`` and
            ``rollout_truncated_fraction`` (with a cap): means over the own tokens that went through the
            model, as :func:`matchtir.ops.policy_loss` has them; ``ratio_min``, ``ratio_max``.
            ``lr`` of the last step. ``own_tokens`` and ``tokens`` that went through the model for the
            gradient, in all epochs; ``padding`` is the share of the second that is nobody's.
            ``steps`` that were done and ``skipped``, that were not; ``rollouts_used``, the share of rollouts
            that went through the model.

            What has nothing to be averaged over is NaN.

        Raises
        ------
        InputError
            As :func:`matchtir.train.minibatches.make_minibatches` does.
        """
        minibatches = self._minibatches(rollouts, credit)
        fixed = self._fixed_logps(minibatches)
        done = Totals(self._engine.device)
        self._engine.policy.train()
        for k in [*range(len(minibatches))] * self._config.update.epochs:
            found, lr = Totals(self._engine.device), self._engine.lr
            self._accumulate(minibatches[k], fixed[k], found)
            if self._engine.step():
                self.skipped_in_a_row = 0
                done.add_step(found, self._engine.grad_norm, lr)
                continue
            self.skipped_in_a_row += 1
            done.skipped += 1
            if self.skipped_in_a_row >= PATIENCE:
                break
        metrics = done.metrics(self._hidden())
        used, all_of_them = sum(x.used for x in minibatches), sum(x.rollouts for x in minibatches)
        return {**metrics, "rollouts_used": used / all_of_them}

    def _minibatches(self, rollouts: Sequence[Rollout], credit: Credit | Ragged) -> list[Minibatch]:
        """This process's batches of every minibatch."""
        update, loss = self._config.update, self._config.loss
        return make_minibatches(
            rollouts,
            credit.turn_advantages if isinstance(credit, Credit) else credit,
            loss,
            minibatches=update.minibatches,
            micro_batch_tokens=update.micro_batch_tokens,
            skip_zero=update.skip_zero_advantage and not loss.beta and not update.entropy,
            packed=self._config.policy.attn_implementation.startswith("flash"),
            rank=rank(),
            world=world_size(),
        )

    def _fixed_logps(self, minibatches: list[Minibatch]) -> list[list[_Fixed]]:
        """Of every batch the recomputed log-probabilities, and the reference's, where they are wanted."""
        batches = [batch for part in minibatches for batch in part.batches]

        def ask(model: Callable[[Batch, float], tuple[Tensor, Tensor]]) -> list[Tensor | None]:
            at = self._config.rollout.temperature
            return [model(batch.to(self._engine.device), at)[0] for batch in batches]

        old: list[Tensor | None] = [None] * len(batches)
        ref = old
        self._engine.policy.eval()
        with torch.no_grad():
            if self._config.update.old_logps == "recompute":
                old = ask(self._engine.forward)
            if self._reference is not None:
                with self._reference.ready(self._engine) as model:
                    ref = ask(model)
        pairs = iter(zip(old, ref, strict=True))
        return [[next(pairs) for _ in part.batches] for part in minibatches]

    def _accumulate(self, part: Minibatch, fixed: list[_Fixed], found: Totals) -> None:
        """Add up the gradient of one minibatch, micro-batch by micro-batch."""
        config, processes = self._config, world_size()
        for i, (batch, (old, ref)) in enumerate(zip(part.batches, fixed, strict=True)):
            here = batch.to(self._engine.device)
            sampled = here.sampled_logps
            logps, entropies = self._engine.forward(here, config.rollout.temperature)
            output = policy_loss(
                ModelOutputs(
                    logps,
                    here.spans,
                    sampled if old is None else old,
                    ref,
                    None if config.loss.rollout_cap is None else sampled,
                    here.cu_seqlens,
                ),
                here.advantages,
                config.loss,
                # Processes average their gradients, so each counts for all of them.
                normalizer=part.normalizer / processes,
            )
            own_entropies = entropies.flatten()[here.places]
            bonus = -config.update.entropy * processes * (own_entropies * here.weights).sum()
            loss = output.loss + bonus if config.update.entropy else output.loss
            # A loss without a value must not pass for one with a gradient.
            poison = torch.where(loss.detach().isfinite(), 1.0, math.nan)
            self._engine.backward(loss * poison, last=i + 1 == len(part.batches))
            found.add_batch(here, output.metrics, bonus.detach(), own_entropies.detach())

    def _hidden(self) -> set[str]:
        """Metrics that say nothing under this configuration."""
        names = set() if self._reference is not None else {"kl", "kl_loss"}
        weights = {"rollout_weight_mean", "rollout_truncated_fraction"}
        return names if self._config.loss.rollout_cap is not None else names | weights


def save_batch(path: str | os.PathLike[str], rollouts: Sequence[Rollout], credit: Credit | Ragged) -> None:
    """Write what an update was given, for a look at what went wrong.

    Parameters
    ----------
    path : path
        Of a new ``.npz``, which ``numpy.load`` reads without pickle: `tokens`, `logps` and their `offsets`;
        `spans`, `advantages` and their `turn_offsets`; `task_ids`, `samples` and `prompt_lengths`, one entry
        a rollout.
    rollouts : sequence of Rollout
    credit : Credit, or Ragged of float
    """
    advantages = credit.turn_advantages if isinstance(credit, Credit) else credit
    arrays: dict[str, Any] = {
        "tokens": np.concatenate([rollout.tokens for rollout in rollouts]),
        "logps": np.concatenate([rollout.logps for rollout in rollouts]),
        "offsets": offsets_of([len(rollout) for rollout in rollouts]),
        "spans": np.concatenate([rollout.spans.reshape(-1, 2) for rollout in rollouts]),
        "advantages": advantages.values,
        "turn_offsets": advantages.offsets,
        "task_ids": np.array([rollout.task.id for rollout in rollouts], dtype=np.str_),
        "samples": np.array([rollout.sample for rollout in rollouts]),
        "prompt_lengths": np.array([rollout.prompt_length for rollout in rollouts]),
    }
    with open(path, "wb") as file:
        np.savez_compressed(file, **arrays)
