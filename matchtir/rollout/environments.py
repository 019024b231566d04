"""The environments of rollouts while they are sampled: opened when first needed, judged, closed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from types import TracebackType
from typing import NamedTuple

from ..errors import ConfigError
from ..tools import Instance, Result, Sandbox, ToolRegistry
from ..types import Environment, Task, Tool


def registry_of(task: Task, tools: Iterable[Tool]) -> ToolRegistry:
    """The tools of a task that there are by now."""
    return ToolRegistry(tools, methods_checked=task.environment is None or task.environment.checked)


class Judged(NamedTuple):
    """Outcome of a user turn, from 0 to 1, and what went wrong instead of a judgement."""

    outcome: float
    fault: str | None


class Environments:
    """One object a rollout, by the rollout's number, of those whose task has an environment.

    Parameters
    ----------
    box : Sandbox, optional
        Keeps them.
    """

    def __init__(self, box: Sandbox | None) -> None:
        self._box = box
        self._open: dict[int, Instance] = {}

    def of(self, wanted: Mapping[int, Environment]) -> dict[int, Instance]:
        """The objects of rollouts, those that are not there yet made side by side.

        Raises ConfigError where there is no sandbox.
        """
        new = [key for key in wanted if key not in self._open]
        if new:
            if self._box is None:
                raise ConfigError("a task has an environment, which runs in a Sandbox; box is None")
            calls = [(wanted[key].source, wanted[key].name, wanted[key].arguments) for key in new]
            self._open.update(zip(new, self._box.open_all(calls), strict=True))
        return {key: self._open[key] for key in wanted}

    def judge(self, answers: Mapping[int, tuple[Environment, str | None]]) -> dict[int, Judged]:
        """What the judges say of user turns that are over, given the environment and the answer of each."""
        instances = self.of({key: environment for key, (environment, _) in answers.items()})
        batch = [
            (instances[key], [(str(environment.judge), {"answer": answer})])
            for key, (environment, answer) in answers.items()
        ]
        results = self._box.call_all(batch) if self._box is not None and batch else []
        return {key: _outcome(instances[key], found) for key, (found,) in zip(answers, results, strict=True)}

    def close(self, keys: Sequence[int]) -> None:
        """End the objects of rollouts that are over."""
        for key in keys:
            if key in self._open:
                self._open.pop(key).close()

    def __enter__(self) -> Environments:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(list(self._open))


def _outcome(instance: Instance, found: Result) -> Judged:
    """A judge's number from 0 to 1, or 0 and why there is none."""
    if instance.start.status != "ok":
        return Judged(0.0, f"the environment could not be made: {instance.start.error}")
    if found.status != "ok":
        return Judged(0.0, f"the judge failed: {found.error}")
    value = found.value
    if not isinstance(value, Real) or not 0 <= float(value) <= 1:
        return Judged(0.0, f"the judge returned {value!r:.60}; expected a number from 0 to 1")
    return Judged(float(value), None)
