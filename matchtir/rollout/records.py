"""What a rollout is: the token ids as they were sampled, where its turns lie, and what was said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..types import IntArray, Task, Trajectory, Turn
from .judged_by import all_gold_calls, is_dialogue, rounds_of

Finish = Literal["answer", "no_answer", "max_turns", "turn_tokens", "response_tokens"]


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled rollout.

    Attributes
    ----------
    task : Task
        What it answers.
    sample : int
        Its number among the task's rollouts, from 0.
    tokens : ndarray of int64, shape (T,)
        Prompt and response, as they were sampled or rendered; nothing was tokenised twice.
    prompt_length : int
        Tokens of the prompt.
    spans : ndarray of int64, shape (N, 2)
        Half-open ranges of the tokens that the model wrote in each turn, the end marker included.
        All other tokens are the environment's.
    logps : ndarray of float32, shape (T,)
        Log-probability of each sampled token in nats, at the sampling's temperature; 0 outside of the spans.
    turns : tuple of Turn, length N
        Parsed from the text of each turn, each call with its result.
    messages : tuple of mapping
        The conversation, prompt included, as a rollout file holds it.
    finish : {"answer", "no_answer", "max_turns", "turn_tokens", "response_tokens"}
        Why it ended: it answered; its turn was empty; it made calls in the last turn it had; a turn, or the
        response, reached its limit of tokens before its end.
    rounds : tuple of int
        Turns of each user turn that was reached; empty means all are of the first.
    outcomes : tuple of float
        What the environment's judge said of each user turn that the model ended, from 0 to 1.
    fault : str or None
        What went wrong where a judge should have said something; the outcome is 0 then.
    """

    task: Task
    sample: int
    tokens: IntArray
    prompt_length: int
    spans: IntArray
    logps: npt.NDArray[np.float32]
    turns: tuple[Turn, ...]
    messages: tuple[Mapping[str, Any], ...]
    finish: Finish
    rounds: tuple[int, ...] = ()
    outcomes: tuple[float, ...] = ()
    fault: str | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def sampled_tokens(self) -> int:
        """Tokens that the model wrote."""
        return int((self.spans[:, 1] - self.spans[:, 0]).sum())

    def trajectory(self) -> Trajectory:
        """What credit is assigned to; the group is the task's id.

        A user turn that has a judge and was not ended, or not reached, has outcome 0.
        """
        task = self.task
        rounds = rounds_of(task, self.rounds or (len(self.turns),), self.outcomes)
        alone = None if is_dialogue(task) else rounds[0]
        return Trajectory(
            turns=self.turns,
            gold_calls=all_gold_calls(task),
            gold_answer=alone.gold_answer if alone else None,
            group=task.id,
            sub_answers=task.sub_answers,
            kind=task.kind,
            rounds=() if alone else rounds,
        )
