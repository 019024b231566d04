"""A whole training step, rollouts with tools and two steps of the optimiser, beside TRL's `GRPOTrainer`.

Same weights, tasks, prompts (token by token), limits, AdamW, clipping and one thread on both sides; the
weights are put back after each round, so that all rounds sample from the same policy. Ours is what `matchtir
train` does with `matchtir-km`: one decode loop whose cache is kept over the turns, tools in the sandbox, the
log-probabilities of the rollouts, and no pass for rollouts of zero advantage. TRL calls `generate` for each
turn, runs the tools as functions in this process (an advantage for TRL), and computes the sampling policy's
log-probabilities with a pass more: a generation serves two steps, and `generate` hands it none.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import redirect_stdout
from tempfile import TemporaryDirectory
from typing import Any

import torch
from checks import check
from timing import Row, Times, once, speedup
from transformers import TrainerCallback

from cases.trl_side import LR, MINIBATCHES, RESPONSE, TURNS, Seen, sorted_tools, trl_trainer
from matchtir import assign_credit
from matchtir.rollout.template import ChatTemplate
from matchtir.tasks import embedded_tasks
from matchtir.tools import Sandbox
from matchtir.train import deepspeed
from matchtir.train.config import TrainConfig
from matchtir.train.embedded import load_embedded_policy
from matchtir.train.policy import PolicyModel
from matchtir.train.sampler import Sampler
from matchtir.train.settings import resolve
from matchtir.train.update import Updater
from matchtir.types import Task

ALIKE, ALIKE_F1 = 0.15, 0.05
"""By what share tokens and turns of the two sides may differ, and by how much the F1."""
_MEANS = {"sampled tokens a rollout": "tokens", "turns a rollout": "turns", "F1 of the answers": "answered"}
_INSTALL = "pip install 'trl==1.16.*'"


class _Back:
    """The weights that a policy had at first."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model, self.changed = model, False
        self.first = {name: value.detach().clone() for name, value in model.state_dict().items()}

    def put(self) -> None:
        """Put them back, and note whether they were changed."""
        now = self.model.state_dict()
        self.changed |= not all(torch.equal(now[name], value) for name, value in self.first.items())
        self.model.load_state_dict(self.first)


class Ours:
    """matchtir's own step, as `matchtir train` makes it."""

    def __init__(self, tasks: Sequence[Task], group: int, box: Sandbox) -> None:
        model, tokenizer = load_embedded_policy()
        self.tasks, self.group, self.seen, self.steps = tasks, group, Seen(), 0
        self.seconds: dict[str, float] = defaultdict(float)
        config = _config(len(tasks), group)
        deepspeed.start()
        policy = PolicyModel(model)
        self.engine = deepspeed.initialize(policy, config, 1_000)
        self.updater = Updater(self.engine, config)
        self.sampler = Sampler(self.engine, ChatTemplate(tokenizer), config.rollout, 0, box)
        self.back = _Back(policy.model)
        self.credit = config.credit
        self.used: list[float] = []
        self.made: Any = None

    def step(self) -> None:
        """Rollouts, credit, update."""
        marks = [time.perf_counter()]
        rollouts = self.sampler.training(self.tasks, self.steps, self.group)
        marks.append(time.perf_counter())
        credit = assign_credit([one.trajectory() for one in rollouts], self.credit)
        marks.append(time.perf_counter())
        learnt = self.updater.update(rollouts, credit)
        marks.append(time.perf_counter())
        self.steps += 1
        self.made = rollouts, learnt
        for name, start, stop in zip(("rollouts", "credit", "update"), marks, marks[1:], strict=False):
            self.seconds[name] += stop - start

    def settle(self) -> None:
        """Outside of the clock: note what the step did, and put the weights back."""
        rollouts, learnt = self.made
        check(learnt["steps"] == MINIBATCHES, f"ours made {learnt['steps']} steps of the optimiser")
        self.seen.add([one.trajectory() for one in rollouts])
        self.used.append(learnt["rollouts_used"])
        self.seen.tokens.append(sum(one.sampled_tokens for one in rollouts) / len(rollouts))
        self.back.put()


class _Clock(TrainerCallback):
    """Times every second round of TRL; after it comes ours, once without and once with the clock."""

    def __init__(self, seen: Seen, model: torch.nn.Module, ours: Ours) -> None:
        self.seen, self.back, self.ours = seen, _Back(model), ours
        self.rounds, self.began = 0, time.perf_counter()
        self.runs: dict[str, list[float]] = {"trl": [], "ours": []}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % MINIBATCHES == 0:
            self._round(time.perf_counter() - self.began)
            self.began = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if "completions/mean_length" in logs:
            self.seen.tokens.append(float(logs["completions/mean_length"]))

    def _round(self, seconds: float) -> None:
        """Note a round of TRL's, and make ours after every second one."""
        self.rounds += 1
        self.back.put()
        if self.rounds % 2:
            return
        self.runs["trl"].append(seconds)
        self.ours.step()
        self.ours.settle()
        self.runs["ours"].append(once(self.ours.step))
        self.ours.settle()


def step_vs_trl(smoke: bool) -> list[Row]:
    """Seconds of a step of the embedded policy: 16 tasks × 8 rollouts, two steps of the optimiser."""
    if importlib.util.find_spec("trl") is None:
        words = f"step-vs-trl needs TRL 1.16, which is not installed: {_INSTALL}"
        if not smoke:
            raise SystemExit(f"bench: {words}")
        print(f"bench: left out: {words}", file=sys.stderr)
        return []
    prompts, group, rounds = (2, 2, 1) if smoke else (16, 8, 5)
    case = f"training step, {prompts} tasks × {group}, embedded policy"
    tasks = [sorted_tools(task) for task in embedded_tasks()[:prompts]]
    seen = Seen()
    # What the libraries print is no row.
    with Sandbox(workers=1) as box, TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        # First, or it would take DeepSpeed's one process for several and wrap the model.
        trainer = trl_trainer(tasks, group, 2 * rounds, folder, seen)
        ours = Ours(tasks, group, box)
        clock = _Clock(seen, trainer.model, ours)
        trainer.add_callback(clock)
        trainer.train()
    check(clock.rounds == 2 * rounds, f"TRL made {clock.rounds} rounds; expected {2 * rounds}")
    for side, back in (("ours", ours.back), ("TRL", clock.back)):
        # So few rollouts may all have the same reward.
        check(back.changed or smoke, f"{side}: the weights are what they were before the steps")
    peer, mine = (Times(tuple(clock.runs[side])) for side in ("trl", "ours"))
    name = f"TRL {importlib.metadata.version('trl')}"
    return [
        speedup(case, "seconds a step", peer, mine, target=1.5, peer_name=name),
        *comparable(case, ours.seen, clock.seen, prompts * group, judged=not smoke),
        Row(case, "rollouts in the update, ours", sum(ours.used) / len(ours.used), unit=""),
        *(
            Row(case, f"seconds of ours, {name}", seconds / ours.steps, unit="s", better="lower")
            for name, seconds in ours.seconds.items()
        ),
    ]


def comparable(case: str, ours: Seen, trl: Seen, expected: int, judged: bool) -> list[Row]:
    """Rows of what both sides did; stops where it is not the same work."""
    rows = []
    for side, seen in (("ours", ours), ("TRL", trl)):
        check(set(seen.rollouts) == {expected}, f"{side}: {set(seen.rollouts)} rollouts; expected {expected}")
    for words, name in _MEANS.items():
        mine, theirs = (sum(x) / len(x) for x in (getattr(ours, name), getattr(trl, name)))
        # So small a mean, of few right answers, says little about the share.
        allowed = ALIKE_F1 if name == "answered" else ALIKE * max(mine, theirs)
        close = abs(mine - theirs) <= allowed
        check(close or not judged, f"{words}: {mine:.4g} with ours, {theirs:.4g} with TRL")
        rows += [Row(case, f"{words}, {side}", x, unit="") for side, x in (("ours", mine), ("TRL", theirs))]
    return rows


def _config(prompts: int, group: int) -> TrainConfig:
    """Settings of our side; TRL's are in `trl_side.py`."""
    return resolve(
        {
            "method": "matchtir-km",
            "rollout": {"max_turns": TURNS, "max_response_tokens": RESPONSE, "tool_workers": 1},
            "update": {
                "prompts": prompts,
                "group_size": group,
                "minibatches": MINIBATCHES,
                "lr": LR,
                "warmup_steps": 0,
            },
        }
    )
