"""The op as torch sees it: opaque to ``torch.compile``, with its data checks inside, and no gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import InputError
from .. import _dispatch

_NAMES = ("returns", "turn_returns", "trajectory_advantages", "turn_level_advantages", "turn_advantages")


def _check_finite(values: Tensor, name: str) -> None:
    """Refuse values (L,) of which one is not finite; waits for the device."""
    finite = values.isfinite()
    if not bool(finite.all()):
        at = int((~finite).nonzero()[0, 0])
        raise InputError(f"{name}[{at}] is {float(values[at])}; expected a finite number")


def _check_offsets(offsets: Tensor, turns: int) -> None:
    """Refuse offsets (B + 1,) that do not rise from 0 to the number of turns; waits for the device."""
    rises = (offsets[1:] >= offsets[:-1]).all() & (offsets[0] == 0) & (offsets[-1] == turns)
    if not bool(rises):
        raise InputError(f"offsets must rise from 0 to {turns} (turns); got {offsets.tolist()!s:.80}")


def _run(
    turn_rewards: Tensor,
    offsets: Tensor,
    group_ids: Tensor,
    returns: Tensor | None,
    gamma: float,
    integration: str,
    baseline: str,
    normalize_std: bool,
    eps: float,
    validate: bool,
    num_threads: int | None,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    device = turn_rewards.device.type
    module = _dispatch.load("returns", backend, device)
    threads = _dispatch.threads(num_threads)
    rewards = turn_rewards.to(torch.float64).contiguous()
    starts = offsets.to(torch.int64).contiguous()
    ids = group_ids.to(torch.int64).contiguous()
    given = None if returns is None else returns.to(torch.float64).contiguous()
    checked = validate or device == "cpu"
    if checked:
        _check_offsets(starts, len(rewards))
        _check_finite(rewards, "turn_rewards")
        if given is not None:
            _check_finite(given, "returns")
    found: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
    if len(rewards) == 0 and len(ids) == 0:
        found = tuple(rewards.new_zeros(0) for _ in _NAMES)
    else:
        found = module.turn_advantages(
            rewards, starts, ids, given, gamma, integration, baseline, normalize_std, eps, threads
        )
    if checked:
        for values, name in zip(found, _NAMES, strict=True):
            _check_finite(values, name)  # sums of finite numbers can overflow
    return found


turn_advantages = torch.library.custom_op(
    "matchtir::turn_advantages",
    _run,
    mutates_args=(),
    schema=(
        "(Tensor turn_rewards, Tensor offsets, Tensor group_ids, Tensor? returns, float gamma, "
        "str integration, str baseline, bool normalize_std, float eps, bool validate, int? num_threads, "
        "str? backend) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
)


@turn_advantages.register_fake  # type: ignore[untyped-decorator]
def _fake(turn_rewards: Tensor, offsets: Tensor, group_ids: Tensor, *_: object) -> tuple[Tensor, ...]:
    turns, rollouts = turn_rewards.shape[0], group_ids.shape[0]
    sizes = (rollouts, turns, rollouts, turns, turns)
    return tuple(turn_rewards.new_empty(size, dtype=torch.float64) for size in sizes)
