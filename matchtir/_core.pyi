"""Types of the binding; the functions are described in ``csrc/_core.pyx``."""

from collections.abc import Sequence

from .types import Array, FloatArray, IntArray, ToolCall

class Interner:
    def __init__(self, fold_strings: bool, fold_names: bool) -> None: ...
    def intern(
        self, traces: Sequence[Sequence[ToolCall]], gold: bool
    ) -> tuple[bytes, bytes, bytes, bytes]: ...

def assign(
    scores: FloatArray,
    rows: IntArray,
    cols: IntArray,
    cells: IntArray,
    calls: IntArray,
    greedy: bool,
    partial: bool,
    threads: int,
    matches: IntArray,
) -> None: ...
def sinkhorn(
    cost: FloatArray,
    rows: IntArray,
    cols: IntArray,
    cells: IntArray,
    a: FloatArray | None,
    row_starts: IntArray,
    b: FloatArray | None,
    col_starts: IntArray,
    reg: float,
    tol: float,
    max_iter: int,
    threads: int,
    plan: FloatArray,
    iterations: IntArray,
    violation: FloatArray,
) -> None: ...
def similarity(
    names: IntArray,
    arguments: IntArray,
    keys: IntArray,
    values: IntArray,
    begins: IntArray,
    gold_names: IntArray,
    gold_arguments: IntArray,
    gold_keys: IntArray,
    gold_values: IntArray,
    gold_begins: IntArray,
    gold_counts: IntArray,
    cells: IntArray,
    threads: int,
    out: FloatArray,
) -> None: ...
def scatter(values: Array, spans: IntArray, turns: IntArray, threads: int, out: Array) -> None: ...
def build_info() -> dict[str, str | list[str]]: ...
def set_simd(name: str) -> None: ...
