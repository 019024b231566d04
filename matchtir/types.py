"""The records that flow through the stages: tools, tasks, calls, turns, trajectories, and ragged arrays.

Letters are the same everywhere: B rollouts, N turns, P predicted calls, K gold calls, T tokens.
A ragged batch is a flat array and its offsets (CSR; attention kernels call the offsets
``cu_seqlens``): rollout ``b`` owns ``values[offsets[b]:offsets[b + 1]]``. Nothing is padded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import InputError

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]

LARGEST_REWARD = 1e100
"""Magnitude that an outcome or a penalty may have: its square, summed over a group, is still finite."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One tool call, predicted or gold.

    Parameters
    ----------
    name : str
        Name of the tool. A malformed call keeps it where its text says one, else ``""``.
    arguments : mapping of str to JSON value
        Parameter name to value, as ``json.loads`` returns them; empty for a malformed call.
    malformed : str or None
        Why the text of the call is no call; None for a well-formed one. A malformed call
        stays in its turn and matches nothing.
    repaired : bool
        The text was no JSON and was repaired on request.
    raw : str or None
        The text that the call was parsed from.
    result : str or None
        What the tool answered, where the rollout keeps it.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    malformed: str | None = None
    repaired: bool = False
    raw: str | None = None
    result: str | None = None


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool that a model may call.

    Parameters
    ----------
    name : str
        What the model calls it by; also the name of the function in `source`.
    description : str
        What the model is told.
    parameters : mapping
        JSON schema of the arguments, of type ``object``.
    source : str or None
        Python source that defines the function `name`. It is data, not trusted, and runs in
        :class:`matchtir.tools.Sandbox` only.
    function : callable or None
        Trusted function of the host program; runs in this process. A tool may have neither, where only its
        schema is known.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})
    source: str | None = None
    function: Callable[..., Any] | None = None


@dataclass(frozen=True, slots=True)
class Environment:
    """What stateful tools act on: an object, of which every rollout has one of its own.

    The tools of the task that have neither source nor function are its methods of the same names.

    Parameters
    ----------
    source : str
        Python source that defines the class. It is data, not trusted, and runs in
        :class:`matchtir.tools.Sandbox` only.
    name : str
        The class, or whatever else in the source can be called and gives the object.
    arguments : mapping
        What it is called with; JSON values by keyword.
    judge : str or None
        Method that says how well a user turn was answered. It is called when the user turn is over, with the
        keyword `answer` (a string or None), and returns a number from 0 to 1, the outcome. None: the answer
        is compared with the gold answer.
    checked : bool
        Calls whose arguments do not fit the schemas of its tools are refused. False: the methods themselves
        say what they take.
    """

    source: str
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    judge: str | None = None
    checked: bool = True


@dataclass(frozen=True, slots=True)
class UserTurn:
    """What the user says when the model has answered, and what is known of how to answer that.

    Parameters
    ----------
    messages : tuple of mapping, at least one
        In OpenAI's form.
    tools : tuple of Tool
        That the model may call from now on, besides those it had.
    gold_calls : tuple of ToolCall
        The calls that this user turn needs, in order.
    gold_answer : str or None
        Its answer.
    """

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Tool, ...] = ()
    gold_calls: tuple[ToolCall, ...] = ()
    gold_answer: str | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """A question, the tools that may help, and what is known of its solution.

    Parameters
    ----------
    id : str
        Unique in its data set; the group of its rollouts.
    messages : tuple of mapping, at least one
        The prompt in OpenAI's form.
    tools : tuple of Tool
        Offered to the model, distractors included.
    gold_calls : tuple of ToolCall, length K
        The calls that solve the task, in order; empty where they are not known.
    gold_answer : str or None
        The final answer.
    sub_answers : mapping of str to tuple of str, or None
        Tool name to the answers of the sub-questions it solves.
    kind : str
        The data set's own word for the task's shape, ``"single_hop"`` say; metrics are shown by kind.
    environment : Environment or None
        What the stateful ones of its tools act on.
    later : tuple of UserTurn
        What the user goes on to say. `messages`, `gold_calls` and `gold_answer` are those of the first user
        turn.
    """

    id: str
    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Tool, ...] = ()
    gold_calls: tuple[ToolCall, ...] = ()
    gold_answer: str | None = None
    sub_answers: Mapping[str, tuple[str, ...]] | None = None
    kind: str = ""
    environment: Environment | None = None
    later: tuple[UserTurn, ...] = ()


@dataclass(frozen=True, slots=True)
class Turn:
    """One assistant turn: the calls it makes, or the answer it gives.

    A turn that makes calls does not answer, whatever else it prints; `answer` is None then. `text`
    is the turn as it came, reasoning and call markers included.
    """

    calls: tuple[ToolCall, ...] = ()
    answer: str | None = None
    text: str = ""
    reasoning: str | None = None


@dataclass(frozen=True, slots=True)
class Round:
    """One user turn of a dialogue: which of a rollout's turns answer it, and what they are judged by.

    Parameters
    ----------
    turns : int
        How many of the rollout's turns, in order. 0 where the rollout ended before.
    gold_calls : int
        How many of the rollout's gold calls, in order, belong to it.
    gold_answer : str or None
        As that of :class:`Trajectory`, of this user turn.
    outcome : float or None
        The same.
    """

    turns: int
    gold_calls: int = 0
    gold_answer: str | None = None
    outcome: float | None = None


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One rollout and what it is judged by.

    Parameters
    ----------
    turns : tuple of Turn, length N
        In the order they were sampled.
    gold_calls : tuple of ToolCall, length K
        The calls that solve the task. Rollouts of one prompt may share the same tuple.
    gold_answer : str or None
        What the last turn's answer is compared with (F1).
    group : str or int
        The prompt. Rollouts of one group are normalised together.
    outcome : float or None
        Outcome reward measured elsewhere, by a verifier say; replaces the answer's F1 and
        goes to the last turn.
    sub_answers : mapping of str to tuple of str, or None
        Tool name to the answers of the sub-questions it solves; the FTRL reward needs it.
    kind : str
        The task's kind; metrics are shown by kind.
    rounds : tuple of Round
        The user turns of a dialogue, also those that it did not reach. Their turns and gold calls add up to
        the rollout's; `gold_answer` and `outcome` are theirs, and None here. Empty: there is one user turn.
    """

    turns: tuple[Turn, ...]
    gold_calls: tuple[ToolCall, ...] = ()
    gold_answer: str | None = None
    group: str | int = 0
    outcome: float | None = None
    sub_answers: Mapping[str, tuple[str, ...]] | None = None
    kind: str = ""
    rounds: tuple[Round, ...] = ()

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """All predicted calls, turn by turn, length P."""
        return tuple([call for turn in self.turns for call in turn.calls])


def offsets_of(lengths: npt.ArrayLike) -> IntArray:
    """Lengths, shape (B,), to offsets, shape (B + 1,), int64, from 0."""
    lengths = np.asarray(lengths, dtype=np.int64)
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


@dataclass(frozen=True, slots=True)
class Ragged:
    """A ragged batch of vectors, or of equally wide rows.

    Parameters
    ----------
    values : ndarray, shape (L,) or (L, ...)
        All entries, problem by problem.
    offsets : ndarray of int64, shape (B + 1,)
        ``values[offsets[b]:offsets[b + 1]]`` is problem ``b``.

    Raises
    ------
    InputError
        If the offsets do not start at 0, decrease, or do not end at ``len(values)``.

    Examples
    --------
    >>> r = Ragged.from_lists([[1.0, 2.0], [], [3.0]])
    >>> len(r), r[0].tolist(), r.lengths.tolist()
    (3, [1.0, 2.0], [2, 0, 1])
    """

    values: Array
    offsets: IntArray

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", np.asarray(self.values))
        given = np.asarray(self.offsets)
        if given.size and given.dtype.kind not in "iu":
            raise InputError(f"offsets are {given.dtype}; expected integers")
        offsets = np.ascontiguousarray(given, dtype=np.int64)
        object.__setattr__(self, "offsets", offsets)
        if offsets.ndim != 1 or len(offsets) == 0 or offsets[0] != 0:
            raise InputError(f"offsets must be one-dimensional and start at 0; got {offsets!r:.80}")
        steps = np.diff(offsets)
        if (steps < 0).any():
            b = int(np.argmax(steps < 0))
            raise InputError(f"offsets decrease at {b}: {offsets[b]} to {offsets[b + 1]}")
        if offsets[-1] != len(self.values):
            raise InputError(
                f"offsets end at {offsets[-1]} but there are {len(self.values)} values; "
                "expected them to be equal"
            )

    @classmethod
    def from_lists(cls, lists: Sequence[Sequence[Any]], dtype: npt.DTypeLike = np.float64) -> Ragged:
        """Build from one sequence a problem."""
        flat = [x for xs in lists for x in xs]
        return cls(np.asarray(flat, dtype=dtype), offsets_of([len(xs) for xs in lists]))

    @classmethod
    def from_lengths(cls, values: Array, lengths: npt.ArrayLike) -> Ragged:
        """Build from flat values and the length of each problem, shape (B,)."""
        return cls(values, offsets_of(lengths))

    @property
    def lengths(self) -> IntArray:
        """Entries of each problem, shape (B,)."""
        return np.diff(self.offsets)

    @property
    def problem(self) -> IntArray:
        """For each entry the index of its problem, shape (L,)."""
        return np.repeat(np.arange(len(self), dtype=np.int64), self.lengths)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, b: int) -> Array:
        if not -len(self) <= b < len(self):
            raise IndexError(f"problem {b} of a batch of {len(self)}")
        b %= len(self)
        view: Array = self.values[self.offsets[b] : self.offsets[b + 1]]
        return view

    def __iter__(self) -> Iterator[Array]:
        return (self[b] for b in range(len(self)))

    def tolist(self) -> list[list[Any]]:
        """One Python list a problem."""
        return [x.tolist() for x in self]


def spans_of_turns(spans: Ragged, turns: Ragged) -> IntArray:
    """Token spans as int64 (N, 2), one for each entry of `turns`. Where they lie is not looked at.

    Raises InputError, with the rollout, where spans and turns do not belong together.
    """
    for name, given in (("spans", spans), ("turns", turns)):
        if not isinstance(given, Ragged):
            raise InputError(f"{name} is a {type(given).__name__}; expected a Ragged with one entry a turn")
    values = np.asarray(spans.values)
    if values.dtype.kind not in "iu" or values.ndim != 2 or values.shape[1] != 2:
        if values.size:
            raise InputError(f"spans have shape {values.shape} of {values.dtype}; expected integers (N, 2)")
        values = np.empty((0, 2), dtype=np.int64)
    if len(spans) != len(turns):
        raise InputError(f"spans of {len(spans)} rollouts but turns of {len(turns)}")
    wrong = spans.lengths != turns.lengths
    if wrong.any():
        b = int(np.argmax(wrong))
        raise InputError(
            f"rollout {b} has {spans.lengths[b]} spans but {turns.lengths[b]} turns; expected one span a turn"
        )
    return np.ascontiguousarray(values, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class RaggedMatrix:
    """A ragged batch of matrices, row-major, one after the other.

    Parameters
    ----------
    values : ndarray of float32 or float64, shape (sum of m_b * n_b,)
        Problem ``b`` is ``values[offsets[b]:offsets[b + 1]].reshape(rows[b], cols[b])``.
    rows, cols : ndarray of int64, shape (B,)
        m_b and n_b; either may be 0.

    Attributes
    ----------
    offsets, row_offsets : ndarray of int64, shape (B + 1,)
        Where each problem's cells and rows begin among all cells and all rows.

    Raises
    ------
    InputError
        If shapes are negative, differ in length, or do not add up to ``len(values)``.

    Examples
    --------
    >>> import numpy as np
    >>> s = RaggedMatrix.from_blocks([np.eye(2), np.zeros((0, 3)), np.ones((1, 2))])
    >>> len(s), s[2].tolist(), s.offsets.tolist()
    (3, [[1.0, 1.0]], [0, 4, 4, 6])
    """

    values: FloatArray
    rows: IntArray
    cols: IntArray
    offsets: IntArray = field(init=False)
    row_offsets: IntArray = field(init=False)

    def __post_init__(self) -> None:
        rows = np.ascontiguousarray(self.rows, dtype=np.int64)
        cols = np.ascontiguousarray(self.cols, dtype=np.int64)
        values = np.asarray(self.values)
        if values.dtype not in (np.float32, np.float64):
            values = values.astype(np.float64)
        values = np.ascontiguousarray(values)
        if values.ndim != 1:
            raise InputError(f"values must be one-dimensional; got shape {values.shape}")
        if rows.ndim != 1 or rows.shape != cols.shape:
            raise InputError(
                f"rows and cols must be one-dimensional and equally long; got {rows.shape} and {cols.shape}"
            )
        negative = (rows < 0) | (cols < 0)
        if negative.any():
            b = int(np.argmax(negative))
            raise InputError(f"problem {b} has shape ({rows[b]}, {cols[b]}); expected no negative size")
        # In doubles, which do not wrap around; any number of cells that fits in memory is exact in them.
        cells = float((rows.astype(np.float64) * cols).sum())
        if cells != len(values):
            raise InputError(f"rows and cols describe {cells:.0f} cells but there are {len(values)} values")
        offsets = offsets_of(rows * cols)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "cols", cols)
        object.__setattr__(self, "offsets", offsets)
        object.__setattr__(self, "row_offsets", offsets_of(rows))

    @classmethod
    def from_blocks(cls, blocks: Sequence[npt.ArrayLike]) -> RaggedMatrix:
        """Build from a sequence of two-dimensional arrays, all float32 or else as float64."""
        arrays = [np.asarray(block) for block in blocks]
        for b, array in enumerate(arrays):
            if array.ndim != 2:
                raise InputError(f"blocks[{b}] has shape {array.shape}; expected two dimensions")
        float32 = bool(arrays) and all(array.dtype == np.float32 for array in arrays)
        dtype = np.float32 if float32 else np.float64
        flat = [array.astype(dtype, copy=False).ravel() for array in arrays]
        return cls(
            np.concatenate(flat) if flat else np.empty(0, dtype),
            np.array([array.shape[0] for array in arrays], dtype=np.int64),
            np.array([array.shape[1] for array in arrays], dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, b: int) -> FloatArray:
        if not -len(self) <= b < len(self):
            raise IndexError(f"problem {b} of a batch of {len(self)}")
        b %= len(self)
        block: FloatArray = self.values[self.offsets[b] : self.offsets[b + 1]]
        return block.reshape(self.rows[b], self.cols[b])

    def __iter__(self) -> Iterator[FloatArray]:
        return (self[b] for b in range(len(self)))


@dataclass(frozen=True, slots=True)
class Rewards:
    """What :func:`matchtir.assign_rewards` found; the attributes are those of :class:`Credit`."""

    similarity: RaggedMatrix
    matches: Ragged
    call_rewards: Ragged
    turn_rewards: Ragged
    returns: FloatArray
    malformed: IntArray


@dataclass(frozen=True, slots=True)
class Advantages:
    """What :func:`matchtir.assign_advantages` found.

    Attributes
    ----------
    trajectory : ndarray of float64, shape (B,)
        A^g.
    turn_level, turn : Ragged of float64
        A^l before integration, and the integrated advantage; one per turn.
    """

    trajectory: FloatArray
    turn_level: Ragged
    turn: Ragged


@dataclass(frozen=True, slots=True)
class Credit:
    """What :func:`matchtir.assign_credit` found, rollout by rollout.

    Attributes
    ----------
    similarity : RaggedMatrix
        S, one block of predicted calls by gold calls a rollout, shape (P, K), in [0, 1].
    matches : Ragged of int64
        For each predicted call the index of its gold call, or -1. Under soft matching the
        gold call that pays it most, or -1 where none pays.
    call_rewards, turn_rewards : Ragged of float64
        One per call; one per turn.
    returns : ndarray of float64, shape (B,)
        Trajectory return; a whole-rollout reward where the configuration asks for one.
    trajectory_advantages : ndarray of float64, shape (B,)
        A^g.
    turn_level_advantages : Ragged of float64
        A^l before integration, one per turn.
    turn_advantages : Ragged of float64
        The integrated advantage, one per turn: what every token of the turn gets.
    malformed : ndarray of int64, shape (B,)
        Malformed calls of each rollout.
    group_ids : ndarray of int64, shape (B,)
        Group of each rollout, numbered by first appearance.
    """

    similarity: RaggedMatrix
    matches: Ragged
    call_rewards: Ragged
    turn_rewards: Ragged
    returns: FloatArray
    trajectory_advantages: FloatArray
    turn_level_advantages: Ragged
    turn_advantages: Ragged
    malformed: IntArray
    group_ids: IntArray
