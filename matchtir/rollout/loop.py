"""The multi-turn loop: an engine writes turns, the sandbox runs their calls, the template joins all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from ..errors import InputError
from ..parse import parse_messages
from ..tools import Sandbox, ToolRegistry, run_turns
from ..types import Environment, Task, ToolCall, Turn
from .config import RolloutConfig
from .engine import Ended, Engine, Reply, Request
from .environments import Environments, Judged, registry_of
from .own_tools import with_new_tools
from .records import Finish, Rollout


class Template(Protocol):
    """What the loop asks of :class:`matchtir.rollout.template.ChatTemplate`."""

    format: str

    def prompt(self, messages: Sequence[Any], schemas: Sequence[Any]) -> list[int]:
        """Token ids of a prompt, up to where the model goes on."""
        ...

    def reply(self, observations: Sequence[str]) -> list[int]:
        """Token ids between the stop token of a turn with calls and the next turn."""
        ...

    def user_turn(self, messages: Sequence[Any]) -> list[int]:
        """Token ids between the stop token of a turn without calls and the next turn."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of a turn, without its stop token."""
        ...

    def shorten(self, text: str, limit: int) -> str:
        """The text without its middle, of at most about so many tokens."""
        ...


def sample_rollouts(
    tasks: Sequence[Task],
    engine: Engine,
    template: Template,
    config: RolloutConfig,
    *,
    keys: Sequence[tuple[int, ...]],
    group_size: int = 1,
    greedy: bool = False,
    box: Sandbox | None = None,
) -> list[Rollout]:
    """Let a policy solve tasks, several times each.

    Parameters
    ----------
    tasks : sequence of Task, length B / group_size
        Their ids differ.
    engine : Engine
        Samples tokens.
    template : ChatTemplate
        Of the model.
    config : RolloutConfig
        Limits and temperature.
    keys : sequence of tuple of int, length B / group_size
        Of the random numbers: rollout g of task i draws from the stream ``(*keys[i], g)``.
    group_size : int
        Rollouts of each task.
    greedy : bool
        Take the likeliest token.
    box : Sandbox, optional
        Runs the tools that are source, and keeps environments; not needed where all tools are functions.

    Returns
    -------
    list of Rollout, length B
        Those of one task stand together.

    Notes
    -----
    A turn without calls ends a user turn. The task's next one follows, until there is none. Each rollout has
    an environment of its own, from its first call of a method or its first judgement to its end.

    Raises
    ------
    InputError
        If a prompt is longer than `config.max_prompt_tokens`; the message names the task.
    ConfigError
        If a call needs the sandbox and there is none.
    """
    talks = []
    for task, key in zip(tasks, keys, strict=True):
        registry = registry_of(task, task.tools)
        prompt = template.prompt(task.messages, registry.schemas())
        if len(prompt) > config.max_prompt_tokens:
            raise InputError(
                f"prompt of task {task.id!r:.60} has {len(prompt)} tokens; "
                f"expected at most {config.max_prompt_tokens}"
            )
        talks += [_Talk(task, g, (*key, g), prompt, registry, template, config) for g in range(group_size)]

    def respond(ended: list[Ended]) -> list[Reply | None]:
        heard = [talks[one.request] for one in ended]
        made = [talk.hear(one) for talk, one in zip(heard, ended, strict=True)]
        acting = {
            one.request: talk.environment
            for one, talk, calls in zip(ended, heard, made, strict=True)
            if talk.environment is not None and calls
        }
        instances = environments.of(acting)
        turns = [(talk.registry, calls) for talk, calls in zip(heard, made, strict=True)]
        results = run_turns(turns, box, [instances.get(one.request) for one in ended])
        judged = environments.judge(
            {one.request: talk.to_judge for one, talk in zip(ended, heard, strict=True) if talk.to_judge}
        )
        replies = [
            talk.answer([result.text for result in seen], judged.get(one.request))
            for one, talk, seen in zip(ended, heard, results, strict=True)
        ]
        environments.close([one.request for one, reply in zip(ended, replies, strict=True) if reply is None])
        return replies

    requests = [Request(talk.tokens.copy(), talk.budget, talk.key) for talk in talks]
    with Environments(box) as environments:
        engine.run(requests, respond, temperature=config.temperature, greedy=greedy)
    return [talk.rollout() for talk in talks]


class _Talk:
    """One rollout while it is sampled."""

    def __init__(
        self,
        task: Task,
        sample: int,
        key: tuple[int, ...],
        prompt: list[int],
        registry: ToolRegistry,
        template: Template,
        config: RolloutConfig,
    ) -> None:
        self.key, self.registry = key, registry
        self.tokens = list(prompt)
        self._task, self._sample, self._template, self._config = task, sample, template, config
        self._prompt_length = len(prompt)
        self._logps = [0.0] * len(prompt)
        self._spans: list[tuple[int, int]] = []
        self._turns: list[Turn] = []
        self._messages: list[Any] = list(task.messages)
        self._rounds = [0]  # turns of each user turn so far
        self._outcomes: list[float] = []
        self._fault: str | None = None
        self._later = list(task.later)
        self._over = False  # whether the last turn ended its user turn
        self._finish: Finish | None = None

    @property
    def environment(self) -> Environment | None:
        """What the tools of the task act on."""
        return self._task.environment

    @property
    def to_judge(self) -> tuple[Environment, str | None] | None:
        """The environment and the answer, if the last turn ended a user turn that has a judge."""
        if not self._over or self.environment is None or self.environment.judge is None:
            return None
        return self.environment, self._turns[-1].answer

    @property
    def left(self) -> int:
        """Tokens that the response may still have."""
        return self._config.max_response_tokens - (len(self.tokens) - self._prompt_length)

    @property
    def budget(self) -> int:
        """Tokens that the next turn may have."""
        limit = self._config.max_turn_tokens
        return self.left if limit is None else min(self.left, limit)

    def hear(self, ended: Ended) -> tuple[ToolCall, ...]:
        """Record a turn; returns the calls to run."""
        by_turn = self.budget < self.left
        start = len(self.tokens)
        self.tokens += ended.tokens
        self._logps += ended.logps
        self._spans.append((start, len(self.tokens)))
        text = self._template.decode(ended.tokens)
        message = {"role": "assistant", "content": text}
        # As whoever reads the saved rollout will read it.
        turn = parse_messages([message], format=self._template.format)[0]
        self._turns.append(turn)
        self._rounds[-1] += 1
        self._messages.append(message)
        self._over = False
        if not ended.stopped:
            self._finish = "turn_tokens" if by_turn else "response_tokens"
            return ()
        if not turn.calls:
            self._over = True
            if not self._later:
                self._finish = "no_answer" if turn.answer is None else "answer"
        elif self._rounds[-1] == self._config.max_turns:
            self._finish = "max_turns"
        return turn.calls

    def answer(self, observations: list[str], judged: Judged | None) -> Reply | None:
        """Record what the calls of the last turn came to, or its judgement; None if the rollout is over."""
        limit = self._config.max_observation_tokens
        if limit is not None:
            observations = [self._template.shorten(text, limit) for text in observations]
        turn = self._turns[-1]
        if observations:
            calls = zip(turn.calls, observations, strict=True)
            self._turns[-1] = replace(turn, calls=tuple(replace(c, result=text) for c, text in calls))
            self._messages += [{"role": "tool", "content": text} for text in observations]
        if judged is not None:
            self._outcomes.append(judged.outcome)
            self._fault = self._fault or judged.fault
        if self._finish is not None:
            return None
        said = self._next_user_turn() if self._over else []
        reply = self._template.user_turn(said) if said else self._template.reply(observations)
        if len(reply) >= self.left:
            self._finish = "response_tokens"
            return None
        if said:
            self._rounds.append(0)
            self._messages += said
        self.tokens += reply
        self._logps += [0.0] * len(reply)
        return Reply(reply, self.budget)

    def _next_user_turn(self) -> list[Any]:
        """What the user says next, with the tools that appear."""
        turn = self._later.pop(0)
        if turn.tools:
            self.registry = registry_of(self._task, [*self.registry.values(), *turn.tools])
        return with_new_tools(turn.messages, ToolRegistry(turn.tools).schemas())

    def rollout(self) -> Rollout:
        """The finished rollout."""
        if self._finish is None:
            raise RuntimeError(f"the engine left a rollout of task {self._task.id!r} unfinished")
        return Rollout(
            task=self._task,
            sample=self._sample,
            tokens=np.array(self.tokens, dtype=np.int64),
            prompt_length=self._prompt_length,
            spans=np.array(self._spans, dtype=np.int64).reshape(-1, 2),
            logps=np.array(self._logps, dtype=np.float32),
            turns=tuple(self._turns),
            messages=tuple(self._messages),
            finish=self._finish,
            rounds=tuple(self._rounds),
            outcomes=tuple(self._outcomes),
            fault=self._fault,
        )
