"""The benchmark's inputs, peers and output, on small slices. No test looks at a time."""

# The folder of the benchmark is no package; it must be on the path before its modules are imported.
# ruff: noqa: E402

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

for _package in ("scipy", "ot", "lap", "torch"):
    pytest.importorskip(_package, reason='the benchmark needs pip install "matchtir[bench]"')

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

import peers
import run
import timing
import workloads
from cases.assignment import check_lapx, check_weights, weights
from cases.batch import check_credit
from cases.transport import check_plans
from checks import WrongAnswerError

import matchtir as mt
from matchtir.ops import hungarian, sinkhorn
from matchtir.types import Ragged, RaggedMatrix

pytestmark = pytest.mark.filterwarnings("ignore::matchtir.errors.ConvergenceWarning")


def test_w1_shapes_and_zeros() -> None:
    blocks = workloads.w1()
    assert len(blocks) == 4096
    assert {block.shape[0] for block in blocks} == set(range(1, 21))
    assert {block.shape[1] for block in blocks} == set(range(1, 11))
    for prompt in range(256):
        assert len({block.shape[1] for block in blocks[16 * prompt : 16 * prompt + 16]}) == 1
    zeros = np.mean(np.concatenate([block.ravel() for block in blocks]) == 0)
    assert 0.59 < zeros < 0.61


def test_w1_is_drawn_as_described() -> None:
    rng = np.random.default_rng(0)
    n = rng.integers(1, 11, 256)
    m = rng.integers(1, 21, 16)
    first = rng.random((m[0], n[0]))
    first[rng.random((m[0], n[0])) < 0.6] = 0
    assert (workloads.w1(1)[0] == first).all()


def test_w1_slice_is_the_beginning_of_the_whole() -> None:
    assert all((a == b).all() for a, b in zip(workloads.w1(3), workloads.w1()[:48], strict=True))


def test_w2_and_w3_are_uniform_of_their_shapes() -> None:
    assert workloads.w2().shape == (512, 64, 64)
    assert workloads.w2()[0, 0, 0] == np.random.default_rng(1).random()
    assert workloads.w3().shape == (2000, 2000)
    assert workloads.w3(3)[0, 0] == np.random.default_rng(2).random()


def test_w1tool_calls_look_real() -> None:
    tools = workloads.w1tool(32)
    assert len(tools.gold) == 32
    assert len(tools.predicted) == 512
    assert {len(calls) for calls in tools.predicted} == set(range(1, 21))
    assert max(len(calls) for calls in tools.gold) <= 10
    calls = [call for calls in (*tools.predicted, *tools.gold) for call in calls]
    assert 150 < len({name for name, _ in calls}) <= 200
    arguments = [json.loads(text) for _, text in calls]
    assert max(map(len, arguments)) == 6
    kinds = {type(value) for each in arguments for value in each.values()}
    assert kinds == {str, int, float, bool, list, dict, type(None)}
    own = [
        name in {gold for gold, _ in tools.gold[b // 16]}
        for b, calls in enumerate(tools.predicted)
        for name, _ in calls
    ]
    assert 0.45 < np.mean(own) < 0.6


def test_full_has_ten_turns_and_legal_spans() -> None:
    work = workloads.full(2, 600)
    assert work.shape == (32, 600)
    assert all(len(rollout.turns) == 10 for rollout in work.rollouts)
    tools = workloads.w1tool(2)
    assert [len(rollout.calls) for rollout in work.rollouts] == [len(calls) for calls in tools.predicted]
    assert work.rollouts[0].gold_calls is work.rollouts[15].gold_calls
    assert {rollout.turns[-1].answer is None for rollout in work.rollouts} == {True, False}
    flat = work.spans.values.reshape(32, 20)
    assert (np.diff(flat, axis=1) >= 0).all()
    assert flat.min() >= 0
    assert flat.max() <= 600


@pytest.mark.parametrize("solver", peers.LAPX_SOLVERS)
def test_lapx_agrees_with_ours_and_scipy(solver: str) -> None:
    scores = np.random.default_rng(7).random((3, 9, 9))
    best = check_weights(list(scores), hungarian(workloads.stack(scores)))
    result = peers.lapx_raw(solver, 1 - scores)()
    check_lapx(solver, list(scores), best, result)
    # A cycle of three is not its own inverse, so rows and columns cannot be taken for each other.
    cycle = np.roll(np.eye(3), 1, axis=1)[None]
    rows, cols = peers.lapx_pairs(solver, peers.lapx_raw(solver, 1 - cycle)())[0]
    assert dict(zip(rows.tolist(), cols.tolist(), strict=True)) == {0: 1, 1: 2, 2: 0}


@pytest.mark.parametrize("layout", peers.LAYOUTS)
def test_padding_keeps_the_greatest_weight(layout: str) -> None:
    blocks = workloads.w1(2)
    best = check_weights(blocks, hungarian(RaggedMatrix.from_blocks(blocks)))
    costs = peers.padded(blocks, layout)
    pairs = peers.lapx_pairs("lapjvh_batch", peers.lapx_raw("lapjvh_batch", costs)())
    assert weights(list(-costs), pairs, "padded") == pytest.approx(best, abs=1e-12)


def test_checks_see_a_wrong_assignment() -> None:
    scores = np.array([[0.9, 0.8], [0.8, 0.1]])
    with pytest.raises(WrongAnswerError, match="weigh other"):
        check_weights([scores], Ragged.from_lists([[0, 1]], np.int64))
    with pytest.raises(WrongAnswerError, match="one-to-one"):
        check_weights([scores], Ragged.from_lists([[0, 0]], np.int64))


@pytest.mark.parametrize("method", ["sinkhorn", "log_sinkhorn"])
def test_pot_agrees_with_ours(method: str) -> None:
    costs = [-block for block in workloads.w1(1)]
    ours = sinkhorn(RaggedMatrix.from_blocks(costs), reg=0.1)
    loop = peers.pot_loop(costs, peers.uniform_marginals(costs), 0.1)
    assert check_plans(ours, loop, "loop") == 16
    for index, stack in peers.by_shape(costs).values():
        for b, plan in zip(index, peers.pot_batch([stack], 0.1, method)[0], strict=True):
            assert plan == pytest.approx(ours.plan[b], abs=1e-6)


def test_plan_check_sees_a_wrong_plan() -> None:
    costs = [-block for block in workloads.w1(1)]
    plans = [np.full(cost.shape, 1 / cost.size) for cost in costs]
    with pytest.raises(WrongAnswerError, match="disagree"):
        check_plans(sinkhorn(RaggedMatrix.from_blocks(costs), reg=0.1), plans, "product plans")


@pytest.mark.parametrize("names_first", [False, True])
def test_python_similarity_agrees_with_ours(names_first: bool) -> None:
    tools = workloads.w1tool(2)
    gold = [tools.gold[b // 16] for b in range(32)]
    ours = mt.similarity(
        [workloads.parsed(calls) for calls in tools.predicted], [*map(workloads.parsed, gold)]
    )
    theirs = peers.similarity_loop(tools.predicted, gold, names_first)
    for mine, block in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(np.array(block), abs=1e-12)
    assert ours.values.max() == 1
    assert ours.values.min() == 0


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        (1, 1.0, True),
        (True, 1, False),
        ([1, 2], [2, 1], False),
        ({"a": 1, "b": [0]}, {"b": [0], "a": 1}, True),
    ],
)
def test_json_equal_is_that_of_json(a: object, b: object, equal: bool) -> None:
    assert peers.json_equal(a, b) is equal


def test_full_check_sees_a_wrong_advantage() -> None:
    work = workloads.full(2, 600)
    credit = mt.assign_credit(work.rollouts)
    check_credit(work, credit, 2)
    credit.turn_advantages.values[3] += 0.01
    with pytest.raises(WrongAnswerError, match="group 0"):
        check_credit(work, credit, 2)


def test_unknown_case_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run.main(["--only", "nonsense"])
    assert stop.value.code == 2
    assert "'nonsense'" in capsys.readouterr().err


def test_run_stops_on_a_wrong_answer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def wrong(smoke: bool) -> list[timing.Row]:
        raise WrongAnswerError("two is not three")

    monkeypatch.setitem(run.CASES, "threads", wrong)
    path = tmp_path / "result.json"
    assert run.main(["--only", "threads", "--json", str(path)]) == 1
    assert "threads: wrong answer: two is not three" in capsys.readouterr().err
    assert not path.exists()


def test_smoke_run_writes_table_and_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    assert run.main(["--smoke", "--json", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert not any(line.endswith(("reached", "missed")) for line in lines)
    rows = json.loads(path.read_text(encoding="utf-8"))
    assert rows[0]["case"] == "environment"
    for row in rows:
        assert {"case", "metric", "value", "target", "aim", "unit", "quantiles"} <= row.keys()
        assert isinstance(row["value"], str if row["case"] == "environment" else (int, float))
    assert len({(row["case"], row["metric"]) for row in rows}) == len(rows)
    assert sum(row["target"] is not None for row in rows) == 32 - (find_spec("trl") is None)
    for name in (
        "hungarian W1",
        "hungarian W2",
        "hungarian W3",
        "sinkhorn W1",
        "similarity",
        "scatter",
        "Full",
        "policy loss",
        "logprobs",
        "returns and scatter",
        "rollouts",
        "update of",
        "sandbox",
        "sandbox, hostile",
        "sandbox, memory",
        "environments",
    ):
        assert any(row["case"].startswith(name) and row["target"] is not None for row in rows)


def test_gpu_benchmark_gives_right_answers_on_tiny_inputs() -> None:
    program = Path(run.__file__).with_name("gpu.py")
    done = subprocess.run([sys.executable, program, "--smoke"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("copy", "scatter, 4 × 256 bfloat16", "policy loss and gradient", "time, of TRL's way"):
        assert f"\n  {name}" in done.stdout


def test_gpu_benchmark_stops_at_a_wrong_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import gpu

    right = gpu.eager_policy_loss
    monkeypatch.setattr(gpu, "eager_policy_loss", lambda *arguments: 1.001 * right(*arguments))
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--smoke"])
    assert gpu.main() == 1
    assert "wrong answer: gradients of the policy loss differ by" in capsys.readouterr().err


def test_interleave_takes_turns() -> None:
    order: list[str] = []
    sides = {name: lambda name=name: order.append(name) for name in "ab"}
    times = timing.interleave(sides, budget=0, least=3)
    # A warm-up, then each timed call behind an untimed one of the same side.
    assert order == ["a", "b"] + ["a", "a", "b", "b"] * 3
    assert len(times["a"].runs) == 3


def test_speedup_is_the_ratio_of_medians() -> None:
    row = timing.speedup("c", "m", timing.Times((4.0, 8.0, 6.0)), timing.Times((2.0, 2.0, 3.0)), target=3)
    assert row.value == 3
    assert row.verdict == "reached"
    assert row.quantiles == pytest.approx((2.0, 3.2))
    assert timing.Row("c", "m", 2.1, 2, better="lower").verdict == "missed"
    assert timing.Row("c", "m", 2.1).verdict is None
