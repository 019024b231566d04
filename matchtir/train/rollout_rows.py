"""Rollouts of a run as rows of a file, with the credit they got."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ..rollout.judged_by import judged_by
from ..rollout.records import Rollout
from ..types import Credit


def rollout_rows(
    rollouts: Sequence[Rollout], credit: Credit | None = None, *, step: int, text_format: str
) -> Iterator[dict[str, Any]]:
    """Rows that `matchtir score`, `explain` and `eval` read, one per rollout.

    Parameters
    ----------
    rollouts : sequence of Rollout, length B
        In any order.
    credit : Credit, optional
        Of these rollouts. Without it the rows have no rewards and advantages.
    step : int
        Number of the training step that they belong to; of an evaluation, steps trained before it.
    text_format : str
        Parser of the turns' text.

    Yields
    ------
    dict
        `group`, `kind`, `messages`, `format` and what it is judged by
        (:func:`matchtir.rollout.judged_by.judged_by`), as ``docs/formats.md`` describes them; `sample`,
        `finish`, `step`, `tokens` (that the model wrote), `fault` where an environment had one; and with
        credit `matches` (index of the gold call, or None), `call_rewards`, `turn_rewards`, `return`,
        `trajectory_advantage`, `turn_advantages` and `malformed`. A rollout without any turn has `turns`, an
        empty list, instead of `messages`.
    """
    for b, rollout in enumerate(rollouts):
        row: dict[str, Any] = {"group": rollout.task.id, "sample": rollout.sample, "step": step}
        row["kind"] = rollout.task.kind
        row |= (
            {"messages": [dict(message) for message in rollout.messages]} if rollout.turns else {"turns": []}
        )
        row |= judged_by(rollout.task, rollout.rounds or (len(rollout.turns),), rollout.outcomes)
        row |= {"format": text_format, "finish": rollout.finish, "tokens": rollout.sampled_tokens}
        if rollout.fault is not None:
            row["fault"] = rollout.fault
        if credit is not None:
            row |= _credit(credit, b)
        yield row


def _credit(credit: Credit, b: int) -> dict[str, Any]:
    """What rollout b got, by the names of a score file."""
    return {
        "matches": [None if gold < 0 else gold for gold in credit.matches[b].tolist()],
        "call_rewards": credit.call_rewards[b].tolist(),
        "turn_rewards": credit.turn_rewards[b].tolist(),
        "return": float(credit.returns[b]),
        "trajectory_advantage": float(credit.trajectory_advantages[b]),
        "turn_advantages": credit.turn_advantages[b].tolist(),
        "malformed": int(credit.malformed[b]),
    }
