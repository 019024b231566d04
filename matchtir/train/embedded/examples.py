"""Demonstrations as batches of token ids, with names exchanged and the policy's own tokens marked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast

from ...tasks.embedded import EmbeddedConfig, embedded_tasks
from ...tasks.embedded.world import FIRST, SECOND
from ...tools import ToolRegistry
from ...types import Task
from .demonstrations import demonstration

BATCHES_AT_A_TIME = 16
_SEEDS = 10**6


class Examples(NamedTuple):
    """Padded conversations, and which of their tokens the policy writes.

    Attributes
    ----------
    ids : Tensor of int64, shape (B, T)
    own : Tensor of bool, shape (B, T)
        Tokens of assistant turns, the end markers included.
    """

    ids: Tensor
    own: Tensor


def examples(
    tokenizer: PreTrainedTokenizerFast,
    config: EmbeddedConfig,
    seed: int,
    batch: int,
    *,
    faultless: bool = False,
) -> Iterator[Examples]:
    """Demonstrations of training tasks, without end and without repetition.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerFast
        The embedded one.
    config : EmbeddedConfig
        Of the tasks. Its seed and its sizes do not count.
    seed : int, at least 0
        The same seed gives the same batches. None of its tasks is one of ``EmbeddedConfig(seed)`` for a seed
        below a million.
    batch : int
        Demonstrations in a batch; those of a batch are about equally long.
    faultless : bool
        The script makes no mistake.

    Yields
    ------
    Examples
    """
    generator = torch.Generator().manual_seed(seed)
    size = BATCHES_AT_A_TIME * batch
    chance = (lambda probability: False) if faultless else None
    for part in range(_SEEDS):
        tasks = embedded_tasks(replace(config, seed=_SEEDS * (seed + 1) + part, train_size=size))
        texts = [render(tokenizer, task, demonstration(task, part, chance)) for task in tasks]
        rows = [exchange_names(torch.tensor(row), tokenizer, generator) for row in tokenizer(texts).input_ids]
        rows.sort(key=len)
        for i in torch.randperm(BATCHES_AT_A_TIME, generator=generator).tolist():
            ids = pad_sequence(rows[i * batch : (i + 1) * batch], True, tokenizer.pad_token_id)
            yield Examples(ids, own_tokens(ids, tokenizer))


def render(tokenizer: PreTrainedTokenizerFast, task: Task, messages: list[dict[str, str]]) -> str:
    """A whole conversation with the task's tools, as the chat template writes it."""
    schemas = ToolRegistry(task.tools).schemas()
    return str(tokenizer.apply_chat_template(messages, tools=schemas, tokenize=False))


def own_tokens(ids: Tensor, tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """Which tokens (B, T) stand after an assistant's marker, up to the end marker."""
    begin, end = tokenizer.convert_tokens_to_ids(["<|assistant|>", tokenizer.eos_token])
    inside = ((ids == begin).long() - (ids == end).long()).cumsum(1)
    own = torch.zeros_like(ids, dtype=torch.bool)
    own[:, 1:] = inside[:, :-1] == 1
    return own


def exchange_names(ids: Tensor, tokenizer: PreTrainedTokenizerFast, generator: torch.Generator) -> Tensor:
    """Give every name of a task (T,) another second piece.

    In the tasks of a split a name's type and first piece leave four second pieces. A policy that learns which
    guesses a name instead of copying it, and fails on the other split.
    """
    first, second = (torch.tensor(tokenizer.convert_tokens_to_ids(list(x))) for x in (FIRST, SECOND))
    follows = torch.full((len(tokenizer),), -1)
    # No two names of a task begin alike, so a first piece says which name it is.
    follows[first] = second[torch.randint(len(second), (len(first),), generator=generator)]
    after = follows[ids[:-1]]
    return torch.cat([ids[:1], torch.where(after < 0, ids[1:], after)])
