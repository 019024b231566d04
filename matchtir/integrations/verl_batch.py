"""What an advantage estimator of verl is given: rewards of turns from its rows, and checks of its groups."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import InputError
from .verl_rewards import unpack

_logger = logging.getLogger(__name__)


def turns_of_batch(
    rows: np.ndarray[Any, Any], own: np.ndarray[Any, Any], uids: Sequence[Any]
) -> tuple[list[list[float]], list[list[int]], list[float], list[int]]:
    """Rewards and ends of turns, other rewards, and the row of each rollout in `rows` and `own`, (B, T).

    Rows that verl fills a batch up with are no rollouts. Raises InputError for a row without turns.
    """
    rewards, ends, others, kept = [], [], [], []
    for b, (row, mask) in enumerate(zip(rows, own, strict=True)):
        found = unpack(row)
        if found is None and not mask.any() and not row.any():
            continue  # verl fills a batch up with rows of nothing
        if found is None:
            raise InputError(
                f"rollout {b} of the batch (uid {uids[b]}) has no rewards of turns; expected an agent loop "
                "that returns TurnOutput, as matchtir_tool_agent does (actor_rollout_ref.rollout.agent."
                "default_agent_loop, or the column agent_name), and verl's V1 trainer (trainer.use_v1=True)"
            )
        if found[1] == [0] and not mask.any():
            found = [], [], found[0][0]  # the model wrote nothing: what is marked is of the whole rollout
        if found[1] and mask[found[1][-1] + 1 :].any():
            raise InputError(
                f"rollout {b} of the batch (uid {uids[b]}) has own tokens after its last turn: its rewards "
                "were changed on the way to the estimator"
            )
        rewards.append(found[0])
        ends.append(found[1])
        others.append(found[2])
        kept.append(b)
    return rewards, ends, others, kept


class GroupCheck:
    """Looks for groups that are not whole, in the batches of one process."""

    def __init__(self) -> None:
        self._warned = False
        self._config: Any = None
        self._before: dict[str, list[int]] = {}

    def sizes(self, uids: Sequence[Any], size: int | None, incomplete: str) -> None:
        """Raise InputError (`incomplete` is "error") or say so if a group has not `size` rollouts.

        verl leaves rollouts out that failed, and goes on with the others.
        """
        counts = Counter(str(uid) for uid in uids)
        if size is None:
            return
        other = {uid: count for uid, count in counts.items() if count != size}
        if incomplete == "error":
            for uid, count in other.items():
                raise InputError(
                    f"the group with uid {uid} has {count} rollouts in this batch; expected rollout.n = "
                    f"{size}. Rollouts of it failed, or its row has a __rollout_n__ of its own; with "
                    "+algorithm.matchtir.incomplete_groups=warn those that are there are compared"
                )
        missing = {uid: size - count for uid, count in other.items() if count < size}
        if not missing:
            return
        said = (
            f"{sum(missing.values())} rollouts are missing from {len(missing)} of {len(counts)} groups, and "
            f"the others are compared (rollout.n is {size}; rollouts failed, or rows have a __rollout_n__)"
        )
        _logger.warning("matchtir: %s", said)
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"{said}. verl logs why a rollout failed; later batches are logged alone, and "
                "+algorithm.matchtir.incomplete_groups=error stops instead",
                UserWarning,
                stacklevel=3,
            )

    def split(self, uids: Sequence[Any], rows: np.ndarray[Any, Any], config: Any) -> None:
        """Raise InputError if a group was in the last batch of the same configuration too.

        The same batch may come again. uids are fresh in each step of verl.
        """
        now: dict[str, list[int]] = {}
        for uid, row in zip(uids, rows, strict=True):
            now.setdefault(str(uid), []).append(hash(row.tobytes().rstrip(b"\0")))
        now = {uid: sorted(found) for uid, found in now.items()}
        same = config is not None and config is self._config
        twice = next((uid for uid in now if uid in self._before), None) if same else None
        if twice is not None and now != self._before:
            raise InputError(
                f"the group with uid {twice} is split over batches: rollouts of it were in the batch before "
                "too; expected all rollouts of a prompt in one batch"
            )
        self._config, self._before = config, now
