"""Which rollouts go together: into a step of the optimiser, to a process, through the model.

    rollouts -split_by_tokens-> minibatches -plan-> micro-batches of every process -collate-> Batch

The split into minibatches looks at lengths only, so it is the same whatever the number of processes, and
whether or not rollouts without a gradient are left out.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..loss import LossConfig
from ..rollout.records import Rollout
from ..types import IntArray, Ragged
from .batches import Batch, Group, check, collate, needed


@dataclass(frozen=True)
class Minibatch:
    """One step of the optimiser, as this process sees it.

    Attributes
    ----------
    batches : list of Batch, at least one
        As many on every process.
    normalizer : int
        What the loss is divided by: all rollouts of the minibatch on all processes, or their own tokens
        for "token_mean".
    rollouts, used : int
        Rollouts on all processes, and those of them that go through the model.
    """

    batches: list[Batch]
    normalizer: int
    rollouts: int
    used: int


def make_minibatches(
    rollouts: Sequence[Rollout],
    advantages: Ragged,
    loss: LossConfig,
    *,
    minibatches: int,
    micro_batch_tokens: int,
    skip_zero: bool,
    packed: bool = False,
    rank: int = 0,
    world: int = 1,
) -> list[Minibatch]:
    """Share a step's rollouts out among the steps of the optimiser, and each of those among processes.

    Parameters
    ----------
    rollouts : sequence of Rollout
        All rollouts of the step, the same in the same order on every process.
    advantages : Ragged of float, one entry a turn
    loss : LossConfig
        For its average.
    minibatches : int
        Steps of the optimiser; balanced by tokens.
    micro_batch_tokens : int
        Tokens, padding included, that go through the model at a time.
    skip_zero : bool
        Leave out rollouts whose advantages are all 0. Rollouts without own tokens are always left out. Both
        count in the normaliser.
    packed : bool
        Put rollouts behind one another, for flash-attn; else pad them.
    rank, world : int
        This process, and how many there are.

    Returns
    -------
    list of Minibatch
        Deterministic. A minibatch without any rollout to use has one empty batch.

    Raises
    ------
    InputError
        If there are fewer rollouts than minibatches, or a rollout's spans, tokens, log-probabilities and
        advantages do not belong together; the rollout and the turn are named.
    """
    if len(rollouts) < minibatches:
        raise InputError(f"{len(rollouts)} rollouts for {minibatches} minibatches; expected as many at least")
    check(rollouts, advantages)
    own = np.array([rollout.sampled_tokens for rollout in rollouts])
    lengths = [needed(rollout) for rollout in rollouts]
    made = []
    for chosen in split_by_tokens(lengths, minibatches):
        used = [i for i in chosen if own[i] and not (skip_zero and not np.any(advantages[i]))]
        normalizer = int(own[chosen].sum()) if loss.aggregation == "token_mean" else len(chosen)
        groups = plan(lengths, used, micro_batch_tokens, world, packed)[rank]
        weights = _weights(own, loss, normalizer)
        batches = [collate(rollouts, advantages, weights, group, packed) for group in groups]
        made.append(Minibatch(batches, normalizer, len(chosen), len(used)))
    return made


def split_by_tokens(lengths: Sequence[int], parts: int, chosen: Sequence[int] | None = None) -> list[Group]:
    """Share indices out, longest first, each to the part with the fewest tokens, then the fewest indices.

    Parameters
    ----------
    lengths : sequence of int, length B
        Tokens of each rollout.
    parts : int
    chosen : sequence of int, optional
        The indices to share out; all if None.

    Returns
    -------
    list of list of int, length `parts`
        Each rising. No part is empty where there are indices enough.
    """
    order = sorted(range(len(lengths)) if chosen is None else chosen, key=lambda i: (-lengths[i], i))
    heap = [(0, 0, part) for part in range(parts)]
    found: list[Group] = [[] for _ in range(parts)]
    for i in order:
        tokens, count, part = heapq.heappop(heap)
        found[part].append(i)
        heapq.heappush(heap, (tokens + lengths[i], count + 1, part))
    return [sorted(part) for part in found]


def plan(
    lengths: Sequence[int], chosen: Sequence[int], limit: int, world: int, packed: bool
) -> list[list[Group]]:
    """Micro-batches of every rank: rollouts of like lengths together, at most `limit` tokens with padding.

    A rollout longer than the limit goes alone. Every rank has the same number of groups, at least one; where
    it has fewer rollouts, groups are empty.
    """
    ranks = []
    for share in split_by_tokens(lengths, world, chosen):
        groups: list[Group] = []
        filled = width = 0
        for i in sorted(share, key=lambda i: (-lengths[i], i)):
            cost = lengths[i] if packed else width
            if not groups or filled + cost > limit:
                groups.append([])
                filled, width = 0, lengths[i]
                cost = width
            groups[-1].append(i)
            filled += cost
        ranks.append(groups)
    most = max(1, *(len(groups) for groups in ranks))
    return [groups + [[] for _ in range(most - len(groups))] for groups in ranks]


def _weights(own: IntArray, loss: LossConfig, normalizer: int) -> npt.NDArray[np.float64]:
    """Part of one own token of each rollout in the minibatch's average, (B,)."""
    each = np.ones(len(own))
    if loss.aggregation == "sequence_mean_token_mean":
        each = np.maximum(own, 1).astype(np.float64)
    elif loss.max_tokens is not None:
        each *= loss.max_tokens
    return np.asarray(1.0 / (each * max(normalizer, 1)), dtype=np.float64)
