"""Clipped policy loss of a batch of rollouts, from one advantage a turn, with its gradient in one pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from .. import _dispatch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PolicyLossOutput", "policy_loss"]

KL = Literal["k1", "k2", "k3"]
Ratio = Literal["token", "turn", "sequence"]
Aggregation = Literal["token_mean", "sequence_mean_token_mean", "sequence_mean_token_sum"]


@dataclass(frozen=True)
class PolicyLossOutput:
    """What :func:`policy_loss` returns.

    Attributes
    ----------
    loss : tensor, 0-d
        float64 for float64 log-probabilities, otherwise float32; differentiable with respect to `logps`.
    metrics : dict of str to tensor, 0-d
        Detached, of the dtype of the loss, on its device. Means and shares are over the own tokens of the
        call, the tokens inside spans; without any, the ratios are 1 and everything else is 0.

        ``policy_loss``, ``kl_loss``: the two parts of the loss (``kl_loss`` with `ref_logps` only).
        ``clip_fraction_low``, ``clip_fraction_high``, ``clip_fraction_dual``: share of tokens whose ratio
        was cut in the way that changes the objective: below with a negative advantage, above with a
        positive one, at `dual_clip`.
        ``ratio_mean``, ``ratio_min``, ``ratio_max``: of the ratio in use, token by token.
        ``approx_kl_old``: mean of ``exp(lr) - lr - 1``, lr the token's log ratio, at any ratio level.
        ``kl``: mean of the chosen estimator, with `ref_logps`, also where `beta` is 0.
        ``rollout_weight_mean``, ``rollout_truncated_fraction``: of the importance weights, with
        `rollout_logps`.
    """

    loss: Tensor
    metrics: dict[str, Tensor]


def policy_loss(
    logps: Tensor,
    old_logps: Tensor,
    turn_advantages: Tensor,
    spans: Tensor,
    offsets: Tensor,
    *,
    cu_seqlens: Tensor | None = None,
    ref_logps: Tensor | None = None,
    rollout_logps: Tensor | None = None,
    epsilon_low: float = 0.2,
    epsilon_high: float = 0.2,
    dual_clip: float | None = None,
    beta: float = 0.0,
    kl: KL = "k3",
    ratio: Ratio = "token",
    aggregation: Aggregation = "sequence_mean_token_mean",
    max_tokens: float | None = None,
    normalizer: float | Tensor | None = None,
    rollout_cap: float | None = None,
    validate: bool | None = None,
    num_threads: int | None = None,
    backend: str | None = None,
) -> PolicyLossOutput:
    """Clipped surrogate loss whose advantages come by turn; the dense tensor of advantages is never made.

    With A the advantage of the token's turn, ``lr_t = logp_t - old_logp_t`` and the ratio s of its level::

        policy_t = -min(s A, clip(s, 1 - epsilon_low, 1 + epsilon_high) A)
        policy_t = min(policy_t, dual_clip |A|)                        where A < 0, with dual_clip
        w_t      = min(exp(old_logp_t - rollout_logp_t), rollout_cap)  a constant, with rollout_logps
        loss     = sum over own tokens of c (w_t policy_t + beta kl_t)

    s is ``exp(lr_t)`` ("token"), ``exp`` of the mean of lr over the turn ("turn"), or over the rollout's own
    tokens ("sequence"); own tokens are those inside spans. With ``d = ref_logp_t - logp_t``, kl_t is ``-d``
    (k1), ``d^2 / 2`` (k2) or ``exp(d) - d - 1`` (k3).

    Parameters
    ----------
    logps : tensor of float64, float32, bfloat16 or float16, shape (B, T), or (total,) with `cu_seqlens`
        Log-probability in nats of each token under the policy. The loss is differentiable with respect to
        it alone. Computed in float64 if it is float64, otherwise in float32.
    old_logps : tensor of a floating dtype, shape of `logps`
        Under the policy that the ratio compares with.
    turn_advantages : tensor of a floating dtype, shape (N,)
        One per turn, a constant.
    spans : tensor of int64, shape (N, 2)
        Half-open token ranges of the turns in their rollout's row, in order; an empty one is a turn
        without tokens. Tokens outside all spans have no part in anything, whatever they hold.
    offsets : tensor of int64, shape (B + 1,)
        Rollout b has the turns ``offsets[b]`` to ``offsets[b + 1]``.
    cu_seqlens : tensor of int64 or int32, shape (B + 1,), optional
        Rollout b has the tokens ``cu_seqlens[b]`` to ``cu_seqlens[b + 1]`` of the packed tensors.
    ref_logps, rollout_logps : tensor of a floating dtype, shape of `logps`, optional
        Under the reference model, and as the inference engine that sampled the tokens reported them.
    epsilon_low, epsilon_high : float
        Clip range of the ratio, below and above 1; not negative.
    dual_clip : float, optional
        Above 1: most that the ratio counts where the advantage is negative.
    beta : float
        Weight of the KL term. With 0 there is none: loss and gradient do not depend on `ref_logps`.
    kl : {"k1", "k2", "k3"}
        Estimator. Differentiated as it stands.
    ratio : {"token", "turn", "sequence"}
    aggregation : {"token_mean", "sequence_mean_token_mean", "sequence_mean_token_sum"}
        c is 1 / (number of own tokens), 1 / (B own tokens of the rollout), or 1 / (B max_tokens). A rollout
        without own tokens adds 0 and counts in B, as in TRL.
    max_tokens : float
        The constant of ``"sequence_mean_token_sum"``, which needs it; positive. Others do not read it.
    normalizer : float or 0-d tensor, optional
        Takes the place of the number of own tokens ("token_mean") or of B (the other two): the count of the
        whole step, with gradient accumulation or several ranks. With 0 the loss is 0.
    rollout_cap : float, optional
        Positive, needs `rollout_logps`; None leaves their weights uncut.
    validate : bool, optional
        Check the contents of `spans`, `offsets` and `cu_seqlens` too. The default does it on the CPU only,
        because a GPU would have to be waited for; unchecked spans are cut to their rows. The reference
        skips the check while `torch.compile` traces it.
    num_threads : int, optional
        Of the Numba backend, as for :func:`matchtir.ops.hungarian`. Results do not depend on it.
    backend : {"triton", "numba", "reference"}, optional
        Force a backend.

    Returns
    -------
    PolicyLossOutput
        Without own tokens the loss is exactly 0 and so is the gradient. An own token that holds NaN makes
        the loss NaN.

    Raises
    ------
    InputError
        If shapes, dtypes or devices do not fit, or (see `validate`) a span leaves its row or overlaps the
        one before it; the message names rollout and turn.
    ConfigError
        For an unknown name or a number out of range, `beta` without `ref_logps`, `rollout_cap` without
        `rollout_logps`.

    References
    ----------
    Clipping: PPO, arXiv 1707.06347, eq. 7; two bounds: DAPO, arXiv 2503.14476; dual clip: arXiv 1912.09729,
    eq. 5. Sequence ratio: GSPO, arXiv 2507.18071, eq. 5 to 7. Sum over a constant: Dr. GRPO, arXiv
    2503.20783. Mean by rollout: GRPO, arXiv 2402.03300. k1 to k3: J. Schulman,
    "Approximating KL divergence" (2020).
    """
    from . import autograd, checks

    others = {"old_logps": old_logps, "ref_logps": ref_logps, "rollout_logps": rollout_logps}
    checks.tensors(logps, others, turn_advantages, spans, offsets, cu_seqlens)
    for name, value, known in (
        ("kl", kl, KL),
        ("ratio", ratio, Ratio),
        ("aggregation", aggregation, Aggregation),
    ):
        checks.name(name, value, get_args(known))
    constant = max_tokens if aggregation == "sequence_mean_token_sum" else None
    checks.numbers(epsilon_low, epsilon_high, dual_clip, beta, rollout_cap)
    checks.together(beta, ref_logps, rollout_cap, rollout_logps, aggregation, constant)
    loss, values = autograd.run(
        logps,
        old_logps.detach(),
        None if ref_logps is None else ref_logps.detach(),
        None if rollout_logps is None else rollout_logps.detach(),
        turn_advantages.detach(),
        spans,
        offsets,
        cu_seqlens,
        checks.normalizer(normalizer, logps),
        options={
            "epsilon_low": float(epsilon_low),
            "epsilon_high": float(epsilon_high),
            "dual_clip": None if dual_clip is None else float(dual_clip),
            "beta": float(beta),
            "kl": kl,
            "ratio": ratio,
            "rollout_cap": None if rollout_cap is None else float(rollout_cap),
        },
        aggregation=aggregation,
        max_tokens=None if constant is None else float(constant),
        validate=logps.device.type == "cpu" if validate is None else bool(validate),
        threads=_dispatch.threads(num_threads),
        backend=backend,
    )
    hidden = set() if ref_logps is not None else {"kl", "kl_loss"}
    if rollout_logps is None:
        hidden |= {"rollout_weight_mean", "rollout_truncated_fraction"}
    names = enumerate(autograd.METRICS)
    return PolicyLossOutput(loss, {name: values[i] for i, name in names if name not in hidden})
