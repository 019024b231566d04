"""The C++ core's assignments."""

from __future__ import annotations

import numpy as np

import matchtir._core as _core

from ...types import Ragged, RaggedMatrix


def _assign(scores: RaggedMatrix, greedy: bool, partial: bool, threads: int) -> Ragged:
    matches = Ragged(np.empty(scores.row_offsets[-1], dtype=np.int64), scores.row_offsets)
    _core.assign(
        scores.values,
        scores.rows,
        scores.cols,
        scores.offsets,
        matches.offsets,
        greedy,
        partial,
        threads,
        matches.values,
    )
    return matches


def hungarian(scores: RaggedMatrix, partial: bool, threads: int) -> Ragged:
    return _assign(scores, False, partial, threads)


def greedy(scores: RaggedMatrix, partial: bool, threads: int) -> Ragged:
    return _assign(scores, True, partial, threads)
