"""Log-probabilities without logits: by hand, plain torch as the oracle, backends against the reference."""

from __future__ import annotations

import importlib
import math
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
F = torch.nn.functional

from matchtir.errors import BackendError, ConfigError, InputError  # noqa: E402

package = importlib.import_module("matchtir.ops.logprobs")
chunked = importlib.import_module("matchtir.ops.logprobs.chunked")
library = importlib.import_module("matchtir.ops.logprobs.library")
logprobs, logprobs_from_logits = package.logprobs, package.logprobs_from_logits

CUDA = torch.cuda.is_available()
BACKENDS = ["reference", "numba", "triton"]
FAST = ["numba", "triton"]


def device_of(backend: str) -> str:
    """Where the backend runs here; skips where it cannot be loaded."""
    if backend != "reference":
        pytest.importorskip(backend)
    return "cuda" if CUDA and backend == "triton" else "cpu"


def plain(hidden, weight, targets, bias=None, temperature=1.0, ignore_index=-100):
    """The oracle: whole logits, `log_softmax`, its gradient by autograd."""
    return plain_of_logits(F.linear(hidden, weight, bias), targets, temperature, ignore_index)


def plain_of_logits(logits, targets, temperature=1.0, ignore_index=-100):
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    log_p = torch.log_softmax(logits.to(wide) / temperature, dim=-1)
    own = targets != ignore_index
    logps = log_p.gather(-1, torch.where(own, targets, 0)[..., None])[..., 0]
    entropy = -torch.where(log_p > -torch.inf, log_p.exp() * log_p, 0.0).sum(dim=-1)
    return torch.where(own, logps, 0.0), torch.where(own, entropy, 0.0)


def problem(tokens, words, size, seed=0, dtype=torch.float64, ignored=0.3, scale=1.0, shape=None):
    """hidden, weight, bias, targets, and the gradients that come in, for logps and entropy."""
    g = torch.Generator().manual_seed(seed)
    lead = shape or (tokens,)
    hidden = torch.randn(*lead, size, generator=g, dtype=torch.float64) * scale
    weight = torch.randn(words, size, generator=g, dtype=torch.float64) * scale
    bias = torch.randn(words, generator=g, dtype=torch.float64)
    targets = torch.randint(0, words, lead, generator=g)
    targets[torch.rand(lead, generator=g) < ignored] = -100
    grads = [torch.randn(lead, generator=g, dtype=torch.float64) for _ in range(2)]
    return *(x.to(dtype) for x in (hidden, weight, bias)), targets, grads


def results(function, inputs, grads):
    """logps, entropy and the gradients of `inputs` under the incoming `grads`; all on the CPU."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    logps, entropy = function(*inputs)
    grads = [g.to(logps) for g in grads]
    made = torch.autograd.grad([logps, entropy], inputs, grads, allow_unused=True)
    return [x.detach().cpu() for x in (logps, entropy, *made)]


def assert_close(found, expected, rtol=1e-11, atol=1e-12):
    assert len(found) == len(expected)
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=rtol, atol=atol)


def head(backend, targets, device, **options):
    """`logprobs` as a function of hidden, weight and bias."""
    targets = targets.to(device)

    def run(hidden, weight, bias):
        return logprobs(hidden, weight, targets, bias=bias, entropy=True, backend=backend, **options)

    return run


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Memory that is not written shows: what is allocated empty holds NaN."""

    def filled(allocate):
        def empty(*args, **kwargs):
            x = allocate(*args, **kwargs)
            return x.fill_(torch.nan) if x.is_floating_point() and type(x) is torch.Tensor else x

        return empty

    class Torch:
        def __getattr__(self, name):
            return filled(getattr(torch, name)) if name in ("empty", "empty_like") else getattr(torch, name)

    for name in ("chunked", "given"):
        monkeypatch.setattr(importlib.import_module(f"matchtir.ops.logprobs.{name}"), "torch", Torch())
    for name in ("new_empty",):
        original = getattr(torch.Tensor, name)

        def new(self, *args, _original=original, **kwargs):
            x = _original(self, *args, **kwargs)
            real = type(x) is torch.Tensor and x.is_floating_point()
            return x.fill_(torch.nan) if real else x

        monkeypatch.setattr(torch.Tensor, name, new)


@pytest.fixture
def small_tiles(monkeypatch):
    """Blocks of 64 words, the least there are, so that a few hundred words are several."""
    monkeypatch.setattr(chunked, "TILE_ON_CPU", 1)
    monkeypatch.setattr(chunked, "_TILE_ELSEWHERE", 1)


@pytest.fixture
def ran(monkeypatch):
    """Names of the row kernels that ran."""
    calls = []

    def watch(backend):
        module = importlib.import_module(f"matchtir.ops.logprobs.{backend}")
        for name in ("forward", "backward"):
            original = getattr(module, name)

            def kernel(*args, _original=original, _name=name):
                calls.append((backend, _name))
                return _original(*args)

            monkeypatch.setattr(module, name, kernel)
        return calls

    return watch


# Worked by hand


@pytest.mark.parametrize("backend", BACKENDS)
def test_logprobs_two_words_by_hand(backend):
    # Logits (0, log 3): p = (1/4, 3/4), H = log 4 - 3/4 log 3. Temperature 2: odds sqrt 3.
    device = device_of(backend)
    hidden = torch.tensor([[1.0]], dtype=torch.float64, device=device)
    weight = torch.tensor([[0.0], [math.log(3)]], dtype=torch.float64, device=device)
    targets = torch.tensor([1], device=device)
    logps, entropy = logprobs(hidden, weight, targets, entropy=True, backend=backend)
    assert logps.item() == pytest.approx(math.log(0.75), abs=1e-14)
    assert entropy.item() == pytest.approx(math.log(4) - 0.75 * math.log(3), abs=1e-14)
    logps, none = logprobs(hidden, weight, targets, temperature=2.0, backend=backend)
    assert none is None
    assert logps.item() == pytest.approx(math.log(math.sqrt(3) / (1 + math.sqrt(3))), abs=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_two_words_by_hand(backend):
    # d logp_1 / dx = (-1/4, 3/4); dH / dx_v = -p_v (log p_v + H), here 3/16 log 3 times (1, -1).
    device = device_of(backend)
    logits = torch.tensor([[0.0, math.log(3)]], dtype=torch.float64, device=device, requires_grad=True)
    targets = torch.tensor([1], device=device)
    logps, entropy = logprobs_from_logits(logits, targets, entropy=True, backend=backend)
    (of_logps,) = torch.autograd.grad(logps, logits, torch.ones_like(logps), retain_graph=True)
    (of_entropy,) = torch.autograd.grad(entropy, logits, torch.ones_like(entropy))
    assert of_logps[0].tolist() == pytest.approx([-0.25, 0.25], abs=1e-14)
    slope = 3 / 16 * math.log(3)
    assert of_entropy[0].tolist() == pytest.approx([slope, -slope], abs=1e-14)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_logits_give_the_uniform_distribution(backend):
    device = device_of(backend)
    for words in (1, 2, 65, 1000):
        logits = torch.full((3, words), 7.5, dtype=torch.float64, device=device)
        targets = torch.zeros(3, dtype=torch.int64, device=device)
        logps, entropy = logprobs_from_logits(logits, targets, entropy=True, backend=backend)
        torch.testing.assert_close(logps.cpu(), torch.full((3,), -math.log(words), dtype=torch.float64))
        torch.testing.assert_close(entropy.cpu(), torch.full((3,), math.log(words), dtype=torch.float64))


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_word_has_log_probability_zero_and_no_gradient(backend):
    device = device_of(backend)
    hidden, weight, bias, targets, grads = problem(5, 1, 3, ignored=0)
    inputs = [x.to(device) for x in (hidden, weight, bias)]
    for x in results(head(backend, targets, device), inputs, [g.to(device) for g in grads]):
        assert (x.abs() < 1e-14).all()


# Against plain torch


SHAPES = [(1, 1, 1), (1, 2, 3), (2, 63, 5), (3, 64, 7), (3, 65, 7), (4, 128, 3), (5, 129, 4), (17, 300, 9)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("chunk_size", [None, 1, 2, 3])
def test_head_equals_plain_torch(backend, shape, chunk_size, small_tiles, ran):
    device = device_of(backend)
    calls = ran(backend)
    hidden, weight, bias, targets, grads = problem(*shape, seed=sum(shape))
    targets[0] = 0
    expected = results(lambda h, w, b: plain(h, w, targets, b, 0.7), [hidden, weight, bias], grads)
    options = {"temperature": 0.7, "chunk_size": chunk_size}
    inputs = [x.to(device) for x in (hidden, weight, bias)]
    grads = [g.to(device) for g in grads]
    assert_close(results(head(backend, targets, device, **options), inputs, grads), expected)
    assert set(calls) == {(backend, "forward"), (backend, "backward")}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("words", [1, 2047, 2048, 2049, 4095, 4096, 4097, 4200])
def test_logits_equal_plain_torch_around_a_block(backend, words, ran):
    device = device_of(backend)
    calls = ran(backend)
    _, _, _, targets, grads = problem(3, words, 1, seed=words, ignored=0)
    logits = torch.randn(3, words, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3
    targets[0], targets[1], targets[2] = 0, words - 1, -100
    expected = results(lambda x: plain_of_logits(x, targets, 1.3), [logits], grads)

    def run(x):
        return logprobs_from_logits(x, targets.to(device), temperature=1.3, entropy=True, backend=backend)

    assert_close(results(run, [logits.to(device)], [g.to(device) for g in grads]), expected)
    assert set(calls) == {(backend, "forward"), (backend, "backward")}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("skip", [True, False, None])
def test_ignored_tokens_are_zero_whatever_they_hold(backend, skip):
    device = device_of(backend)
    hidden, weight, bias, targets, grads = problem(9, 70, 4, seed=3)
    targets[:] = torch.where(torch.arange(9) % 3 == 0, targets.clamp(min=0), -100)
    ignored = targets == -100
    if skip:  # without, 0 times them is in the weight's gradient
        hidden[ignored] = torch.inf
    clean = hidden.masked_fill(ignored[:, None], 0.0)
    expected = results(lambda h, w, b: plain(h, w, targets, b), [clean, weight, bias], grads)
    inputs = [x.to(device) for x in (hidden, weight, bias)]
    found = results(head(backend, targets, device, skip_ignored=skip), inputs, [g.to(device) for g in grads])
    assert_close(found, expected)
    for x in (found[0], found[1], found[2]):
        assert (x[ignored] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_ignored_tokens_give_zeros(backend):
    device = device_of(backend)
    for tokens in (0, 3):
        hidden, weight, bias, targets, grads = problem(tokens, 70, 4, ignored=2)
        for skip in (True, False):
            inputs = [x.to(device) for x in (hidden, weight, bias)]
            run = head(backend, targets, device, skip_ignored=skip)
            found = results(run, inputs, [g.to(device) for g in grads])
            assert [x.shape for x in found] == [targets.shape] * 2 + [x.shape for x in inputs]
            assert all((x == 0).all() for x in found)
    logits = torch.zeros(0, 4, device=device, requires_grad=True)
    logps, _ = logprobs_from_logits(logits, torch.zeros(0, dtype=torch.int64, device=device), backend=backend)
    logps.sum().backward()
    assert logps.shape == (0,)
    assert logits.grad.shape == (0, 4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tokens_without_gradient_add_nothing(backend, small_tiles):
    # Clipped tokens and groups of advantage 0: left out of the products, with the same result.
    device = device_of(backend)
    hidden, weight, bias, targets, grads = problem(8, 130, 5, seed=4)
    for g in grads:
        g[1:6] = 0
    expected = results(lambda h, w, b: plain(h, w, targets, b), [hidden, weight, bias], grads)
    inputs = [x.to(device) for x in (hidden, weight, bias)]
    for skip in (True, False):
        found = results(
            head(backend, targets, device, skip_ignored=skip), inputs, [g.to(device) for g in grads]
        )
        assert_close(found, expected)
        assert (found[2][1:6] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_leading_dimensions_are_kept(backend):
    device = device_of(backend)
    hidden, weight, _, targets, _ = problem(0, 20, 4, shape=(2, 3), seed=5)
    hidden, weight, targets = (x.to(device) for x in (hidden, weight, targets))
    logps, entropy = logprobs(hidden, weight, targets, entropy=True, backend=backend)
    expected = plain(hidden, weight, targets)
    assert_close([logps, entropy], expected)
    one, _ = logprobs(hidden[0, 0], weight, targets[0, 0], backend=backend)
    assert one.shape == ()
    assert one.item() == pytest.approx(expected[0][0, 0].item(), abs=1e-13)
    transposed, _ = logprobs(hidden.transpose(0, 1), weight.T.contiguous().T, targets.T, backend=backend)
    assert_close([transposed], [expected[0].T])


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_are_read_through_any_strides(backend):
    device = device_of(backend)
    g = torch.Generator().manual_seed(6)
    logits = torch.randn(3, 5, 11, generator=g, dtype=torch.float64).to(device)
    targets = torch.randint(0, 11, (3, 5), generator=g).to(device)
    views = {
        "shifted": (logits[:, :-1], targets[:, 1:]),
        "columns": (logits[..., ::2], targets % 6),
        "cut": (logits[..., :7], targets % 7),
        "swapped": (logits.transpose(0, 1), targets.T),
        "repeated": (logits[:1].expand(3, 5, 11), targets),
        "one": (logits[:1, :1], targets[:1, :1]),
        "vector": (logits[0, 0], targets[0, 0]),
    }
    for name, (x, y) in views.items():
        grads = [torch.randn(y.shape, generator=g, dtype=torch.float64).to(device) for _ in range(2)]

        def run(z, y=y):
            return logprobs_from_logits(z, y, entropy=True, backend=backend)

        found = results(run, [x], grads)
        assert_close(found, results(lambda z, y=y: plain_of_logits(z, y), [x], grads)), name


def test_shifted_logits_are_not_copied(monkeypatch):
    logits = torch.randn(3, 5, 11)
    seen = []
    module = importlib.import_module("matchtir.ops.logprobs.reference")
    original = module.forward
    monkeypatch.setattr(module, "forward", lambda z, *rest: (seen.append(z.data_ptr()), original(z, *rest)))
    logprobs_from_logits(logits[:, :-1], torch.zeros(3, 4, dtype=torch.int64), backend="reference")
    assert seen == [logits[b].data_ptr() for b in range(3)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_words_at_minus_infinity_have_no_part(backend):
    device = device_of(backend)
    g = torch.Generator().manual_seed(7)
    hidden, weight, bias, targets, grads = problem(6, 200, 4, seed=7, ignored=0)
    gone = torch.rand(200, generator=g) < 0.5
    gone[:130] = True  # whole blocks too
    gone[150:] = False
    targets[:] = 150 + torch.arange(6)
    targets[5] = 3  # its log-probability is minus infinity
    grads[0][5] = 0
    bias[gone] = -torch.inf
    inputs = [x.to(device) for x in (hidden, weight, bias)]
    run = head(backend, targets, device)
    found = results(run, inputs, [x.to(device) for x in grads])
    kept = ~gone
    small = targets.clone()
    small[:] = torch.cumsum(kept, 0)[targets] - 1
    small[5] = 0
    expected = results(
        lambda h, w, b: plain(h, w, small, b), [hidden, weight[kept], bias[kept]], [grads[0], grads[1]]
    )
    assert found[0][5] == -torch.inf
    assert_close([found[0][:5], found[1], found[2]], [expected[0][:5], *expected[1:3]])
    assert_close([found[3][kept], found[4][kept]], expected[3:])
    assert (found[3][gone] == 0).all()
    assert (found[4][gone] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_nan_shows_in_its_own_token_only(backend):
    device = device_of(backend)
    logits = torch.zeros(3, 3000, device=device, dtype=torch.float32)
    logits[1, 2500] = torch.nan
    targets = torch.zeros(3, dtype=torch.int64, device=device)
    logps, entropy = logprobs_from_logits(logits, targets, entropy=True, backend=backend)
    assert logps.isnan().tolist() == entropy.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_logits_stay_finite(backend):
    device = device_of(backend)
    logits = torch.tensor([[1e4, 0.0, -1e4], [-3e38, -3e38, 0.0], [3e38, 3e38, 0.0]], device=device)
    targets = torch.tensor([0, 2, 1], device=device)
    logps, entropy = logprobs_from_logits(logits, targets, entropy=True, backend=backend)
    assert logps.tolist() == pytest.approx([0, 0, -math.log(2)], abs=1e-6)
    assert entropy.tolist() == pytest.approx([0, 0, math.log(2)], abs=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("needs", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1), (1, 0, 1)])
@pytest.mark.parametrize("which", [0, 1])
def test_each_gradient_alone(backend, needs, which):
    device = device_of(backend)
    hidden, weight, bias, targets, grads = problem(7, 90, 5, seed=8)
    made = []
    for run in (lambda h, w, b: plain(h, w, targets.to(device), b), head(backend, targets, device)):
        inputs = [
            x.to(device).requires_grad_(bool(n)) for x, n in zip((hidden, weight, bias), needs, strict=True)
        ]
        inputs = [x.detach().requires_grad_(bool(n)) for x, n in zip(inputs, needs, strict=True)]
        run(*inputs)[which].backward(grads[which].to(device))
        made.append([x.grad for x in inputs])
    for found, expected, need in zip(made[1], made[0], needs, strict=True):
        assert (found is None) == (not need)
        if need:
            torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


# Backends against the reference


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_backends_equal_the_reference_in_other_dtypes(backend, dtype, small_tiles):
    device = device_of(backend)
    hidden, weight, bias, targets, grads = problem(9, 150, 16, seed=9, dtype=dtype, scale=0.5)
    inputs = [x.to(device) for x in (hidden, weight, bias)]
    grads = [g.to(device) for g in grads]
    found = results(head(backend, targets, device), inputs, grads)
    expected = results(head("reference", targets, device), inputs, grads)
    assert found[0].dtype == torch.float32
    # The logits are the same ones; the sums over them are float32 in another order, and in low precision a
    # gradient of the logits may round to the neighbour.
    assert_close(found[:2], expected[:2], rtol=1e-5, atol=1e-5)
    eps = torch.finfo(dtype).eps
    for f, e in zip(found[2:], expected[2:], strict=True):
        assert f.dtype == dtype
        assert (f.double() - e.double()).abs().max() <= 2 * eps * e.abs().max().double() + 1e-6


@given(
    tokens=st.integers(0, 9),
    words=st.integers(1, 140),
    size=st.integers(1, 6),
    chunk_size=st.one_of(st.none(), st.integers(1, 10)),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    seed=st.integers(0, 100),
)
@settings(max_examples=40)
def test_numba_equals_the_reference(tokens, words, size, chunk_size, temperature, seed):
    device_of("numba")
    hidden, weight, bias, targets, grads = problem(tokens, words, size, seed)
    options = {"temperature": temperature, "chunk_size": chunk_size}
    found, expected = (
        results(head(backend, targets, "cpu", **options), [hidden, weight, bias], grads)
        for backend in ("numba", "reference")
    )
    assert_close(found, expected)


def test_numba_and_triton_agree_in_float32():
    if CUDA:
        pytest.skip("on two devices the products round differently")
    for backend in FAST:
        device_of(backend)
    hidden, weight, bias, targets, grads = problem(5, 300, 8, seed=10, dtype=torch.float32)
    one, two = (results(head(b, targets, "cpu"), [hidden, weight, bias], grads) for b in FAST)
    assert_close(one, two, rtol=1e-5, atol=1e-5)


def test_the_exponential_of_numba_is_within_an_ulp():
    device_of("numba")
    numba = importlib.import_module("numba")
    module = importlib.import_module("matchtir.ops.logprobs.numba")
    exp = module._exp

    @numba.njit
    def every(x, out):
        for i in range(x.size):
            out[i] = exp(x[i])

    x = np.concatenate([-np.geomspace(1e-30, 87.3, 200_000), np.linspace(-87.29, 1.0, 200_000)]).astype(
        np.float32
    )
    out = np.full_like(x, np.nan)
    every(x, out)
    truth = np.exp(x.astype(np.float64))
    assert (np.abs(out - truth) <= np.spacing(truth.astype(np.float32))).all()
    special = np.array([0.0, -88.0, -1e4, -np.inf, np.nan], dtype=np.float32)
    out = np.empty_like(special)
    every(special, out)
    np.testing.assert_array_equal(out, [1, 0, 0, 0, np.nan])


# Properties


@pytest.mark.parametrize("backend", BACKENDS)
def test_permuting_tokens_permutes_everything(backend):
    device = device_of(backend)
    _, _, _, targets, grads = problem(8, 77, 1, seed=11)
    logits = torch.randn(8, 77, generator=torch.Generator().manual_seed(2), dtype=torch.float32).to(device)
    targets, grads = targets.to(device), [g.to(device) for g in grads]
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4], device=device)

    def run(y):
        return lambda x: logprobs_from_logits(x, y, entropy=True, backend=backend)

    there = results(run(targets), [logits], grads)
    back = results(run(targets[order]), [logits[order]], [g[order] for g in grads])
    for x, y in zip(there, back, strict=True):
        assert torch.equal(x[order.cpu()], y)


@pytest.mark.parametrize("backend", BACKENDS)
def test_shifting_the_logits_changes_nothing_and_their_gradient_sums_to_zero(backend):
    device = device_of(backend)
    _, _, _, targets, grads = problem(6, 50, 1, seed=12)
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(device)
    targets, grads = targets.to(device), [g.to(device) for g in grads]

    def run(x):
        return logprobs_from_logits(x, targets, entropy=True, backend=backend)

    there, shifted = results(run, [logits], grads), results(run, [logits + 123.0], grads)
    assert_close(there, shifted, rtol=1e-9, atol=1e-9)
    assert there[2].sum(dim=-1).abs().max() < 1e-12
    assert (there[0] <= 0).all()
    assert ((there[1] >= 0) & (there[1] <= math.log(50))).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_same_bits_each_run_and_with_any_number_of_threads(backend, monkeypatch):
    device = device_of(backend)
    if backend == "numba":
        monkeypatch.setattr(importlib.import_module("matchtir.ops.logprobs.numba"), "_ROWS_OF_A_THREAD", 4)
    hidden, weight, bias, targets, grads = problem(33, 200, 8, seed=13, dtype=torch.float32)
    inputs, grads = [x.to(device) for x in (hidden, weight, bias)], [g.to(device) for g in grads]
    first = results(head(backend, targets, device, num_threads=1), inputs, grads)
    for threads in (1, 2, 5):
        again = results(head(backend, targets, device, num_threads=threads), inputs, grads)
        assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))


def test_numba_shares_rows_out_among_as_many_threads_as_it_was_told(monkeypatch):
    device_of("numba")
    module = importlib.import_module("matchtir.ops.logprobs.numba")
    monkeypatch.setattr(module, "_ROWS_OF_A_THREAD", 4)
    parts, kernel = [], module._FORWARD

    def spy(begin, end, *arguments):
        parts.append((begin, end))
        kernel(begin, end, *arguments)

    monkeypatch.setattr(module, "_FORWARD", spy)
    logits, targets = torch.randn(24, 5), torch.zeros(24, dtype=torch.int64)

    def shares(**how):
        parts.clear()
        logps, _ = logprobs_from_logits(logits, targets, backend="numba", **how)
        torch.testing.assert_close(logps, torch.log_softmax(logits, -1)[:, 0])
        return sorted(parts)

    monkeypatch.delenv("MATCHTIR_NUM_THREADS", raising=False)
    assert shares(num_threads=3) == [(0, 8), (8, 16), (16, 24)]
    assert shares(num_threads=100) == [(0, 4), (4, 8), (8, 12), (12, 16), (16, 20), (20, 24)]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert shares() == [(0, 12), (12, 24)]
    monkeypatch.setenv("MATCHTIR_NUM_THREADS", "1")
    assert shares() == [(0, 24)]


def test_several_threads_may_call_at_once(monkeypatch):
    device_of("numba")
    monkeypatch.setattr(importlib.import_module("matchtir.ops.logprobs.numba"), "_ROWS_OF_A_THREAD", 4)
    logits, targets = torch.randn(64, 300), torch.arange(64)
    expected = torch.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0]
    with ThreadPoolExecutor(4) as pool:
        jobs = [
            pool.submit(logprobs_from_logits, logits, targets, num_threads=3, backend="numba")
            for _ in range(40)
        ]
    for job in jobs:
        torch.testing.assert_close(job.result()[0], expected)


# Low precision


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("chunk_size", [None, 10])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_errs_at_most_twice_as_much_as_plain_torch(backend, dtype, chunk_size, small_tiles):
    device = device_of(backend)
    hidden, weight, bias, targets, grads = problem(24, 260, 64, seed=14, scale=0.6)
    low = [x.to(device, dtype) for x in (hidden, weight, bias)]
    exact = [x.double().cpu() for x in low]
    grads = [g.float().double() for g in grads]
    truth = results(lambda h, w, b: plain(h, w, targets, b), exact, grads)
    grads = [g.to(device) for g in grads]
    theirs = results(lambda h, w, b: plain(h, w, targets.to(device), b), low, grads)
    ours = results(head(backend, targets, device, chunk_size=chunk_size), low, grads)
    for name, o, t, e in zip(
        ("logps", "entropy", "hidden", "weight", "bias"), ours, theirs, truth, strict=True
    ):
        for size in (lambda x: x.abs().max(), lambda x: x.square().mean().sqrt()):
            limit = 2 * size(t.double() - e) + 1e-7
            assert size(o.double() - e) <= limit, name


# Torch


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("skip", [True, False])
def test_gradcheck(backend, skip):
    device = device_of(backend)
    hidden, weight, bias, targets, _ = problem(5, 7, 3, seed=15)
    inputs = [x.to(device).requires_grad_() for x in (hidden, weight, bias)]
    run = head(backend, targets, device, temperature=0.8, chunk_size=2, skip_ignored=skip)
    assert torch.autograd.gradcheck(run, inputs)

    def of_logits(x):
        return logprobs_from_logits(x, targets.to(device), temperature=0.8, entropy=True, backend=backend)

    logits = (hidden @ weight.T).to(device).detach().requires_grad_()
    assert torch.autograd.gradcheck(of_logits, [logits])


@pytest.mark.parametrize("backend", BACKENDS)
def test_opcheck(backend):
    device = device_of(backend)
    hidden, weight, bias, targets, grads = problem(5, 7, 3, seed=16, dtype=torch.float32)
    inputs = [x.to(device).requires_grad_() for x in (hidden, weight, bias)]
    targets = targets.to(device)
    options = (0.9, -100, 2, None, torch.float32, 1, backend)
    torch.library.opcheck(library.head, (*inputs, targets, *options))
    torch.library.opcheck(library.head, (*inputs[:2], None, targets, *options))
    logits = torch.randn(5, 7, device=device, requires_grad=True)
    torch.library.opcheck(library.from_logits, (logits, targets, *options))
    lse = torch.zeros(5, device=device)
    g = grads[0].float().to(device)
    saved = (targets, lse, lse.clone())
    plain_inputs = [x.detach() for x in inputs]
    torch.library.opcheck(
        library.head_backward, (g, None, *plain_inputs, *saved, [True, False, True], *options)
    )
    torch.library.opcheck(library.from_logits_backward, (g, g.clone(), logits.detach(), *saved, *options))


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_compiled_without_breaks_equals_eager(backend):
    device = device_of(backend)
    hidden, weight, bias, targets, grads = problem(5, 90, 3, seed=17)
    run = head(backend, targets, device)

    def both(*inputs):
        logps, entropy = run(*inputs)
        return 2 * logps, entropy + 1

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    assert_close(
        results(compiled, [hidden, weight, bias], grads), results(both, [hidden, weight, bias], grads)
    )
    of_logits = torch.compile(
        lambda x: logprobs_from_logits(x, targets, entropy=True, backend=backend),
        fullgraph=True,
        backend="aot_eager",
    )
    logits = hidden @ weight.T
    expected = results(lambda x: plain_of_logits(x, targets), [logits], grads)
    assert_close(results(of_logits, [logits], grads), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_equals_linear_under_autocast(backend):
    device = device_of(backend)
    hidden, weight, bias, targets, grads = problem(20, 130, 32, seed=18, dtype=torch.float32, scale=0.6)
    inputs, grads = [x.to(device) for x in (hidden, weight, bias)], [g.to(device) for g in grads]
    truth = results(
        lambda h, w, b: plain(h, w, targets, b),
        [x.double().cpu() for x in inputs],
        [g.float().double().cpu() for g in grads],
    )
    with torch.autocast(device, torch.bfloat16):
        ours = results(head(backend, targets, device), inputs, grads)
        theirs = results(lambda h, w, b: plain(h, w, targets.to(device), b), inputs, grads)
    with torch.autocast(device, enabled=False):
        exact = results(head(backend, targets, device), inputs, grads)
    for o, t, e, x in zip(ours, theirs, truth, exact, strict=True):
        assert o.dtype == torch.float32
        error = (o.double() - e).abs().max()
        assert error <= 2 * (t.double() - e).abs().max() + 1e-7
        assert error > 10 * (x.double() - e).abs().max()  # the products were in bfloat16


def test_checkpointing_gives_the_same_gradients():
    hidden, weight, bias, targets, grads = problem(6, 70, 4, seed=19)
    run = head("reference", targets, "cpu")

    def checkpointed(*inputs):
        return torch.utils.checkpoint.checkpoint(run, *inputs, use_reentrant=False)

    assert_close(
        results(checkpointed, [hidden, weight, bias], grads), results(run, [hidden, weight, bias], grads)
    )


def test_second_derivative_is_refused():
    hidden, weight, _, targets, _ = problem(4, 6, 3, seed=20, ignored=0)
    hidden.requires_grad_()
    logps, _ = logprobs(hidden, weight, targets)
    (first,) = torch.autograd.grad(logps.sum(), hidden, create_graph=True)
    with pytest.raises(NotImplementedError, match="once"):
        first.square().sum().backward()
    logits = torch.zeros(4, 6, requires_grad=True)
    logps, _ = logprobs_from_logits(logits, targets)
    (first,) = torch.autograd.grad(logps.sum(), logits, create_graph=True)
    with pytest.raises(NotImplementedError, match="once"):
        first.sum().backward()


def test_no_gradient_is_kept_where_none_is_wanted():
    hidden, weight, _, targets, _ = problem(4, 6, 3)
    weight.requires_grad_()
    with torch.no_grad():
        assert not logprobs(hidden, weight, targets)[0].requires_grad
    assert not logprobs(hidden, weight.detach(), targets)[0].requires_grad


# ZeRO-3: a parameter that is whole only while it is gathered


def test_weight_gathered_for_forward_and_again_for_backward():
    hidden, weight, bias, targets, grads = problem(6, 70, 4, seed=21)
    expected = results(lambda h, w, b: plain(h, w, targets, b), [hidden, weight, bias], grads)
    parameter, offset = torch.nn.Parameter(weight.clone()), torch.nn.Parameter(bias.clone())
    hidden.requires_grad_()
    logps, entropy = logprobs(hidden, parameter, targets, bias=offset, entropy=True)
    for p in (parameter, offset):
        p.data = torch.empty(0, dtype=p.dtype)  # released after the call
    loss = (logps * grads[0] + entropy * grads[1]).sum()
    parameter.data, offset.data = weight.clone(), bias.clone()  # another gather, into other memory
    loss.backward()
    assert_close([logps.detach(), entropy.detach(), hidden.grad, parameter.grad, offset.grad], expected)


def test_weight_not_gathered_at_backward_is_refused():
    hidden, weight, bias, targets, _ = problem(6, 70, 4, seed=22)
    for which in ("weight", "bias"):
        parameters = {"weight": torch.nn.Parameter(weight.clone()), "bias": torch.nn.Parameter(bias.clone())}
        logps, _ = logprobs(hidden, parameters["weight"], targets, bias=parameters["bias"])
        parameters[which].data = torch.empty(0, dtype=torch.float64)
        with pytest.raises(InputError, match=rf"{which} has shape \(0,\) at backward.*gathered"):
            logps.sum().backward()


def test_no_copy_of_the_weight_is_kept():
    hidden, weight, _, targets, _ = problem(6, 70, 4, seed=23, dtype=torch.float32)
    parameter = torch.nn.Parameter(weight)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        with torch.autocast("cpu", torch.bfloat16):
            logprobs(hidden, parameter, targets, entropy=True)
        logprobs(hidden, parameter, targets, entropy=True)
    pointers = {x.data_ptr() for x in kept if x.numel() >= hidden.numel()}
    assert pointers <= {hidden.data_ptr(), parameter.data_ptr()}
    assert parameter.data_ptr() in pointers
    assert all(x.numel() <= 6 for x in kept if x.data_ptr() not in pointers)  # never logits


# Refusals


def test_targets_outside_the_vocabulary_are_refused():
    hidden, weight, _, _, _ = problem(3, 5, 2)
    for bad in (5, -1, 10**12):
        targets = torch.tensor([0, bad, -100])
        with pytest.raises(InputError, match=f"targets holds {bad} at token 1; expected 0 to 4"):
            logprobs(hidden, weight, targets)
        with pytest.raises(InputError, match=f"targets holds {bad} at token 1"):
            logprobs_from_logits(hidden @ weight.T, targets)


@pytest.mark.parametrize("backend", BACKENDS)
def test_unchecked_targets_outside_the_vocabulary_give_nan(backend, monkeypatch):
    # As on a GPU, where looking at them would wait.
    device = device_of(backend)
    monkeypatch.setattr(chunked, "check_targets", lambda *_: None)
    hidden, weight, bias, _, grads = problem(4, 70, 3, seed=24)
    targets = torch.tensor([2, 70, -1, 10**12])
    inputs, grads = [x.to(device) for x in (hidden, weight, bias)], [g.to(device) for g in grads]
    found = results(head(backend, targets, device), inputs, grads)
    assert found[0].isnan().tolist() == [False, True, True, True]
    assert found[2].isnan().any(dim=1).tolist() == [False, True, True, True]
    expected = plain(hidden[:1], weight, targets[:1], bias)
    assert_close([x[:1] for x in found[:2]], expected)


def test_an_ignore_index_inside_the_vocabulary_wins():
    hidden, weight, _, _, _ = problem(3, 5, 2)
    targets = torch.tensor([0, 1, 4])
    logps, _ = logprobs(hidden, weight, targets, ignore_index=0)
    assert_close([logps], [plain(hidden, weight, targets, ignore_index=0)[0]])
    assert logps[0] == 0 > logps[1]


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"hidden": [1.0]}, InputError, "hidden is a list"),
        ({"hidden": torch.zeros(3, 2, dtype=torch.int32)}, InputError, "hidden is torch.int32"),
        ({"weight": torch.zeros(5, 3)}, InputError, r"weight \(5, 3\); expected"),
        ({"weight": torch.zeros(5)}, InputError, r"weight \(5,\); expected"),
        ({"weight": torch.zeros(0, 2)}, InputError, "weight has no rows"),
        ({"weight": torch.zeros(5, 2, dtype=torch.bfloat16)}, InputError, "expected one dtype"),
        ({"targets": torch.zeros(3, dtype=torch.int32)}, InputError, "targets are torch.int32"),
        ({"targets": torch.zeros(4, dtype=torch.int64)}, InputError, r"targets have shape \(4,\)"),
        ({"bias": torch.zeros(4)}, InputError, r"bias has shape \(4,\)"),
        ({"bias": torch.zeros(5, dtype=torch.float64)}, InputError, "bias torch.float64"),
        ({"weight": torch.zeros(5, 2, device="meta")}, InputError, "weight is on meta"),
        ({"temperature": 0.0}, ConfigError, "temperature is 0.0"),
        ({"temperature": math.inf}, ConfigError, "temperature is inf"),
        ({"temperature": math.nan}, ConfigError, "temperature is nan"),
        ({"temperature": True}, ConfigError, "temperature is True"),
        ({"chunk_size": 0}, ConfigError, "chunk_size is 0"),
        ({"chunk_size": 1.5}, ConfigError, "chunk_size is 1.5"),
        ({"ignore_index": 0.5}, ConfigError, "ignore_index is 0.5"),
        ({"skip_ignored": 1}, ConfigError, "skip_ignored is 1"),
        ({"num_threads": 0}, ConfigError, "num_threads is 0"),
        ({"backend": "native"}, ConfigError, "no backend 'native'"),
    ],
)
def test_arguments_are_refused(change, error, match):
    arguments = {
        "hidden": torch.zeros(3, 2),
        "weight": torch.zeros(5, 2),
        "targets": torch.zeros(3, dtype=torch.int64),
        **change,
    }
    with pytest.raises(error, match=match):
        logprobs(**arguments)


def test_logits_are_refused():
    targets = torch.zeros(3, dtype=torch.int64)
    for shape in ((4, 5), (3, 0), (3,)):
        with pytest.raises(InputError, match="expected"):
            logprobs_from_logits(torch.zeros(shape), targets)


def test_triton_on_the_cpu_is_refused_unless_interpreted(monkeypatch):
    device_of("triton")
    monkeypatch.setitem(os.environ, "TRITON_INTERPRET", "0")
    with pytest.raises(BackendError, match="does not take data on cpu"):
        logprobs_from_logits(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), backend="triton")


def test_tiles_do_not_grow_with_tokens_or_words():
    for device, most in (("cpu", chunked.TILE_ON_CPU), ("cuda", chunked._TILE_ELSEWHERE)):
        for tokens in (1, 7, 1024, 10**6):
            for words in (1, 63, 32_000, 151_936, 10**7):
                rows, columns = chunked._tile(tokens, words, device, None)
                assert 1 <= rows <= tokens
                assert 1 <= columns <= words
                assert rows * columns <= most + 64 * rows


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", ["every other", "transposed and every other", "expanded"])
def test_logprobs_read_targets_of_any_strides(backend, layout):
    device = device_of(backend)
    ids = torch.arange(48).view(6, 8) % 7
    targets = {
        "every other": ids.flatten()[::2],
        "transposed and every other": ids.T[::2],
        "expanded": torch.tensor([3]).expand(24),
    }[layout]
    assert targets.numel() == 24
    hidden, weight, bias, _, grads = problem(24, 7, 5, shape=tuple(targets.shape))
    there = targets.to(device)

    def ours(h, w, b):
        return logprobs(h, w, there, bias=b, entropy=True, skip_ignored=False, backend=backend)

    def from_logits(h, w, b):
        return logprobs_from_logits(F.linear(h, w, b), there, entropy=True, backend=backend)

    inputs = [x.to(device) for x in (hidden, weight, bias)]
    expected = results(lambda *x: plain(x[0], x[1], targets, x[2]), (hidden, weight, bias), grads)
    for function in (ours, from_logits):
        assert_close(results(function, inputs, [g.to(device) for g in grads]), expected)
