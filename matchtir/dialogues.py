"""Dialogues of several user turns: each user turn as a rollout of its own, and the whole put together again.

A user turn ("round") has gold calls, gold answer and outcome of its own, and no call is matched across its
borders. So rewards are found for the parts that :func:`split` gives, and :func:`join` makes one rollout of
them again; :func:`by_round` does the like for what turns are compared with.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real

import numpy as np
import numpy.typing as npt

from .errors import InputError
from .types import (
    LARGEST_REWARD,
    IntArray,
    Ragged,
    RaggedMatrix,
    Rewards,
    Round,
    ToolCall,
    Trajectory,
    offsets_of,
)


def split(trajectories: Sequence[Trajectory]) -> Sequence[Trajectory]:
    """Each user turn as a trajectory of its own, in order.

    Parameters
    ----------
    trajectories : sequence of Trajectory, length B
        Those without `rounds` are their own part.

    Returns
    -------
    sequence of Trajectory, length R
        What was given, if none has `rounds`. A part has turns, gold calls, gold answer and outcome of its
        round, and group, kind and sub-answers of the whole. Rollouts that share a tuple of gold calls share
        its parts too.

    Raises
    ------
    InputError
        If the rounds' turns or gold calls do not add up to the rollout's, a count is no whole number or is
        negative, an outcome is no number of magnitude at most 1e100, or the whole has a gold answer or an
        outcome. The message names the rollout.

    Examples
    --------
    >>> from matchtir.types import Turn
    >>> turns = (Turn((ToolCall("f"),)), Turn(answer="1"), Turn(answer="2"))
    >>> whole = Trajectory(turns, (ToolCall("f"),), rounds=(Round(2, 1, "1"), Round(1, 0, "2"), Round(0)))
    >>> [(len(part.turns), len(part.gold_calls), part.gold_answer) for part in split([whole])]
    [(2, 1, '1'), (1, 0, '2'), (0, 0, None)]
    """
    if not _any_rounds(trajectories):
        return trajectories
    golds: dict[tuple[int, int, int], tuple[ToolCall, ...]] = {}
    parts: list[Trajectory] = []
    for b, trajectory in enumerate(trajectories):
        if not trajectory.rounds:
            parts.append(trajectory)
            continue
        try:
            _check(trajectory)
        except InputError as error:
            raise InputError(f"rollouts[{b}]: {error}") from error
        turn = gold = 0
        for one in trajectory.rounds:
            calls = trajectory.gold_calls[gold : gold + one.gold_calls]
            part = Trajectory(
                turns=trajectory.turns[turn : turn + one.turns],
                gold_calls=golds.setdefault((id(trajectory.gold_calls), gold, one.gold_calls), calls),
                gold_answer=one.gold_answer,
                group=trajectory.group,
                outcome=one.outcome,
                sub_answers=trajectory.sub_answers,
                kind=trajectory.kind,
            )
            parts.append(part)
            turn += one.turns
            gold += one.gold_calls
    return parts


def join(rewards: Rewards, trajectories: Sequence[Trajectory]) -> Rewards:
    """What was found for the parts of :func:`split`, as one rollout again.

    Parameters
    ----------
    rewards : Rewards
        Of R parts.
    trajectories : sequence of Trajectory, length B
        That were split.

    Returns
    -------
    Rewards
        Of B rollouts; `rewards` itself if none has `rounds`. `matches` index the rollout's own gold calls. A
        rollout's block of `similarity` is block-diagonal: 0 between calls of different rounds. `returns` is
        the mean over the rounds, those without turns included; `malformed` their sum.
    """
    if not _any_rounds(trajectories):
        return rewards
    counts = np.array([max(len(trajectory.rounds), 1) for trajectory in trajectories], dtype=np.int64)
    first = offsets_of(counts)
    owner = np.repeat(np.arange(len(counts)), counts)
    blocks = rewards.similarity
    begins = offsets_of(blocks.cols)
    before = begins[:-1] - begins[first[:-1]][owner]  # gold calls of earlier rounds, (R,)
    matches = rewards.matches.values
    shifted = np.where(matches >= 0, matches + np.repeat(before, rewards.matches.lengths), matches)
    returns = np.bincount(owner, weights=rewards.returns, minlength=len(counts)) / counts
    malformed = np.diff(offsets_of(rewards.malformed)[first])
    return Rewards(
        similarity=_block_diagonal(blocks, first, owner, before),
        matches=Ragged(shifted, rewards.matches.offsets[first]),
        call_rewards=Ragged(rewards.call_rewards.values, rewards.call_rewards.offsets[first]),
        turn_rewards=Ragged(rewards.turn_rewards.values, rewards.turn_rewards.offsets[first]),
        returns=returns,
        malformed=malformed,
    )


def turns_of_rounds(trajectories: Sequence[Trajectory]) -> Ragged | None:
    """How many turns each round has, one problem a rollout; None if no rollout has `rounds`.

    A rollout without them is one round.
    """
    if not _any_rounds(trajectories):
        return None
    return Ragged.from_lists(
        [[one.turns for one in x.rounds] if x.rounds else [len(x.turns)] for x in trajectories],
        dtype=np.int64,
    )


def by_round(turns: Ragged, rounds: Ragged, group_ids: npt.ArrayLike) -> tuple[Ragged, IntArray]:
    """The same turns with one problem a round, and which rounds belong together.

    Parameters
    ----------
    turns : Ragged, B rollouts
        One entry a turn.
    rounds : Ragged of int, B rollouts
        How many turns each round has.
    group_ids : array_like of int, shape (B,)
        Which rollouts belong together.

    Returns
    -------
    turns : Ragged, R rounds
        Its values are those of `turns`.
    ids : ndarray of int64, shape (R,)
        The same for rounds of one group and of one place in their dialogues.

    Raises
    ------
    InputError
        If the arguments describe different rollouts, a rollout has no round, or its counts are negative or do
        not add up to its turns.

    Examples
    --------
    >>> turns = Ragged.from_lists([[1.0, 2.0, 3.0], [4.0]])
    >>> finer, ids = by_round(turns, Ragged.from_lists([[2, 1], [1, 0]], dtype="int64"), [7, 7])
    >>> finer.tolist(), ids.tolist()
    ([[1.0, 2.0], [3.0], [4.0], []], [0, 1, 0, 1])
    """
    ids = np.asarray(group_ids)
    if not isinstance(rounds, Ragged):
        raise InputError(f"rounds is a {type(rounds).__name__}; expected a Ragged with one count a round")
    if not len(turns) == len(rounds) == len(ids):
        raise InputError(
            f"turns are of {len(turns)} rollouts, rounds of {len(rounds)} and group_ids of {len(ids)}; "
            "expected as many in each"
        )
    counts = rounds.values
    if counts.ndim != 1 or (counts.size and counts.dtype.kind not in "iu"):
        raise InputError(
            f"rounds have shape {counts.shape} of {counts.dtype}; expected one whole number each"
        )
    counts = counts.astype(np.int64, copy=False)
    if (counts < 0).any():
        b = int(rounds.problem[np.argmax(counts < 0)])
        raise InputError(f"rounds[{b}] is {rounds[b].tolist()}; expected no negative count of turns")
    total = np.diff(offsets_of(counts)[rounds.offsets])
    wrong = (total != turns.lengths) | (rounds.lengths == 0)
    if wrong.any():
        b = int(np.argmax(wrong))
        raise InputError(
            f"rounds[{b}] is {rounds[b].tolist()!s:.60} and adds up to {total[b]} turns but the rollout has "
            f"{turns.lengths[b]}; expected one count or more, and as many turns"
        )
    group = np.unique(ids, return_inverse=True)[1].astype(np.int64, copy=False)
    place = np.arange(len(counts)) - np.repeat(rounds.offsets[:-1], rounds.lengths)
    most = int(rounds.lengths.max(initial=0))
    return Ragged(turns.values, offsets_of(counts)), group[rounds.problem] * most + place


def _any_rounds(trajectories: Sequence[Trajectory]) -> bool:
    """Whether one of them is a dialogue."""
    return any([trajectory.rounds for trajectory in trajectories])  # noqa: C419, half the time of a generator


def _check(trajectory: Trajectory) -> None:
    """Refuse a dialogue whose rounds do not make up the whole."""
    for name in ("gold_answer", "outcome"):
        value = getattr(trajectory, name)
        if value is not None:
            raise InputError(f"{name} is {value!r:.60} beside rounds, which have their own; expected None")
    for name, there in (("turns", len(trajectory.turns)), ("gold_calls", len(trajectory.gold_calls))):
        counts = [getattr(one, name) for one in trajectory.rounds]
        for k, count in enumerate(counts):
            if isinstance(count, bool) or not isinstance(count, Integral) or count < 0:
                raise InputError(f"rounds[{k}].{name} is {count!r:.60}; expected a whole number, 0 or more")
        if sum(counts) != there:
            raise InputError(f"rounds add up to {sum(counts)} {name} but the rollout has {there}")
    for k, one in enumerate(trajectory.rounds):
        _check_outcome(one, f"rounds[{k}]")


def _check_outcome(one: Round, where: str) -> None:
    """Refuse an outcome that is no reward. What looks at the parts could not say whose it is."""
    # Real numbers of any size compare with it, those that no float holds too.
    if one.outcome is not None and not (isinstance(one.outcome, Real) and abs(one.outcome) <= LARGEST_REWARD):
        raise InputError(
            f"{where}.outcome is {one.outcome!r:.60}; "
            "expected a finite number of magnitude at most 1e100, or None"
        )


def _block_diagonal(blocks: RaggedMatrix, first: IntArray, owner: IntArray, before: IntArray) -> RaggedMatrix:
    """One block a rollout of those of its rounds, 0 elsewhere.

    `first` (B + 1,) says where a rollout's rounds begin, `owner` (R,) whose a round is, and `before` (R,) how
    many gold calls come before it in its rollout.
    """
    rows, cols = blocks.row_offsets[first], offsets_of(blocks.cols)[first]
    rows_of, cols_of = np.diff(rows), np.diff(cols)
    begins = offsets_of(rows_of * cols_of)
    values = np.zeros(int(begins[-1]), dtype=blocks.values.dtype)
    part = np.repeat(np.arange(len(blocks)), blocks.rows)  # of each row
    whole = owner[part]
    row = np.arange(len(part)) - rows[whole]
    to = begins[whole] + row * cols_of[whole] + before[part]  # where the row's cells go
    width = blocks.cols[part]
    come = offsets_of(width)[:-1]  # and where they lie
    values[np.repeat(to - come, width) + np.arange(len(blocks.values))] = blocks.values
    return RaggedMatrix(values, rows_of, cols_of)
