"""Assignments: worked by hand, against brute force and SciPy, and the native core against the reference."""

from __future__ import annotations

import subprocess
import sys
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linear_sum_assignment

from matchtir import InputError, RaggedMatrix
from matchtir import _core as core
from matchtir.ops import greedy, hungarian

BACKENDS = ["native", "reference"]
SIZES = [
    (0, 0),
    (0, 3),
    (3, 0),
    (1, 1),
    (1, 5),
    (5, 1),
    (2, 2),
    (3, 4),
    (4, 3),
    (7, 8),
    (8, 9),
    (9, 7),
    (17, 16),
]


def weight(scores: np.ndarray, matches: np.ndarray) -> float:
    """Total of the matched cells; checks that no column is used twice."""
    rows = np.flatnonzero(matches >= 0)
    assert len(set(matches[rows])) == len(rows)
    return float(scores[rows, matches[rows]].sum())


def brute_force(scores: np.ndarray, partial: bool) -> float:
    """Largest weight over all assignments of the shorter side."""
    s = np.maximum(scores, 0) if partial else scores
    if s.shape[0] > s.shape[1]:
        s = s.T
    m, n = s.shape
    return max(
        (sum(s[i, j] for i, j in enumerate(columns)) for columns in permutations(range(n), m)), default=0.0
    )


def one(scores: np.ndarray, **options: object) -> np.ndarray:
    return hungarian(RaggedMatrix.from_blocks([scores]), **options)[0]


blocks = st.tuples(st.integers(0, 6), st.integers(0, 6)).flatmap(
    lambda shape: arrays(
        np.float64,
        shape,
        # Few distinct values, so that ties are the rule.
        elements=st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0, -0.5]), st.floats(-1, 1, width=32)),
    )
)


@pytest.mark.parametrize("backend", BACKENDS)
def test_hungarian_by_hand(backend):
    # Greedy takes 0.9 and is left with 0.1; the best total is 0.8 + 0.8.
    assert one(np.array([[0.9, 0.8], [0.8, 0.1]]), backend=backend).tolist() == [1, 0]
    assert one(np.array([[0.2], [0.9], [0.5]]), backend=backend).tolist() == [-1, 0, -1]
    assert one(np.array([[-1.0, -2.0]]), backend=backend).tolist() == [0]
    assert one(np.array([[-1.0, -2.0]]), partial=True, backend=backend).tolist() == [-1]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("partial", [False, True])
@given(scores=blocks)
def test_hungarian_equals_brute_force(backend, partial, scores):
    matches = one(scores, partial=partial, backend=backend)
    assert weight(scores, matches) == pytest.approx(brute_force(scores, partial), abs=1e-12)
    if partial:
        rows = np.flatnonzero(matches >= 0)
        assert (scores[rows, matches[rows]] > 0).all()
    else:
        assert (matches >= 0).sum() == min(scores.shape)


@pytest.mark.parametrize("simd", core.build_info()["simd_compiled"])
@pytest.mark.parametrize("m", [1, 2, 5, 31, 32, 33, 64, 130])
@pytest.mark.parametrize("n", [1, 3, 8, 32, 33, 65, 128])
def test_hungarian_equals_scipy(simd, m, n):
    rng = np.random.default_rng(m * 1000 + n)
    dense = rng.standard_normal((m, n))
    sparse = np.where(rng.random((m, n)) < 0.7, 0, rng.random((m, n)))
    integers = rng.integers(0, 4, (m, n)).astype(float)
    try:
        core.set_simd(simd)
        for scores in (dense, sparse, integers):
            rows, cols = linear_sum_assignment(scores, maximize=True)
            assert weight(scores, one(scores)) == pytest.approx(
                scores[rows, cols].sum(), rel=1e-12, abs=1e-12
            )
    finally:
        core.set_simd("auto")


def test_hungarian_is_the_same_on_every_instruction_set():
    if "avx2" not in core.build_info()["simd_compiled"]:
        pytest.skip("only the baseline kernels were compiled for this processor")
    rng = np.random.default_rng(3)
    problems = RaggedMatrix.from_blocks(
        [
            np.round(rng.random((m, n)), digits)
            for m, n in [*SIZES, (40, 60), (60, 60)]
            for digits in (1, 2, 16)
        ]
    )
    try:
        results = []
        for simd in ("baseline", "avx2"):
            core.set_simd(simd)
            assert core.build_info()["simd_active"] == simd
            results.append([hungarian(problems, partial=partial).tolist() for partial in (False, True)])
    finally:
        core.set_simd("auto")
    assert results[0] == results[1]


@pytest.mark.parametrize("partial", [False, True])
def test_hungarian_native_equals_reference_where_the_optimum_is_unique(partial):
    rng = np.random.default_rng(5)
    # Continuous scores: the best assignment is unique with probability 1.
    problems = RaggedMatrix.from_blocks([rng.standard_normal(size) for size in SIZES for _ in range(10)])
    native = hungarian(problems, partial=partial, backend="native")
    assert native.tolist() == hungarian(problems, partial=partial, backend="reference").tolist()


@pytest.mark.parametrize("backend", BACKENDS)
def test_hungarian_prefers_the_first_of_equal_calls(backend):
    same = np.array([[0.5], [0.5], [0.5]])
    assert one(same, partial=True, backend=backend).tolist() == [0, -1, -1]
    # A repeated call beside one that matches nothing, with a spare gold call.
    repeated = np.array([[0.0, 0.0], [0.7, 0.0], [0.7, 0.0]])
    assert one(repeated, partial=True, backend=backend).tolist() == [-1, 0, -1]
    # A call asked for twice takes the first gold call.
    assert one(np.array([[0.0, 0.6, 0.6]]), partial=True, backend=backend).tolist() == [1]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("partial", [False, True])
@given(scores=blocks)
def test_hungarian_obeys_its_tie_rule(backend, partial, scores):
    matches = one(scores, partial=partial, backend=backend)
    owner = {int(j): i for i, j in enumerate(matches) if j >= 0}
    for i, j in enumerate(matches):
        if j < 0:
            assert not any(owner[k] > i and scores[i, k] == scores[owner[k], k] for k in owner)
        else:
            assert not any(k not in owner and scores[i, k] == scores[i, j] for k in range(j))


@given(st.lists(blocks, max_size=6), st.integers(1, 3), st.booleans())
def test_hungarian_batch_equals_loop(problems, threads, partial):
    batch = hungarian(RaggedMatrix.from_blocks(problems), partial=partial, num_threads=threads)
    assert batch.tolist() == [one(s, partial=partial).tolist() for s in problems]


@given(blocks, st.randoms(use_true_random=False))
def test_hungarian_weight_survives_permutation(scores, random):
    rows, cols = list(range(scores.shape[0])), list(range(scores.shape[1]))
    random.shuffle(rows)
    random.shuffle(cols)
    shuffled = scores[rows][:, cols]
    assert weight(shuffled, one(shuffled)) == pytest.approx(weight(scores, one(scores)), abs=1e-12)


def test_hungarian_float32_is_solved_on_its_own_values():
    rng = np.random.default_rng(7)
    for m, n in SIZES:
        scores = rng.random((m, n), dtype=np.float32)
        rows, cols = linear_sum_assignment(scores.astype(np.float64), maximize=True)
        expected = scores[rows, cols].astype(np.float64).sum()
        assert weight(scores.astype(np.float64), one(scores)) == pytest.approx(expected, rel=1e-12)
    assert RaggedMatrix.from_blocks([np.ones((1, 1), np.float32)]).values.dtype == np.float32


def test_hungarian_large_problem_read_in_place():
    # 400 is a multiple of the vector width and 398 is not: one is solved where it lies, one is copied.
    rng = np.random.default_rng(11)
    for m, n in ((400, 400), (398, 398), (300, 400), (400, 300)):
        scores = rng.random((m, n))
        before = scores.copy()
        rows, cols = linear_sum_assignment(scores, maximize=True)
        assert weight(scores, one(scores)) == pytest.approx(scores[rows, cols].sum(), rel=1e-12)
        np.testing.assert_array_equal(scores, before)


def test_hungarian_extreme_magnitudes_stay_optimal():
    scores = np.array([[9.0, 8.0], [8.0, 1.0]])
    for scale in (1e307, 1e300, 1e-300, 5e-324):
        assert one(scores * scale).tolist() == [1, 0], scale
    rng = np.random.default_rng(13)
    for scale in (1e305, 1e-305):
        s = (rng.random((12, 12)) - 0.5) * scale
        rows, cols = linear_sum_assignment(s / scale, maximize=True)
        assert weight(s / scale, one(s)) == pytest.approx((s / scale)[rows, cols].sum(), rel=1e-9)


def test_hungarian_equal_rows_terminate():
    # Rows that differ in the last bits bid each other up in tiny steps.
    base = np.random.default_rng(17).random(60)
    scores = np.nextafter(np.tile(base, (60, 1)), np.arange(60)[:, None] % 2)
    assert sorted(one(scores).tolist()) == list(range(60))
    assert one(np.zeros((50, 50))).tolist() != [0] * 50
    assert one(np.zeros((5, 5)), partial=True).tolist() == [-1] * 5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("solve", [hungarian, greedy])
@pytest.mark.parametrize(("value", "name"), [(np.nan, "NaN"), (np.inf, "inf"), (-np.inf, "-inf")])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_assignment_refuses_scores_that_are_not_finite(backend, solve, value, name, dtype):
    good = np.ones((2, 3), dtype)
    for shape in ((2, 3), (9, 7), (40, 40)):
        bad = np.ones(shape, dtype)
        bad[1, 2] = value
        problems = RaggedMatrix.from_blocks([good, good, bad, bad])
        with pytest.raises(InputError, match=rf"scores\[2\] holds {name} at \(1, 2\); expected finite"):
            solve(problems, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_greedy_by_hand(backend):
    problems = RaggedMatrix.from_blocks([[[0.9, 0.8], [0.8, 0.1]], [[0.5, 0.5], [0.5, 0.5]], [[0.0, -1.0]]])
    assert greedy(problems, backend=backend).tolist() == [[0, 1], [0, 1], [0]]
    assert greedy(problems, partial=True, backend=backend).tolist() == [[0, 1], [0, 1], [-1]]


@given(blocks, st.booleans())
def test_greedy_native_equals_reference(scores, partial):
    problems = RaggedMatrix.from_blocks([scores])
    native = greedy(problems, partial=partial, backend="native")
    assert native.tolist() == greedy(problems, partial=partial, backend="reference").tolist()


@given(blocks)
def test_greedy_has_at_least_half_of_the_maximum(scores):
    scores = np.abs(scores)
    problems = RaggedMatrix.from_blocks([scores])
    assert weight(scores, greedy(problems)[0]) >= 0.5 * weight(scores, hungarian(problems)[0]) - 1e-12


def test_core_refuses_sizes_that_do_not_fit():
    zero, one_ = np.zeros(1, dtype=np.int64), np.ones(1, dtype=np.int64)
    starts = np.array([0, 1])
    with pytest.raises(InputError, match="cells must be 2 offsets that rise from 0 to 4"):
        core.assign(np.zeros(4), one_, one_, starts, starts, False, False, 1, zero)
    with pytest.raises(InputError, match="problem 0 has shape"):
        core.assign(np.zeros(1), one_, 2 * one_, starts, starts, False, False, 1, zero)
    wraps = np.array([4]), np.array([2**62]), np.array([0, 0]), np.array([0, 4])
    with pytest.raises(InputError, match="problem 0 has shape"):
        core.assign(np.zeros(0), *wraps, False, True, 1, np.zeros(4, dtype=np.int64))
    with pytest.raises(InputError, match="one of each a problem"):
        core.assign(np.zeros(1), one_, np.ones(2, dtype=np.int64), starts, starts, False, False, 1, zero)


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space, which needs Linux")
@pytest.mark.skipif(bool(core.build_info()["sanitize"]), reason="the sanitizer aborts without memory")
@pytest.mark.parametrize("threads", [1, 2])
def test_greedy_without_memory_raises_in_any_thread(threads):
    code = (
        "import resource, numpy as np\n"
        "from matchtir import RaggedMatrix\n"
        "from matchtir.ops import greedy\n"
        "scores = RaggedMatrix(np.zeros(40 * 4_000_000, np.float32), [2000] * 40, [2000] * 40)\n"
        "greedy(RaggedMatrix.from_blocks([[[1.0]]]))\n"
        "size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (size + 24 * 2**20,) * 2)\n"
        "try:\n"
        f"    greedy(scores, num_threads={threads})\n"
        "except MemoryError:\n"
        "    print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "refused\n"), done.stderr
