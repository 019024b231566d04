"""Turn-level credit for language models that call tools.

>>> import matchtir as mt
>>> gold = (mt.ToolCall("find", {"city": "Bern"}),)
>>> rollouts = [
...     mt.Trajectory((mt.Turn(gold), mt.Turn(answer="42")), gold, "42", group="q1"),
...     mt.Trajectory((mt.Turn((mt.ToolCall("find", {"city": "Basel"}),)),), gold, "42", group="q1"),
... ]
>>> credit = mt.assign_credit(rollouts)
>>> credit.turn_rewards.tolist()
[[1.0, 1.0], [0.6666666666666666]]

``credit.py`` composes the stages and is the first file to read.
"""

from __future__ import annotations

from .credit import CreditConfig, assign_advantages, assign_credit, assign_rewards
from .errors import BackendError, ConfigError, ConvergenceWarning, InputError, MatchtirError, RowError
from .loss import LossConfig, ModelOutputs, policy_loss, token_logps
from .matching import match
from .parse import parse_messages, parse_turn, trajectory_from_row
from .scatter import scatter, spans_from_mask
from .similarity import similarity
from .types import Advantages, Credit, Ragged, RaggedMatrix, Rewards, ToolCall, Trajectory, Turn

__version__ = "0.1.0"

__all__ = [
    "Advantages",
    "BackendError",
    "ConfigError",
    "ConvergenceWarning",
    "Credit",
    "CreditConfig",
    "InputError",
    "LossConfig",
    "MatchtirError",
    "ModelOutputs",
    "Ragged",
    "RaggedMatrix",
    "Rewards",
    "RowError",
    "ToolCall",
    "Trajectory",
    "Turn",
    "assign_advantages",
    "assign_credit",
    "assign_rewards",
    "match",
    "parse_messages",
    "parse_turn",
    "policy_loss",
    "scatter",
    "similarity",
    "spans_from_mask",
    "token_logps",
    "trajectory_from_row",
]
