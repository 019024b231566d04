"""Returns and advantages on tensors: exact fractions as the oracle, the NumPy stage, every backend."""

from __future__ import annotations

import math
import os
from fractions import Fraction
from itertools import product
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from matchtir import ConfigError, InputError, Ragged, advantages, ops  # noqa: E402
from matchtir.errors import BackendError  # noqa: E402
from matchtir.ops import _dispatch, returns  # noqa: E402
from matchtir.ops.returns import AdvantageTensors, turn_advantages  # noqa: E402
from matchtir.rewards import trajectory_returns  # noqa: E402

EPS = 1e-6
BACKENDS = ["reference", "numba", "triton"]
BASELINES = get_args(advantages.Baseline)
INTEGRATIONS = get_args(advantages.Integration)
CUDA = torch.cuda.is_available()


def need(backend: str) -> str:
    """The device that `backend` runs on here; skips where it cannot."""
    if backend != "reference":
        pytest.importorskip(backend)
    if backend == "triton" and not CUDA and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("no GPU, and the interpreter is off")
    return "cuda" if CUDA and backend != "numba" else "cpu"


@pytest.fixture(params=BACKENDS)
def backend(request) -> str:
    need(request.param)
    return request.param


def tensors(rewards: list[list[float]], groups: list[int], device: str = "cpu"):
    """Rewards, offsets and group ids of one list of rewards a rollout."""
    ragged = Ragged.from_lists(rewards)
    ids = torch.tensor(groups, dtype=torch.int64, device=device)
    return torch.tensor(ragged.values, device=device), torch.tensor(ragged.offsets, device=device), ids


def run(rewards: list[list[float]], groups: list[int], backend: str, **options) -> AdvantageTensors:
    """The op on the backend's device; results on the host."""
    device = need(backend)
    if options.get("returns") is not None:
        options["returns"] = torch.tensor(options["returns"], dtype=torch.float64, device=device)
    found = turn_advantages(*tensors(rewards, groups, device), backend=backend, **options)
    return AdvantageTensors(*(x.cpu() for x in found))


def stage(
    rewards, groups, *, returns=None, gamma=0.9, integration="sum", baseline="turn_index", normalize_std=True
):
    """The same by the NumPy stage."""
    ragged = Ragged.from_lists(rewards)
    total = trajectory_returns(ragged) if returns is None else np.array(returns, dtype=float)
    discounted = advantages.turn_returns(ragged, gamma)
    whole = advantages.trajectory_advantages(total, groups, normalize_std=normalize_std)
    level = advantages.turn_level_advantages(
        discounted, groups, baseline=baseline, normalize_std=normalize_std
    )
    both = advantages.integrate(whole, level, ragged, integration=integration)
    return total, discounted.values, whole, level.values, both.values


def assert_same(found: AdvantageTensors, expected) -> None:
    """Equal but for the order of sums; the returns bit for bit, and zeros where zeros are."""
    for name, x, y in zip(found._fields, found, expected, strict=True):
        x = x.numpy()
        assert x.dtype == np.float64
        # A difference of sums over a group is as exact as its terms are large.
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-13, err_msg=name)
        if name.endswith("returns"):
            np.testing.assert_array_equal(x, y, err_msg=name)
        elif name != "turn_advantages":
            np.testing.assert_array_equal(x == 0, y == 0, err_msg=name)


def assert_bits(found: AdvantageTensors, other: AdvantageTensors) -> None:
    for name, x, y in zip(found._fields, found, other, strict=True):
        assert torch.equal(x, y), name


# A rollout without turns, turns that one rollout alone reaches, ties that rounding hides, a group of one.
MIXED = [[1.0, 0.0, 4.0], [], [2.0], [0.1, 0.2, 0.3], [0.3, 0.2, 0.1], [0.1 * 3], [0.5, 0.5, 0.5, 0.5], [7.0]]
GROUPS = [4, -9, 4, 2**60, 2**60, 4, 4, 11]


# By hand


def test_turn_advantages_by_hand(backend):
    found = run([[1.0, 0.0, 4.0], [2.0]], [7, 7], backend, gamma=0.5)
    half = 1.5 / (1.5 * math.sqrt(2) + EPS)  # returns 5 and 2: mean 3.5, std 3 / sqrt(2)
    assert found.returns.tolist() == [5.0, 2.0]
    assert found.turn_returns.tolist() == [2.0, 2.0, 4.0, 2.0]
    np.testing.assert_allclose(found.trajectory_advantages, [half, -half], rtol=1e-15)
    # The first turns have the same return; the others are reached by one rollout.
    np.testing.assert_allclose(found.turn_level_advantages, [0, 2 / (1 + EPS), 4 / (1 + EPS), 0], rtol=1e-15)
    np.testing.assert_allclose(
        found.turn_advantages, [half, half + 2 / (1 + EPS), half + 4 / (1 + EPS), -half], rtol=1e-15
    )


def test_turn_advantages_leave_one_out_by_hand(backend):
    rewards = [[3.0, 2.0], [1.0], [2.0]]
    found = run(
        rewards,
        [0, 0, 5],
        backend,
        gamma=0.0,
        baseline="leave_one_out",
        normalize_std=False,
        integration="turn",
    )
    # Turn 0: 3 against 1. Turn 1: 2 against the 0 of the rollout that ended. The third has no mates.
    assert found.turn_advantages.tolist() == [2.0, 2.0, -2.0, 0.0]
    assert found.turn_level_advantages.tolist() == [2.0, 2.0, -2.0, 0.0]


def test_turn_advantages_integrations_by_hand(backend):
    # One group, two rollouts of returns 3 and 1: A^g = 1 and -1 without division by the deviation.
    rewards, groups = [[1.0, 2.0], [1.0]], [0, 0]
    local = 0.5 / (math.sqrt(0.5) + EPS)
    expected = {
        "sum": [1 + 1.0, 1 + 2.0, -2.0],
        "mean": [1.0, 1.5, -1.0],
        "trajectory": [1.0, 1.0, -1.0],
        "turn": [1.0, 2.0, -1.0],
        "weighted_sum": [1 - local, 1 + local, -1.0],
        "weighted_product": [1 - 0.1 * local, 1 + 0.1 * local, -1.0],
    }
    assert set(expected) == set(INTEGRATIONS)
    for integration, numbers in expected.items():
        found = run(rewards, groups, backend, gamma=1.0, normalize_std=False, integration=integration)
        np.testing.assert_allclose(found.turn_advantages, numbers, rtol=1e-15, err_msg=integration)


# The reference against exact fractions


def exact_normalize(value: Fraction, values: list[Fraction], by_std: bool) -> float:
    if len(set(values)) == 1:
        return 0.0
    mean = sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return float(value - mean) / (math.sqrt(variance) + EPS if by_std else 1.0)


def exact_level(returns: list[list[Fraction]], groups: list[int], baseline: str, by_std: bool) -> list[float]:
    out = []
    for i, own in enumerate(returns):
        mates = [returns[j] for j in range(len(returns)) if groups[j] == groups[i]]
        for t, value in enumerate(own):
            reach = [m[t] for m in mates if len(m) > t]
            padded = [m[t] if len(m) > t else Fraction(0) for m in mates]
            if baseline == "pooled":
                out.append(exact_normalize(value, [v for m in mates for v in m], by_std))
            elif baseline == "turn_index":
                alone = float(value) / (1 + EPS if by_std else 1)
                out.append(alone if len(reach) == 1 else exact_normalize(value, reach, by_std))
            else:
                scale = Fraction(len(mates), max(len(mates) - 1, 1))
                out.append(float(scale) * exact_normalize(value, padded, by_std))
    return out


dyadic = st.lists(st.lists(st.sampled_from([-2.0, -0.5, 0.0, 0.25, 1.0, 3.0]), max_size=4), max_size=7)


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("by_std", [True, False])
@settings(max_examples=25)
@given(data=st.data(), rewards=dyadic)
def test_reference_equals_exact_fractions(baseline, by_std, data, rewards):
    groups = data.draw(st.lists(st.integers(-1, 1), min_size=len(rewards), max_size=len(rewards)))
    found = run(rewards, groups, "reference", gamma=0.5, baseline=baseline, normalize_std=by_std)
    exact = [
        [sum(Fraction(r) / 2**k for k, r in enumerate(row[t:])) for t in range(len(row))] for row in rewards
    ]
    totals = [sum(map(Fraction, row), Fraction(0)) for row in rewards]
    mates = [[t for t, h in zip(totals, groups, strict=True) if h == g] for g in groups]
    whole = [exact_normalize(t, m, by_std) for t, m in zip(totals, mates, strict=True)]
    level = exact_level(exact, groups, baseline, by_std)
    assert found.returns.tolist() == [float(t) for t in totals]
    assert found.turn_returns.tolist() == [float(v) for row in exact for v in row]
    np.testing.assert_allclose(found.trajectory_advantages, whole, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(found.turn_level_advantages, level, rtol=1e-12, atol=1e-14)
    per_turn = [w for w, row in zip(whole, rewards, strict=True) for _ in row]
    np.testing.assert_allclose(found.turn_advantages, np.add(per_turn, level), rtol=1e-12, atol=1e-13)


# Every backend against the stage


def test_names_are_those_of_the_stage():
    assert get_args(returns.Baseline) == BASELINES
    assert get_args(returns.Integration) == INTEGRATIONS


@pytest.mark.parametrize("normalize_std", [True, False])
@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("integration", INTEGRATIONS)
def test_turn_advantages_equal_the_stage(backend, integration, baseline, normalize_std):
    options = {"integration": integration, "baseline": baseline, "normalize_std": normalize_std}
    assert_same(run(MIXED, GROUPS, backend, **options), stage(MIXED, GROUPS, **options))


# Few values, so that ties within a group are common, and some that only rounding tells apart.
ties = st.lists(
    st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.1 * 3, 1.0, -0.5, 2.75]), max_size=5), max_size=9
)


@pytest.mark.parametrize("name", BACKENDS)
def test_turn_advantages_equal_the_stage_on_any_batch(name):
    need(name)

    @settings(max_examples=12 if name == "triton" else 60)
    @given(ties, st.data())
    def check(rewards, data):
        groups = data.draw(st.lists(st.integers(-2, 1), min_size=len(rewards), max_size=len(rewards)))
        options = {
            "gamma": data.draw(st.sampled_from([0.0, 0.5, 0.9, 1.0])),
            "baseline": data.draw(st.sampled_from(BASELINES)),
            "integration": data.draw(st.sampled_from(INTEGRATIONS)),
            "normalize_std": data.draw(st.booleans()),
        }
        assert_same(run(rewards, groups, name, **options), stage(rewards, groups, **options))

    check()


@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 129])
def test_turn_advantages_equal_the_stage_around_a_block(backend, size):
    # So many rollouts in all, and so many turns in the only group and in the longest rollout.
    rng = np.random.default_rng(size)
    wide = [[float(x)] for x in rng.choice([0.1, 0.7, 1.3], size)]
    long = [rng.standard_normal(size).tolist(), [0.5]]
    assert_same(run(wide, [3] * size, backend), stage(wide, [3] * size))
    for baseline in ("turn_index", "pooled"):
        found = run(long, [3, 3], backend, baseline=baseline, integration="weighted_product")
        assert_same(found, stage(long, [3, 3], baseline=baseline, integration="weighted_product"))


@pytest.mark.parametrize("rewards", [[], [[]], [[], [], []], [[1.5]], [[], [2.0], []]])
@pytest.mark.parametrize("baseline", BASELINES)
def test_turn_advantages_zero_sizes(backend, rewards, baseline):
    groups = [0] * len(rewards)
    for integration in ("sum", "weighted_sum"):
        options = {"baseline": baseline, "integration": integration}
        found = run(rewards, groups, backend, **options)
        assert_same(found, stage(rewards, groups, **options))


@pytest.mark.parametrize("value", [0.1, 0.1 * 3, 1 / 3, -0.7, 1e-300, 1e15 / 7])
@pytest.mark.parametrize("size", [1, 3, 64, 65])
def test_equal_returns_have_advantage_exactly_zero(backend, value, size):
    for baseline in ("pooled", "leave_one_out") if size == 1 else BASELINES:
        found = run([[value]] * size, [1] * size, backend, baseline=baseline)
        for x in found[2:]:
            assert x.tolist() == [0.0] * size


def test_given_returns_replace_the_sums(backend):
    given_returns = [0.25, 1.0, -3.0, 0.5, 0.5, 2.0, 2.0, 9.0]
    found = run(MIXED, GROUPS, backend, returns=given_returns)
    assert_same(found, stage(MIXED, GROUPS, returns=given_returns))
    assert found.returns.tolist() == given_returns


def test_outputs_are_written_whole(backend, monkeypatch):
    def poisoned(make):
        def new(*arguments, **options):
            x = make(*arguments, **options)
            return x.fill_(float("nan") if x.is_floating_point() else -1)

        return new

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    assert torch.empty(2).isnan().all()
    for baseline in BASELINES:
        found = run(MIXED, GROUPS, backend, baseline=baseline, integration="weighted_sum")
        assert_same(found, stage(MIXED, GROUPS, baseline=baseline, integration="weighted_sum"))


# Properties


def test_permuting_rollouts_permutes_advantages(backend):
    order = [5, 0, 7, 3, 1, 6, 2, 4]
    for baseline in BASELINES:
        plain = run(MIXED, GROUPS, backend, baseline=baseline)
        moved = run([MIXED[i] for i in order], [GROUPS[i] for i in order], backend, baseline=baseline)
        np.testing.assert_allclose(
            moved.trajectory_advantages, plain.trajectory_advantages[order], rtol=1e-12, atol=1e-13
        )
        rows = torch.split(plain.turn_advantages, [len(row) for row in MIXED])
        expected = torch.cat([rows[i] for i in order])
        np.testing.assert_allclose(moved.turn_advantages, expected, rtol=1e-12, atol=1e-13)


def test_group_ids_are_names_only(backend):
    names = {4: -(2**63), -9: 2**63 - 1, 2**60: 0, 11: 1}
    plain = run(MIXED, GROUPS, backend)
    renamed = run(MIXED, [names[g] for g in GROUPS], backend)
    assert_bits(plain, renamed)


def test_advantages_of_a_group_have_mean_zero(backend):
    rng = np.random.default_rng(1)
    rewards = [rng.standard_normal(3).tolist() for _ in range(12)]
    groups = [i % 3 for i in range(12)]
    found = run(rewards, groups, backend, integration="turn")
    whole = found.trajectory_advantages.reshape(4, 3)
    level = found.turn_advantages.reshape(4, 3, 3)
    assert whole.abs().min() > 1e-3
    np.testing.assert_allclose(whole.sum(0), 0.0, atol=1e-12)
    np.testing.assert_allclose(level.sum(0), 0.0, atol=1e-12)
    np.testing.assert_allclose(whole.var(0), 1.0, rtol=1e-4)


def test_groups_do_not_see_each_other(backend):
    rewards = [*MIXED, [100.0, -50.0], [3.0]]
    alone = run(MIXED, GROUPS, backend)
    beside = run(rewards, [*GROUPS, 77, 77], backend)
    turns = sum(map(len, MIXED))
    np.testing.assert_array_equal(alone.turn_advantages, beside.turn_advantages[:turns])


def test_turn_advantages_same_bits_each_run(backend):
    rng = np.random.default_rng(2)
    rewards = [rng.standard_normal(rng.integers(0, 9)).tolist() for _ in range(40)]
    groups = rng.integers(0, 4, 40).tolist()
    first = run(rewards, groups, backend, num_threads=1)
    torch.use_deterministic_algorithms(True)  # refuses operators that are not, on a GPU
    try:
        for threads in (1, 2):
            assert_bits(first, run(rewards, groups, backend, num_threads=threads))
    finally:
        torch.use_deterministic_algorithms(False)


# Dtypes, layouts, gradients, compilers


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_results_are_rounded_once_at_the_end(backend, name):
    dtype = getattr(torch, name)
    wide = run(MIXED, GROUPS, backend)
    narrow = run(MIXED, GROUPS, backend, dtype=dtype)
    for x, y in zip(narrow, wide, strict=True):
        assert x.dtype == dtype
        assert torch.equal(x, y.to(dtype))


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_rewards_of_low_precision_are_summed_in_float64(backend, name):
    device = need(backend)
    rewards, offsets, ids = tensors(MIXED, GROUPS, device)
    low = rewards.to(getattr(torch, name))
    found = turn_advantages(low, offsets.int(), ids, backend=backend, gamma=0.3)
    rows = [x.tolist() for x in torch.split(low.double().cpu(), [len(row) for row in MIXED])]
    assert_same(AdvantageTensors(*(x.cpu() for x in found)), stage(rows, GROUPS, gamma=0.3))


def test_turn_advantages_takes_strided_tensors(backend):
    rewards, offsets, ids = tensors(MIXED, GROUPS, need(backend))
    strided = [torch.stack([x, x + 1], 1)[:, 0] for x in (rewards, offsets, ids)]
    assert not strided[0].is_contiguous()
    found, plain = (turn_advantages(*x, backend=backend) for x in (strided, (rewards, offsets, ids)))
    assert_bits(found, plain)


def test_results_are_constants_and_own_their_memory(backend):
    rewards, offsets, ids = tensors(MIXED, GROUPS, need(backend))
    own_returns = torch.arange(8, dtype=torch.float64, device=rewards.device)
    rewards.requires_grad_()
    found = turn_advantages(rewards, offsets, ids, returns=own_returns, integration="turn", backend=backend)
    assert not any(x.requires_grad for x in found)
    found.returns.zero_()
    found.turn_advantages.zero_()
    assert own_returns[-1] == 7.0
    assert found.turn_level_advantages.abs().max() > 0


def test_turn_advantages_compiles_whole(backend):
    arguments = tensors(MIXED, GROUPS, need(backend))

    def double(rewards, offsets, ids):
        found = turn_advantages(rewards, offsets, ids, dtype=torch.float32, backend=backend)
        return found.turn_advantages * 2, found.returns

    compiled = torch.compile(double, fullgraph=True, backend="aot_eager")
    for x, y in zip(compiled(*arguments), double(*arguments), strict=True):
        assert torch.equal(x, y)
    # With its shapes unknown too.
    more = tensors([*MIXED, [1.0, 2.0]], [*GROUPS, 4], need(backend))
    for x, y in zip(compiled(*more), double(*more), strict=True):
        assert torch.equal(x, y)


def test_custom_op_passes_opcheck(backend):
    from matchtir.ops.returns.library import turn_advantages as op

    arguments = tensors(MIXED, GROUPS, need(backend))
    options = (0.9, "sum", "turn_index", True, EPS, False, None, backend)
    torch.library.opcheck(op, (*arguments, None, *options))
    torch.library.opcheck(op, (*arguments, torch.ones(8, device=arguments[0].device), *options))


@pytest.mark.skipif(not CUDA, reason="no GPU")
@pytest.mark.parametrize("name", ["reference", "triton"])
def test_turn_advantages_never_waits_for_the_device(name):
    arguments = tensors(MIXED, GROUPS, "cuda")
    turn_advantages(*arguments, backend=name)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = turn_advantages(*arguments, backend=name)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_same(AdvantageTensors(*(x.cpu() for x in found)), stage(MIXED, GROUPS))


# Backends


@pytest.mark.parametrize("name", BACKENDS)
def test_chosen_backend_runs(name, monkeypatch):
    device = need(name)
    seen = []
    for other in _dispatch.available("returns"):
        module = _dispatch.load("returns", other, "cuda" if other == "triton" else "cpu")

        def spy(*arguments, run=module.turn_advantages, other=other):
            seen.append(other)
            return run(*arguments)

        monkeypatch.setattr(module, "turn_advantages", spy)
    monkeypatch.delenv("MATCHTIR_BACKEND", raising=False)
    turn_advantages(*tensors(MIXED, GROUPS, device), backend=name)
    monkeypatch.setenv("MATCHTIR_BACKEND", name)
    turn_advantages(*tensors(MIXED, GROUPS, device))
    assert seen == [name, name]


def test_numba_is_the_default_on_the_cpu(monkeypatch):
    need("numba")
    monkeypatch.delenv("MATCHTIR_BACKEND", raising=False)
    assert _dispatch.load("returns").__name__ == "matchtir.ops.returns.numba"
    assert ops.backends()["returns"]["active"] == "numba"


def test_triton_is_refused_on_the_cpu_unless_interpreted(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(BackendError, match="does not take data on cpu; TRITON_INTERPRET=1"):
        turn_advantages(*tensors(MIXED, GROUPS), backend="triton")


# Refusals


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_rewards_that_are_not_finite_are_named(backend, value):
    rewards = [[1.0], [2.0, value]]
    with pytest.raises(InputError, match=r"turn_rewards\[2\] is (nan|inf|-inf); expected a finite number"):
        run(rewards, [0, 0], backend, validate=True)
    with pytest.raises(InputError, match=r"returns\[1\] is (nan|inf|-inf); expected a finite number"):
        run([[1.0], [2.0]], [0, 0], backend, returns=[1.0, value], validate=True)


def test_sums_that_overflow_are_named(backend):
    with pytest.raises(InputError, match=r"^returns\[1\] is inf; expected a finite number"):
        run([[1.0], [1.7e308, 1.7e308]], [0, 0], backend, validate=True)


@pytest.mark.parametrize("name", ["reference", "triton"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_unchecked_rewards_that_are_not_finite_spoil_their_group_only(name, value):
    # What a device gets, where nothing waits for a check. Equal infinities are no zero advantage.
    device = need(name)
    module = _dispatch.load("returns", name, device)
    rewards, offsets, ids = tensors([[value], [value], [1.0], [2.0]], [0, 0, 1, 1], device)
    for baseline, by_std in product(BASELINES, (True, False)):
        found = module.turn_advantages(rewards, offsets, ids, None, 0.9, "sum", baseline, by_std, EPS, 1)
        for x in found[2:]:
            assert x.isfinite().tolist() == [False, False, True, True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"offsets": torch.tensor([0, 2, 1, 3])},
            r"offsets must rise from 0 to 3 \(turns\); got \[0, 2, 1, 3",
        ),
        ({"offsets": torch.tensor([0, 1, 2, 4])}, "offsets must rise from 0 to 3"),
        ({"offsets": torch.tensor([1, 1, 2, 3])}, "offsets must rise from 0 to 3"),
        ({"offsets": torch.tensor([0, 3])}, r"offsets has shape \(2,\) of torch.int64; .* of shape \(4,\)"),
        ({"offsets": torch.tensor([0.0, 1, 2, 3])}, "offsets .* torch.float32; expected int64 or int32"),
        ({"group_ids": torch.tensor([[0, 1, 2]])}, r"group_ids has shape \(1, 3\) of torch.int64"),
        ({"group_ids": torch.tensor([0.0, 1.0, 2.0])}, "group_ids .* expected int64 or int32"),
        ({"turn_rewards": torch.tensor([1, 2, 3])}, "turn_rewards .* expected a floating type"),
        ({"turn_rewards": torch.ones(3, 1)}, r"turn_rewards has shape \(3, 1\)"),
        ({"returns": torch.ones(2)}, r"returns has shape \(2,\) of torch.float32; .* \(3,\)"),
        (
            {"group_ids": torch.zeros(3, dtype=torch.int64, device="meta")},
            "group_ids is on meta; expected cpu",
        ),
        (
            {"offsets": torch.tensor([0]), "group_ids": torch.tensor([], dtype=torch.int64)},
            "turn_rewards holds 3 turns of no rollout",
        ),
    ],
)
def test_turn_advantages_refuses_what_does_not_fit(change, message):
    ids = torch.zeros(3, dtype=torch.int64)
    arguments = {"turn_rewards": torch.ones(3), "offsets": torch.arange(4), "group_ids": ids}
    with pytest.raises(InputError, match=message):
        turn_advantages(**{**arguments, **change}, backend="reference")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 1.5}, r"gamma is 1.5; expected a number in \[0, 1\]"),
        ({"gamma": float("nan")}, "gamma is nan"),
        ({"gamma": "1"}, "gamma is '1'"),
        ({"eps": 0.0}, "eps is 0.0; expected a finite number above 0"),
        ({"eps": float("inf")}, "eps is inf"),
        ({"integration": "product"}, "integration is 'product'; expected one of sum, mean"),
        ({"baseline": "group"}, "baseline is 'group'; expected one of turn_index, pooled"),
        ({"dtype": torch.int64}, "dtype is torch.int64; expected a floating type"),
        ({"num_threads": 0}, "num_threads is 0; expected a positive integer"),
        ({"backend": "native"}, "op returns has no backend 'native'"),
    ],
)
def test_turn_advantages_refuses_impossible_options(options, message):
    with pytest.raises(ConfigError, match=message):
        turn_advantages(*tensors(MIXED, GROUPS), **options)
