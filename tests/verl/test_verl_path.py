"""verl's V1 path from an agent loop to the advantages, with its own workers, queue and replay buffer."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("verl.trainer", reason='verl needs pip install "matchtir[verl]"')

import ray
import torch
import transfer_queue as tq
import verl_runs as runs
from omegaconf import OmegaConf
from verl.experimental.reward_loop.reward_loop import RewardLoopWorker
from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size
from verl.trainer.ppo.v1 import AgentLoopWorkerTQ, PPOTrainerSync
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.utils import tensordict_utils as tu

import matchtir as mt
from matchtir.integrations.verl_data import verl_row

GROUP = 4
ROLLOUT_CORRECTION = {
    "rollout_is": None,
    "rollout_rs": "token_k1",
    "rollout_rs_threshold": "0.5_2.0",
    "bypass_mode": False,
}
LENGTH = 60


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    config = runs.settings(
        "+algorithm.matchtir.credit.gamma=0.8",
        f"actor_rollout_ref.model.path={runs.model_folder(tmp_path_factory.mktemp('policy'))}",
        f"actor_rollout_ref.rollout.n={GROUP}",
        "actor_rollout_ref.rollout.name=vllm",
        f"actor_rollout_ref.rollout.response_length={LENGTH}",
        "actor_rollout_ref.rollout.prompt_length=600",
        "actor_rollout_ref.rollout.agent.default_agent_loop=matchtir_tool_agent",
        "actor_rollout_ref.rollout.multi_turn.max_tool_response_length=1000",
        "reward.reward_manager.name=matchtir",
        "transfer_queue.enable=True",
        "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
    )
    OmegaConf.resolve(config)
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    variables = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TRANSFER_QUEUE_ENABLE": "1"}
    # The number of CPUs is what ray's bookkeeping wants; little of it runs at a time.
    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": variables})
    tq.init(config.transfer_queue)
    yield config
    tq.close()
    ray.shutdown()


def sampled(config, by_prompt, given):
    """A batch of rollouts in the queue, as the trainer takes it from the replay buffer."""
    rewarder = ray.remote(RewardLoopWorker).options(num_cpus=0).remote(config)
    worker = AgentLoopWorkerTQ.options(num_cpus=0).remote(
        config=config, llm_client=runs.Client(by_prompt), reward_loop_worker_handles=[rewarder]
    )
    rows = [verl_row(task, i, "embedded") for i, task in enumerate(given)]
    columns = {
        name: np.array([row[name] for row in rows], dtype=object) for name in rows[0] if name != "prompt"
    }
    prompts = np.empty(len(rows), dtype=object)
    prompts[:] = [row["prompt"] for row in rows]
    columns |= {"raw_prompt": prompts, "index": np.arange(len(rows)).astype(object)}
    columns["uid"] = np.array([f"uid{i}" for i in range(len(rows))], dtype=object)
    batch = tu.get_tensordict(columns)
    tu.assign_non_tensor_data(batch, "global_steps", 1)
    tags = [{"is_prompt": True, "status": "pending", "global_steps": 1} for _ in rows]
    tq.kv_batch_put(keys=list(batch["uid"]), partition_id="train", tags=tags)
    ray.get(worker.generate_sequences.remote(batch))
    buffer = ReplayBuffer("sync", config.trainer.v1.sync, None, "drop", {}, poll_interval=0.2)
    return buffer.sample(global_steps=1, partition_id="train", batch_size=len(rows))[0]


def field(batch, *names):
    """Fields of the rollouts of a batch, as lists."""
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=list(names))
    return [
        list(data[name].unbind()) if hasattr(data[name], "unbind") else list(data[name]) for name in names
    ]


def expected(batch, given, config):
    """Advantages of the tokens, from the texts between the tokens of others."""
    responses, masks, uids = field(batch, "responses", "response_mask", "uid")
    found, spans = [], []
    for ids, mask, uid in zip(responses, masks, uids, strict=True):
        runs_of = mt.spans_from_mask(mask[None])[0]
        texts = [runs.TOKENIZER.decode(ids[a:b]).removesuffix(runs.END) for a, b in runs_of]
        messages = [{"role": "assistant", "content": text} for text in texts]
        task = given[int(str(uid).removeprefix("uid"))]
        turns = mt.parse_messages(messages, format="hermes")
        found.append(mt.Trajectory(turns, task.gold_calls, task.gold_answer, str(uid)))
        spans.append(runs_of)
    credit = mt.assign_credit(found, config)
    rows = []
    for turns, one, ids in zip(credit.turn_advantages, spans, responses, strict=True):
        ragged = mt.Ragged.from_lists([turns.tolist()]), mt.Ragged.from_lengths(one, [len(one)])
        rows.append(mt.scatter(*ragged, (1, len(ids)))[0])
    return rows, credit


def advantages_of(config, batch):
    """What verl's trainer puts into the queue."""
    trainer = object.__new__(PPOTrainerSync)  # its workers need GPUs, and this method none of them
    trainer.config = config
    trainer._compute_advantage(batch, {})
    return field(batch, "advantages")[0]


def put_logps(batch, every):
    """What the trainer's model says of the tokens: the same as while sampling, but for every n-th token."""
    logps = []
    for k, mask in enumerate(field(batch, "response_mask")[0]):
        change = torch.zeros(len(mask))
        if every:
            change[k % every :: every] = 2.0
        logps.append(-1.0 + change)
    fields = tu.get_tensordict({"old_log_probs": torch.nested.as_nested_tensor(logps, layout=torch.jagged)})
    tq.kv_batch_put(keys=batch.keys, partition_id="train", fields=fields)


def test_v1_path_gives_the_credit_of_matchtir(cluster):
    given = runs.tasks(2)
    by_prompt = {str(task.messages[-1]["content"]): runs.scripts(task)[1 : GROUP + 1] for task in given}
    batch = sampled(cluster, by_prompt, given)
    assert len(batch.keys) == 2 * GROUP
    rows, credit = expected(batch, given, mt.CreditConfig(gamma=0.8))
    scores, masks, extra = field(batch, "rm_scores", "response_mask", "extra_fields")
    np.testing.assert_allclose([row.sum() for row in scores], credit.returns, rtol=1e-6)
    assert {len(turns) for turns in credit.turn_rewards} >= {1, 3}
    assert any(len(row) == LENGTH for row in rows)  # one was cut off
    info = getattr(extra[0], "data", extra[0])["reward_extra_info"]
    assert set(info) == {"calls", "matched", "malformed"}

    padded = upsample_batch_to_divisible_size(batch, 3, runs.TOKENIZER.eos_token_id)
    assert len(padded.keys) == 2 * GROUP + 1
    put_logps(padded, every=0)
    found = advantages_of(cluster, padded)
    for row, mine, mask in zip(found, rows, masks, strict=False):
        np.testing.assert_allclose(row.numpy(), mine * mask.numpy(), rtol=1e-5, atol=1e-6)
    assert any(row.abs().sum() > 0 for row in found)
    assert found[-1].tolist() == [0.0]

    # Tokens that verl's own rollout correction rejects change nothing of the others.
    strict = runs.with_changes(cluster, ROLLOUT_CORRECTION)
    put_logps(padded, every=3)
    again = advantages_of(strict, padded)
    rejected = field(padded, "response_mask")[0]
    assert sum(int(mask.sum()) for mask in rejected) < sum(int(mask.sum()) for mask in masks)
    for row, before, mask in zip(again, found, rejected, strict=True):
        assert row.tolist() == (before * mask).tolist()
