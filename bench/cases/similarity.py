"""Similarity of tool calls against plain Python."""

from __future__ import annotations

import json

import numpy as np
import peers
import workloads
from checks import check
from timing import Row, interleave, interleave_parts, speedup

import matchtir as mt
from cases.rows import memory_rows, rounds, seconds_row
from matchtir.types import RaggedMatrix


def similarity_w1tool(smoke: bool) -> list[Row]:
    """W1tool against Python that parses both calls of each pair; ours from parsed calls, and from text."""
    tools = workloads.w1tool(2 if smoke else 256)
    case = f"similarity W1tool: {len(tools.predicted):,} rollouts, {tools.pairs:,} pairs"
    gold_of = [tools.gold[b // workloads.GROUP] for b in range(len(tools.predicted))]

    def ours() -> RaggedMatrix:
        gold = [workloads.parsed(calls) for calls in tools.gold]
        shared = [gold[b // workloads.GROUP] for b in range(len(tools.predicted))]
        return mt.similarity([workloads.parsed(calls) for calls in tools.predicted], shared, num_threads=1)

    gold_parsed = [workloads.parsed(calls) for calls in tools.gold]
    predicted_parsed = [workloads.parsed(calls) for calls in tools.predicted]
    shared_parsed = [gold_parsed[b // workloads.GROUP] for b in range(len(tools.predicted))]

    def from_parsed() -> RaggedMatrix:
        return mt.similarity(predicted_parsed, shared_parsed, num_threads=1)

    blocks = ours()
    check(bool((from_parsed().values == blocks.values).all()), "calls parsed before give other similarities")
    for b, block in enumerate(peers.similarity_loop(tools.predicted, gold_of)):
        same = np.abs(np.array(block) - blocks[b]).max() <= 1e-12
        check(bool(same), f"similarity of rollout {b} differs from plain Python's")
    size = max(1, len(gold_of) // 8)
    rows = []
    for names_first, metric in (
        (False, "vs Python, parsing each pair"),
        (True, "vs Python, parsing equal names"),
    ):
        parts = [
            lambda i=i, names_first=names_first: peers.similarity_loop(
                tools.predicted[i : i + size], gold_of[i : i + size], names_first
            )
            for i in range(0, len(gold_of), size)
        ]
        peer, mine = interleave_parts(parts, ours)
        beside = interleave({"ours": from_parsed}, **rounds(smoke))["ours"]
        goal = {} if names_first else {"target": 20.0, "aim": 30.0}
        rows.append(speedup(case, metric, peer, beside, **goal))
        rows.append(speedup(case, f"{metric} *", peer, mine))
    texts = [text for calls in tools.predicted for _, text in calls]
    parsing = interleave({"json": lambda: [json.loads(text) for text in texts]}, **rounds(smoke))
    return [
        *rows,
        seconds_row(case, "of it json.loads of the predicted", parsing["json"]),
        *memory_rows(case, ours),
    ]
