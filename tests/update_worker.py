"""Tiny policies and made-up rollouts for the tests of the update, and what two processes do with them.

Run by torchrun with the name of a file for the results; `test_train_deepspeed.py` compares them.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from matchtir.loss import LossConfig
from matchtir.rollout.records import Rollout
from matchtir.train import deepspeed as engines
from matchtir.train import processes
from matchtir.train.config import DeepSpeedConfig, PolicyConfig, TrainConfig, UpdateConfig
from matchtir.train.policy import PolicyModel
from matchtir.train.reference import Reference
from matchtir.train.update import Updater
from matchtir.types import Ragged, Task

VOCABULARY = 120
# ZeRO-3 leaves small parameters whole unless told otherwise, and here all are small.
SHARE_ALL = {"zero_optimization": {"stage3_param_persistence_threshold": 0, "stage3_prefetch_bucket_size": 0}}
UPDATES = 3


def tiny_model(tied=True, seed=0, layers=2):
    """A Qwen3 with random weights, two layers, in evaluation mode."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        tie_word_embeddings=tied,
        initializer_range=0.15,
    )
    return Qwen3ForCausalLM(config).eval()


def with_adapters(model):
    """The model with LoRA adapters that already do something."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    adapted = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules="all-linear"))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return adapted


def made_up(count=13, seed=0, zeros=(2, 5)):
    """Rollouts of one to four turns after prompts of about 12 tokens, and advantages, some of them 0."""
    rng = np.random.default_rng(seed)
    rollouts, advantages = [], []
    for i in range(count):
        spans, at = [], int(rng.integers(8, 17))
        prompt = at
        for _ in range(int(rng.integers(1, 5))):
            length = int(rng.integers(1, 9))
            spans.append((at, at + length))
            at += length + int(rng.integers(1, 6))
        logps = np.zeros(at, dtype=np.float32)
        for a, b in spans:
            logps[a:b] = -4.5 + 0.3 * rng.normal(size=b - a)
        task = Task(f"task {i // 4}", ({"role": "user", "content": "?"},))
        tokens = rng.integers(0, VOCABULARY, at)
        rollouts.append(Rollout(task, i % 4, tokens, prompt, np.array(spans), logps, (), (), "answer"))
        advantages.append(np.zeros(len(spans)) if i in zeros else rng.normal(size=len(spans)))
    return rollouts, Ragged.from_lists([x.tolist() for x in advantages])


def settings(*, loss=None, deepspeed=None, policy=None, **update):
    """A configuration; keywords are those of UpdateConfig."""
    update = {"minibatches": 2, "micro_batch_tokens": 90, "warmup_steps": 2, "schedule": "cosine", **update}
    return TrainConfig(
        loss=LossConfig(**(loss or {})),
        deepspeed=DeepSpeedConfig(**(deepspeed or {})),
        policy=PolicyConfig(**(policy or {})),
        update=UpdateConfig(**{"old_logps": "recompute", **update}),
    )


def train(config, model=None, updates=UPDATES, reference=False, data=made_up):
    """Weights and metrics of the last update, and the engine and updater that made them."""
    policy = PolicyModel(tiny_model() if model is None else model)
    frozen = Reference(policy, config) if reference else None
    engine = engines.initialize(policy, config, 2 * UPDATES * config.update.epochs)
    updater = Updater(engine, config, frozen)
    for seed in range(updates):
        metrics = updater.update(*data(seed=seed))
    return engines.full_state_dict(engine), metrics, engine, updater


def zero(stage, **changes):
    """Settings of a stage of ZeRO."""
    return {"stage": stage, "overrides": SHARE_ALL if stage == 3 else {}, **changes}


def spoilt(seed, rollout=0):
    """Made-up rollouts; one old log-probability of one of them is NaN."""
    rollouts, advantages = made_up(seed=seed)
    logps = rollouts[rollout].logps.copy()
    logps[rollouts[rollout].spans[0, 0]] = np.nan
    rollouts[rollout] = replace(rollouts[rollout], logps=logps)
    return rollouts, advantages


def skip(stage):
    """What two updates with a NaN leave of the weights, metrics of both, and of a good one after them."""
    config = settings(deepspeed=zero(stage), old_logps="rollout", minibatches=1)
    before, _, engine, updater = train(config, updates=1)
    metrics = [updater.update(*spoilt(seed)) for seed in (1, 2)]
    in_a_row = updater.skipped_in_a_row
    kept = engines.full_state_dict(engine)
    last = updater.update(*made_up(seed=3))
    return {"before": before, "kept": kept, "metrics": metrics, "in_a_row": in_a_row, "last": last}


def generate(engine):
    """Logits under ZeRO-3 where each process asks the model another number of times."""
    with engines.gathered(engine) as model, torch.no_grad():
        for _ in range(1 + 2 * processes.rank()):
            logits = model(torch.arange(6)[None]).logits
        training = model.training
    return {"logits": logits, "training": training, "after": engine.policy.training}


def scenarios(folder):
    """Everything that two processes are asked for, by name."""
    for stage in range(4):
        weights, metrics, engine, _ = train(settings(deepspeed=zero(stage)))
        yield f"stage {stage}", {"weights": weights, "metrics": metrics}
        if stage == 3:
            yield "generate", generate(engine)
            engines.save_state(engine, folder, {"step": 5})
            yield "state", {"weights": engines.consolidate(folder)} if processes.rank() == 0 else {}
        if stage != 1:  # its optimiser is that of stage 2
            yield f"skip {stage}", skip(stage)
    config = settings(deepspeed=zero(3), loss={"beta": 0.1}, entropy=0.01)
    model = tiny_model(tied=False)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    weights, metrics, *_ = train(config, model, updates=2, reference=True)
    yield "stage 3, reference, checkpointing", {"weights": weights, "metrics": metrics}
    weights, metrics, *_ = train(config, with_adapters(tiny_model()), updates=2, reference=True)
    yield "stage 3, adapters, reference", {"weights": weights, "metrics": metrics}
    yield "few rollouts", {"weights": train(settings(minibatches=1), updates=2, data=two_rollouts)[0]}


def two_rollouts(seed):
    """Two rollouts, of which one has no advantage: one process of two has nothing to do."""
    return made_up(count=2, seed=seed, zeros=(1,))


def main():
    torch.manual_seed(0)
    engines.start()
    with tempfile.TemporaryDirectory() as folder:
        box = processes.broadcast(folder)
        results = dict(scenarios(box))
    shares = processes.gather(
        {
            name: {k: v for k, v in found.items() if k not in ("weights", "before", "kept")}
            for name, found in results.items()
        }
    )
    if processes.rank() == 0:
        torch.save({"first": results, "shares": shares}, sys.argv[1])


if __name__ == "__main__":
    main()
