"""What a task's rollouts are judged by: as a trajectory has it, and as a row of a rollout file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..types import Round, Task, ToolCall


def is_dialogue(task: Task) -> bool:
    """Whether its rollouts are judged by user turn: there are several, or there is a judge."""
    return bool(task.later) or _has_judge(task)


def _has_judge(task: Task) -> bool:
    """Whether the task's environment judges."""
    return task.environment is not None and task.environment.judge is not None


def rounds_of(task: Task, turns: Sequence[int], outcomes: Sequence[float]) -> tuple[Round, ...]:
    """The user turns of a task's dialogue, also those that a rollout did not reach.

    Parameters
    ----------
    task : Task
    turns : sequence of int
        The rollout's turns in each user turn that it reached.
    outcomes : sequence of float
        What the judge of the task's environment said, of each user turn that the model ended. One that it did
        not end, or not reach, has outcome 0.
    """
    asked = [(task.gold_calls, task.gold_answer), *((x.gold_calls, x.gold_answer) for x in task.later)]
    missing = len(asked) - len(outcomes)
    counts = [*turns, *[0] * (len(asked) - len(turns))]
    judged = [*outcomes, *[0.0 if _has_judge(task) else None] * missing]
    return tuple(
        Round(count, len(calls), answer, outcome)
        for count, (calls, answer), outcome in zip(counts, asked, judged, strict=True)
    )


def all_gold_calls(task: Task) -> tuple[ToolCall, ...]:
    """Gold calls of all user turns."""
    return (*task.gold_calls, *(call for turn in task.later for call in turn.gold_calls))


def judged_by(task: Task, turns: Sequence[int], outcomes: Sequence[float]) -> dict[str, Any]:
    """The fields of a rollout's row that say what it is judged by; ``docs/formats.md`` describes them.

    Parameters
    ----------
    task, turns, outcomes
        As for :func:`rounds_of`.

    Returns
    -------
    dict
        `sub_answers`, and where it is judged by user turn `rounds`, else `gold_calls` and `gold_answer`.
    """
    answers = task.sub_answers
    row: dict[str, Any] = {
        "sub_answers": None if answers is None else {name: list(texts) for name, texts in answers.items()}
    }
    rounds = rounds_of(task, turns, outcomes)
    golds = [task.gold_calls, *(turn.gold_calls for turn in task.later)]
    fields = [
        {"gold_calls": [_record(call) for call in calls], "gold_answer": one.gold_answer}
        | ({} if one.outcome is None else {"outcome": one.outcome})
        for one, calls in zip(rounds, golds, strict=True)
    ]
    if not is_dialogue(task):
        return row | fields[0]
    return row | {
        "rounds": [{"turns": one.turns, **field} for one, field in zip(rounds, fields, strict=True)]
    }


def _record(call: ToolCall) -> dict[str, Any]:
    """A gold call."""
    return {"name": call.name, "arguments": dict(call.arguments)}
