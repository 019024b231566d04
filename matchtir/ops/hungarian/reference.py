"""Assignments in plain NumPy, for the reader.

With profits s, column prices p and reduced costs h_ij = p_j - s_ij, an assignment is optimal when
every row sits on a column of least reduced cost and every free column has price 0. One row at a time
is added by a shortest path over reduced costs from the row to a free column (Dijkstra), after which
the prices along the path rise so that the condition holds again. Crouse (2016),
doi:10.1109/TAES.2016.140952.
"""

from __future__ import annotations

import numpy as np

from ...errors import InputError
from ...types import FloatArray, IntArray, Ragged, RaggedMatrix


def _add_row(s: FloatArray, p: FloatArray, row_of: IntArray, col_of: IntArray, start: int) -> None:
    """Assign row `start`; s (rows, cols) with rows <= cols, p and row_of (cols,), col_of (rows,)."""
    cols = s.shape[1]
    distance = np.full(cols, np.inf)
    parent = np.full(cols, -1)
    in_tree = np.zeros(cols, dtype=bool)
    i, reached = start, 0.0
    while True:
        base = 0.0 if i == start else p[col_of[i]] - s[i, col_of[i]]
        through = reached + (p - s[i]) - base
        closer = ~in_tree & (through < distance)
        distance[closer], parent[closer] = through[closer], i
        j = int(np.argmin(np.where(in_tree, np.inf, distance)))
        reached = distance[j]
        if row_of[j] < 0:
            break
        in_tree[j] = True
        i = int(row_of[j])
    p[in_tree] += reached - distance[in_tree]
    while True:
        i = int(parent[j])
        row_of[j] = i
        col_of[i], j = j, int(col_of[i])
        if i == start:
            return


def _solve(s: FloatArray) -> IntArray:
    """Column of each row of s (rows, cols), rows <= cols."""
    rows, cols = s.shape
    p = np.zeros(cols)
    row_of, col_of = np.full(cols, -1), np.full(rows, -1)
    for i in range(rows):
        _add_row(s, p, row_of, col_of, i)
    return col_of


def _prefer_first(s: FloatArray, matches: IntArray) -> None:
    """The tie rule, in place: s (m, n), matches (m,)."""
    owner = np.full(s.shape[1], -1)
    owner[matches[matches >= 0]] = np.flatnonzero(matches >= 0)
    for i in np.flatnonzero(matches < 0):
        pass_on = np.flatnonzero((owner > i) & (s[i] == s[owner, np.arange(s.shape[1])]))
        if matches[i] < 0 and len(pass_on):
            j = pass_on[0]
            matches[owner[j]], matches[i], owner[j] = -1, j, i
    for i in np.flatnonzero(matches >= 0):
        j = matches[i]
        free = np.flatnonzero((owner[:j] < 0) & (s[i, :j] == s[i, j]))
        if len(free):
            owner[j], owner[free[0]], matches[i] = -1, i, free[0]


def _check_finite(scores: RaggedMatrix) -> None:
    for b, s in enumerate(scores):
        bad = np.argwhere(~np.isfinite(s))
        if len(bad):
            i, j = bad[0]
            name = "NaN" if np.isnan(s[i, j]) else f"{s[i, j]:g}"
            raise InputError(f"scores[{b}] holds {name} at ({i}, {j}); expected finite values")


def _hungarian(s: FloatArray, partial: bool) -> IntArray:
    s = s.astype(np.float64)
    m, n = s.shape
    matches = np.full(m, -1)
    if m == 0 or n == 0:
        return matches
    profits = np.maximum(s, 0) if partial else s
    if m <= n:
        matches = _solve(profits)
    else:
        matches[_solve(profits.T)] = np.arange(n)
    if partial:
        matches[(matches >= 0) & (s[np.arange(m), matches] <= 0)] = -1
    _prefer_first(s, matches)
    return matches


def _greedy(s: FloatArray, partial: bool) -> IntArray:
    m, n = s.shape
    matches, taken = np.full(m, -1), np.zeros(n, dtype=bool)
    for k in np.argsort(-s, axis=None, kind="stable"):
        i, j = divmod(int(k), n)
        if matches[i] < 0 and not taken[j] and (s[i, j] > 0 or not partial):
            matches[i], taken[j] = j, True
    return matches


def hungarian(scores: RaggedMatrix, partial: bool, threads: int) -> Ragged:
    _check_finite(scores)
    return Ragged.from_lists([_hungarian(s, partial).tolist() for s in scores], np.int64)


def greedy(scores: RaggedMatrix, partial: bool, threads: int) -> Ragged:
    _check_finite(scores)
    return Ragged.from_lists([_greedy(s, partial).tolist() for s in scores], np.int64)
