"""The trainer, top to bottom: rollouts, credit, update, and what is kept of them.

    tasks -Sampler-> rollouts -assign_credit-> turn advantages -Updater-> steps of the optimiser

Every process of a run does the same, on its share of the work; the first one writes and talks.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..credit import assign_credit
from ..errors import ConfigError, TrainingError
from ..evals import evaluate
from ..rollout.records import Rollout
from ..rollout.template import ChatTemplate
from ..tasks import sandbox_modules
from ..tools import Sandbox, ToolRegistry
from ..types import Credit, Task
from . import data, deepspeed, processes
from .checkpoints import WEIGHTS, Checkpoints
from .config import EMBEDDED, SMOLLM2, TrainConfig
from .metrics import rollout_metrics
from .models import load_model, save_model
from .policy import PolicyModel
from .reference import Reference
from .rollout_rows import rollout_rows
from .run_files import CHECKPOINTS
from .run_folder import RunFolder
from .sampler import Sampler
from .stop import stop_signals
from .trackers import open_tracker
from .update import PATIENCE, Updater, save_batch
from .watch import Silent, Watch


def train(config: TrainConfig, watch: Watch, *, fresh: bool = False) -> dict[str, Any]:
    """Train a policy, or go on with a run that was stopped.

    Parameters
    ----------
    config : TrainConfig
        All settings.
    watch : Watch
        Is told what happens; on the first process only.
    fresh : bool
        Start over, whatever ``config.output`` holds of an earlier run.

    Returns
    -------
    dict
        What ``summary.json`` holds; where the run was interrupted, its key `interrupted` is true.

    Raises
    ------
    ConfigError, InputError
        If settings, model or tasks do not fit together; before training starts.
    TrainingError
        If the loss was not finite three times in a row; the batch is saved.
    """
    device = deepspeed.start()
    first = processes.rank() == 0
    with ExitStack() as stack:
        folder = stack.enter_context(RunFolder(config, fresh=fresh)) if first else None
        run = _Run(config, watch if first else Silent(), folder, device, stack)
        return run.train()


class _Run:
    """Everything that a run holds, and its steps."""

    def __init__(
        self, config: TrainConfig, watch: Watch, folder: RunFolder | None, device: Any, stack: ExitStack
    ) -> None:
        self.config, self.watch, self.folder = config, watch, folder
        self.seconds: dict[str, float] = defaultdict(float)
        self.evaluations: dict[int, dict[str, Any]] = {}
        self.done, self.saved, self.skipped = 0, 0, 0.0
        self.reported = False
        _seed(config.seed)

        # What is wrong with the files is said before a model is loaded.
        tasks, unread = data.load_tasks(config.tasks, "train", config.data)
        tasks, unjudged = data.judged(tasks, config.credit, config.method)
        eval_source = _evaluation_source(config)
        found = None if eval_source is None else data.load_tasks(eval_source, "test", config.data)
        model, tokenizer = load_model(config.model, config.policy, seed=config.seed)
        # The chat template of smollm2 knows no tools.
        tool_format = config.policy.tool_format or ("hermes" if config.model == SMOLLM2 else None)
        self.tokenizer, self.template = tokenizer, ChatTemplate(tokenizer, tool_format)
        posed = [*tasks, *(found[0] if found is not None else ())]
        self.box = _sandbox(config, sandbox_modules(posed), stack)
        self.tasks = self._usable(config.tasks, tasks, unread | unjudged)
        data.batch_of(len(self.tasks), config.update.prompts, config.seed, 0)
        self.eval_tasks = [] if eval_source is None or found is None else self._usable(eval_source, *found)

        policy = PolicyModel(model.to(device))
        reference = Reference(policy, config) if config.loss.beta > 0 else None
        per_step = config.update.minibatches * config.update.epochs
        self.engine = deepspeed.initialize(policy, config, config.steps * per_step)
        self.updater = Updater(self.engine, config, reference)
        self.sampler = Sampler(self.engine, self.template, config.rollout, config.seed, self.box)
        self.checkpoints = Checkpoints(
            Path(config.output) / CHECKPOINTS, rank=processes.rank(), barrier=processes.barrier
        )
        self.tracker = None
        if folder is not None:
            self.tracker = open_tracker(config.report_to, folder.path, config)
            stack.callback(self.tracker.close)
        self._resume()

    def train(self) -> dict[str, Any]:
        """All steps that are left, with evaluations and checkpoints between them."""
        config = self.config
        with stop_signals() as stop:
            if self.done == 0 and config.evaluation.at_start:
                self._evaluate()
            while self.done < config.steps and not any(processes.gather(bool(stop))):
                self._step()
                last = self.done == config.steps
                if _due(self.done, config.evaluation.every) or (last and config.evaluation.at_end):
                    self._evaluate()
                if _due(self.done, config.checkpoint.every) or last:
                    self._save()
            interrupted = self.done < config.steps
            if interrupted and self.done > self.saved:
                self._save()
        summary = self._summary(interrupted)
        if self.folder is not None and not interrupted:
            self.folder.write_summary(summary)
        self.watch.end(summary)
        return summary

    def _step(self) -> None:
        """One batch of tasks: sampled, judged, learnt from, recorded."""
        began, before = time.perf_counter(), dict(self.seconds)
        update, step = self.config.update, self.done
        chosen = data.batch_of(len(self.tasks), update.prompts, self.config.seed, step)
        with self._phase("rollouts"):
            tasks = [self.tasks[i] for i in chosen]
            rollouts = self.sampler.training(tasks, step, update.group_size)
        with self._phase("credit"):
            credit = assign_credit([rollout.trajectory() for rollout in rollouts], self.config.credit)
        with self._phase("update"):
            learnt = self.updater.update(rollouts, credit)
        self.done += 1
        self.skipped += learnt["skipped"]
        with self._phase("record"):
            metrics = rollout_metrics(rollouts, credit)
            metrics |= {f"update/{name}": value for name, value in learnt.items()}
            self._check_rendering(rollouts)
            if self.folder is not None:
                rows = rollout_rows(rollouts, credit, step=self.done, text_format=self.template.format)
                self.folder.write_rollouts(self.done, rows)
        seconds = time.perf_counter() - began
        metrics["seconds"] = seconds
        metrics["tokens_per_second"] = (metrics["sampled_tokens"] or 0.0) / seconds
        metrics |= {f"seconds/{name}": self.seconds[name] - before.get(name, 0.0) for name in self.seconds}
        if self.folder is not None:
            self.folder.write_metrics(self.done, metrics)
        self._log({f"train/{name}": value for name, value in metrics.items()})
        self.watch.step(self.done, metrics)
        if self.updater.skipped_in_a_row >= PATIENCE:
            self._give_up(rollouts, credit)

    def _evaluate(self) -> None:
        """Measure the policy as it is now."""
        if not self.eval_tasks:
            return
        settings = self.config.evaluation
        with self._phase("evaluation"):
            rollouts = self.sampler.evaluation(self.eval_tasks, settings.samples, settings.greedy)
            evaluation = evaluate([rollout.trajectory() for rollout in rollouts])
        found = evaluation.to_dict()
        self.evaluations[self.done] = found
        if self.folder is not None:
            rows = rollout_rows(rollouts, step=self.done, text_format=self.template.format)
            self.folder.write_evaluation(self.done, rows, found)
        means = {name: one.mean for name, one in evaluation.rows[0].metrics.items() if one is not None}
        self._log({f"evaluation/{name}": value for name, value in means.items()})
        self.watch.evaluation(self.done, found)

    def _save(self) -> None:
        """Write a checkpoint, and forget old ones."""
        with self._phase("checkpoint"), self.checkpoints.write(self.done) as folder:
            deepspeed.save_state(self.engine, folder, self._state())
            if self.config.checkpoint.weights:
                weights = deepspeed.full_state_dict(self.engine)
                if processes.rank() == 0:
                    model = self.engine.policy.model
                    save_model(model, self.tokenizer, folder / WEIGHTS, state_dict=weights)
        self.saved = self.done
        best = self._best(self.checkpoints.steps())
        if best is not None:
            self.checkpoints.mark_best(best, score=_score(self.evaluations[best]))
        self.checkpoints.prune(self.config.checkpoint.keep, best)
        processes.barrier()

    def _state(self) -> dict[str, Any]:
        """What a checkpoint holds besides weights, optimiser and schedule."""
        return {
            "done": self.done,
            "seconds": dict(self.seconds),
            "skipped": self.skipped,
            "skipped_in_a_row": self.updater.skipped_in_a_row,
            "evaluations": self.evaluations,
            "random": processes.gather(_random_states()),
        }

    def _resume(self) -> None:
        """Go on from the newest checkpoint, if there is one; forget what was recorded after it."""
        step = processes.broadcast(self.checkpoints.newest() if processes.rank() == 0 else None)
        if step is not None:
            state = deepspeed.load_state(self.engine, self.checkpoints.path(step))
            self.done, self.saved, self.skipped = state["done"], state["done"], state["skipped"]
            self.seconds.update(state["seconds"])
            self.evaluations = state["evaluations"]
            self.updater.skipped_in_a_row = state["skipped_in_a_row"]
            _set_random_states(*state["random"][processes.rank()])
        if self.folder is not None:
            self.folder.cut(self.done)
        facts = {
            "parameters": deepspeed.trained_size(self.engine.policy),
            "tasks": len(self.tasks),
            "evaluation_tasks": len(self.eval_tasks),
            "device": str(self.engine.device),
            "processes": processes.world_size(),
            "resumed": step,
        }
        self.watch.start(self.config, facts)

    def _usable(self, source: str, tasks: list[Task], dropped: data.Dropped) -> list[Task]:
        """The tasks that can be posed; says which cannot, and why."""
        # The embedded tasks' own tools need no check.
        box = None if source == EMBEDDED else self.box
        kept, unusable = data.usable(tasks, self.template, self.config.rollout.max_prompt_tokens, box)
        lines = data.describe(dropped | unusable)
        for line in lines:
            self.watch.note(f"{source}: {line}")
        if not kept:
            raise ConfigError(f"{source} holds no task that can be used: {'; '.join(lines)}")
        return kept

    def _check_rendering(self, rollouts: list[Rollout]) -> None:
        """Report once where the chat template, given a whole conversation, writes other tokens."""
        if self.reported or self.folder is None:
            return
        for rollout in rollouts[: self.config.update.group_size]:
            schemas = ToolRegistry(rollout.task.tools).schemas()
            found = self.template.difference(rollout.messages, schemas, rollout.tokens.tolist())
            if found is not None:
                self.watch.note(f"rollouts are trained on as sampled; the chat template differs: {found}")
                self.reported = True
                return

    def _give_up(self, rollouts: list[Rollout], credit: Credit) -> None:
        """Save the batch whose loss is not finite, and stop."""
        path = None
        if self.folder is not None:
            path = self.folder.path / "failed" / f"step-{self.done:06d}.npz"
            path.parent.mkdir(exist_ok=True)
            save_batch(path, rollouts, credit)
        raise TrainingError(
            f"step {self.done}: loss or gradient was not finite {PATIENCE} times in a row; the batch is in "
            f"{path}. Expected finite numbers: try a lower update.lr, or a checkpoint before it"
        )

    def _best(self, steps: Collection[int]) -> int | None:
        """After which of these steps the evaluation was best, the first of equal ones."""
        scores = {step: _score(found) for step, found in self.evaluations.items() if step in steps}
        known = {step: score for step, score in scores.items() if score is not None}
        return max(known, key=lambda step: (known[step], -step), default=None)

    def _summary(self, interrupted: bool) -> dict[str, Any]:
        """What the run came to."""
        return {
            "method": self.config.method,
            "model": self.config.model,
            "tasks": self.config.tasks,
            "seed": self.config.seed,
            "steps": self.done,
            "interrupted": interrupted,
            "seconds": sum(self.seconds.values()),
            "seconds_by_phase": dict(self.seconds),
            "skipped": self.skipped,
            "before": self.evaluations.get(0),
            "after": self.evaluations.get(self.done) if self.done else None,
            "best": self._best(self.evaluations),
        }

    def _log(self, values: Mapping[str, float | None]) -> None:
        """Hand numbers to the trackers."""
        if self.tracker is not None:
            self.tracker.log(self.done, values)

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """Say what is being done, and add up the time."""
        self.watch.phase(name)
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - began


def _score(evaluation: Mapping[str, Any]) -> float | None:
    """What checkpoints are compared by: Solve-F1, else the share of correct answers."""
    metrics = evaluation["rows"][0]["metrics"]
    return next((float(metrics[name]["mean"]) for name in ("solve_f1", "correct") if metrics[name]), None)


def _random_states() -> tuple[Any, Any]:
    """States of torch's generators in this process: CPU and, where there is one, CUDA."""
    return torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None


def _set_random_states(cpu: Any, cuda: Any) -> None:
    """Go on where `_random_states` was called."""
    torch.set_rng_state(cpu)
    if cuda is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda)


def _evaluation_source(config: TrainConfig) -> str | None:
    """The tasks that the policy is measured on; None where it is not."""
    settings = config.evaluation
    if not (settings.at_start or settings.at_end or settings.every):
        return None
    return config.eval_tasks or (EMBEDDED if config.tasks == EMBEDDED else None)


def _due(done: int, every: int | None) -> bool:
    """Whether something that is done every so many steps is due."""
    return every is not None and done % every == 0


def _seed(seed: int) -> None:
    """Seed what draws random numbers without being told how: new weights, dropout."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _sandbox(config: TrainConfig, modules: Sequence[str], stack: ExitStack) -> Sandbox:
    """The sandbox of this process, with modules besides those of the configuration; closed at the end."""
    rollout = config.rollout
    box = Sandbox(
        rollout.tool_workers,
        rollout.tool_timeout,
        modules=[*rollout.tool_modules, *modules],
        allow_unsafe=rollout.allow_unsafe_tools,
    )
    return stack.enter_context(box)
