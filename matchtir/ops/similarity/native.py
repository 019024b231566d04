"""The core's interning and similarity blocks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import matchtir._core as _core

from ...types import IntArray, RaggedMatrix, ToolCall
from . import InternedCalls


class Interner:
    def __init__(self, fold_strings: bool, fold_names: bool) -> None:
        self._tables = _core.Interner(fold_strings, fold_names)

    def intern(self, traces: Sequence[Sequence[ToolCall]], gold: bool) -> InternedCalls:
        columns = self._tables.intern(traces, gold)
        return InternedCalls(*[np.frombuffer(column, dtype=np.int64) for column in columns])


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
