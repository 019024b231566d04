"""The warm start: supervised training of the embedded policy on scripted demonstrations, easy ones first."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from ...errors import TrainingError
from ...tasks.embedded import CALENDAR, EmbeddedConfig
from ..disk import new_folder, whole_folder
from ..models import save_model
from .examples import Examples, examples
from .policy import embedded_tokenizer, new_policy

RECORD = "warmstart.json"
"""File in the folder that says how the policy was made."""

BATCH = 32
ATTEMPTS = 3
"""Some initial weights never learn to tell the parts of a list apart; others do."""

_SEEDS = 10**6
_WINDOW = 25
_MATRIX_RATE, _OTHER_RATE = 0.02, 0.003
_WARM_UP = 20


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the curriculum.

    Parameters
    ----------
    name : str
        What progress lines call it.
    threshold : float
        It has been learnt when the mean loss over the last 25 steps, in nats a token, is below this.
    most_steps : int
        By then it must be.
    mix : mapping of kind to weight, optional
        Kinds of its tasks; None for the mix that the warm start is asked for.
    tools : int
        Tools offered with a task.
    user_turns : (int, int)
        Least and most of a calendar task.
    faultless : bool
        The demonstrations hold no mistakes.
    settles : bool
        Take all steps, with rates that fall to zero; other stages end as soon as they are learnt.
    """

    name: str
    threshold: float
    most_steps: int
    mix: Mapping[str, float] | None = None
    tools: int = 7
    faultless: bool = False
    settles: bool = False
    user_turns: tuple[int, int] = (1, 3)


_ONE_TURN = {"single_hop": 0.3, "parallel_single_hop": 0.7}
_SEVERAL_TURNS = {"single_hop": 0.1, "parallel_single_hop": 0.3, "multi_hop": 0.6}
STAGES = (
    Stage("one turn, three tools", 0.06, 650, _ONE_TURN, tools=3, faultless=True),
    Stage("several turns, four tools", 0.06, 400, _SEVERAL_TURNS, tools=4, faultless=True),
    Stage("all tasks, with mistakes", 0.20, 400),
    Stage("settling", 0.12, 400, settles=True),
)
"""The curriculum. Mistakes come last: with them there is little to learn long chains and lists from."""

CALENDAR_STAGES = (
    Stage("one user turn", 0.08, 1000, faultless=True, user_turns=(1, 1)),
    Stage("all user turns", 0.06, 600, faultless=True),
    Stage("with mistakes", 0.10, 400),
    Stage("settling", 0.08, 400, settles=True),
)
"""That of the mix "calendar"."""


def warm_start(
    seed: int,
    folder: str | os.PathLike[str],
    say: Callable[[str], object] = print,
    *,
    mix: str = "sparse",
    stages: Sequence[Stage] | None = None,
) -> dict[str, Any]:
    """Teach a new policy the form of tool use, with systematic mistakes, and write it to a folder.

    The loss is the cross-entropy of the assistant's own tokens, end markers included. Muon trains the
    matrices, AdamW embeddings and norms. The result depends on the seed and on torch's number of threads.

    Parameters
    ----------
    seed : int, at least 0
        Of the weights and of the demonstrations.
    folder : path
        New, or empty. It becomes a Hugging Face folder of float16 weights and the tokenizer, with the file
        ``warmstart.json``; it is there only when it is whole.
    say : callable
        Gets a line of progress every 25 steps.
    mix : {"sparse", "easy", "calendar"}
        Of the tasks of the last stage.
    stages : sequence of Stage, optional
        The curriculum; by default the one of the mix.

    Returns
    -------
    dict
        The record: seed, mix, attempt, threads, versions, and name, steps and final loss of each stage.

    Raises
    ------
    TrainingError
        If a stage is not learnt within its steps, from three initial weights; nothing is written.
    ConfigError
        If the seed or the mix is impossible.
    InputError
        If there is something in the folder's place, or the disk is full.
    """
    EmbeddedConfig(seed=seed, mix=mix)
    calendar = mix == CALENDAR
    stages = stages or (CALENDAR_STAGES if calendar else STAGES)
    target = new_folder(folder)
    tokenizer = embedded_tokenizer(calendar=calendar)
    for attempt in range(ATTEMPTS):
        model = new_policy(seed + attempt * _SEEDS, calendar=calendar)
        try:
            done = _teach(model, tokenizer, seed, mix, stages, say)
            break
        except TrainingError as error:
            if attempt + 1 == ATTEMPTS:
                raise
            say(f"{error}; starting again with other weights")
    record = {
        "seed": seed,
        "mix": mix,
        "attempt": attempt + 1,
        "threads": torch.get_num_threads(),
        "versions": {name: _version(name) for name in ("matchtir", "torch", "transformers")},
        "stages": done,
    }
    _write(model.eval(), tokenizer, record, target)
    return record


def _teach(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    mix: str,
    stages: Sequence[Stage],
    say: Callable[[str], object],
) -> list[dict[str, Any]]:
    """All stages; returns what is recorded of each."""
    learner = _Learner(model)
    done = []
    for number, stage in enumerate(stages):
        kinds = mix if stage.mix is None else stage.mix
        tasks = EmbeddedConfig(mix=kinds, tools=stage.tools, user_turns=stage.user_turns)
        # Each stage has tasks of its own.
        stream = examples(tokenizer, tasks, len(stages) * seed + number, BATCH, faultless=stage.faultless)
        done.append(_learn(learner, stage, stream, say))
    return done


class _Learner:
    """The policy and its two optimisers."""

    def __init__(self, model: Qwen3ForCausalLM) -> None:
        self.model = model.train()
        matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
        kept = {id(p) for p in matrices}
        others = [p for p in model.parameters() if id(p) not in kept]
        self._optimisers: list[tuple[torch.optim.Optimizer, float]] = [
            (torch.optim.Muon(matrices, lr=_MATRIX_RATE, weight_decay=0.0), _MATRIX_RATE),
            (torch.optim.AdamW(others, lr=_OTHER_RATE, betas=(0.9, 0.95), weight_decay=0.0), _OTHER_RATE),
        ]
        self._steps = 0

    def step(self, batch: Examples, share: float) -> float:
        """One step at a share of the rates; returns the loss before it."""
        self._steps += 1
        share = min(share, self._steps / _WARM_UP)
        loss = self._loss(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser, rate in self._optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate * share
            optimiser.step()
            optimiser.zero_grad()
        return float(loss.detach())

    def _loss(self, batch: Examples) -> Tensor:
        """Mean cross-entropy of the policy's own tokens."""
        ids, own = batch
        hidden = self.model.model(ids[:, :-1], use_cache=False).last_hidden_state
        chosen = own[:, 1:]
        return nn.functional.cross_entropy(self.model.lm_head(hidden[chosen]), ids[:, 1:][chosen])


def _learn(
    learner: _Learner, stage: Stage, stream: Iterator[Examples], say: Callable[[str], object]
) -> dict[str, Any]:
    """One stage; returns its name, steps and final loss. Raises TrainingError if it is not learnt."""
    recent: deque[float] = deque(maxlen=_WINDOW)
    for step in range(1, stage.most_steps + 1):
        share = 1 - (step - 1) / stage.most_steps if stage.settles else 1.0
        recent.append(learner.step(next(stream), share))
        loss = sum(recent) / len(recent)
        learnt = len(recent) == min(_WINDOW, stage.most_steps) and loss < stage.threshold
        if step % _WINDOW == 0:
            say(f"{stage.name}: step {step}, loss {loss:.3f}")
        if learnt and (not stage.settles or step == stage.most_steps):
            return {"name": stage.name, "steps": step, "loss": round(loss, 4)}
    raise TrainingError(
        f"the warm start has not learnt {stage.name!r} in {stage.most_steps} steps: loss {loss:.3f}, "
        f"expected below {stage.threshold}"
    )


def _version(package: str) -> str | None:
    """Version of a package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _write(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, record: dict[str, Any], target: Path
) -> None:
    """The folder, whole or not at all."""
    with whole_folder(target) as folder:
        save_model(model.half(), tokenizer, folder)
        # Half the size on the disk; who loads it without asking for a type gets one that can be trained.
        model.config.dtype = torch.float32
        model.config.save_pretrained(folder)
        (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        for file in folder.iterdir():
            file.chmod(0o644)
