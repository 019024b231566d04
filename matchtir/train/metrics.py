"""What a step's rollouts say of the policy: numbers by name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..evals import METRICS, Measured, measure
from ..rollout.records import Rollout
from ..types import Credit


def rollout_metrics(rollouts: Sequence[Rollout], credit: Credit) -> dict[str, float | None]:
    """Means over the rollouts of a step.

    Parameters
    ----------
    rollouts : sequence of Rollout, length B, at least one
    credit : Credit
        Of these rollouts.

    Returns
    -------
    dict of str to float or None
        ``reward`` (mean return) and ``reward/KIND``. The metrics of :func:`matchtir.evals.measure`: means
        over the rollouts that have them, None if none has. ``matched``: share of the calls that have a gold
        call. ``silent_groups``: share of the groups in which every advantage is 0. ``environment_faults``:
        share of the rollouts whose environment could not be judged, where tasks have some. ``tokens`` and
        ``sampled_tokens`` in all; ``longest``: tokens of the longest rollout. ``finish/REASON``: shares.
    """
    measured = [measure(rollout.trajectory()) for rollout in rollouts]
    found: dict[str, float | None] = {"reward": float(np.mean(credit.returns))}
    kinds = [rollout.task.kind for rollout in rollouts]
    for kind in sorted(set(kinds) - {""}):
        found[f"reward/{kind}"] = float(np.mean(credit.returns[[one == kind for one in kinds]]))
    for name in METRICS:
        found[name] = _mean(measured, name)
    matches = credit.matches.values
    found["matched"] = float(np.mean(matches >= 0)) if len(matches) else None
    loud = np.array([bool(np.any(values)) for values in credit.turn_advantages])
    groups = np.unique(credit.group_ids)
    found["silent_groups"] = float(np.mean([not loud[credit.group_ids == group].any() for group in groups]))
    if any(rollout.task.environment for rollout in rollouts):
        found["environment_faults"] = float(np.mean([rollout.fault is not None for rollout in rollouts]))
    found["tokens"] = float(sum(map(len, rollouts)))
    found["sampled_tokens"] = float(sum(rollout.sampled_tokens for rollout in rollouts))
    found["longest"] = float(max(map(len, rollouts)))
    finishes = [rollout.finish for rollout in rollouts]
    return found | {f"finish/{one}": finishes.count(one) / len(finishes) for one in sorted(set(finishes))}


def _mean(measured: Sequence[Measured], name: str) -> float | None:
    """Mean of a metric over the rollouts that have it."""
    values = [value for one in measured if (value := getattr(one, name)) is not None]
    return float(np.mean(values)) if values else None
