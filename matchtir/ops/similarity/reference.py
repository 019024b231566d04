"""Similarity blocks in plain Python, for the reader; equations 1-4 of arXiv:2601.10712."""

from __future__ import annotations

import numpy as np

from ...types import IntArray, RaggedMatrix
from . import InternedCalls


def _parameters(calls: InternedCalls, c: int) -> dict[int, int]:
    span = slice(calls.starts[c], calls.starts[c + 1])
    return dict(zip(calls.keys[span].tolist(), calls.values[span].tolist(), strict=True))


def _similarity(p_name: int, p: dict[int, int], g_name: int, g: dict[int, int]) -> float:
    if p_name < 0 or p_name != g_name:
        return 0.0
    union = len(p.keys() | g.keys())
    jaccard = len(p.keys() & g.keys()) / union if union else 1.0
    equal = sum(k in p and p[k] == g[k] for k in g)
    return (1 + jaccard + equal) / (2 + len(g))


def similarity(
    predicted: InternedCalls,
    begins: IntArray,
    gold: InternedCalls,
    gold_begins: IntArray,
    gold_counts: IntArray,
    threads: int,
) -> RaggedMatrix:
    p = [(int(name), _parameters(predicted, c)) for c, name in enumerate(predicted.names)]
    g = [(int(name), _parameters(gold, c)) for c, name in enumerate(gold.names)]
    cells = [
        _similarity(*p[i], *g[j])
        for b in range(len(gold_begins))
        for i in range(begins[b], begins[b + 1])
        for j in range(gold_begins[b], gold_begins[b] + gold_counts[b])
    ]
    return RaggedMatrix(np.array(cells, dtype=np.float64), np.diff(begins), gold_counts)
