"""Transport plans: closed forms, POT and SciPy as oracles, the native core against the reference."""

from __future__ import annotations

import itertools
import os
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linear_sum_assignment

from matchtir import ConfigError, ConvergenceWarning, InputError, Ragged, RaggedMatrix
from matchtir import _core as core
from matchtir.ops import SinkhornResult, sinkhorn, transport_cost

BACKENDS = ["native", "reference"]
SIMD = core.build_info()["simd_compiled"]
SIZES = [(1, 1), (1, 5), (5, 1), (2, 2), (2, 3), (3, 2), (4, 4), (5, 4), (7, 9)]


def solve(cost, a=None, b=None, **options) -> SinkhornResult:
    """One problem; warnings about the iteration limit are the caller's to judge by `converged`."""
    marginals = [None if x is None else Ragged.from_lists([list(x)]) for x in (a, b)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return sinkhorn(RaggedMatrix.from_blocks([np.asarray(cost, dtype=float)]), *marginals, **options)


def plan(cost, a=None, b=None, **options) -> np.ndarray:
    return solve(cost, a, b, **options).plan[0]


def two_by_two(odds, a, b) -> np.ndarray:
    """Plan (2, 2) with Z00 Z11 / (Z01 Z10) = odds and marginals a, b: the root of a quadratic."""
    roots = np.roots([1 - odds, a[1] - b[0] + odds * (a[0] + b[0]), -odds * a[0] * b[0]])
    x = next(x.real for x in roots if max(0, b[0] - a[1]) - 1e-12 <= x.real <= min(a[0], b[0]) + 1e-12)
    return np.array([[x, a[0] - x], [b[0] - x, a[1] - b[0] + x]])


def assert_same(left: SinkhornResult, right: SinkhornResult) -> None:
    """Bit for bit."""
    np.testing.assert_array_equal(left.plan.values, right.plan.values)
    np.testing.assert_array_equal(left.iterations, right.iterations)
    np.testing.assert_array_equal(left.violation, right.violation)
    np.testing.assert_array_equal(left.converged, right.converged)


costs = st.tuples(st.integers(1, 5), st.integers(1, 5)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.floats(-1, 1, width=32))
)


@st.composite
def problems_with_marginals(draw):
    """Cost (m, n), and marginals of sum 1 with zeros among them."""
    cost = draw(costs)
    marginals = []
    for size in cost.shape:
        weights = draw(st.lists(st.integers(0, 4), min_size=size, max_size=size).filter(any))
        marginals.append(np.array(weights) / sum(weights))
    return cost, *marginals


@pytest.fixture
def any_simd():
    """`core.set_simd`, put back afterwards."""
    yield core.set_simd
    core.set_simd("auto")


# Worked by hand


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("c", "reg"), [(1.0, 0.1), (0.3, 0.1), (-2.0, 1.0), (1.0, 0.5), (0.0, 0.01)])
def test_sinkhorn_symmetric_two_by_two_by_hand(backend, c, reg):
    # Uniform marginals and cost 0 on the diagonal, c off it: Z = sigma/2 on it, (1 - sigma)/2 off it.
    sigma = 1 / (1 + np.exp(-c / reg))
    expected = 0.5 * np.array([[sigma, 1 - sigma], [1 - sigma, sigma]])
    np.testing.assert_allclose(plan([[0, c], [c, 0]], reg=reg, backend=backend), expected, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@given(
    cost=arrays(np.float64, (2, 2), elements=st.floats(-1, 1, width=32)),
    a=st.integers(1, 9),
    b=st.integers(1, 9),
    reg=st.sampled_from([0.2, 1.0, 5.0]),
)
def test_sinkhorn_two_by_two_equals_the_quadratic(backend, cost, a, b, reg):
    a, b = np.array([a, 10 - a]) / 10, np.array([b, 10 - b]) / 10
    odds = np.exp((cost[0, 1] + cost[1, 0] - cost[0, 0] - cost[1, 1]) / reg)
    found = plan(cost, a, b, reg=reg, tol=1e-13, max_iter=20_000, backend=backend)
    np.testing.assert_allclose(found, two_by_two(odds, a, b), atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sinkhorn_one_point_marginals_by_hand(backend):
    # With one row or one column there is nothing to choose: the plan is the other marginal.
    a = [0.2, 0.0, 0.8]
    np.testing.assert_allclose(plan([[5.0], [0.0], [-3.0]], a, [1.0], backend=backend)[:, 0], a, atol=1e-15)
    np.testing.assert_allclose(plan([[5.0, 0.0, -3.0]], [1.0], a, backend=backend)[0], a, atol=1e-15)
    # All mass at one column, or row, of many.
    cost = np.arange(6.0).reshape(2, 3)
    found = plan(cost, [0.25, 0.75], [0.0, 1.0, 0.0], backend=backend)
    np.testing.assert_allclose(found, [[0, 0.25, 0], [0, 0.75, 0]], atol=1e-12)
    found = plan(cost, [0.0, 1.0], [0.5, 0.25, 0.25], backend=backend)
    np.testing.assert_allclose(found, [[0, 0, 0], [0.5, 0.25, 0.25]], atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sinkhorn_equal_costs_give_the_product_of_the_marginals(backend):
    a, b = np.array([0.1, 0.2, 0.7]), np.array([0.4, 0.6])
    for c in (0.0, -7.5, 1e6):
        found = solve(np.full((3, 2), c), a, b, backend=backend)
        np.testing.assert_allclose(found.plan[0], np.outer(a, b), atol=1e-9)
        assert found.converged.all()
    np.testing.assert_allclose(plan(np.zeros((3, 4)), backend=backend), np.full((3, 4), 1 / 12), atol=1e-15)


# Against POT and SciPy


@pytest.mark.parametrize("method", ["sinkhorn_log", "sinkhorn"])
@pytest.mark.parametrize("reg", [0.1, 1.0])
@pytest.mark.parametrize("uniform", [True, False])
def test_sinkhorn_equals_pot(method, reg, uniform):
    ot = pytest.importorskip("ot", reason="POT is the oracle here; pip install POT")
    rng = np.random.default_rng(5)
    for m, n in SIZES:
        cost = rng.uniform(-1, 1, (m, n))
        a, b = (np.full(m, 1 / m), np.full(n, 1 / n)) if uniform else (rng.random(m), rng.random(n))
        a, b = a / a.sum(), b / b.sum()
        expected = ot.sinkhorn(a, b, cost, reg, method=method, stopThr=1e-14, numItermax=100_000, warn=False)
        given_marginals = () if uniform else (a, b)
        found = solve(cost, *given_marginals, reg=reg, tol=1e-13, max_iter=50_000)
        assert found.converged.all()
        np.testing.assert_allclose(found.plan[0], expected, rtol=1e-8, atol=1e-12)


def test_sinkhorn_small_reg_equals_pot_in_the_log_domain():
    ot = pytest.importorskip("ot", reason="POT is the oracle here; pip install POT")
    rng = np.random.default_rng(6)
    for m, n in ((3, 3), (4, 6), (6, 4)):
        cost = rng.random((m, n))
        a, b = rng.dirichlet(np.ones(m)), rng.dirichlet(np.ones(n))
        expected = ot.sinkhorn(a, b, cost, 0.005, method="sinkhorn_log", stopThr=1e-11, numItermax=50_000)
        found = solve(cost, a, b, reg=0.005, tol=1e-10, max_iter=200_000)
        assert found.converged.all()
        np.testing.assert_allclose(found.plan[0], expected, atol=1e-8)


@pytest.mark.parametrize("seed", range(6))
def test_sinkhorn_small_reg_reaches_the_best_assignment(seed):
    rng = np.random.default_rng(seed)
    while True:
        cost = rng.random((5, 5))
        totals = sorted(sum(cost[i, j] for i, j in enumerate(p)) for p in itertools.permutations(range(5)))
        if totals[1] - totals[0] > 0.15:  # else the entropy still mixes the best two
            break
    _, cols = linear_sum_assignment(cost)
    excess = []
    for reg in (0.1, 0.03, 0.01, 0.005):
        found = solve(cost, reg=reg, tol=1e-7, max_iter=300_000)
        assert found.converged.all()
        excess.append((found.plan[0] * cost).sum() - totals[0] / 5)
    assert excess == sorted(excess, reverse=True)
    assert -1e-6 <= excess[-1] <= 1e-3
    assert (found.plan[0][range(5), cols] > 0.95 / 5).all()


# Native against reference, one instruction set against the other


@given(problem=problems_with_marginals(), reg=st.sampled_from([0.1, 0.5, 3.0]), uniform=st.booleans())
def test_sinkhorn_native_equals_reference(problem, reg, uniform):
    cost, a, b = problem
    marginals = () if uniform else (a, b)
    options = {"reg": reg, "tol": 1e-12, "max_iter": 3000}
    native = solve(cost, *marginals, backend="native", **options)
    reference = solve(cost, *marginals, backend="reference", **options)
    if native.converged[0] and reference.converged[0]:
        np.testing.assert_allclose(native.plan.values, reference.plan.values, atol=1e-8)
    np.testing.assert_allclose(native.plan[0].sum(axis=0), reference.plan[0].sum(axis=0), atol=1e-12)


@pytest.mark.parametrize(
    ("reg", "tol", "max_iter", "atol"),
    # Scaling steps agree to rounding at any time; the end of slow problems agrees as far as it converged.
    [(1e-3, 0.0, 40, 1e-12), (0.1, 0.0, 40, 1e-12), (10.0, 0.0, 40, 1e-12), (0.02, 1e-12, 2000, 1e-9)],
)
def test_sinkhorn_agrees_on_every_instruction_set(any_simd, reg, tol, max_iter, atol):
    if "avx2" not in SIMD:
        pytest.skip("only the baseline kernels were compiled for this processor")
    rng = np.random.default_rng(8)
    cost = RaggedMatrix.from_blocks([rng.uniform(-1, 1, SIZES[k % len(SIZES)]) for k in range(40)])
    results = []
    for simd in ("baseline", "avx2"):
        any_simd(simd)
        assert core.build_info()["simd_active"] == simd
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            found = sinkhorn(cost, reg=reg, tol=tol, max_iter=max_iter, backend="native")
        assert found.converged.all() == (tol > 0)
        results.append(found.plan.values)
    np.testing.assert_allclose(results[0], results[1], rtol=0, atol=atol)


# A problem does not see its batch


@pytest.mark.parametrize("simd", SIMD)
@pytest.mark.parametrize("count", range(1, 10))
def test_sinkhorn_batch_of_one_shape_equals_loop(any_simd, simd, count):
    any_simd(simd)
    rng = np.random.default_rng(count)
    # Different scales, so that neighbours stop and absorb at different steps.
    blocks = [rng.uniform(-1, 1, (3, 4)) * 10.0 ** (k % 4 - 2) for k in range(count)]
    options = {"reg": 0.01, "max_iter": 300, "tol": 1e-9}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        batch = sinkhorn(RaggedMatrix.from_blocks(blocks), **options)
    alone = [solve(block, **options) for block in blocks]
    np.testing.assert_array_equal(batch.plan.values, np.concatenate([x.plan.values for x in alone]))
    np.testing.assert_array_equal(batch.iterations, [x.iterations[0] for x in alone])
    np.testing.assert_array_equal(batch.violation, [x.violation[0] for x in alone])
    assert len(set(batch.iterations.tolist())) > 1 or count < 3


@pytest.mark.parametrize("simd", SIMD)
def test_sinkhorn_ragged_batch_equals_loop_on_any_number_of_threads(any_simd, simd):
    any_simd(simd)
    rng = np.random.default_rng(21)
    shapes = [(0, 3), (3, 0), (0, 0), (1, 1), (2, 3), (3, 2), (2, 2), (5, 5)]
    blocks = [rng.uniform(-1, 1, shapes[k]) for k in rng.integers(0, len(shapes), 120)]
    a = [rng.dirichlet(np.ones(len(x))).tolist() if len(x) else [] for x in blocks]
    b = [rng.dirichlet(np.ones(x.shape[1])).tolist() if x.shape[1] else [] for x in blocks]
    cost = RaggedMatrix.from_blocks(blocks)
    marginals = (Ragged.from_lists(a), Ragged.from_lists(b))
    one = sinkhorn(cost, *marginals, num_threads=1, reg=0.3, max_iter=5000)
    for threads in (2, 3, 64):
        assert_same(sinkhorn(cost, *marginals, num_threads=threads, reg=0.3, max_iter=5000), one)
    for k, block in enumerate(blocks):
        alone = solve(block, a[k], b[k], reg=0.3, max_iter=5000)
        np.testing.assert_array_equal(alone.plan[0], one.plan[k])
        assert (alone.iterations[0], alone.violation[0]) == (one.iterations[k], one.violation[k])


# Properties


@pytest.mark.parametrize("backend", BACKENDS)
@given(
    problem=problems_with_marginals(),
    reg=st.sampled_from([0.003, 0.1, 2.0]),
    max_iter=st.sampled_from([1, 2, 7, 200]),
    tol=st.sampled_from([0.0, 1e-9, 1e-3]),
)
def test_sinkhorn_marginals_and_report_are_true(backend, problem, reg, max_iter, tol):
    cost, a, b = problem
    found = solve(cost, a, b, reg=reg, max_iter=max_iter, tol=tol, backend=backend)
    z = found.plan[0]
    assert np.isfinite(z).all()
    assert (z >= 0).all()
    np.testing.assert_allclose(z.sum(axis=0), b, atol=1e-12)
    violation = np.abs(z.sum(axis=1) - a).sum()
    assert found.violation[0] == pytest.approx(violation, abs=1e-13)
    assert found.converged.tolist() == [bool(found.violation[0] <= tol)]
    assert 1 <= found.iterations[0] <= max_iter
    if found.iterations[0] < max_iter:
        assert found.converged[0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_sinkhorn_stops_at_the_first_step_within_tolerance(backend):
    cost = np.random.default_rng(1).random((4, 6))
    found = solve(cost, reg=0.1, tol=1e-9, backend=backend)
    steps = int(found.iterations[0])
    assert steps > 3
    assert found.converged[0]
    before = solve(cost, reg=0.1, tol=1e-9, max_iter=steps - 1, backend=backend)
    assert not before.converged[0]
    assert before.iterations[0] == steps - 1
    np.testing.assert_array_equal(
        solve(cost, tol=1e-9, max_iter=steps, backend=backend).plan[0], found.plan[0]
    )


@given(problem=problems_with_marginals(), reg=st.sampled_from([0.05, 0.3, 2.0]))
def test_sinkhorn_plan_has_the_optimal_form(problem, reg):
    # Z_ij = exp((f_i + g_j - C_ij) / reg): every 2 x 2 minor of log Z + C / reg adds up to 0.
    cost, a, b = problem
    a, b = (a + 0.1) / (a + 0.1).sum(), (b + 0.1) / (b + 0.1).sum()
    x = np.log(plan(cost, a, b, reg=reg)) + cost / reg
    minors = x - x[:1] - x[:, :1] + x[0, 0]
    assert np.abs(minors).max() <= 1e-9 * (1 + np.abs(cost).max() / reg)


@given(costs, st.integers(-3, 3), st.randoms(use_true_random=False))
def test_sinkhorn_follows_permutation_and_ignores_shifts(cost, shift, random):
    rows, cols = list(range(cost.shape[0])), list(range(cost.shape[1]))
    random.shuffle(rows)
    random.shuffle(cols)
    expected = plan(cost, reg=0.3, tol=1e-12, max_iter=5000)
    found = plan(cost[rows][:, cols] + shift, reg=0.3, tol=1e-12, max_iter=5000)
    np.testing.assert_allclose(found, expected[rows][:, cols], atol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
@given(
    problem=problems_with_marginals(),
    reg=st.sampled_from([1e-3, 0.05, 1.0]),
    where=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    closed_cost=st.sampled_from([-1.0, 0.0, 1.0]),
    mass=st.sampled_from([0.0, 1e-120]),
)
def test_sinkhorn_rows_and_columns_without_mass_change_nothing(
    backend, problem, reg, where, closed_cost, mass
):
    cost, a, b = problem
    a, b = (a + 0.1) / (a + 0.1).sum(), (b + 0.1) / (b + 0.1).sum()
    options = {"reg": reg, "max_iter": 400, "tol": 1e-10, "backend": backend}
    i, j = min(where[0], len(a)), min(where[1], len(b))
    wide = np.insert(np.insert(cost, i, closed_cost, axis=0), j, closed_cost, axis=1)
    found = solve(wide, np.insert(a, i, mass), np.insert(b, j, mass), **options)
    assert np.isfinite(found.plan.values).all()
    assert (found.plan[0][i] == 0).all()
    assert (found.plan[0][:, j] == 0).all()
    expected = solve(cost, a, b, **options)
    open_cells = np.delete(np.delete(found.plan[0], i, axis=0), j, axis=1)
    if found.converged[0] and expected.converged[0]:
        np.testing.assert_allclose(open_cells, expected.plan[0], atol=1e-7)
    assert found.converged[0] == expected.converged[0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_sinkhorn_closed_row_keeps_the_costs_of_its_column(backend):
    # The closed row is the only one for which column 1 is cheap; the others differ there by 2 reg.
    cost, a, b = [[0, 1], [0, 1.002], [0, 0]], [0.5, 0.5, 0.0], [0.4, 0.6]
    expected = plan(cost[:2], a[:2], b, reg=1e-3, backend=backend)
    np.testing.assert_allclose(plan(cost, a, b, reg=1e-3, backend=backend)[:2], expected, atol=1e-8)
    for steps in (1, 2, 3):
        assert np.isfinite(plan(cost, a, b, reg=1e-3, max_iter=steps, backend=backend)).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mass", [1e-30, 1e-3, 40.0, 1e6, 1e70])
def test_sinkhorn_scales_with_the_mass(backend, mass):
    # Rows 2 and 3 must use the dear corner, so the scalings grow and are absorbed; inside each corner
    # costs differ by reg, which a plan cut off at 1 would forget.
    reg = 1e-3
    near = np.array([[0, 1, 0, 1], [1, 0, 1, 0]] * 2) * reg
    cost = np.kron([[0, 0], [0, 1]], np.ones((2, 2))) + near
    a, b = np.full(4, 0.25), np.array([0.2, 0.2, 0.3, 0.3])
    expected = solve(cost, a, b, reg=reg, tol=1e-8, max_iter=5000, backend=backend)
    assert expected.converged[0]
    assert expected.plan[0][0, 2] == pytest.approx(0.25 / (1 + np.exp(-1)), abs=1e-6)
    found = solve(cost, a * mass, b * mass, reg=reg, tol=1e-8 * mass, max_iter=5000, backend=backend)
    np.testing.assert_allclose(found.plan[0] / mass, expected.plan[0], atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("total", [1.0, 1e-40, 1e40])
def test_sinkhorn_counts_mass_below_1e_100_of_the_sum_as_none(backend, total):
    for share, kept in ((1e-98, True), (1e-102, False)):
        a, b = np.array([1.0, share]) * total, np.array([0.5, 0.5]) * total
        z = plan([[0.0, 0.1], [0.1, 0.0]], a, b, tol=1e-9 * total, backend=backend)
        assert (z[1] > 0).tolist() == [kept] * 2
        if kept:
            assert z[1].sum() == pytest.approx(share * total, rel=1e-3)


# Extremes


@pytest.mark.parametrize("scale", [1.0, 1e150])
@pytest.mark.parametrize("reg", [1e-290, 1e-200, 1e-100, 1e-20, 1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e3, 1e6])
def test_sinkhorn_is_finite_at_any_reg(reg, scale):
    assert_plans_are_sound(reg, scale, "native", atol=1e-12)


@pytest.mark.parametrize("reg", [1e-4, 1e-2, 1.0, 1e6])
def test_sinkhorn_reference_is_finite_at_moderate_reg(reg):
    # Exponents of 1e4 carry rounding errors of 1e-12 in the plan.
    assert_plans_are_sound(reg, 1.0, "reference", atol=1e-10)


def assert_plans_are_sound(reg, scale, backend, atol):
    """Finite, not negative, columns exact; costs of few values among them, long before convergence too."""
    rng = np.random.default_rng(2)
    for m, n in SIZES:
        for cost in (rng.uniform(-1, 1, (m, n)), rng.choice([-1.0, 0.0, 1.0], (m, n)), np.eye(m, n)):
            for a, b in ((None, None), (rng.dirichlet(np.ones(m)), rng.dirichlet(np.ones(n)))):
                for steps in (1, 2, 30, 300):
                    found = solve(cost * scale, a, b, reg=reg, max_iter=steps, backend=backend)
                    z = found.plan[0]
                    assert np.isfinite(z).all()
                    assert (z >= 0).all()
                    rows, columns = (1 / m, 1 / n) if a is None else (a, b)
                    np.testing.assert_allclose(z.sum(axis=0), columns, atol=atol)
                    violation = np.abs(z.sum(axis=1) - rows).sum()
                    assert found.violation[0] == pytest.approx(violation, abs=1e-13)


def test_sinkhorn_absorption_is_exact_after_many_steps():
    # Past some 138 reg of dual change the scalings are absorbed, again and again.
    cost = np.array([[0.0, 0.0], [0.0, 1.0]])
    a, b = [0.5, 0.5], [0.4, 0.6]
    for reg in (1e-3, 3e-4, 1e-4):
        found = solve(cost, a, b, reg=reg, tol=1e-12, max_iter=100_000)
        assert found.converged[0]
        np.testing.assert_allclose(found.plan[0], [[0.0, 0.5], [0.4, 0.1]], atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sinkhorn_marginals_that_vanish_are_never_a_plan_of_nan(backend):
    # Every row counts as empty, the column does not: refused, or a finite plan.
    try:
        with np.errstate(invalid="ignore"):
            z = plan([[0.0], [0.0]], [5e-101, 5e-101], [1e-100], backend=backend)
    except InputError:
        return
    assert np.isfinite(z).all()


def test_sinkhorn_refuses_marginals_whose_sum_is_infinite():
    big = [1e308, 1e308]
    with np.errstate(over="ignore", invalid="ignore"), pytest.raises(InputError, match="sum"):
        solve([[0.0, 1.0], [1.0, 0.0]], big, big)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sinkhorn_problems_without_rows_or_columns(backend):
    blocks = [np.zeros((0, 3)), np.zeros((3, 0)), np.zeros((0, 0)), np.zeros((1, 1))]
    found = sinkhorn(RaggedMatrix.from_blocks(blocks), backend=backend)
    assert [z.shape for z in found.plan] == [(0, 3), (3, 0), (0, 0), (1, 1)]
    assert found.plan[3].tolist() == [[1.0]]
    assert found.iterations.tolist() == [0, 0, 0, 1]
    assert found.violation.tolist() == [0.0] * 4
    assert found.converged.tolist() == [True] * 4
    a, b = Ragged.from_lists([[], [0.5, 0.5, 9.0], [], [2.0]]), Ragged.from_lists([[1.0] * 3, [], [], [2.0]])
    assert sinkhorn(RaggedMatrix.from_blocks(blocks), a, b, backend=backend).plan[3].tolist() == [[2.0]]
    nothing = sinkhorn(RaggedMatrix.from_blocks([]), backend=backend)
    assert (len(nothing.plan), nothing.plan.values.dtype) == (0, np.float64)
    assert nothing.converged.tolist() == nothing.iterations.tolist() == []


def test_sinkhorn_takes_float32_costs_and_leaves_them_alone():
    cost = np.random.default_rng(3).random((3, 4), dtype=np.float32)
    problem = RaggedMatrix.from_blocks([cost])
    assert problem.values.dtype == np.float32
    found = sinkhorn(problem)
    assert found.plan.values.dtype == np.float64
    np.testing.assert_array_equal(found.plan[0], plan(cost.astype(np.float64)))
    np.testing.assert_array_equal(problem[0], cost)


# The warning


@pytest.mark.parametrize("backend", BACKENDS)
def test_sinkhorn_warns_once_with_count_and_worst(backend):
    rng = np.random.default_rng(4)
    hard = [rng.random((4, 4)), rng.random((5, 6))]
    cost = RaggedMatrix.from_blocks([hard[0], np.zeros((1, 1)), hard[1], np.zeros((2, 2))])
    with pytest.warns(ConvergenceWarning) as caught:
        found = sinkhorn(cost, reg=0.02, max_iter=2, tol=1e-9, backend=backend)
    assert len(caught) == 1
    worst = int(np.argmax(found.violation))
    assert worst in (0, 2)
    message = str(caught[0].message)
    assert message.startswith("2 of 4 transport problems stopped at max_iter=2 before tol=1e-09;")
    assert f"violation {found.violation[worst]:.3g} (problem {worst})" in message
    assert os.path.samefile(caught[0].filename, __file__)
    assert found.converged.tolist() == [False, True, False, True]


def test_sinkhorn_does_not_warn_when_all_converged():
    cost = RaggedMatrix.from_blocks([np.eye(3), np.zeros((0, 2))])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sinkhorn(cost).converged.all()


# Refusals


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("value", "name"),
    [(np.nan, "NaN"), (np.inf, "inf"), (-np.inf, "-inf"), (1e151, "1e\\+151"), (-1e151, "-1e\\+151")],
)
def test_sinkhorn_refuses_costs_that_are_not_finite(backend, value, name):
    good, bad = np.ones((3, 2)), np.ones((2, 3))
    bad[1, 2] = value
    problems = RaggedMatrix.from_blocks([good, np.ones((0, 4)), bad, bad])
    with pytest.raises(InputError, match=rf"^cost\[2\] holds {name} at \(1, 2\); expected finite"):
        sinkhorn(problems, backend=backend)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reg": 0}, "reg is 0; expected a positive"),
        ({"reg": 0.0}, "reg is 0.0; expected a positive"),
        ({"reg": -1.0}, "reg is -1.0; expected a positive"),
        ({"reg": 1e-300}, "reg is 1e-300; expected a positive"),
        ({"reg": np.nan}, "reg is nan; expected a positive"),
        ({"reg": np.inf}, "reg is inf; expected a positive"),
        ({"tol": -1e-9}, "tol is -1e-09; expected"),
        ({"tol": np.nan}, "tol is nan; expected"),
        ({"tol": np.inf}, "tol is inf; expected"),
        ({"max_iter": 0}, "max_iter is 0; expected a positive integer"),
        ({"max_iter": -5}, "max_iter is -5; expected a positive integer"),
        ({"max_iter": True}, "max_iter is True; expected a positive integer"),
        ({"max_iter": 10.0}, "max_iter is 10.0; expected a positive integer"),
    ],
)
def test_sinkhorn_refuses_impossible_settings(options, message):
    with pytest.raises(ConfigError, match=message):
        sinkhorn(RaggedMatrix.from_blocks([[[1.0]]]), **options)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([[0.5, 0.5], [-0.1, 1.1]], [[1.0], [1.0]], r"a\[1\] holds -0.1 at 0; expected finite, non-negative"),
        ([[0.5, 0.5], [0.5, np.nan]], [[1.0], [1.0]], r"a\[1\] holds nan at 1; expected finite"),
        ([[0.5, 0.5], [0.5, 0.5]], [[1.0], [np.inf]], r"b\[1\] holds inf at 0; expected finite"),
        ([[0.5, 0.5], [0.5, 0.6]], [[1.0], [1.0]], r"problem 1 sum to 1.1 and 1; expected equal and pos"),
        ([[0.5, 0.5], [0.0, 0.0]], [[1.0], [0.0]], r"problem 1 sum to 0 and 0; expected equal and positive"),
        ([[0.5, 0.5], [1.0]], [[1.0], [1.0]], "marginal a must have one entry a row"),
        ([[0.5, 0.5]], [[1.0]], "marginal a must have one entry a row"),
        ([[0.5, 0.5], [0.5, 0.5]], [[1.0], [0.5, 0.5]], "marginal b must have one entry a column"),
    ],
)
def test_sinkhorn_refuses_marginals_that_do_not_fit(a, b, message):
    cost = RaggedMatrix.from_blocks([np.zeros((2, 1))] * 2)
    with pytest.raises(InputError, match=message):
        sinkhorn(cost, Ragged.from_lists(a), Ragged.from_lists(b))


def test_sinkhorn_takes_sums_that_differ_by_rounding_and_no_more():
    cost = RaggedMatrix.from_blocks([np.zeros((2, 1))])
    for error, fits in ((1e-12, True), (1e-8, False)):
        a, b = Ragged.from_lists([[0.5, 0.5 + error]]), Ragged.from_lists([[1.0]])
        if fits:
            assert sinkhorn(cost, a, b).converged.all()
        else:
            with pytest.raises(InputError, match="sum to"):
                sinkhorn(cost, a, b)


def test_sinkhorn_refuses_one_marginal_alone():
    cost = RaggedMatrix.from_blocks([np.zeros((2, 1))])
    for marginals in ({"a": Ragged.from_lists([[0.5, 0.5]])}, {"b": Ragged.from_lists([[1.0]])}):
        with pytest.raises(InputError, match="only one of the marginals a and b was given"):
            sinkhorn(cost, **marginals)


def test_core_sinkhorn_refuses_sizes_that_do_not_fit():
    def call(**changes):
        sizes = {"rows": [2], "cols": [1], "cells": [0, 2], "row_starts": [0, 2], "col_starts": [0, 1]}
        floats = {"cost": [0, 0], "a": [0.5, 0.5], "b": [1.0], "plan": [0, 0], "violation": [0]}
        x = {k: np.array(changes.get(k, v), dtype=np.int64) for k, v in sizes.items()}
        x |= {k: np.array(changes.get(k, v), dtype=float) for k, v in floats.items()}
        iterations = np.zeros(changes.get("iterations", 1), dtype=np.int64)
        core.sinkhorn(
            x["cost"], x["rows"], x["cols"], x["cells"], x["a"], x["row_starts"], x["b"], x["col_starts"],
            0.1, 1e-9, 10, 1, x["plan"], iterations, x["violation"],
        )  # fmt: skip
        return x["plan"].tolist()

    assert call() == [0.5, 0.5]
    for changes, message in (
        ({"plan": [0.0]}, "one entry a cell"),
        ({"violation": []}, "one entry a cell"),
        ({"iterations": 2}, "one entry a cell"),
        ({"cells": [0, 1]}, "cells must be 2 offsets that rise from 0 to 2"),
        ({"rows": [1]}, "problem 0 has shape"),
        ({"rows": [-2], "cols": [-1]}, "problem 0 has shape"),
        ({"a": [1.0]}, "row_starts must be 2 offsets that rise from 0 to 1"),
        ({"b": [0.5, 0.5]}, "col_starts must be 2 offsets that rise from 0 to 2"),
        ({"b": [0.5, 0.5], "col_starts": [0, 2]}, "problem 0 has 1 columns but 2 entries of b"),
        ({"cols": [1, 1]}, "one of each a problem"),
    ):
        with pytest.raises(InputError, match=message):
            call(**changes)


# Costs from similarities


def test_transport_cost_by_hand():
    scores = RaggedMatrix.from_blocks([[[0.2, 0.6], [0.4, 1.0]], [[0.0, 0.5]]])
    linear = transport_cost(scores, "linear")
    assert [x.tolist() for x in linear] == [[[-0.2, -0.6], [-0.4, -1.0]], [[-0.0, -0.5]]]
    # Minimum and maximum are the block's own: 0.2 and 1.0, then 0 and 0.5.
    normalized = transport_cost(scores, "normalized")
    width, second = 0.8 + 1e-6, 0.5 + 1e-6
    np.testing.assert_allclose(
        normalized[0], [[1, 1 - 0.4 / width], [1 - 0.2 / width, 1 - 0.8 / width]], atol=1e-15
    )
    np.testing.assert_allclose(normalized[1], [[1, 1 - 0.5 / second]], atol=1e-15)
    np.testing.assert_allclose(transport_cost(scores, "normalized", eps=0.2)[0][1], [0.8, 0.2], atol=1e-15)
    exponential = transport_cost(scores, "exponential")
    expected = [[-1.2214027581601699, -1.8221188003905089], [-1.4918246976412703, -2.718281828459045]]
    np.testing.assert_allclose(exponential[0], expected, rtol=1e-15)
    assert transport_cost(scores).values.tolist() == linear.values.tolist()


def test_transport_cost_of_equal_scores_and_empty_blocks():
    blocks = [np.zeros((0, 3)), np.full((2, 2), 0.7), np.zeros((2, 0)), [[0.25]], np.zeros((0, 0))]
    scores = RaggedMatrix.from_blocks(blocks)
    for cost, value in (("linear", -0.7), ("normalized", 1.0), ("exponential", -np.exp(0.7))):
        found = transport_cost(scores, cost)
        assert [x.shape for x in found] == [(0, 3), (2, 2), (2, 0), (1, 1), (0, 0)]
        assert found[1].tolist() == [[value] * 2] * 2
        assert len(transport_cost(RaggedMatrix.from_blocks([]), cost)) == 0
        assert transport_cost(RaggedMatrix.from_blocks([np.zeros((0, 2))] * 2), cost).values.tolist() == []


def test_transport_cost_is_float64_and_leaves_its_input_alone():
    block = np.array([[0.1, 0.9]], dtype=np.float32)
    scores = RaggedMatrix.from_blocks([block])
    for cost in ("linear", "normalized", "exponential"):
        assert transport_cost(scores, cost).values.dtype == np.float64
    np.testing.assert_array_equal(scores[0], block)


def test_transport_cost_refuses_an_unknown_name():
    with pytest.raises(ConfigError, match="cost is 'euclidean'; expected 'linear', 'normalized' or 'expon"):
        transport_cost(RaggedMatrix.from_blocks([[[1.0]]]), "euclidean")
