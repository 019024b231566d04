"""The C++ core's similarity blocks."""

from __future__ import annotations

import numpy as np

import matchtir._core as _core
from ...types import IntArray, RaggedMatrix
from . import InternedCalls


def similarity(
    predicted: InternedCalls,
    begins: IntArray,
    gold: InternedCalls,
    gold_begins: IntArray,
    gold_counts: IntArray,
    threads: int,
) -> RaggedMatrix:
    rows = np.diff(begins)
    blocks = RaggedMatrix(np.empty(int((rows * gold_counts).sum())), rows, gold_counts)
    _core.similarity(
        predicted.names,
        predicted.starts,
        predicted.keys,
        predicted.values,
        begins,
        gold.names,
        gold.starts,
        gold.keys,
        gold.values,
        gold_begins,
        gold_counts,
        blocks.offsets,
        threads,
        blocks.values,
    )
    return blocks
