"""The policy for the embedded tasks: small enough to learn tool use by reward on a CPU, within minutes."""

from __future__ import annotations

from .demonstrations import demonstration
from .policy import embedded_tokenizer, load_embedded_policy, new_policy
from .warmstart import STAGES, Stage, warm_start

__all__ = [
    "STAGES",
    "Stage",
    "demonstration",
    "embedded_tokenizer",
    "load_embedded_policy",
    "new_policy",
    "warm_start",
]
