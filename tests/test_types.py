"""Ragged arrays refuse what does not fit and give back what they hold; the records are plain data."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from matchtir import InputError, Ragged, RaggedMatrix, ToolCall, Trajectory, Turn
from matchtir.types import offsets_of

lists = st.lists(st.lists(st.floats(-9, 9), max_size=4), max_size=6)


def test_offsets_of_by_hand():
    assert offsets_of([2, 0, 3]).tolist() == [0, 2, 2, 5]
    assert offsets_of([]).tolist() == [0]
    assert offsets_of([1]).dtype == np.int64


@given(lists)
def test_ragged_round_trip(problems):
    ragged = Ragged.from_lists(problems)
    assert ragged.tolist() == problems
    assert len(ragged) == len(problems)
    assert ragged.lengths.tolist() == [len(x) for x in problems]
    assert ragged.problem.tolist() == [b for b, x in enumerate(problems) for _ in x]
    assert [x.tolist() for x in ragged] == problems
    assert [ragged[b].tolist() for b in range(-len(problems), 0)] == problems
    assert Ragged.from_lengths(ragged.values, ragged.lengths).tolist() == problems


def test_ragged_holds_rows_and_any_dtype():
    spans = Ragged(np.arange(6).reshape(3, 2), np.array([0, 1, 3]))
    assert spans.tolist() == [[[0, 1]], [[2, 3], [4, 5]]]
    assert Ragged.from_lists([[1], [2, 3]], np.int32).values.dtype == np.int32
    assert Ragged.from_lists([[1], [2, 3]]).values.dtype == np.float64
    assert Ragged.from_lists([], np.int64).offsets.tolist() == [0]


def test_ragged_gives_views():
    ragged = Ragged.from_lists([[1.0], [2.0, 3.0]])
    ragged[1][0] = 7.0
    assert ragged.tolist() == [[1.0], [7.0, 3.0]]


@pytest.mark.parametrize("b", [2, -3, 100])
def test_ragged_index_out_of_range(b):
    with pytest.raises(IndexError, match=f"problem {b} of a batch of 2"):
        Ragged.from_lists([[1.0], []])[b]
    with pytest.raises(IndexError, match=f"problem {b} of a batch of 2"):
        RaggedMatrix.from_blocks([[[1.0]], [[2.0]]])[b]
    with pytest.raises(IndexError, match="problem 0 of a batch of 0"):
        Ragged.from_lists([])[0]
    with pytest.raises(IndexError, match="problem 0 of a batch of 0"):
        RaggedMatrix.from_blocks([])[0]


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([], "offsets must be one-dimensional and start at 0"),
        ([1, 3], "offsets must be one-dimensional and start at 0"),
        ([[0, 3]], "offsets must be one-dimensional and start at 0"),
        (0, "offsets must be one-dimensional and start at 0|offsets"),
        ([0, 2, 1, 3], "offsets decrease at 1: 2 to 1"),
        ([0, 2], "offsets end at 2 but there are 3 values"),
        ([0, 4], "offsets end at 4 but there are 3 values"),
        ([0], "offsets end at 0 but there are 3 values"),
    ],
)
def test_ragged_refuses_offsets_that_do_not_fit(offsets, message):
    with pytest.raises(InputError, match=message):
        Ragged(np.zeros(3), np.array(offsets))


def test_ragged_refuses_offsets_that_are_no_integers():
    with pytest.raises(InputError, match="offsets"):
        Ragged(np.zeros(3), np.array([0.0, 1.5, 3.0]))


def test_ragged_is_frozen():
    ragged = Ragged.from_lists([[1.0]])
    with pytest.raises(dataclasses.FrozenInstanceError):
        ragged.values = np.zeros(1)


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 3)).flatmap(
            lambda shape: arrays(np.float64, shape, elements=st.floats(-9, 9))
        ),
        max_size=5,
    )
)
def test_ragged_matrix_round_trip(blocks):
    matrix = RaggedMatrix.from_blocks(blocks)
    assert len(matrix) == len(blocks)
    assert matrix.rows.tolist() == [len(x) for x in blocks]
    assert matrix.cols.tolist() == [x.shape[1] for x in blocks]
    assert matrix.offsets.tolist() == [0, *np.cumsum([x.size for x in blocks]).tolist()]
    for b, (found, block) in enumerate(zip(matrix, blocks, strict=True)):
        np.testing.assert_array_equal(found, block)
        np.testing.assert_array_equal(matrix[b], block)
        np.testing.assert_array_equal(matrix[b - len(blocks)], block)
        assert found.shape == block.shape


def test_ragged_matrix_dtypes():
    single, double = np.ones((1, 2), np.float32), np.ones((1, 2))
    for blocks, dtype in (
        ([single, single], np.float32),
        ([single, double], np.float64),
        ([np.ones((1, 1), np.float16)], np.float64),
        ([[[1, 2]]], np.float64),
        ([[[True]]], np.float64),
        ([], np.float64),
    ):
        assert RaggedMatrix.from_blocks(blocks).values.dtype == dtype
    assert RaggedMatrix(np.array([1, 2]), np.array([1]), np.array([2])).values.dtype == np.float64
    assert RaggedMatrix(single[0], np.array([1]), np.array([2])).values.dtype == np.float32


def test_ragged_matrix_takes_strided_values():
    matrix = RaggedMatrix(np.arange(8.0)[::2], np.array([2]), np.array([2]))
    assert matrix[0].tolist() == [[0.0, 2.0], [4.0, 6.0]]
    assert matrix.values.flags.c_contiguous
    assert RaggedMatrix.from_blocks([np.arange(6.0).reshape(2, 3).T])[0].tolist() == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize(
    ("values", "rows", "cols", "message"),
    [
        (np.zeros(4), [2], [3], "rows and cols describe 6 cells but there are 4 values"),
        (np.zeros((2, 2)), [2], [2], r"values must be one-dimensional; got shape \(2, 2\)"),
        (np.zeros(4), [2, 0], [2], r"one-dimensional and equally long; got \(2,\) and \(1,\)"),
        (np.zeros(4), [[2]], [[2]], r"one-dimensional and equally long; got \(1, 1\) and \(1, 1\)"),
        (np.zeros(4), [1, -2], [0, -2], r"problem 1 has shape \(-2, -2\); expected no negative size"),
        (np.zeros(0), [-1], [0], r"problem 0 has shape \(-1, 0\); expected no negative size"),
    ],
)
def test_ragged_matrix_refuses_shapes_that_do_not_fit(values, rows, cols, message):
    with pytest.raises(InputError, match=message):
        RaggedMatrix(values, np.array(rows), np.array(cols))


@pytest.mark.parametrize(("rows", "cols"), [([4], [2**62]), ([2**32], [2**32]), ([2**61, 2**61], [4, 4])])
def test_ragged_matrix_refuses_shapes_whose_product_overflows(rows, cols):
    # In a process of its own: such a batch must never reach the core, which would read beyond it.
    code = (
        "import numpy as np, matchtir\n"
        "from matchtir import RaggedMatrix\n"
        "try:\n"
        f"    m = RaggedMatrix(np.empty(0), np.array({rows}), np.array({cols}))\n"
        "except matchtir.InputError as error:\n"
        "    print('refused:', error)\n"
        "else:\n"
        "    print('taken')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("refused: "), done.stdout + done.stderr


@pytest.mark.parametrize("block", [1.0, [1.0, 2.0], np.zeros((1, 2, 3))])
def test_ragged_matrix_refuses_blocks_that_are_no_matrices(block):
    with pytest.raises(InputError, match=r"blocks\[1\] has shape .*; expected two dimensions"):
        RaggedMatrix.from_blocks([np.zeros((1, 1)), block])


def test_trajectory_calls_are_in_order():
    a, b, c = ToolCall("a"), ToolCall("b", malformed="cut off"), ToolCall("c", {"x": 1})
    trajectory = Trajectory((Turn((a, b)), Turn(answer="no"), Turn(), Turn((c,))))
    assert trajectory.calls == (a, b, c)
    assert Trajectory(()).calls == ()


def test_records_have_the_defaults_of_their_docstrings():
    call = ToolCall("f")
    assert (call.arguments, call.malformed, call.repaired, call.raw, call.result) == (
        {},
        None,
        False,
        None,
        None,
    )
    turn = Turn()
    assert (turn.calls, turn.answer, turn.text, turn.reasoning) == ((), None, "", None)
    trajectory = Trajectory((turn,))
    assert (trajectory.gold_calls, trajectory.gold_answer, trajectory.group) == ((), None, 0)
    assert (trajectory.outcome, trajectory.sub_answers) == (None, None)
    assert ToolCall("f").arguments is not call.arguments
    for record, name in ((call, "name"), (turn, "text"), (trajectory, "group")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(record, name, "other")


def test_ragged_takes_a_list_of_values():
    assert Ragged([1.0, 2.0, 3.0], [0, 2, 3]).tolist() == [[1.0, 2.0], [3.0]]
