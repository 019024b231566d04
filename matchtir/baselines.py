"""Rewards of a whole rollout by the methods that MatchTIR is compared with: ToolRL and FTRL.

The third, outcome-only GRPO, is :func:`matchtir.rewards.outcome_reward`. Each gives one number a
rollout, for which ``integration="trajectory"`` makes the advantage.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from .errors import InputError
from .ops import hungarian, interner, similarity
from .types import FloatArray, Ragged, RaggedMatrix, ToolCall, Trajectory, offsets_of


def toolrl_reward(trajectory: Trajectory) -> float:
    """ToolRL's reward: how well names, parameter names and values agree with the gold calls.

    With the predicted calls P and the gold calls G::

        r_name  = common / all of the tool names of G and P, as multisets
        r_param = sum over matched pairs of common / all of their parameter names
        r_value = sum over matched pairs of #{k in K_g : p[k] = g[k]}, K_g the names of g
        S_max   = 1 + |G| + sum over G of |K_g|
        correct = 6 max(r_name + r_param + r_value) / S_max - 3            in [-3, 3]
        reward  = format + correct                                         in [-3, 4]

    The maximum is over one-to-one assignments of predicted to gold calls, found exactly (the
    published code takes gold calls in turn and gives each its best unused call). A pair with
    different names gives 0. Two calls without parameters agree in them fully.

    ToolRL was published for single turns. Here all calls of the rollout stand together against all
    gold calls, as in MatchTIR's comparison. The published format reward tests tags of its own prompt;
    here `format` is 1 if no call is malformed and the last turn answers or makes a call, else 0.

    Parameters
    ----------
    trajectory : Trajectory
        One rollout. A malformed call counts among P's names and agrees with nothing.

    Returns
    -------
    float
        In [-3, 4]. Without gold calls `correct` is 3 if the rollout makes no call and -3 if it does;
        with gold calls and no predicted one it is -3. Names and values are compared exactly, as
        JSON: true is not 1, and 1 is 1.0.

    References
    ----------
    ToolRL, arXiv 2504.13958, §3.3.

    Examples
    --------
    >>> from matchtir.types import Turn
    >>> gold = ToolCall("get_weather", {"city": "Paris", "unit": "C"})
    >>> call = ToolCall("get_weather", {"city": "Paris"})
    >>> toolrl_reward(Trajectory((Turn((call,)),), (gold,)))  # 1 + 6 (1 + 1/2 + 1) / 4 - 3
    1.75
    """
    return float(toolrl_rewards([trajectory])[0])


def toolrl_rewards(trajectories: Sequence[Trajectory]) -> FloatArray:
    """:func:`toolrl_reward` of each rollout, shape (B,), with one call of the solver for all."""
    calls = [trajectory.calls for trajectory in trajectories]
    golds = [trajectory.gold_calls for trajectory in trajectories]
    scores = _agreements(calls, golds)
    columns = hungarian(scores)
    rewards = np.empty(len(trajectories))
    for b, trajectory in enumerate(trajectories):
        rows = np.flatnonzero(columns[b] >= 0)
        best = float(scores[b][rows, columns[b][rows]].sum())
        most = 1 + len(golds[b]) + sum(len(gold.arguments) for gold in golds[b])
        correct = 6.0 * (_name_agreement(calls[b], golds[b]) + best) / most - 3.0
        rewards[b] = correct + _well_formed(trajectory, calls[b])
    return rewards


def ftrl_reward(trajectory: Trajectory) -> float:
    """FTRL's reward: how many sub-questions the tools' results solve, for how many calls.

    ``2 q / (calls + sub-questions)``, where q sub-questions are solved (:func:`solved_sub_questions`):
    the F1 of solved over calls (precision) and solved over sub-questions (recall).

    The published training scores one step at a time, where a single sub-question is due, with
    ``2 q / (calls + 1)``, and rollouts without calls by rules of their own; this is the form of its
    evaluation, over the whole rollout.

    Parameters
    ----------
    trajectory : Trajectory
        One rollout, with `sub_answers` and with the `result` of its calls. A malformed call, or one
        without a result, counts as a call and solves nothing.

    Returns
    -------
    float
        In [0, 1]. 1 for a rollout without calls where nothing was asked.

    Raises
    ------
    InputError
        If the rollout has no `sub_answers`.

    References
    ----------
    FTRL, arXiv 2508.08791.

    Examples
    --------
    >>> from matchtir.types import Turn
    >>> call = ToolCall("population", {"city": "Oslo"}, result='{"people": "709,037"}')
    >>> asked = {"population": ("709037",), "mayor": ("Anne Lindboe",)}
    >>> ftrl_reward(Trajectory((Turn((call,)),), sub_answers=asked))  # 2 * 1 / (1 + 2)
    0.6666666666666666
    """
    if trajectory.sub_answers is None:
        raise InputError("the FTRL reward needs sub_answers (tool name to answers); got None")
    total = len(trajectory.calls) + sum(map(len, trajectory.sub_answers.values()))
    return 2.0 * solved_sub_questions(trajectory) / total if total else 1.0


def solved_sub_questions(trajectory: Trajectory) -> int:
    """How many sub-questions the results of a rollout's calls solve: q of FTRL's reward and metrics.

    Calls are taken in order. Each solves the first sub-question of its tool that is still open and
    whose answer its result contains, ignoring case and commas; an answer that lists several things
    separated by ", " is contained if each of them is. A call solves at most one sub-question.

    Parameters
    ----------
    trajectory : Trajectory
        One rollout, with the `result` of its calls. A malformed call, or one without a result,
        solves nothing.

    Returns
    -------
    int
        At most the number of calls, and of sub-questions. 0 without `sub_answers`. An answer without
        a character that counts (empty, or commas only) is contained in no result.

    References
    ----------
    FTRL, arXiv 2508.08791.

    Examples
    --------
    >>> from matchtir.types import Turn
    >>> calls = (ToolCall("mayor", result="Eric Adams"), ToolCall("mayor", result="eric adams"))
    >>> asked = {"mayor": ("Eric Adams", "Anne Lindboe")}
    >>> solved_sub_questions(Trajectory((Turn(calls),), sub_answers=asked))
    1
    """
    unsolved = {tool: list(answers) for tool, answers in (trajectory.sub_answers or {}).items()}
    solved = 0
    for call in trajectory.calls:
        if call.malformed is not None or call.result is None:
            continue
        result = plain_text(call.result)
        still = unsolved.get(call.name, [])
        at = next((i for i, answer in enumerate(still) if _contains(result, answer)), None)
        if at is not None:
            del still[at]
            solved += 1
    return solved


def ftrl_rewards(trajectories: Sequence[Trajectory]) -> FloatArray:
    """:func:`ftrl_reward` of each rollout, shape (B,).

    Raises
    ------
    InputError
        If a rollout has no `sub_answers` (the message names it), or if there are calls but not one
        of the whole batch has a result: they were not kept then, and every reward would be 0.
    """
    rewards = np.empty(len(trajectories))
    for b, trajectory in enumerate(trajectories):
        try:
            rewards[b] = ftrl_reward(trajectory)
        except InputError as error:
            raise InputError(f"rollouts[{b}]: {error}") from error
    calls = [call for trajectory in trajectories for call in trajectory.calls]
    if calls and all(call.result is None for call in calls):
        raise InputError(
            f"the FTRL reward needs what the tools answered, but none of the {len(calls)} calls has a result"
        )
    return rewards


def plain_text(text: str) -> str:
    """Text without case, commas and surrounding space, as FTRL and ToolHop search for answers in it."""
    return text.lower().replace(",", "").strip()


def _agreements(calls: Sequence[Sequence[ToolCall]], golds: Sequence[Sequence[ToolCall]]) -> RaggedMatrix:
    """r_param + r_value of each pair, a block (P, K) a rollout; 0 where names differ or a call is malformed.

    MatchTIR's similarity of two calls of the same name is (1 + r_param + r_value) / (2 + |K_g|).
    """
    tables = interner()
    gold_counts = np.array([len(gold) for gold in golds], dtype=np.int64)
    gold_calls = tables.intern(golds, gold=True)
    predicted = tables.intern(calls, gold=False)
    begins = offsets_of([len(predicted) for predicted in calls])
    blocks = similarity(predicted, begins, gold_calls, offsets_of(gold_counts)[:-1], gold_counts)
    wanted = Ragged.from_lengths(np.diff(gold_calls.starts), gold_counts)
    for block, sizes in zip(blocks, wanted, strict=True):
        block[:] = np.where(block > 0, block * (2 + sizes) - 1, 0.0)
    return blocks


def _name_agreement(predicted: Sequence[ToolCall], gold: Sequence[ToolCall]) -> float:
    """r_name: multiset Jaccard of tool names; 1 if there are no calls on either side."""
    names = Counter(call.name for call in predicted if call.malformed is None)
    common = (names & Counter(call.name for call in gold)).total()
    either = len(predicted) + len(gold) - common
    return common / either if either else 1.0


def _well_formed(trajectory: Trajectory, calls: Sequence[ToolCall]) -> float:
    """ToolRL's format reward: 1 if no call is malformed and the last turn answers or calls, else 0."""
    if not trajectory.turns or any(call.malformed is not None for call in calls):
        return 0.0
    last = trajectory.turns[-1]
    return float(bool(last.calls) or last.answer is not None)


def _contains(result: str, answer: str) -> bool:
    """Whether a plain result holds every part of an answer; an answer without parts is never held."""
    parts = [part for part in map(plain_text, answer.split(", ")) if part]
    return bool(parts) and all(part in result for part in parts)
