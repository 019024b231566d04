"""What DeepSpeed is told, and the learning rate over a run."""

from __future__ import annotations

import math
from typing import Any

from .config import TrainConfig, UpdateConfig
from .settings import deep_merge

_LARGEST_BUCKET = 500_000_000


def engine_config(config: TrainConfig, trained: int) -> dict[str, Any]:
    """DeepSpeed's configuration, as it names things; `config.deepspeed.overrides` have the last word.

    Parameters
    ----------
    config : TrainConfig
    trained : int
        Parameters that are trained; no buffer for gradients is made larger.
    """
    stage, bf16 = stage_of(config), config.policy.dtype == "bfloat16"
    zero: dict[str, Any] = {"stage": stage, "reduce_bucket_size": min(_LARGEST_BUCKET, max(trained, 1))}
    if config.deepspeed.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    if config.deepspeed.offload_parameters:
        zero["offload_param"] = {"device": "cpu"}
    made: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": config.update.max_grad_norm if stage else 0.0,
        "bf16": {"enabled": bf16},
    }
    if bf16:
        made["data_types"] = {"grad_accum_dtype": "fp32"}
    return deep_merge(made, config.deepspeed.overrides)


def stage_of(config: TrainConfig) -> int:
    """The stage of ZeRO: 1 where 0 is asked for with bfloat16, since 0 adds gradients up in bfloat16."""
    return max(config.deepspeed.stage, int(config.policy.dtype == "bfloat16"))


def lr_factor(update: UpdateConfig, step: int, *, total: int) -> float:
    """Learning rate of optimiser step `step`, from 0, as a share of `update.lr`.

    It rises to 1 over the warm-up; then it stays, or falls to 0 at step `total`, straight ("linear") or as
    half a cosine.
    """
    if step < update.warmup_steps:
        return (step + 1) / update.warmup_steps
    done = min(1.0, (step - update.warmup_steps) / max(1, total - update.warmup_steps))
    if update.schedule == "linear":
        return 1.0 - done
    return 1.0 if update.schedule == "constant" else 0.5 * (1.0 + math.cos(math.pi * done))
