"""Rollouts as the tensors that go through the model together, padded or packed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import InputError
from ..rollout.records import Rollout
from ..types import IntArray, Ragged, spans_of_turns

Group = list[int]
"""Indices of the rollouts that are used together."""


@dataclass(frozen=True)
class Batch:
    """Rollouts that go through the model together, padded at the right or packed behind one another.

    Neither layout needs a mask of padding: what stands at the right of a token never reaches it.

    Attributes
    ----------
    tokens : Tensor of int64, shape (B, T), or (1, total) if packed
        Each rollout up to its last own token.
    places : Tensor of int64, shape (n,)
        Where the own tokens stand among all, flat.
    weights : Tensor of float32, shape (n,)
        Part of each own token in the minibatch's average, as the loss averages; they add up to 1 over the
        minibatch where every rollout has own tokens ("sequence_mean_token_sum": to less).
    spans : Ragged of int64
        The turns, from the start of their rollout.
    advantages : Ragged of float64
        One per turn.
    sampled_logps : Tensor of float32, shape (B, T), or (total,) if packed
        As the sampling engine reported them, 0 outside of the turns.
    cu_seqlens : Tensor of int32, shape (B + 1,), or None
        Where each rollout begins, if packed.
    attention : dict
        What the model gets besides the tokens.
    padding : int
        Tokens that are none of a rollout's.
    """

    tokens: Tensor
    places: Tensor
    weights: Tensor
    spans: Ragged
    advantages: Ragged
    sampled_logps: Tensor
    cu_seqlens: Tensor | None
    attention: dict[str, Any]
    padding: int

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""

        def moved(value: Any) -> Any:
            return value.to(device) if isinstance(value, Tensor) else value

        return replace(
            self,
            tokens=moved(self.tokens),
            places=moved(self.places),
            weights=moved(self.weights),
            sampled_logps=moved(self.sampled_logps),
            cu_seqlens=moved(self.cu_seqlens),
            attention={name: moved(value) for name, value in self.attention.items()},
        )


def collate(
    rollouts: Sequence[Rollout],
    advantages: Ragged,
    weights: npt.NDArray[np.float64],
    group: Group,
    packed: bool,
) -> Batch:
    """One batch on the CPU. An empty group gives one token of nobody, so that all ranks do the same passes.

    `weights` (B,) are the parts of one own token of each rollout in the average.
    """
    members = [rollouts[i] for i in group]
    lengths = np.array([needed(rollout) for rollout in members] or [1])
    width = int(lengths.max())
    starts = np.cumsum(lengths) - lengths if packed else np.arange(len(lengths)) * width
    total = int(lengths.sum()) if packed else width * len(lengths)
    tokens, logps = np.zeros(total, dtype=np.int64), np.zeros(total, dtype=np.float32)
    places = [np.zeros(0, dtype=np.int64)]
    for rollout, start, length in zip(members, starts, lengths, strict=False):
        tokens[start : start + length] = rollout.tokens[:length]
        logps[start : start + length] = rollout.logps[:length]
        places += [np.arange(a, b) + start for a, b in rollout.spans]
    shape = (1, total) if packed else (len(lengths), width)
    own = [rollout.sampled_tokens for rollout in members]
    spans = [rollout.spans for rollout in members] or [np.zeros((0, 2), dtype=np.int64)]
    values = [np.asarray(advantages[i], dtype=np.float64) for i in group] or [np.zeros(0)]
    cu_seqlens, attention = _packing(lengths) if packed else (None, {})
    return Batch(
        tokens=torch.from_numpy(tokens).view(shape),
        places=torch.from_numpy(np.concatenate(places)),
        weights=torch.from_numpy(np.repeat(weights[group], own).astype(np.float32)),
        spans=Ragged.from_lengths(np.concatenate(spans).astype(np.int64), [len(x) for x in spans]),
        advantages=Ragged.from_lengths(np.concatenate(values), [len(x) for x in values]),
        sampled_logps=torch.from_numpy(logps).view(total if packed else shape),
        cu_seqlens=cu_seqlens,
        attention=attention,
        padding=total - int(lengths.sum()) if members else total,
    )


def _packing(lengths: IntArray) -> tuple[Tensor, dict[str, Any]]:
    """cu_seqlens, and what tells transformers where packed rollouts begin."""
    cu_seqlens = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    positions = np.concatenate([np.arange(length) for length in lengths])
    longest = int(lengths.max())
    return cu_seqlens, {
        "position_ids": torch.from_numpy(positions)[None],
        "cu_seq_lens_q": cu_seqlens,
        "cu_seq_lens_k": cu_seqlens,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def needed(rollout: Rollout) -> int:
    """Tokens up to the last own one: what comes after it changes nothing."""
    return int(rollout.spans[-1, 1]) if len(rollout.spans) else 1


def check(rollouts: Sequence[Rollout], advantages: Ragged) -> None:
    """Refuse rollouts whose parts do not belong together."""
    spans_of_turns(
        Ragged.from_lengths(
            np.concatenate([rollout.spans for rollout in rollouts]).reshape(-1, 2),
            [len(rollout.spans) for rollout in rollouts],
        ),
        advantages,
    )
    for b, rollout in enumerate(rollouts):
        if rollout.tokens.shape != rollout.logps.shape:
            raise InputError(
                f"rollout {b} has {len(rollout.tokens)} tokens but {len(rollout.logps)} log-probabilities"
            )
        edges = rollout.spans.reshape(-1)
        wrong = np.flatnonzero((np.diff(edges, prepend=1) < 0) | (edges > len(rollout)))
        if len(wrong):
            turn = int(wrong[0]) // 2
            raise InputError(
                f"rollout {b}, turn {turn} has the span {rollout.spans[turn].tolist()}; expected turns one "
                f"after the other inside [1, {len(rollout)}]"
            )
