"""Tokens get the value of their turn: by hand, against a plain loop, on NumPy and torch arrays."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matchtir import ConfigError, InputError, Ragged, ops, scatter, spans_from_mask
from matchtir import _core as core

BACKENDS = ["native", "reference"]


@pytest.fixture(params=BACKENDS, autouse=True)
def backend(request, monkeypatch):
    """Every test runs on both backends."""
    monkeypatch.setenv("MATCHTIR_BACKEND", request.param)
    assert ops.backends()["scatter"]["active"] == request.param
    return request.param


@pytest.fixture(scope="session")
def torch():
    return pytest.importorskip("torch", reason="torch is not installed; pip install torch")


def batch(rows: list[list[tuple[float, int, int]]]) -> tuple[Ragged, Ragged]:
    """Turn values and spans from one list of (value, start, end) a rollout."""
    flat = [turn for row in rows for turn in row]
    lengths = [len(row) for row in rows]
    values = Ragged.from_lengths(np.array([v for v, _, _ in flat], dtype=float), lengths)
    spans = np.array([(i, j) for _, i, j in flat], dtype=np.int64).reshape(-1, 2)
    return values, Ragged.from_lengths(spans, lengths)


def loop(rows: list[list[tuple[float, int, int]]], width: int) -> np.ndarray:
    """Token by token."""
    return np.array(
        [[sum(v for v, i, j in row if i <= t < j) for t in range(width)] for row in rows], dtype=float
    ).reshape(len(rows), width)


ROWS = [[(1.0, 1, 3), (-2.0, 4, 5)], [], [(0.5, 0, 2), (7.0, 2, 2), (0.25, 2, 5)]]
DENSE = [[0.0, 1.0, 1.0, 0.0, -2.0], [0.0] * 5, [0.5, 0.5, 0.25, 0.25, 0.25]]


@st.composite
def rollouts(draw):
    """Rows of sorted spans, some empty, and a width that they fit in."""
    width = draw(st.integers(0, 20))
    rows = []
    for _ in range(draw(st.integers(0, 5))):
        cuts = sorted(draw(st.lists(st.integers(0, width), max_size=8)))
        values = st.floats(-4, 4, width=16).filter(lambda x: x != 0)
        rows.append([(draw(values), i, j) for i, j in zip(cuts[::2], cuts[1::2], strict=False)])
    return rows, width


# By hand and against the loop


def test_scatter_by_hand():
    found = scatter(*batch(ROWS), (3, 5))
    assert found.tolist() == DENSE
    assert found.dtype == np.float32


@given(rollouts(), st.sampled_from([np.float16, np.float32, np.float64]), st.integers(1, 3))
def test_scatter_equals_loop(problem, dtype, threads):
    rows, width = problem
    expected = loop(rows, width).astype(dtype)
    new = scatter(*batch(rows), (len(rows), width), dtype=dtype, num_threads=threads)
    assert new.dtype == dtype
    np.testing.assert_array_equal(new, expected)
    out = np.full((len(rows), width), np.nan, dtype=dtype)
    assert scatter(*batch(rows), out=out, num_threads=threads) is out
    np.testing.assert_array_equal(out, expected)
    assert not np.signbit(out[out == 0]).any()


def test_scatter_many_rows_on_any_number_of_threads():
    rng = np.random.default_rng(0)
    cuts = np.sort(rng.integers(0, 101, (300, 10)), axis=1)
    rows = [[(float(rng.standard_normal()), int(x[k]), int(x[k + 1])) for k in range(0, 10, 2)] for x in cuts]
    expected = loop(rows, 100)
    for threads in (1, 2, 7):
        out = np.full((300, 100), np.nan)
        np.testing.assert_array_equal(scatter(*batch(rows), out=out, num_threads=threads), expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_scatter_rounds_values_to_the_dtype(dtype):
    values, spans = batch([[(1 / 3, 0, 1), (-1e-4, 1, 2)]])
    expected = np.array([[1 / 3, -1e-4]]).astype(dtype)
    np.testing.assert_array_equal(scatter(values, spans, (1, 2), dtype=dtype), expected)


def test_scatter_carries_non_finite_and_integer_values():
    values, spans = batch([[(np.nan, 0, 1), (-np.inf, 1, 2), (-0.0, 2, 3)]])
    found = scatter(values, spans, (1, 4))
    np.testing.assert_array_equal(found, [[np.nan, -np.inf, -0.0, 0.0]])
    assert np.signbit(found[0, 2])
    whole = Ragged(np.array([3, -4]), np.array([0, 2]))
    assert scatter(whole, Ragged(np.array([[0, 1], [1, 2]]), whole.offsets), (1, 2)).tolist() == [[3.0, -4.0]]


@pytest.mark.parametrize(
    ("rows", "width"), [([], 0), ([], 4), ([[], []], 0), ([[(1.0, 0, 0)], []], 0), ([[]], 3)]
)
def test_scatter_zero_sizes(rows, width):
    found = scatter(*batch(rows), (len(rows), width))
    assert found.shape == (len(rows), width)
    assert found.tolist() == [[0.0] * width for _ in rows]


@pytest.mark.parametrize("width", [1, 2, 3, 7, 8, 9, 15, 16, 17, 63, 64, 65])
def test_scatter_edges_of_the_row(width):
    rows = [[(1.0, 0, width)], [(2.0, 0, 1)], [(3.0, width - 1, width)], [(4.0, width, width)]]
    out = np.full((4, width), np.nan)
    np.testing.assert_array_equal(scatter(*batch(rows), out=out), loop(rows, width))


@pytest.mark.parametrize("integer", [np.int16, np.int32, np.int64, np.uint8, np.uint64])
def test_scatter_takes_any_integer_spans(integer):
    values, spans = batch(ROWS)
    assert scatter(values, Ragged(spans.values.astype(integer), spans.offsets), (3, 5)).tolist() == DENSE


def test_scatter_takes_strided_values_and_spans():
    values, spans = batch(ROWS)
    values = Ragged(np.repeat(values.values, 2)[::2], values.offsets)
    spans = Ragged(np.asfortranarray(spans.values), spans.offsets)
    assert scatter(values, spans, (3, 5)).tolist() == DENSE
    assert scatter(values, spans, [3, 5]).tolist() == DENSE


# Where it writes


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    "window",
    [
        np.s_[::2, :5],
        np.s_[:3, 2:7],
        np.s_[2::-1, 1:6],
        np.s_[5:2:-1, 3:8],
        np.s_[3:, 3:8],
    ],
)
def test_scatter_writes_into_a_window_and_nowhere_else(dtype, window):
    base = np.full((6, 8), np.nan, dtype=dtype)
    expected = base.copy()
    expected[window] = DENSE
    out = base[window]
    assert scatter(*batch(ROWS), out=out) is out
    np.testing.assert_array_equal(base, expected)


def test_scatter_into_a_single_column_of_a_wider_array():
    base = np.full((3, 4), np.nan, dtype=np.float32)
    scatter(*batch([[(5.0, 0, 1)], [], [(6.0, 0, 1)]]), out=base[:, 2:3])
    np.testing.assert_array_equal(base[:, 2], [5.0, 0.0, 6.0])
    assert np.isnan(np.delete(base, 2, axis=1)).all()


def test_scatter_never_writes_between_the_rows_of_packed_records():
    # 21 bytes from row to row are no whole number of floats: refused, or written correctly.
    records = np.zeros(3, dtype=[("x", "f4", (5,)), ("y", "i1")])
    records["y"] = 77
    try:
        scatter(*batch(ROWS), out=records["x"])
    except InputError:
        assert (records["x"] == 0).all()
    else:
        np.testing.assert_array_equal(records["x"], np.array(DENSE, dtype=np.float32))
    assert records["y"].tolist() == [77] * 3


def test_scatter_refuses_out_whose_rows_are_not_contiguous(backend):
    if backend == "reference":
        pytest.skip("NumPy writes such rows")
    for out in (
        np.full((3, 10), np.nan)[:, ::2],
        np.full((5, 3), np.nan).T,
        np.full((3, 5), np.nan)[:, ::-1],
    ):
        with pytest.raises(InputError, match="rows of out must be contiguous"):
            scatter(*batch(ROWS), out=out)
        assert np.isnan(out).all()


# Refusals, with `out` untouched


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [[], [(1.0, 0, 2), (1.0, 1, 3)]],
            r"spans\[1\] = \[1, 3\) \(rollout 1, turn 1\) starts before the span bef",
        ),
        (
            [[(1.0, 0, 2)], [(1.0, 3, 5), (1.0, 0, 2)]],
            r"spans\[2\] = \[0, 2\) \(rollout 1, turn 1\) starts before",
        ),
        (
            [[(1.0, 0, 3), (1.0, 3, 3), (1.0, 2, 4)]],
            r"spans\[2\] = \[2, 4\) \(rollout 0, turn 2\) starts before",
        ),
        (
            [[(1.0, 0, 2)], [(1.0, 1, 6)]],
            r"spans\[1\] = \[1, 6\) \(rollout 1, turn 0\) does not fit; .* <= 5",
        ),
        ([[(1.0, -1, 2)]], r"spans\[0\] = \[-1, 2\) \(rollout 0, turn 0\) does not fit"),
        ([[(1.0, 3, 2)]], r"spans\[0\] = \[3, 2\) \(rollout 0, turn 0\) does not fit"),
        ([[(1.0, 6, 6)]], r"spans\[0\] = \[6, 6\) \(rollout 0, turn 0\) does not fit"),
        ([[(1.0, 2**62, 2**62 + 1)]], r"\(rollout 0, turn 0\) does not fit"),
        ([[(1.0, -(2**63), 2**63 - 1)]], r"\(rollout 0, turn 0\) does not fit"),
    ],
)
def test_scatter_refuses_spans_by_rollout_and_turn(rows, message):
    out = np.full((len(rows), 5), np.nan)
    with pytest.raises(InputError, match=message):
        scatter(*batch(rows), out=out)
    assert np.isnan(out).all()


def test_scatter_takes_an_empty_span_anywhere_in_the_row():
    rows = [[(1.0, 2, 4), (9.0, 1, 1), (2.0, 4, 5), (9.0, 0, 0)]]
    assert scatter(*batch(rows), (1, 5)).tolist() == [[0, 0, 1, 1, 2]]


def test_scatter_refuses_what_does_not_belong_together():
    values, spans = batch(ROWS)
    cases = [
        (
            (values, Ragged(spans.values[:2], np.array([0, 2, 2, 2]))),
            {"shape": (3, 5)},
            "rollout 2 has 0 spans but 3",
        ),
        (
            (values, Ragged(spans.values, np.array([0, 5]))),
            {"shape": (3, 5)},
            "spans of 1 rollouts but turns of 3",
        ),
        ((values, spans), {}, "neither shape nor out was given"),
        ((values, spans), {"shape": (2, 5)}, r"the result has shape \(2, 5\); expected \(3, T\)"),
        ((values, spans), {"shape": (3, 5, 1)}, r"the result has shape \(3, 5, 1\); expected \(3, T\)"),
        (
            (values, spans),
            {"out": np.zeros((3, 5)), "shape": (3, 6)},
            r"out has shape \(3, 5\); expected \(3, 6\)",
        ),
        ((values, spans), {"out": np.zeros(15)}, r"the result has shape \(15,\); expected \(3, T\)"),
        (
            (values, Ragged(spans.values.astype(float), spans.offsets)),
            {"shape": (3, 5)},
            "of float64; expected integ",
        ),
        ((values, Ragged(np.zeros((5, 3), np.int64), spans.offsets)), {"shape": (3, 5)}, r"shape \(5, 3\)"),
        ((values, Ragged(np.zeros(5, np.int64), spans.offsets)), {"shape": (3, 5)}, r"shape \(5,\)"),
    ]
    for arguments, options, message in cases:
        with pytest.raises(InputError, match=message):
            scatter(*arguments, **options)
    with pytest.raises(ConfigError, match="num_threads is -1"):
        scatter(values, spans, (3, 5), num_threads=-1)


def test_scatter_refuses_turn_values_that_are_no_vector():
    values, spans = batch(ROWS)
    with pytest.raises(InputError, match=r"shape \(5, 2\)"):
        scatter(Ragged(np.zeros((5, 2)), values.offsets), spans, (3, 5))


@pytest.mark.parametrize("dtype", [np.int32, bool, np.complex64, np.longdouble, ">f4", object])
def test_scatter_refuses_out_of_another_kind(dtype):
    if np.dtype(dtype) == np.float64:
        pytest.skip("long double is double here")
    out = np.ones((3, 5), dtype=dtype)
    with pytest.raises(InputError, match="expected a native floating type of 2, 4 or 8 bytes"):
        scatter(*batch(ROWS), out=out)
    assert (out == 1).all()


def test_scatter_refuses_read_only_out():
    out = np.full((3, 5), np.nan)
    out.flags.writeable = False
    with pytest.raises(InputError, match="out is read-only"):
        scatter(*batch(ROWS), out=out)
    assert np.isnan(out).all()


def test_core_scatter_refuses_sizes_that_do_not_fit():
    bits, spans, turns = np.zeros(1, np.int32), np.array([[0, 1]]), np.array([0, 1])
    out = np.full((1, 2), 9, np.int32)
    for arguments, message in (
        ((bits, spans, np.array([0, 2]), 1, out), "turns must be 2 offsets that rise from 0 to 1"),
        ((bits, spans, np.array([0, 0, 1]), 1, out), "turns must be 2 offsets"),
        ((bits, np.array([[0, 1], [1, 2]]), turns, 1, out), r"spans have shape \(2, 2\); expected \(1, 2\)"),
        ((bits, np.array([[0, 1, 2]]), turns, 1, out), r"spans have shape \(1, 3\); expected \(1, 2\)"),
    ):
        with pytest.raises(InputError, match=message):
            core.scatter(*arguments)
    assert (out == 9).all()


# torch


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16", "float64"])
def test_scatter_torch_by_hand(torch, name):
    dtype = getattr(torch, name)
    out = torch.full((3, 5), float("nan"), dtype=dtype)
    assert scatter(*batch(ROWS), out=out) is out
    assert out.dtype == dtype
    assert out.tolist() == DENSE


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16", "float64"])
def test_scatter_torch_rounds_as_torch_does(torch, name):
    dtype = getattr(torch, name)
    numbers = [1 / 3, -2 / 7, 1e-4, 123.456, -65504.0]
    values, spans = batch([[(v, k, k + 1) for k, v in enumerate(numbers)]])
    out = torch.full((1, 6), float("nan"), dtype=dtype)
    scatter(values, spans, out=out)
    expected = torch.tensor([[*numbers, 0.0]], dtype=torch.float64).to(dtype)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_scatter_torch_writes_into_a_window_and_nowhere_else(torch, name):
    base = torch.full((6, 8), 9.0, dtype=getattr(torch, name))
    scatter(*batch(ROWS), out=base[::2, 2:7])
    expected = torch.full((6, 8), 9.0, dtype=getattr(torch, name))
    expected[::2, 2:7] = torch.tensor(DENSE)
    assert torch.equal(base, expected)


def test_scatter_torch_requires_grad_and_parameter(torch):
    out = torch.full((3, 5), float("nan"), requires_grad=True)
    assert scatter(*batch(ROWS), out=out).tolist() == DENSE


def test_scatter_torch_refusals(torch):
    values, spans = batch(ROWS)
    for out in (
        torch.ones((3, 5), dtype=torch.int32),
        torch.ones((3, 5), dtype=torch.bool),
        torch.ones((3, 5), dtype=torch.complex64),
        torch.empty((3, 5), device="meta"),
        torch.ones((3, 5)).to(torch.float8_e4m3fn),
    ):
        with pytest.raises(InputError, match="expected a floating CPU tensor"):
            scatter(values, spans, out=out)
    with pytest.raises(InputError, match=r"out has shape \(3, 5\); expected \(3, 4\)"):
        scatter(values, spans, (3, 4), out=torch.ones((3, 5)))
    with pytest.raises(InputError, match=r"shape \(2, 5\); expected \(3, T\)"):
        scatter(values, spans, out=torch.ones((2, 5)))
    out = torch.full((3, 4), 9.0)
    with pytest.raises(InputError, match=r"rollout 0, turn 1\) does not fit"):
        scatter(values, spans, out=out)
    assert bool((out == 9).all())


# Spans from a mask


def test_spans_from_mask_by_hand():
    spans = spans_from_mask([[0, 1, 1, 0, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [1, 0, 1, 0, 1]])
    assert spans.tolist() == [[[1, 3], [4, 5]], [], [[0, 5]], [[0, 1], [2, 3], [4, 5]]]
    assert spans.values.dtype == np.int64
    assert spans.values.shape == (6, 2)


@given(rollouts())
def test_spans_from_mask_inverts_scatter(problem):
    rows, width = problem
    # Spans that touch are one run, and empty ones are none.
    mask = loop([[(1.0, i, j) for _, i, j in row] for row in rows], width)
    spans = spans_from_mask(mask)
    assert len(spans) == len(rows)
    for row, found in zip(mask, spans.tolist(), strict=True):
        assert all(i < j for i, j in found)
        assert all(j < k for (_, j), (k, _) in pairwise(found))
        assert sorted(t for i, j in found for t in range(i, j)) == np.flatnonzero(row).tolist()
    ones = Ragged(np.ones(len(spans.values)), spans.offsets)
    np.testing.assert_array_equal(scatter(ones, spans, mask.shape), mask)
    np.testing.assert_array_equal(spans_from_mask(scatter(ones, spans, mask.shape)).values, spans.values)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.int64, np.float32, np.float16])
def test_spans_from_mask_takes_any_dtype(dtype):
    mask = np.array([[0, 1, 1, 0], [1, 0, 0, 1]], dtype=dtype)
    for given_mask in (mask, np.asfortranarray(mask), mask.tolist()):
        assert spans_from_mask(given_mask).tolist() == [[[1, 3]], [[0, 1], [3, 4]]]
    assert spans_from_mask(mask * np.asarray(3, dtype=dtype)).tolist() == [[[1, 3]], [[0, 1], [3, 4]]]


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0), (2, 2)])
def test_spans_from_mask_zero_sizes(shape):
    spans = spans_from_mask(np.zeros(shape))
    assert spans.tolist() == [[]] * shape[0]
    assert spans.values.shape == (0, 2)


@pytest.mark.parametrize("mask", [[1, 0, 1], 1.0, np.zeros((2, 2, 2))])
def test_spans_from_mask_refuses_other_dimensions(mask):
    with pytest.raises(InputError, match=r"mask has shape .*; expected \(B, T\)"):
        spans_from_mask(mask)


@pytest.mark.parametrize("name", ["bool", "int64", "uint8", "float32", "float16", "bfloat16"])
def test_spans_from_mask_takes_torch(torch, name):
    mask = torch.tensor([[0, 1, 1], [1, 0, 1]]).to(getattr(torch, name))
    assert spans_from_mask(mask).tolist() == [[[1, 3]], [[0, 1], [2, 3]]]
    if mask.is_floating_point():
        assert spans_from_mask(mask.requires_grad_()).tolist() == [[[1, 3]], [[0, 1], [2, 3]]]


def test_scatter_refuses_rows_of_out_that_overlap():
    values, spans = batch(ROWS)
    shared = np.lib.stride_tricks.as_strided(np.zeros(5), (3, 5), (0, 8))
    with pytest.raises(InputError, match="rows of out overlap"):
        scatter(values, spans, out=shared)
    with pytest.raises(InputError, match=r"shape is \(3, -1\); expected no negative size"):
        scatter(values, spans, (3, -1))
