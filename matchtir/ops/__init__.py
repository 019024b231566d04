"""Batched operations, each with a reference for the reader and faster backends that agree with it."""

from __future__ import annotations

from typing import Any

from . import _dispatch
from .hungarian import greedy, hungarian
from .scatter import scatter
from .similarity import InternedCalls, Interner, interner, similarity
from .sinkhorn import SinkhornResult, sinkhorn, transport_cost

__all__ = [
    "InternedCalls",
    "Interner",
    "SinkhornResult",
    "backends",
    "greedy",
    "hungarian",
    "interner",
    "scatter",
    "similarity",
    "sinkhorn",
    "transport_cost",
]


def backends() -> dict[str, dict[str, Any]]:
    """For each op the backends that can run here and the one that does.

    Returns
    -------
    dict
        ``{op: {"available": [name, ...], "active": name}}``.
    """
    return {
        op: {
            "available": _dispatch.available(op),
            "active": _dispatch.load(op).__name__.rsplit(".", 1)[1],
        }
        for op in _dispatch.BACKENDS
    }
