"""What one rollout is worth as a solution: Solve-P, Solve-R, Solve-F1, its answer, its effort.

:func:`measure` looks at one rollout; :mod:`matchtir.evals.summary` makes means over tasks of many.
``docs/evaluation.md`` describes the metrics for users.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from ..baselines import plain_text, solved_sub_questions
from ..dialogues import split
from ..tools import call_failed
from ..types import Round, ToolCall, Trajectory

METRICS = ("solve_p", "solve_r", "solve_f1", "correct", "calls", "failed_calls", "turns", "unanswered")
"""The metrics, in the order they are shown."""

_SOLVED = 1.0 - 1e-9
"""The outcome from which on a user turn counts as solved; a judge may add up to 1 with rounding."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One rollout, measured. A metric is None where nothing is known that it could be judged by.

    Attributes
    ----------
    task : hashable
        Rollouts of one task count together.
    kind : str
        The task's kind, "" where it has none.
    size : int
        Gold calls of the task, or its sub-questions where gold calls are not known.
    well_formed : int
        Calls that are not malformed.
    results : int
        Calls that have a result.
    solve_p, solve_r, solve_f1, correct, calls, failed_calls, turns, unanswered : float or None
        See :func:`measure`.
    """

    task: Hashable
    kind: str
    size: int
    well_formed: int
    results: int
    solve_p: float | None
    solve_r: float | None
    solve_f1: float | None
    correct: float | None
    calls: float
    failed_calls: float | None
    turns: float
    unanswered: float


def measure(trajectory: Trajectory) -> Measured:
    """Measure one rollout.

    With q the sub-questions that it solves (:func:`matchtir.baselines.solved_sub_questions`)::

        Solve-P  = q / calls                          1 if it makes no call
        Solve-R  = q / sub-questions                  1 if nothing is asked
        Solve-F1 = 2 q / (calls + sub-questions)      1 if neither is there

    `correct` is 1 if the last turn's answer contains the gold answer, ignoring case and commas.
    `failed_calls` is the share of its calls that are malformed or whose result says that they failed
    (:func:`matchtir.tools.call_failed`). `unanswered` is 1 if the last turn gives no answer.

    A dialogue (`rounds`) is `correct` if each of its user turns is solved, reached or not: its outcome is 1,
    or, where none is given, the answer of its last turn contains its gold answer. User turns with neither
    are passed over. `unanswered` is the share of user turns without an answer, those that were not reached
    among them. All else is of the whole.

    Parameters
    ----------
    trajectory : Trajectory
        One rollout. A malformed call is a call: it counts, solves nothing and has failed.

    Returns
    -------
    Measured
        The Solve metrics are None without `sub_answers`; `correct` is None without a gold answer, or
        with one that has no character that counts (empty, or commas only), and of a dialogue if no user
        turn has such an answer or an outcome. `failed_calls` is None without calls, and where well-formed
        calls were made and no call has a result: whether they failed is not known then.

    Raises
    ------
    InputError
        If the turns or gold calls of a dialogue's `rounds` do not add up.

    References
    ----------
    MatchTIR, arXiv 2601.10712, eq. 12-14; FTRL, arXiv 2508.08791; ToolHop, arXiv 2501.02506.

    Examples
    --------
    >>> from matchtir.types import ToolCall, Turn
    >>> call = ToolCall("population", {"city": "Oslo"}, result='{"people": "709,037"}')
    >>> turns = (Turn((call,)), Turn(answer="709 037, I think"))
    >>> asked = {"population": ("709037",), "mayor": ("Anne Lindboe",)}
    >>> found = measure(Trajectory(turns, gold_answer="709,037", sub_answers=asked))
    >>> found.solve_p, found.solve_r, round(found.solve_f1, 4), found.correct
    (1.0, 0.5, 0.6667, 0.0)
    """
    calls = trajectory.calls
    asked = sum(map(len, (trajectory.sub_answers or {}).values()))
    solve_p, solve_r, solve_f1 = _solve(trajectory, len(calls), asked)
    rounds = split([trajectory])
    answers = [_answer(one) for one in rounds]
    correct = _correct(answers[0], trajectory.gold_answer)
    if trajectory.rounds:
        correct = _all_solved(trajectory.rounds, answers)
    return Measured(
        task=trajectory.group,
        kind=trajectory.kind,
        size=len(trajectory.gold_calls) or asked,
        well_formed=sum(call.malformed is None for call in calls),
        results=sum(call.result is not None for call in calls),
        solve_p=solve_p,
        solve_r=solve_r,
        solve_f1=solve_f1,
        correct=correct,
        calls=float(len(calls)),
        failed_calls=_failed_share(calls),
        turns=float(len(trajectory.turns)),
        unanswered=sum(answer is None for answer in answers) / len(answers),
    )


def _solve(trajectory: Trajectory, calls: int, asked: int) -> tuple[float | None, float | None, float | None]:
    """Solve-P, Solve-R and Solve-F1; None without sub-answers."""
    if trajectory.sub_answers is None:
        return None, None, None
    q = solved_sub_questions(trajectory)
    total = calls + asked
    return q / calls if calls else 1.0, q / asked if asked else 1.0, 2.0 * q / total if total else 1.0


def _answer(trajectory: Trajectory) -> str | None:
    """What the last turn answers."""
    last = trajectory.turns[-1] if trajectory.turns else None
    return None if last is None or last.calls else last.answer


def _all_solved(rounds: Sequence[Round], answers: Sequence[str | None]) -> float | None:
    """Whether every user turn that can be judged is solved; None if none can."""
    solved = [
        _correct(answer, one.gold_answer) if one.outcome is None else float(one.outcome >= _SOLVED)
        for one, answer in zip(rounds, answers, strict=True)
    ]
    return min((one for one in solved if one is not None), default=None)


def _correct(answer: str | None, gold: str | None) -> float | None:
    """Whether the answer contains the gold answer; None if there is no gold answer to look for."""
    wanted = plain_text(gold or "")
    if not wanted:
        return None
    return float(answer is not None and wanted in plain_text(answer))


def _failed_share(calls: Sequence[ToolCall]) -> float | None:
    """Failed calls / calls; None if there is none, or nothing is known of the well-formed ones."""
    malformed = sum(call.malformed is not None for call in calls)
    if not calls or (malformed < len(calls) and all(call.result is None for call in calls)):
        return None
    return sum(map(call_failed, calls)) / len(calls)
