"""Batched operations, each with a reference for the reader and faster backends that agree with it."""

from __future__ import annotations

from typing import Any

from . import _dispatch
from .hungarian import greedy, hungarian
from .logprobs import logprobs, logprobs_from_logits
from .policy_loss import PolicyLossOutput, policy_loss
from .returns import AdvantageTensors, turn_advantages
from .scatter import scatter, scatter_tensor
from .similarity import InternedCalls, Interner, interner, similarity
from .sinkhorn import SinkhornResult, sinkhorn, transport_cost

__all__ = [
    "AdvantageTensors",
    "InternedCalls",
    "Interner",
    "PolicyLossOutput",
    "SinkhornResult",
    "backends",
    "greedy",
    "hungarian",
    "interner",
    "logprobs",
    "logprobs_from_logits",
    "policy_loss",
    "scatter",
    "scatter_tensor",
    "similarity",
    "sinkhorn",
    "transport_cost",
    "turn_advantages",
]


def backends(device: str = "cpu") -> dict[str, dict[str, Any]]:
    """For each op the backends that can be loaded here, and the one that runs.

    Parameters
    ----------
    device : {"cpu", "cuda"}
        Where the data is.

    Returns
    -------
    dict
        ``{op: {"available": [name, ...], "active": name}}``; None for a name where nothing can be loaded, as
        where an op needs torch and there is none.

    Raises
    ------
    ConfigError, BackendError
        If ``MATCHTIR_BACKEND`` names what an op does not have, or what cannot run.
    """
    found: dict[str, dict[str, Any]] = {}
    for op in _dispatch.BACKENDS:
        available = _dispatch.available(op)
        active = _dispatch.load(op, device=device).__name__.rsplit(".", 1)[1] if available else None
        found[op] = {"available": available, "active": active}
    return found
