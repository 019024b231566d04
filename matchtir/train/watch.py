"""What a run tells whoever watches it: a display, a log, nobody."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from .config import TrainConfig

Metrics = Mapping[str, float | None]


class Watch(Protocol):
    """What the trainer calls, in this order, on the first process only.

    A metric that is not known, or that is no finite number, is None. What a display shows are the
    metrics of these names; others are recorded all the same:

    ===================  ==============================================================================
    reward               mean return of the step's rollouts; ``reward/KIND`` of those of one kind
    solve_f1             mean Solve-F1 of the rollouts
    matched              share of the calls that have a gold call
    silent_groups        share of the groups in which every advantage is 0
    calls                calls a rollout
    unanswered           share of the rollouts without an answer
    tokens_per_second    sampled tokens, by the seconds of the whole step
    seconds              of the step; ``seconds/PHASE`` of its parts
    ===================  ==============================================================================
    """

    def start(self, config: TrainConfig, facts: Mapping[str, Any]) -> None:
        """The run begins, with everything loaded.

        `facts` may hold `parameters` (int), `tasks` and `evaluation_tasks` (int), `device` (str),
        `processes` (int), `resumed` (step of the checkpoint, or None); others are shown as they are.
        """

    def phase(self, name: str) -> None:
        """What is being done from now on: "rollouts", "credit", "update", "evaluation", "checkpoint"."""

    def step(self, step: int, metrics: Metrics) -> None:
        """Step number `step` is done, counted from 1."""

    def evaluation(self, step: int, evaluation: Mapping[str, Any]) -> None:
        """The policy after `step` steps was evaluated; as `matchtir.evals.Evaluation.to_dict` has it."""

    def note(self, text: str) -> None:
        """Something that a reader of the results should know, once."""

    def end(self, summary: Mapping[str, Any]) -> None:
        """The run is over; `summary` is what ``summary.json`` holds."""


class Silent:
    """A watch that says nothing, for all processes but the first."""

    def start(self, config: TrainConfig, facts: Mapping[str, Any]) -> None:
        """Say nothing."""

    def phase(self, name: str) -> None:
        """Say nothing."""

    def step(self, step: int, metrics: Metrics) -> None:
        """Say nothing."""

    def evaluation(self, step: int, evaluation: Mapping[str, Any]) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""

    def end(self, summary: Mapping[str, Any]) -> None:
        """Say nothing."""
