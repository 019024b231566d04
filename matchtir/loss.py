"""From turn advantages to the scalar that a trainer differentiates: the last stage before the step.

    hidden states -token_logps-> log-probabilities -policy_loss, with credit-> loss, metrics

Needs torch. ``docs/loss.md`` has the formulas and a whole training loop.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from . import ops
from .config import Number, check_fields, from_dict
from .errors import ConfigError, InputError
from .types import Credit, IntArray, Ragged, spans_of_turns

if TYPE_CHECKING:
    from torch import Tensor

    from .ops import PolicyLossOutput

RatioLevel = Literal["token", "turn", "sequence"]
Aggregation = Literal["sequence_mean_token_mean", "token_mean", "sequence_mean_token_sum"]
KLEstimator = Literal["k1", "k2", "k3"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "ratio": get_args(RatioLevel),
    "aggregation": get_args(Aggregation),
    "kl": get_args(KLEstimator),
}
_NUMBERS = {
    "epsilon_low": Number(Real, "a number in [0, 1]", lambda x: 0 <= x <= 1),
    "epsilon_high": Number(Real, "a number, 0 or more", lambda x: 0 <= x < math.inf),
    "dual_clip": Number(Real, "None or a number above 1", lambda x: 1 < x < math.inf, optional=True),
    "beta": Number(Real, "a finite number, 0 or more", lambda x: 0 <= x < math.inf),
    "max_tokens": Number(Real, "None or a number above 0", lambda x: 0 < x < math.inf, optional=True),
    "rollout_cap": Number(Real, "None or a number above 0", lambda x: 0 < x < math.inf, optional=True),
}
_PRESETS: dict[str, dict[str, Any]] = {"paper": {}, "reference": {"aggregation": "token_mean"}}


@dataclass(frozen=True, slots=True)
class LossConfig:
    """Which policy loss is computed. The defaults are the paper's; every value is checked on construction.

    Parameters
    ----------
    epsilon_low, epsilon_high : float
        The ratio is clipped to [1 - epsilon_low, 1 + epsilon_high].
    dual_clip : float, optional
        Above 1: bounds the loss of tokens with a negative advantage to this times its size.
    beta : float
        Coefficient of the KL divergence from the reference model; 0 leaves it out.
    kl : {"k1", "k2", "k3"}
        Its estimator.
    ratio : {"token", "turn", "sequence"}
        Of what new and old probability are compared: each token, or the geometric mean over the turn or over
        the rollout's own tokens (GSPO).
    aggregation : {"sequence_mean_token_mean", "token_mean", "sequence_mean_token_sum"}
        Mean over each rollout's tokens, then over rollouts (the paper's objective); over all tokens (the
        published code, DAPO); sum over each rollout's tokens divided by `max_tokens`, then mean (Dr. GRPO).
    max_tokens : float, optional
        For "sequence_mean_token_sum" only, which needs it.
    rollout_cap : float, optional
        Upper bound of the importance weights that correct for log-probabilities of another engine.

    Raises
    ------
    ConfigError
        If a value is impossible; the message names the field, what came and what is allowed.
    """

    epsilon_low: float = 0.2
    epsilon_high: float = 0.2
    dual_clip: float | None = None
    beta: float = 0.0
    kl: KLEstimator = "k3"
    ratio: RatioLevel = "token"
    aggregation: Aggregation = "sequence_mean_token_mean"
    max_tokens: float | None = None
    rollout_cap: float | None = None

    def __post_init__(self) -> None:
        check_fields(self, _CHOICES, _NUMBERS)
        if (self.max_tokens is None) == (self.aggregation == "sequence_mean_token_sum"):
            raise ConfigError(
                f"max_tokens is {self.max_tokens} and aggregation {self.aggregation!r}; expected a number "
                "with 'sequence_mean_token_sum' and None otherwise"
            )

    @classmethod
    def preset(cls, name: str, **changes: Any) -> LossConfig:
        """The loss of the paper ("paper"), or of its published code ("reference"), a mean over all tokens.

        `changes` replace single fields. Raises ConfigError if there is no such preset, or a change is unknown
        or impossible.

        Examples
        --------
        >>> LossConfig.preset("reference", beta=0.01).aggregation
        'token_mean'
        """
        if name not in _PRESETS:
            raise ConfigError(f"preset is {name!r}; expected one of {', '.join(_PRESETS)}")
        return cls.from_dict({**_PRESETS[name], **changes})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LossConfig:
        """Configuration from names and values, as a settings file has them.

        Raises ConfigError if a name is unknown (with the nearest one) or a value impossible.
        """
        return from_dict(cls, values)


@dataclass(frozen=True, slots=True)
class ModelOutputs:
    """What the models say of a batch of rollouts, and where its turns lie. All on one device.

    Parameters
    ----------
    logps : Tensor of a floating type, shape (B, T), or (total,) with `cu_seqlens`
        Log-probability, under the policy that is trained, of the token at each place. What stands outside of
        the spans is not read.
    spans : Ragged of int64, values of shape (N, 2)
        Half-open ranges ``[start, end)`` of each turn's own tokens, one per turn, in order, counted from the
        start of their rollout.
    old_logps : Tensor, shape of `logps`, optional
        Under the policy that the step starts from. None: this one, so the ratio is 1 and only its gradient
        counts.
    ref_logps : Tensor, shape of `logps`, optional
        Under the reference model.
    rollout_logps : Tensor, shape of `logps`, optional
        As the engine that sampled the rollouts reported them.
    cu_seqlens : Tensor of int32 or int64, shape (B + 1,), optional
        Where each rollout begins in a packed batch.
    """

    logps: Tensor
    spans: Ragged
    old_logps: Tensor | None = None
    ref_logps: Tensor | None = None
    rollout_logps: Tensor | None = None
    cu_seqlens: Tensor | None = None


def policy_loss(
    outputs: ModelOutputs,
    credit: Credit | Ragged,
    config: LossConfig | None = None,
    *,
    normalizer: Tensor | float | None = None,
    backend: str | None = None,
) -> PolicyLossOutput:
    """The clipped policy-gradient loss, with the advantage of each token's turn.

    Parameters
    ----------
    outputs : ModelOutputs
    credit : Credit, or Ragged of float, one entry a turn
        Whose turns take their advantages from where; of the same rollouts in the same order as `outputs`.
    config : LossConfig, optional
        The paper's loss if None.
    normalizer : float or 0-d Tensor, optional
        Replaces the number of rollouts (of tokens, for "token_mean") that the loss is divided by. Several
        micro-batches, or processes, then add up to the loss of the whole batch.
    backend : str, optional
        As for :func:`matchtir.ops.policy_loss`.

    Returns
    -------
    PolicyLossOutput
        ``loss``, a scalar to call ``backward`` on, and ``metrics``, scalars on the same device.

    Raises
    ------
    InputError
        If outputs and credit describe different turns, or tensors do not fit together.
    ConfigError
        If `config` is no LossConfig, or asks for a KL term without `ref_logps`.

    References
    ----------
    MatchTIR, arXiv 2601.10712, §3.4; GRPO, arXiv 2402.03300, eq. 3.
    """
    config = LossConfig() if config is None else config
    if not isinstance(config, LossConfig):
        raise ConfigError(f"config is a {type(config).__name__}; expected a LossConfig (see from_dict)")
    advantages = credit.turn_advantages if isinstance(credit, Credit) else credit
    spans = spans_of_turns(outputs.spans, advantages)
    device = outputs.logps.device
    return ops.policy_loss(
        outputs.logps,
        outputs.logps.detach() if outputs.old_logps is None else outputs.old_logps,
        _tensor(np.asarray(advantages.values, dtype=np.float64), device),
        _tensor(spans, device),
        _tensor(advantages.offsets, device),
        cu_seqlens=outputs.cu_seqlens,
        ref_logps=outputs.ref_logps,
        rollout_logps=outputs.rollout_logps,
        epsilon_low=config.epsilon_low,
        epsilon_high=config.epsilon_high,
        dual_clip=config.dual_clip,
        beta=config.beta,
        kl=config.kl,
        ratio=config.ratio,
        aggregation=config.aggregation,
        max_tokens=config.max_tokens,
        rollout_cap=config.rollout_cap,
        normalizer=normalizer,
        backend=backend,
    )


def _tensor(array: Any, device: Any) -> Tensor:
    """An array on the device of the model."""
    import torch

    there: Tensor = torch.from_numpy(np.ascontiguousarray(array)).to(device)
    return there


def token_logps(
    hidden: Tensor,
    weight: Tensor,
    tokens: Tensor,
    spans: Ragged,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    entropy: bool = False,
    chunk_size: int | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities of the turns' own tokens, from the last hidden states; logits exist in chunks only.

    Prompts, tool outputs and padding cost nothing: only the states that predict a token inside a span are
    multiplied with the output head.

    Parameters
    ----------
    hidden : Tensor, shape (B, T, H)
        ``hidden[b, t]`` is what the model computed of the tokens up to t, and predicts token t + 1.
    weight : Tensor, shape (V, H)
        Of the output head.
    tokens : Tensor of int64, shape (B, T)
        The rollouts.
    spans : Ragged of int64, values of shape (N, 2)
        Half-open ranges of each turn's own tokens. None begins at 0: no state predicts the first token.
    bias : Tensor, shape (V,), optional
        Of the output head.
    temperature : float
        Divides the logits; what the rollouts were sampled with.
    entropy : bool
        Whether to compute the entropy of each prediction too.
    chunk_size : int, optional
        Predictions at a time, as for :func:`matchtir.ops.logprobs`.
    backend : str, optional
        As for :func:`matchtir.ops.logprobs`.

    Returns
    -------
    logps : Tensor of float32 (float64 for float64), shape (B, T)
        In nats; 0 outside of the spans. Differentiable with respect to `hidden`, `weight` and `bias`.
    entropies : Tensor of the same shape, or None
        In nats.

    Raises
    ------
    InputError
        If shapes do not fit together, or a span leaves its row or begins at 0; the message names the turn.
    ConfigError
        As :func:`matchtir.ops.logprobs`.
    """
    import torch

    if tokens.dim() != 2 or hidden.dim() != 3 or hidden.shape[:2] != tokens.shape:
        raise InputError(
            f"hidden has shape {tuple(hidden.shape)} and tokens {tuple(tokens.shape)}; "
            "expected (B, T, H) and (B, T)"
        )
    batch, width = tokens.shape
    places = _tensor(_own_places(spans, batch, width), tokens.device)
    logps, entropies = ops.logprobs(
        hidden.flatten(0, 1)[places - 1],
        weight,
        tokens.flatten()[places],
        bias=bias,
        temperature=temperature,
        entropy=entropy,
        chunk_size=chunk_size,
        backend=backend,
    )

    def spread(values: Tensor) -> Tensor:
        empty = torch.zeros(batch * width, dtype=values.dtype, device=values.device)
        return empty.index_copy(0, places, values).view(batch, width)

    return spread(logps), None if entropies is None else spread(entropies)


def _own_places(spans: Ragged, batch: int, width: int) -> IntArray:
    """Flat positions of all tokens inside spans, in order."""
    values = spans_of_turns(spans, spans)
    if len(spans) != batch:
        raise InputError(f"spans of {len(spans)} rollouts, but tokens of {batch}")
    start, stop = values[:, 0], values[:, 1]
    wrong = (start > stop) | (stop > width) | ((start < 1) & (start != stop))
    if wrong.any():
        k = int(np.argmax(wrong))
        b = int(spans.problem[k])
        raise InputError(
            f"spans[{k}] = [{start[k]}, {stop[k]}) (rollout {b}, turn {k - spans.offsets[b]}) does not fit; "
            f"expected 1 <= start <= end <= {width}"
        )
    lengths = stop - start
    first = spans.problem * width + start
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    places: IntArray = np.repeat(first, lengths) + within
    return places
