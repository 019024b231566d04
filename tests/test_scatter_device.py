"""Scatter on tensors, padded and packed: by hand, against a plain loop, every backend bit for bit."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from matchtir import ConfigError, InputError, Ragged, ops, scatter  # noqa: E402
from matchtir.ops import _dispatch  # noqa: E402
from matchtir.ops.returns import turn_advantages  # noqa: E402
from matchtir.ops.scatter import scatter_tensor  # noqa: E402

BACKENDS = ["native", "reference", "triton"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
CUDA = torch.cuda.is_available()
NAN = float("nan")

Rows = list[list[tuple[float, int, int]]]  # (value, start, end) of each turn, rollout by rollout

ROWS: Rows = [[(1.0, 1, 3), (-2.0, 4, 5)], [], [(0.5, 0, 2), (7.0, 2, 2), (0.25, 2, 5)]]
DENSE = [[0.0, 1.0, 1.0, 0.0, -2.0], [0.0] * 5, [0.5, 0.5, 0.25, 0.25, 0.25]]


def need(backend: str) -> str:
    """The device that `backend` runs on here; skips where it cannot."""
    if backend == "triton":
        pytest.importorskip("triton")
        if not CUDA and os.environ.get("TRITON_INTERPRET") != "1":
            pytest.skip("no GPU, and the interpreter is off")
    return "cuda" if CUDA and backend != "native" else "cpu"


@pytest.fixture(params=BACKENDS)
def backend(request) -> str:
    need(request.param)
    return request.param


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of 64 float32 or 128 bfloat16 in the kernel, so that small tensors have several."""
    module = _dispatch.load("scatter", "triton", need("triton"))
    monkeypatch.setattr(module, "_BLOCK_BYTES", 256)
    return module


def turns(rows: Rows, device: str = "cpu"):
    """Values (N,) of float64, spans (N, 2) and offsets (B + 1,)."""
    flat = [turn for row in rows for turn in row]
    values = torch.tensor([v for v, _, _ in flat], dtype=torch.float64, device=device)
    spans = torch.tensor([(i, j) for _, i, j in flat], dtype=torch.int64, device=device).reshape(-1, 2)
    lengths = torch.tensor([0, *map(len, rows)], dtype=torch.int64, device=device)
    return values, spans, lengths.cumsum(0)


def loop(rows: Rows, widths: list[int]) -> list[list[float]]:
    """Token by token, one list a row."""
    return [
        [sum(v for v, i, j in row if i <= t < j) for t in range(width)]
        for row, width in zip(rows, widths, strict=True)
    ]


def pad(rows: Rows, width: int, backend: str, dtype=torch.float32, **options):
    """Into a poisoned tensor [B, T]; the result on the host."""
    device = need(backend)
    out = torch.full((len(rows), width), NAN, dtype=dtype, device=device)
    assert scatter_tensor(*turns(rows, device), out, backend=backend, **options) is out
    return out.cpu()


def pack(rows: Rows, widths: list[int], backend: str, dtype=torch.float32, tail: int = 0, **options):
    """Into a poisoned tensor [total + tail]; the result on the host."""
    device = need(backend)
    cu_seqlens = torch.tensor(np.cumsum([0, *widths]), dtype=torch.int32, device=device)
    out = torch.full((sum(widths) + tail,), NAN, dtype=dtype, device=device)
    scatter_tensor(*turns(rows, device), out, cu_seqlens=cu_seqlens, backend=backend, **options)
    return out.cpu()


@st.composite
def ragged_rows(draw, most: int = 20):
    """Rows of sorted spans, some empty, and the width of each."""
    widths = draw(st.lists(st.integers(0, most), max_size=6))
    rows = []
    for width in widths:
        cuts = sorted(draw(st.lists(st.integers(0, width), max_size=8)))
        values = st.sampled_from([-3.5, -1.0, 0.25, 1.0, 2.0, 7.0])  # the same in every dtype
        rows.append([(draw(values), i, j) for i, j in zip(cuts[::2], cuts[1::2], strict=False)])
    return rows, widths


# By hand and against the loop


@pytest.mark.parametrize("dtype", DTYPES)
def test_scatter_tensor_by_hand(backend, dtype):
    found = pad(ROWS, 5, backend, dtype)
    assert found.dtype == dtype
    assert found.tolist() == DENSE
    # Packed, the rollout without turns has two tokens, and there are three of padding.
    packed = pack(ROWS, [5, 2, 5], backend, dtype, tail=3)
    assert packed.tolist() == [*DENSE[0], 0.0, 0.0, *DENSE[2], 0.0, 0.0, 0.0]


@pytest.mark.parametrize("name", BACKENDS)
def test_scatter_tensor_equals_loop(name):
    need(name)

    @settings(max_examples=20 if name == "triton" else 60)
    @given(ragged_rows(), st.sampled_from(DTYPES), st.integers(0, 3))
    def check(problem, dtype, extra):
        rows, widths = problem
        width = max(widths, default=0) + extra
        assert pad(rows, width, name, dtype).tolist() == loop(rows, [width] * len(rows))
        flat = [x for row in loop(rows, widths) for x in row]
        found = pack(rows, widths, name, dtype, tail=extra)
        assert found.tolist() == [*flat, *[0.0] * extra]
        assert not found[found == 0].signbit().any()

    check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 2, 63, 64, 65, 127, 128, 129, 200])
def test_scatter_kernel_around_its_blocks(small_blocks, dtype, width):
    rng = np.random.default_rng(width)
    rows: Rows = [[(1.0, 0, width)], [], [(2.0, 0, 1)], [(3.0, width - 1, width)], [(4.0, width, width)]]
    for _ in range(4):
        cuts = np.sort(rng.integers(0, width + 1, 12)).tolist()
        rows.append([(float(k + 1), cuts[k], cuts[k + 1]) for k in range(0, 12, 2)])
    assert pad(rows, width, "triton", dtype).tolist() == loop(rows, [width] * len(rows))
    widths = [width] * len(rows)
    flat = [x for row in loop(rows, widths) for x in row]
    assert pack(rows, widths, "triton", dtype).tolist() == flat


def test_scatter_kernel_full_blocks():
    rows: Rows = [[(1.0, 0, 1), (2.0, 4095, 4097)], [], [(3.0, 0, 4096)]]
    for width in (4097, 5000):
        found = pad(rows, width, "triton")
        expected = torch.tensor(loop(rows, [width] * 3))
        assert torch.equal(found, expected)
    widths = [4097, 0, 4096]
    found = pack(rows, widths, "triton", tail=4095)
    flat = [x for row in loop(rows, widths) for x in row]
    assert torch.equal(found, torch.tensor([*flat, *[0.0] * 4095]))


@pytest.mark.parametrize("first", [1, 62, 63, 64, 65, 127, 128, 129])
def test_scatter_kernel_rows_that_begin_at_the_edge_of_a_block(small_blocks, first):
    rows: Rows = [[(1.0, 0, first)], [(2.0, 0, 1), (3.0, 1, 2)], [(4.0, 0, 1), (5.0, 2, 130)]]
    widths = [first, 2, 130]
    assert pack(rows, widths, "triton").tolist() == [x for row in loop(rows, widths) for x in row]
    rows[2] = [(4.0, 0, 1)]
    assert pad(rows, max(first, 2), "triton").tolist() == loop(rows, [max(first, 2)] * 3)


def test_scatter_kernel_finds_its_row_among_empty_ones(small_blocks):
    # Rows of no token before, between and after, and rows far longer and far shorter than a block.
    widths = [0, 0, 3, 0, 150, 0, 0, 1, 64, 0, 7, 128, 0, 0]
    rows: Rows = [[(float(k + 1), 0, w), (50.0, w, w)] if w % 2 else [] for k, w in enumerate(widths)]
    rows[4] = [(9.0, 10, 140), (5.0, 149, 150)]
    flat = [x for row in loop(rows, widths) for x in row]
    for tail in (0, 1, 300):
        assert pack(rows, widths, "triton", tail=tail).tolist() == [*flat, *[0.0] * tail]


@pytest.mark.parametrize("rows", [[], [[]], [[], []], [[(1.0, 0, 0)], []]])
@pytest.mark.parametrize("width", [0, 1, 4])
def test_scatter_tensor_zero_sizes(backend, rows, width):
    assert pad(rows, width, backend).tolist() == [[0.0] * width for _ in rows]
    widths = [width] * len(rows)
    assert pack(rows, widths, backend).tolist() == [0.0] * sum(widths)
    assert pack(rows, widths, backend, tail=2).tolist() == [0.0] * (sum(widths) + 2)


def test_scatter_tensor_takes_an_empty_span_anywhere(backend):
    rows: Rows = [[(1.0, 2, 4), (9.0, 1, 1), (2.0, 4, 5), (9.0, 0, 0)], [(9.0, 0, 0), (3.0, 0, 1)]]
    assert pad(rows, 5, backend).tolist() == loop(rows, [5, 5])
    assert pack(rows, [5, 1], backend).tolist() == [0, 0, 1, 1, 2, 3]


# Bits


@pytest.mark.parametrize("dtype", DTYPES)
def test_scatter_tensor_rounds_once_and_moves_bits(backend, dtype):
    device = need(backend)
    numbers = [1 / 3, -1e-4, 65504.0, -0.0, NAN, float("inf"), -float("inf"), 1e-40, 2.0**-24]
    rows: Rows = [[(v, 2 * k, 2 * k + 1) for k, v in enumerate(numbers)]]
    rounded = torch.zeros(20, dtype=dtype)
    rounded[0:18:2] = torch.tensor(numbers, dtype=torch.float64).to(dtype)
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    for found in (pad(rows, 20, backend, dtype)[0], pack(rows, [20], backend, dtype)):
        assert torch.equal(found.view(bits), rounded.view(bits))
    # Values that come in the dtype of the tensor, whatever bits they have.
    values = torch.tensor([0x7FC1, 0x0001, -0x8000], dtype=torch.int16, device=device).view(torch.bfloat16)
    out = torch.full((1, 4), NAN, dtype=torch.bfloat16, device=device)
    spans = torch.tensor([[0, 1], [1, 2], [3, 4]], device=device)
    scatter_tensor(values, spans, torch.tensor([0, 3], device=device), out, backend=backend)
    assert out.view(torch.int16).tolist() == [[0x7FC1, 0x0001, 0, -0x8000]]


def test_scatter_tensor_same_bits_each_run(backend):
    rng = np.random.default_rng(3)
    cuts = np.sort(rng.integers(0, 101, (40, 10)), axis=1)
    rows = [[(float(rng.standard_normal()), int(x[k]), int(x[k + 1])) for k in range(0, 10, 2)] for x in cuts]
    first = pad(rows, 100, backend)
    assert torch.equal(first, torch.tensor(loop(rows, [100] * 40), dtype=torch.float64).float())
    for threads in (1, 2, 7):
        assert torch.equal(first, pad(rows, 100, backend, num_threads=threads))


# Where it writes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scatter_tensor_writes_into_a_window_and_nowhere_else(backend, dtype, small_blocks):
    device = need(backend)
    for rows, width, window in (
        (ROWS, 5, np.s_[::2, 2:7]),
        (ROWS, 5, np.s_[:3, :5]),
        (ROWS, 5, np.s_[3:, 3:8]),
        ([[(6.0, 0, 1)], [], [(5.0, 0, 1)]], 1, np.s_[1::2, 4:5]),
        ([[(6.0, 3, 6)]], 7, np.s_[2:3, 1:]),
    ):
        base = torch.full((6, 8), 9.0, dtype=dtype, device=device)
        expected = base.cpu().clone()
        expected[window] = torch.tensor(loop(rows, [width] * len(rows))).to(dtype)
        scatter_tensor(*turns(rows, device), base[window], backend=backend)
        assert torch.equal(base.cpu(), expected)
    # Rows that are further apart than a block.
    base = torch.full((3, 500), 9.0, dtype=dtype, device=device)
    scatter_tensor(*turns(ROWS, device), base[:, 211:216], backend=backend)
    assert base[:, 211:216].tolist() == DENSE
    assert bool((base[:, :211] == 9).all() & (base[:, 216:] == 9).all())


def test_scatter_tensor_packed_into_a_slice(backend):
    device = need(backend)
    base = torch.full((20,), 9.0, device=device)
    cu_seqlens = torch.tensor([0, 5, 5, 10], device=device)
    scatter_tensor(*turns(ROWS, device), base[3:13], cu_seqlens=cu_seqlens, backend=backend)
    assert base.tolist() == [9.0] * 3 + DENSE[0] + DENSE[2] + [9.0] * 7


SENSELESS = [(-(2**62), 2**62), (-3, 2), (4, 99), (3, 1), (2**62, 2**62 + 1), (-(2**63), 2**63 - 1)]


@pytest.mark.parametrize("name", ["reference", "triton"])
@pytest.mark.parametrize("span", SENSELESS)
def test_unchecked_spans_are_cut_at_their_row(name, span, small_blocks):
    # What a device gets, where nothing waits for a check. Row 1 of three has the span, its own 5 wide.
    device = need(name)
    module = _dispatch.load("scatter", name, device)
    values = torch.tensor([1.0, 7.0, 2.0], device=device)
    spans = torch.tensor([[0, 5], span, [4, 5]], device=device)
    offsets = torch.tensor([0, 1, 2, 3], device=device)
    middle = [7.0 if span[0] <= t < span[1] else 0.0 for t in range(5)]
    expected = [1.0] * 5 + middle + [0.0] * 4 + [2.0]
    base = torch.full((40,), 9.0, device=device)
    for cu_seqlens in (None, torch.tensor([0, 5, 10, 15], device=device)):
        base.fill_(9.0)
        out = base[10:25] if cu_seqlens is not None else base[10:25].view(3, 5)
        module.scatter_tensor(values, spans, offsets, out, cu_seqlens, 1)
        assert base.tolist() == [9.0] * 10 + expected + [9.0] * 15


@pytest.mark.parametrize("cu_seqlens", [[0, 50, 5, 15], [-9, 3, 99, 2**40], [7, 7, 7, 7], [3, 2, 1, 0]])
@pytest.mark.parametrize("offsets", [[0, 1, 2, 3], [-5, 9, 0, 2**40], [3, 2, 1, 0]])
def test_unchecked_offsets_never_leave_the_tensor(cu_seqlens, offsets, small_blocks):
    device = need("triton")
    base = torch.full((200,), 9.0, device=device)
    arguments = [torch.tensor(x, device=device) for x in ([1.0, 2.0, 3.0], [[0, 5]] * 3, offsets)]
    small_blocks.scatter_tensor(*arguments, base[60:135], torch.tensor(cu_seqlens, device=device), 1)
    assert bool((base[:60] == 9).all() & (base[135:] == 9).all())
    assert bool((base[60:135] != 9).all())


# Refusals, with `out` untouched


@pytest.mark.parametrize(
    ("rows", "widths", "message"),
    [
        ([[], [(1.0, 0, 2), (1.0, 1, 3)]], [5, 5], r"spans\[1\] = \[1, 3\) \(rollout 1, turn 1\) starts"),
        ([[(1.0, 0, 3), (1.0, 3, 3), (1.0, 2, 4)]], [5], r"\[2\] = \[2, 4\) \(rollout 0, turn 2\) starts"),
        ([[(1.0, 0, 2)], [(1.0, 1, 6)]], [5, 5], r"\[1\] = \[1, 6\) \(rollout 1, turn 0\) does not fit.* 5"),
        ([[(1.0, -1, 2)]], [5], r"spans\[0\] = \[-1, 2\) \(rollout 0, turn 0\) does not fit"),
        ([[(1.0, 3, 2)]], [5], r"spans\[0\] = \[3, 2\) \(rollout 0, turn 0\) does not fit"),
        ([[(1.0, -(2**63), 2**63 - 1)]], [5], r"\(rollout 0, turn 0\) does not fit"),
    ],
)  # fmt: skip
def test_spans_are_refused_by_rollout_and_turn(backend, rows, widths, message):
    device = need(backend)
    out = torch.full((len(rows), 5), NAN, device=device)
    with pytest.raises(InputError, match=message):
        scatter_tensor(*turns(rows, device), out, backend=backend, validate=True)
    cu_seqlens = torch.tensor(np.cumsum([0, *widths]), device=device)
    with pytest.raises(InputError, match=message):
        scatter_tensor(
            *turns(rows, device), out.view(-1), cu_seqlens=cu_seqlens, backend=backend, validate=True
        )
    assert out.isnan().all()


def test_a_packed_span_is_held_to_its_own_row(backend):
    # It would fit into the tensor, but not into its rollout of two tokens.
    with pytest.raises(
        InputError, match=r"spans\[0\] = \[0, 3\) \(rollout 1, turn 0\) does not fit; .* <= 2"
    ):
        pack([[], [(1.0, 0, 3)], []], [4, 2, 4], backend, validate=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offsets": [0, 2, 1, 5]}, r"offsets must rise from 0 to 5; got \[0, 2, 1, 5\]"),
        ({"offsets": [0, 2, 2, 4]}, "offsets must rise from 0 to 5"),
        ({"offsets": [0, 5]}, "out has 3 rows; expected 1, the rollouts that offsets describe"),
        ({"offsets": [[0, 2, 2, 5]]}, r"offsets has shape \(1, 4\) of torch.int64 on cpu; .* \(B \+ 1,\)"),
        ({"spans": [[0, 1]] * 4}, r"spans has shape \(4, 2\) .* expected int64 or int32 of shape \(5, 2\)"),
        ({"spans": [[0.0, 1.0]] * 5}, "spans .* of torch.float32"),
        (
            {"turn_values": [1, 2, 3, 4, 5]},
            "turn_values has shape .* of torch.int64 on cpu; expected a float",
        ),
        ({"cu_seqlens": [0, 5, 5, 10]}, r"out has shape \(3, 5\); expected \(total,\)"),
    ],
)
def test_scatter_tensor_refuses_what_does_not_fit(change, message):
    values, spans, offsets = turns(ROWS)
    arguments = {"turn_values": values, "spans": spans, "offsets": offsets, "out": torch.full((3, 5), NAN)}
    arguments |= {name: torch.tensor(x) for name, x in change.items()}
    with pytest.raises(InputError, match=message):
        scatter_tensor(**arguments)
    assert arguments["out"].isnan().all()


@pytest.mark.parametrize(
    ("cu_seqlens", "message"),
    [
        ([0, 5, 10], r"cu_seqlens has shape \(3,\) of torch.int64 .* shape \(4,\)"),
        ([0, 5, 4, 10], "cu_seqlens must rise from 0 to at most 10; got"),
        ([1, 5, 5, 10], "cu_seqlens must rise from 0 to at most 10; got"),
        ([0, 5, 5, 11], "cu_seqlens must rise from 0 to at most 10; got"),
    ],
)
def test_scatter_tensor_refuses_cu_seqlens(cu_seqlens, message):
    out = torch.full((10,), NAN)
    with pytest.raises(InputError, match=message):
        scatter_tensor(*turns(ROWS), out, cu_seqlens=torch.tensor(cu_seqlens))
    assert out.isnan().all()


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (torch.full((3, 10), NAN)[:, ::2], "the rows of out must be contiguous"),
        (torch.full((5, 3), NAN).T, "the rows of out must be contiguous"),
        (torch.full((1, 5), NAN).expand(3, 5), "the rows of out overlap"),
        (torch.full((15,), NAN).as_strided((3, 5), (4, 1)), "the rows of out overlap"),
        (torch.full((15,), NAN), r"out has shape \(15,\); expected \(B, T\)"),
        (
            torch.full((3, 5), NAN, device="meta"),
            "out is a torch.float32 tensor on meta; expected a floating",
        ),
        (torch.full((3, 5), 1), "out is a torch.int64 tensor on cpu; expected a floating"),
    ],
)
def test_scatter_tensor_refuses_out(backend, out, message):
    if need(backend) == "cuda":
        pytest.skip("the tensors are on the CPU")
    with pytest.raises(InputError, match=message):
        scatter_tensor(*turns(ROWS), out, backend=backend)
    assert out.device.type == "meta" or not out.is_floating_point() or out.isnan().all()


def test_scatter_tensor_refuses_impossible_options():
    arguments = (*turns(ROWS), torch.full((3, 5), NAN))
    with pytest.raises(ConfigError, match="num_threads is 0; expected a positive integer"):
        scatter_tensor(*arguments, num_threads=0)
    with pytest.raises(ConfigError, match="op scatter has no backend 'numba'"):
        scatter_tensor(*arguments, backend="numba")
    assert arguments[-1].isnan().all()


# Backends, gradients, compilers


@pytest.mark.parametrize("name", BACKENDS)
def test_chosen_backend_runs(name, monkeypatch):
    device = need(name)
    seen = []
    for other in _dispatch.available("scatter"):
        module = _dispatch.load("scatter", other, "cuda" if other == "triton" else "cpu")

        def spy(*arguments, run=module.scatter_tensor, other=other):
            seen.append(other)
            return run(*arguments)

        monkeypatch.setattr(module, "scatter_tensor", spy)
    out = torch.full((3, 5), NAN, device=device)
    monkeypatch.setenv("MATCHTIR_BACKEND", name)
    scatter_tensor(*turns(ROWS, device), out)
    values, spans, offsets = (x.cpu().numpy() for x in turns(ROWS))
    scatter(Ragged(values, offsets), Ragged(spans, offsets), out=out)
    monkeypatch.delenv("MATCHTIR_BACKEND")
    scatter_tensor(*turns(ROWS, device), out, backend=name)
    assert seen == [name] * 3


def test_native_is_the_default_on_the_cpu(monkeypatch):
    monkeypatch.delenv("MATCHTIR_BACKEND", raising=False)
    assert _dispatch.load("scatter").__name__ == "matchtir.ops.scatter.native"
    assert ops.backends()["scatter"]["active"] == "native"


@pytest.mark.parametrize("dtype", DTYPES)
def test_scatter_stage_writes_tensors_of_the_kernel_device(dtype, monkeypatch):
    device = need("triton")
    monkeypatch.setenv("MATCHTIR_BACKEND", "triton")
    values, spans, offsets = (x.numpy() for x in turns(ROWS))
    turn_values, ranges = Ragged(values, offsets), Ragged(spans, offsets)
    out = torch.full((3, 5), NAN, dtype=dtype, device=device, requires_grad=True)
    assert scatter(turn_values, ranges, out=out) is out
    assert out.tolist() == DENSE
    narrow = torch.full((3, 4), NAN, dtype=dtype, device=device)
    with pytest.raises(InputError, match=r"spans\[1\] = \[4, 5\) \(rollout 0, turn 1\) does not fit"):
        scatter(turn_values, ranges, out=narrow)
    assert narrow.isnan().all()


def test_scatter_tensor_carries_no_gradient(backend):
    values, spans, offsets = turns(ROWS, need(backend))
    values.requires_grad_()
    out = torch.full((3, 5), NAN, device=values.device)
    version = out._version
    assert not scatter_tensor(values, spans, offsets, out, backend=backend).requires_grad
    assert out._version > version  # autograd sees that saved tensors were overwritten
    assert out.tolist() == DENSE


def test_scatter_tensor_compiles_whole(backend):
    values, spans, offsets = turns(ROWS, need(backend))

    def double(values, spans, offsets, out):
        scatter_tensor(values, spans, offsets, out, backend=backend)
        return out * 2

    compiled = torch.compile(double, fullgraph=True, backend="aot_eager")
    out = torch.full((3, 5), NAN, device=values.device)
    assert compiled(values, spans, offsets, out).tolist() == [[2 * x for x in row] for row in DENSE]
    assert out.tolist() == DENSE


def test_custom_op_passes_opcheck(backend):
    from matchtir.ops.scatter.library import scatter_tensor as op

    arguments = turns(ROWS, need(backend))
    device = arguments[0].device
    torch.library.opcheck(op, (*arguments, torch.zeros((3, 5), device=device), None, False, None, backend))
    cu_seqlens = torch.tensor([0, 5, 5, 10], device=device)
    torch.library.opcheck(op, (*arguments, torch.zeros(10, device=device), cu_seqlens, False, None, backend))


@pytest.mark.skipif(not CUDA, reason="no GPU")
@pytest.mark.parametrize("name", ["reference", "triton"])
def test_scatter_tensor_never_waits_for_the_device(name):
    arguments = turns(ROWS, "cuda")
    out = torch.full((3, 5), NAN, device="cuda")
    scatter_tensor(*arguments, out, backend=name)
    out.fill_(NAN)
    torch.cuda.set_sync_debug_mode("error")
    try:
        scatter_tensor(*arguments, out, backend=name)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert out.tolist() == DENSE


def test_returns_and_scatter_give_tokens_their_turns_advantage(backend):
    device = need(backend)
    rewards = torch.tensor([1.0, 0.0, 4.0, 2.0, 0.5], dtype=torch.float64, device=device)
    offsets = torch.tensor([0, 2, 2, 5], device=device)
    found = turn_advantages(rewards, offsets, torch.tensor([3, 3, 3], device=device), backend="reference")
    spans = turns(ROWS, device)[1]
    out = torch.full((3, 5), NAN, device=device)
    scatter_tensor(found.turn_advantages, spans, offsets, out, backend=backend)
    a = found.turn_advantages.float().tolist()
    assert out.tolist() == [[0, a[0], a[0], 0, a[1]], [0.0] * 5, [a[2], a[2], a[4], a[4], a[4]]]
