"""Work shared out among Python's threads, for kernels that run without the GIL.

Numba's own pools will not do: depending on its layer they end the process after a fork, or when two threads
call at once.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise


def share(work: Callable[[int, int], None], count: int, threads: int) -> None:
    """Call ``work(begin, end)`` on ranges that make up `count`, side by side."""
    threads = min(threads, count)
    if threads < 2:
        return work(0, count)
    ends = [count * i // threads for i in range(threads + 1)]
    # The caller's thread takes the last part, which saves the start of a thread.
    with ThreadPoolExecutor(threads - 1) as pool:
        others = [pool.submit(work, *part) for part in pairwise(ends[:-1])]
        work(*ends[-2:])
    for other in others:
        other.result()
    return None
