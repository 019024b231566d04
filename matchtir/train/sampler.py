"""Rollouts of a policy that several processes share: each samples whole groups, all get all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..rollout.config import RolloutConfig
from ..rollout.continuous import ContinuousEngine
from ..rollout.decode import DecodeEngine
from ..rollout.engine import Engine
from ..rollout.loop import sample_rollouts
from ..rollout.records import Rollout
from ..rollout.template import ChatTemplate
from ..tools import Sandbox
from ..types import Task
from . import deepspeed, processes

_TRAINING, _EVALUATION = 0, 1  # streams of random numbers


class Sampler:
    """Samples with the weights that the policy has now.

    Parameters
    ----------
    trained : matchtir.train.deepspeed.Engine
    template : ChatTemplate
    config : RolloutConfig
    seed : int
    box : Sandbox, optional
        Runs the tools that are source.
    """

    def __init__(
        self,
        trained: deepspeed.Engine,
        template: ChatTemplate,
        config: RolloutConfig,
        seed: int,
        box: Sandbox | None,
    ) -> None:
        self._trained, self._template, self._config = trained, template, config
        self._seed, self._box = seed, box

    def training(self, tasks: Sequence[Task], step: int, group_size: int) -> list[Rollout]:
        """Rollouts of a step, at the temperature; group by group, on all processes."""
        return self._sample(tasks, (_TRAINING, step), group_size, greedy=False)

    def evaluation(self, tasks: Sequence[Task], samples: int, greedy: bool) -> list[Rollout]:
        """Rollouts of an evaluation, whose random numbers are those of every other evaluation of the run."""
        return self._sample(tasks, (_EVALUATION,), samples, greedy)

    def _sample(
        self, tasks: Sequence[Task], stream: tuple[int, ...], group_size: int, greedy: bool
    ) -> list[Rollout]:
        """Share the tasks out, sample, and put all together in the tasks' order."""
        mine = range(processes.rank(), len(tasks), processes.world_size())
        with deepspeed.gathered(self._trained) as model:
            made = sample_rollouts(
                [tasks[i] for i in mine],
                self._engine(model),
                self._template,
                self._config,
                keys=[(self._seed, *stream, i) for i in mine],
                group_size=group_size,
                greedy=greedy,
                box=self._box,
            )
        groups = [made[k : k + group_size] for k in range(0, len(made), group_size)]
        shares = processes.gather(groups)
        found: list[Rollout] = []
        for i in range(len(tasks)):
            found += shares[i % len(shares)][i // len(shares)]
        return found

    def _engine(self, model: Any) -> Engine:
        """The engine that the configuration names."""
        if self._config.engine == "continuous":
            return ContinuousEngine(model, self._template.stop_ids)
        return DecodeEngine(model, self._template.stop_ids, self._config.batch_size)
