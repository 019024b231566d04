"""The engine: stages of ZeRO, two processes, what is written and read again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers", reason='the engine needs pip install "matchtir[train]"')
pytest.importorskip("deepspeed", reason='the engine needs pip install "matchtir[train]"')

import torch
from update_worker import made_up, settings, tiny_model, train, two_rollouts, with_adapters, zero

from matchtir.errors import ConfigError, InputError
from matchtir.train import deepspeed as engines
from matchtir.train import processes
from matchtir.train.engine_settings import engine_config, lr_factor
from matchtir.train.policy import PolicyModel

WORKER = Path(__file__).with_name("update_worker.py")

# A step of AdamW is the gradient by its own size, so where a gradient is all rounding a step may be anything
# up to the learning rate, 1e-3. Here none is that small: after six steps, which move weights up to 4e-3,
# runs that sum in another order were 1.2e-7 apart at most, the last place of a weight of 1.
ROUNDING = {"rtol": 0, "atol": 1e-6}


def assert_same(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], **(tolerance or ROUNDING), msg=name)


def moved(weights):
    """The largest change from the weights that training starts with."""
    start = tiny_model().state_dict()
    return max(float((weights[name] - start[name]).abs().max()) for name in weights)


@pytest.fixture(scope="module")
def alone():
    """Weights and metrics after five updates of one process without ZeRO."""
    weights, metrics, *_ = train(settings())
    assert moved(weights) > 2e-3
    return weights, metrics


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes found, see the worker; and what each of them saw."""
    path = tmp_path_factory.mktemp("two") / "results.pt"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    environment = {k: v for k, v in os.environ.items() if k not in names}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    # In a group of their own, so that processes that wait for each other can be ended together.
    with subprocess.Popen(
        [*command, str(WORKER), str(path)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            said, _ = process.communicate(timeout=400)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 0, said[-4000:]
    found = torch.load(path, weights_only=False)
    return found["first"], found["shares"]


# Processes and stages


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_stages_of_zero_train_the_same_weights(stage, alone):
    weights, metrics, engine, _ = train(settings(deepspeed=zero(stage)))
    assert engine.deepspeed.zero_optimization_stage() == stage
    assert_same(weights, alone[0])
    for name, value in metrics.items():
        assert value == pytest.approx(alone[1][name], rel=1e-3, abs=1e-5), name


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_processes_train_the_weights_of_one(stage, alone, two):
    found = two[0][f"stage {stage}"]
    assert_same(found["weights"], alone[0])
    for name in alone[1].keys() - {"tokens", "padding"}:
        assert found["metrics"][name] == pytest.approx(alone[1][name], rel=1e-3, abs=1e-5), name


def test_processes_see_the_same_metrics(two):
    shares = two[1]
    assert len(shares) == 2
    for stage in range(4):
        assert shares[0][f"stage {stage}"] == shares[1][f"stage {stage}"]


def test_process_without_rollouts_does_its_part(two):
    weights, *_ = train(settings(minibatches=1), updates=2, data=two_rollouts)
    assert_same(two[0]["few rollouts"]["weights"], weights)


def test_two_processes_with_a_shared_reference_train_the_weights_of_one(two):
    config = settings(loss={"beta": 0.1}, entropy=0.01)
    weights, metrics, *_ = train(config, tiny_model(tied=False), updates=2, reference=True)
    found = two[0]["stage 3, reference, checkpointing"]
    assert_same(found["weights"], weights)
    assert found["metrics"]["kl"] == pytest.approx(metrics["kl"], rel=1e-3)
    assert found["metrics"]["entropy_loss"] == pytest.approx(metrics["entropy_loss"], rel=1e-4)


def test_two_processes_train_the_adapters_of_one(two):
    config = settings(loss={"beta": 0.1}, entropy=0.01)
    weights, metrics, *_ = train(config, with_adapters(tiny_model()), updates=2, reference=True)
    found = two[0]["stage 3, adapters, reference"]
    assert_same(found["weights"], weights)
    assert found["metrics"]["kl"] == pytest.approx(metrics["kl"], rel=1e-3)


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_all_processes_leave_out_what_is_not_finite_on_one(stage, two):
    found, shares = two[0][f"skip {stage}"], [share[f"skip {stage}"] for share in two[1]]
    assert all(torch.equal(found["kept"][name], found["before"][name]) for name in found["before"])
    for share in shares:
        assert [(m["skipped"], m["steps"]) for m in share["metrics"]] == [(1, 0), (1, 0)]
        assert share["in_a_row"] == 2
        assert (share["last"]["skipped"], share["last"]["steps"]) == (0, 1)
    good = [share["last"]["grad_norm"] for share in shares]
    assert 0 < good[0] == good[1] < 100


def test_gathered_weights_need_no_other_process(two):
    # One process asked three times as often as the other, which would have hung.
    weights = two[0]["stage 3"]["weights"]
    model = tiny_model()
    model.load_state_dict(weights)
    with torch.no_grad():
        logits = model(torch.arange(6)[None]).logits
    for share in two[1]:
        torch.testing.assert_close(share["generate"]["logits"], logits, rtol=1e-4, atol=1e-5)
        assert (share["generate"]["training"], share["generate"]["after"]) == (False, True)


def test_consolidated_state_of_two_processes_is_the_gathered_weights(two):
    found = two[0]["state"]["weights"]
    expected = two[0]["stage 3"]["weights"]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_offloading_changes_no_weight(stage, alone):
    changes = {"offload_optimizer": True, "offload_parameters": stage == 3}
    weights, *_ = train(settings(deepspeed=zero(stage, **changes)))
    assert_same(weights, alone[0])


# bfloat16


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bfloat16_trains_with_master_weights(stage, tmp_path):
    # Steps of 1e-6 are lost in bfloat16, where weights of 0.1 are 5e-4 apart; the masters add them up.
    config = settings(policy={"dtype": "bfloat16"}, deepspeed=zero(stage), lr=1e-6, warmup_steps=0)
    weights, metrics, engine, _ = train(config)
    assert metrics["skipped"] == 0
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    assert metrics["entropy"] == pytest.approx(4.4, abs=0.3)
    if stage < 2:
        # Stage 1 where 0 is asked for, whose sums of gradients would be bfloat16.
        assert engine.stage == 1
        flat = torch.cat(
            [x.detach().flatten() for x in engine.deepspeed.optimizer.fp32_groups_flat_partition]
        )
        assert flat.dtype == torch.float32
        assert (flat != flat.bfloat16().float()).float().mean() > 0.5
        return
    engines.save_state(engine, tmp_path, {})
    start = tiny_model().state_dict()
    for name, master in engines.consolidate(tmp_path).items():
        assert master.dtype == torch.float32
        assert 0 < float((master - start[name].bfloat16().float()).abs().max()) < 2e-5, name


# State


@pytest.mark.parametrize(
    ("stage", "dtype"),
    [(0, "float32"), (1, "float32"), (2, "float32"), (3, "float32"), (0, "bfloat16"), (2, "bfloat16")],
)
def test_training_goes_on_bit_for_bit(stage, dtype, tmp_path):
    config = settings(deepspeed=zero(stage), policy={"dtype": dtype})
    _, _, engine, updater = train(config, updates=2)
    engines.save_state(engine, tmp_path, {"step": 2, "names": ["a"]})
    saved = engines.full_state_dict(engine)
    updater.update(*made_up(seed=7))
    expected, lr = engines.full_state_dict(engine), engine.lr
    _, _, engine, updater = train(config, tiny_model(seed=3), updates=1)
    assert engines.load_state(engine, tmp_path) == {"step": 2, "names": ["a"]}
    loaded = engines.full_state_dict(engine)
    assert all(torch.equal(saved[name], loaded[name]) for name in saved)
    updater.update(*made_up(seed=7))
    found = engines.full_state_dict(engine)
    assert engine.lr == lr
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("adapters", [False, True])
def test_consolidated_state_is_the_weights(stage, adapters, tmp_path):
    model = with_adapters(tiny_model()) if adapters else tiny_model(tied=stage % 2 == 0)
    weights, _, engine, _ = train(settings(deepspeed=zero(stage)), model, updates=1)
    engines.save_state(engine, tmp_path, {})
    found = engines.consolidate(tmp_path)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weights[name]) for name in weights)


def test_folder_without_state_is_refused(tmp_path):
    engine = engines.initialize(PolicyModel(tiny_model()), settings(), 10)
    with pytest.raises(InputError, match="holds no state of a run"):
        engines.load_state(engine, tmp_path)
    with pytest.raises(InputError, match="holds no state of a run"):
        engines.consolidate(tmp_path)


@pytest.mark.parametrize(("wrote", "reads"), [(0, 2), (2, 0)])
def test_state_of_another_stage_is_refused(wrote, reads, tmp_path):
    *_, engine, _ = train(settings(deepspeed=zero(wrote)), updates=1)
    engines.save_state(engine, tmp_path, {})
    other = engines.initialize(PolicyModel(tiny_model()), settings(deepspeed=zero(reads)), 10)
    with pytest.raises(InputError, match=f"in {min(wrote, 1)} shares; expected {min(reads, 1)}"):
        engines.load_state(other, tmp_path)


# Settings


def test_learning_rate_rises_then_falls():
    update = settings(warmup_steps=4, schedule="linear").update
    factors = [lr_factor(update, step, total=12) for step in range(14)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[8] == pytest.approx(0.5)
    assert factors[12:] == [0.0, 0.0]
    cosine = settings(warmup_steps=4, schedule="cosine").update
    assert lr_factor(cosine, 8, total=12) == pytest.approx(0.5)
    assert lr_factor(cosine, 6, total=12) == pytest.approx(0.8535534)
    constant = settings(warmup_steps=0, schedule="constant").update
    assert {lr_factor(constant, step, total=3) for step in range(9)} == {1.0}
    assert lr_factor(update, 4, total=2) == 1.0


def test_learning_rate_is_that_of_the_schedule():
    config = settings(warmup_steps=2, schedule="linear", lr=2e-3, minibatches=2)
    _, metrics, engine, _ = train(config, updates=2)
    # Six steps in all: the last was number 3, the next is number 4.
    assert metrics["lr"] == pytest.approx(2e-3 * 3 / 4)
    assert engine.lr == pytest.approx(2e-3 * 2 / 4)


def test_overrides_have_the_last_word():
    changes = {"zero_optimization": {"reduce_bucket_size": 7, "overlap_comm": False}, "zero_allow_x": True}
    config = settings(deepspeed={"stage": 2, "overrides": changes, "offload_optimizer": True})
    made = engine_config(config, 1000)
    assert made["zero_optimization"] == {
        "stage": 2,
        "reduce_bucket_size": 7,
        "overlap_comm": False,
        "offload_optimizer": {"device": "cpu"},
    }
    assert made["zero_allow_x"] is True
    assert made["gradient_clipping"] == 1.0
    assert changes["zero_optimization"] == {"reduce_bucket_size": 7, "overlap_comm": False}


def test_gradient_is_cut_to_its_norm():
    # The size of a gradient does not matter to AdamW's first step, so the moments are looked at.
    for stage in (0, 2):
        config = settings(max_grad_norm=0.01, minibatches=1, deepspeed=zero(stage))
        _, metrics, engine, _ = train(config, updates=1)
        states = (
            engine.deepspeed.optimizer.state if stage == 0 else engine.deepspeed.optimizer.optimizer.state
        )
        moments = torch.cat([state["exp_avg"].flatten() for state in states.values()])
        assert metrics["grad_norm"] > 0.1
        assert float(moments.norm()) == pytest.approx(0.1 * 0.01, rel=1e-3)


def test_policy_with_nothing_to_train_is_refused():
    policy = PolicyModel(tiny_model())
    policy.requires_grad_(False)
    with pytest.raises(ConfigError, match="no parameter of the policy requires a gradient"):
        engines.initialize(policy, settings(), 10)


def test_missing_deepspeed_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(ImportError, match=r'pip install "matchtir\[train\]"'):
        engines.start()


def test_one_process_is_the_first_of_one():
    engines.start()
    assert (processes.rank(), processes.world_size()) == (0, 1)
    assert processes.gather({"a": 1}) == [{"a": 1}]
    assert processes.broadcast("x") == "x"
    assert processes.reduce(torch.tensor([2.0])).tolist() == [2.0]
