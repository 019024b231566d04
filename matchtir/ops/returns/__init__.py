"""Turn rewards on a device to returns and advantages of both levels, without a trip to the host."""

from __future__ import annotations

from numbers import Real
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from ...errors import ConfigError, InputError

if TYPE_CHECKING:
    import torch

__all__ = ["AdvantageTensors", "turn_advantages"]

Baseline = Literal["turn_index", "pooled", "leave_one_out"]
Integration = Literal["sum", "mean", "weighted_product", "weighted_sum", "trajectory", "turn"]

_BASELINES, _INTEGRATIONS = get_args(Baseline), get_args(Integration)


class AdvantageTensors(NamedTuple):
    """Returns and advantages of a batch, on the device of the rewards; no gradient flows through them.

    Attributes
    ----------
    returns : tensor, shape (B,)
        R_i, the sum of the rollout's turn rewards, or what was given in its place.
    turn_returns : tensor, shape (N,)
        R_{i,t}, the discounted return from each turn on.
    trajectory_advantages : tensor, shape (B,)
        A^g of each rollout.
    turn_level_advantages : tensor, shape (N,)
        A^l of each turn, before integration.
    turn_advantages : tensor, shape (N,)
        The integrated advantage: what every token of the turn gets.
    """

    returns: torch.Tensor
    turn_returns: torch.Tensor
    trajectory_advantages: torch.Tensor
    turn_level_advantages: torch.Tensor
    turn_advantages: torch.Tensor


def turn_advantages(
    turn_rewards: torch.Tensor,
    offsets: torch.Tensor,
    group_ids: torch.Tensor,
    *,
    returns: torch.Tensor | None = None,
    gamma: float = 0.9,
    integration: Integration = "sum",
    baseline: Baseline = "turn_index",
    normalize_std: bool = True,
    eps: float = 1e-6,
    dtype: torch.dtype | None = None,
    validate: bool = False,
    num_threads: int | None = None,
    backend: str | None = None,
) -> AdvantageTensors:
    """Returns and advantages of both levels, and their integration.

    ``A^g_i = (R_i - mean) / (std + eps)`` over the rollouts of a group, ``A^l_{i,t}`` the same of
    ``R_{i,t} = Σ_{k>=t} gamma^{k-t} r_k`` over what `baseline` compares, and A from both by
    `integration`; the functions of :mod:`matchtir.advantages` say what each name means, and this is equal
    to them but for the order of the sums inside a group. Everything is computed in float64, whatever comes
    in. A custom op of torch: ``torch.compile`` takes it whole, and deterministic.

    Parameters
    ----------
    turn_rewards : tensor of a floating type, shape (N,)
        r_t, rollout by rollout.
    offsets : tensor of int64 or int32, shape (B + 1,)
        Rollout b has the turns ``offsets[b]`` to ``offsets[b + 1]``; it may have none.
    group_ids : tensor of int64 or int32, shape (B,)
        Rollouts of one prompt have the same number; any numbers, in any order.
    returns : tensor of a floating type, shape (B,), optional
        Whole-rollout returns in place of R_i, the sum of the rewards.
    gamma : float
        Discount, in [0, 1].
    integration : {"sum", "mean", "weighted_product", "weighted_sum", "trajectory", "turn"}
        See :func:`matchtir.advantages.integrate`.
    baseline : {"turn_index", "pooled", "leave_one_out"}
        See :func:`matchtir.advantages.turn_level_advantages`.
    normalize_std : bool
        False leaves the division by the standard deviation out.
    eps : float
        Added to standard deviations; above 0.
    dtype : torch.dtype, optional
        Floating type of the results, float64 by default. They are rounded once, at the end.
    validate : bool
        Check the contents of tensors on a GPU too, which waits for it; on the CPU they are always checked.
    num_threads : int, optional
        As for :func:`matchtir.ops.hungarian`. No backend uses more than one today: the work is under
        two milliseconds for 4,096 rollouts.
    backend : {"triton", "numba", "reference"}, optional
        Force a backend.

    Returns
    -------
    AdvantageTensors
        Advantages are exactly 0 where all values that are compared are equal, so in a group of one, except
        that ``"turn_index"`` gives the only rollout that reaches a turn its return over 1 + eps.

    Raises
    ------
    InputError
        If shapes, dtypes or devices do not fit; on the CPU or with `validate`, if offsets do not rise from 0
        to N, or a reward, a return or a result is not finite. Unchecked, what is not finite makes its
        group not finite.
    ConfigError
        If `gamma`, `integration`, `baseline`, `eps`, `dtype` or `num_threads` is not one of those above.

    References
    ----------
    MatchTIR, arXiv 2601.10712, eq. 10 and 11, §3.3 and appendix C.
    """
    import torch

    from .library import turn_advantages as op

    if integration not in _INTEGRATIONS:
        raise ConfigError(f"integration is {integration!r}; expected one of {', '.join(_INTEGRATIONS)}")
    if baseline not in _BASELINES:
        raise ConfigError(f"baseline is {baseline!r}; expected one of {', '.join(_BASELINES)}")
    if not (isinstance(gamma, Real) and 0.0 <= gamma <= 1.0):
        raise ConfigError(f"gamma is {gamma!r}; expected a number in [0, 1]")
    if not (isinstance(eps, Real) and 0.0 < eps < float("inf")):
        raise ConfigError(f"eps is {eps!r}; expected a finite number above 0")
    if dtype is not None and not dtype.is_floating_point:
        raise ConfigError(f"dtype is {dtype}; expected a floating type")
    rollouts = group_ids.shape[0] if group_ids.ndim == 1 else -1
    _check(turn_rewards, "turn_rewards", True, None, turn_rewards)
    _check(group_ids, "group_ids", False, None, turn_rewards)
    _check(offsets, "offsets", False, rollouts + 1, turn_rewards)
    if rollouts == 0 and turn_rewards.shape[0] > 0:
        raise InputError(f"turn_rewards holds {turn_rewards.shape[0]} turns of no rollout; expected none")
    if returns is not None:
        _check(returns, "returns", True, rollouts, turn_rewards)
        returns = returns.detach()
    found = op(
        turn_rewards.detach(), offsets, group_ids, returns, float(gamma), integration, baseline,
        bool(normalize_std), float(eps), bool(validate), num_threads, backend,
    )  # fmt: skip
    if dtype is not None and dtype != torch.float64:
        found = tuple(values.to(dtype) for values in found)
    return AdvantageTensors(*found)


def _check(x: torch.Tensor, name: str, floating: bool, length: int | None, like: torch.Tensor) -> None:
    """Refuse what is not a vector of that length and kind, on the device of `like`."""
    import torch

    kinds = "a floating type" if floating else "int64 or int32"
    fits = x.is_floating_point() if floating else x.dtype in (torch.int64, torch.int32)
    if not fits or x.ndim != 1 or (length is not None and x.shape[0] != length):
        shape = "(L,)" if length is None else f"({length},)"
        raise InputError(f"{name} has shape {tuple(x.shape)} of {x.dtype}; expected {kinds} of shape {shape}")
    if x.device != like.device:
        raise InputError(f"{name} is on {x.device}; expected {like.device}, as turn_rewards")
