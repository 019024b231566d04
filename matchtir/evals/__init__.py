"""How good a model's rollouts are: the paper's metrics, from saved rollouts or a live endpoint."""

from .bootstrap import Bootstrap
from .metrics import METRICS, Measured, measure
from .summary import BANDS, Estimate, Evaluation, EvaluationRow, evaluate, summarize

__all__ = [
    "BANDS",
    "METRICS",
    "Bootstrap",
    "Estimate",
    "Evaluation",
    "EvaluationRow",
    "Measured",
    "evaluate",
    "measure",
    "summarize",
]
