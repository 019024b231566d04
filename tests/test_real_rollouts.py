"""The real τ-bench rollouts, scored by the command and by an independent computation in this file.

The computation reads the file itself, compares JSON values through their canonical text, matches with
SciPy and loops over rollouts and turns in plain Python; it shares nothing with the library.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from matchtir.cli import main

GAMMA, EPS = 0.9, 1e-6


@pytest.fixture(scope="module")
def raw(tau_bench_path):
    return tau_bench_path, json.loads(tau_bench_path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def scored(raw, tmp_path_factory) -> list[dict]:
    output: Path = tmp_path_factory.mktemp("scores") / "scores.jsonl"
    assert main(["score", str(raw[0]), "-o", str(output)]) == 0
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


def canonical(value: object) -> object:
    """The value with whole floats as integers, so that equal JSON values have equal text."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, dict):
        return {key: canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [canonical(item) for item in value]
    return value


def equal(left: object, right: object) -> bool:
    return json.dumps(canonical(left), sort_keys=True) == json.dumps(canonical(right), sort_keys=True)


def similarity(name: str, arguments: dict, gold: dict) -> float:
    if name != gold["name"]:
        return 0.0
    wanted = gold["kwargs"]
    union = set(arguments) | set(wanted)
    jaccard = len(set(arguments) & set(wanted)) / len(union) if union else 1.0
    values = sum(key in arguments and equal(arguments[key], value) for key, value in wanted.items())
    return (1 + jaccard + values) / (2 + len(wanted))


def turn_rewards(rollout: dict) -> list[float]:
    gold = rollout["info"]["task"]["actions"]
    turns = [message for message in rollout["traj"] if message["role"] == "assistant"]
    calls = [
        (t, call["function"]["name"], json.loads(call["function"]["arguments"]))
        for t, turn in enumerate(turns)
        for call in turn.get("tool_calls") or []
    ]
    scores = np.array([[similarity(name, arguments, g) for g in gold] for _, name, arguments in calls])
    paid = dict.fromkeys(range(len(calls)), 0.0)
    if scores.size:
        paid.update(
            {i: scores[i, j] for i, j in zip(*linear_sum_assignment(scores, maximize=True), strict=True)}
        )
    by_turn = defaultdict(list)
    for k, (t, _, _) in enumerate(calls):
        by_turn[t].append(paid[k])
    rewards = [mean(by_turn[t]) if by_turn[t] else 0.0 for t in range(len(turns))]
    rewards[-1] += rollout["reward"]
    return rewards


def normalised(values: dict[int, float], alone: bool) -> dict[int, float]:
    """Rollout to advantage; `alone` says that a single value is kept as it is."""
    if len(values) == 1:
        return {b: x / (1 + EPS) if alone else 0.0 for b, x in values.items()}
    if max(values.values()) == min(values.values()):
        return dict.fromkeys(values, 0.0)
    centre, spread = mean(values.values()), stdev(values.values())
    return {b: (x - centre) / (spread + EPS) for b, x in values.items()}


def test_score_finds_every_real_call(raw, scored):
    calls = sum(len(m.get("tool_calls") or []) for rollout in raw[1] for m in rollout["traj"])
    assert calls == 1164
    assert sum(len(record["call_rewards"]) for record in scored) == calls
    assert [record["row"] for record in scored] == list(range(200))
    assert [record["group"] for record in scored] == [rollout["task_id"] for rollout in raw[1]]
    assert sum(record["malformed"] for record in scored) == 0


def test_score_equals_an_independent_computation(raw, scored):
    rewards = [turn_rewards(rollout) for rollout in raw[1]]
    groups = defaultdict(list)
    for b, rollout in enumerate(raw[1]):
        groups[rollout["task_id"]].append(b)
    assert set(map(len, groups.values())) == {4}
    for members in groups.values():
        whole = normalised({b: sum(rewards[b]) for b in members}, alone=False)
        returns = {
            b: [sum(GAMMA**k * r for k, r in enumerate(rewards[b][t:])) for t in range(len(rewards[b]))]
            for b in members
        }
        levels = [
            normalised({b: returns[b][t] for b in members if t < len(returns[b])}, alone=True)
            for t in range(max(map(len, returns.values())))
        ]
        for b in members:
            record = scored[b]
            np.testing.assert_allclose(record["turn_rewards"], rewards[b], rtol=0, atol=1e-12)
            assert record["return"] == pytest.approx(sum(rewards[b]), abs=1e-12)
            assert record["trajectory_advantage"] == pytest.approx(whole[b], abs=1e-6)
            expected = [whole[b] + levels[t][b] for t in range(len(rewards[b]))]
            np.testing.assert_allclose(record["turn_advantages"], expected, rtol=0, atol=1e-6)


def test_matches_of_real_rollouts_are_one_to_one_and_pay_what_they_say(raw, scored):
    for rollout, record in zip(raw[1], scored, strict=True):
        gold = rollout["info"]["task"]["actions"]
        calls = [call["function"] for m in rollout["traj"] for call in m.get("tool_calls") or []]
        used = [j for j in record["matches"] if j is not None]
        assert len(set(used)) == len(used)
        for call, j, reward in zip(calls, record["matches"], record["call_rewards"], strict=True):
            paid = 0.0 if j is None else similarity(call["name"], json.loads(call["arguments"]), gold[j])
            assert reward == pytest.approx(paid, abs=1e-12)


def test_total_weight_of_real_rollouts_equals_scipy(raw, scored):
    total = 0.0
    for rollout in raw[1]:
        gold = rollout["info"]["task"]["actions"]
        calls = [call["function"] for m in rollout["traj"] for call in m.get("tool_calls") or []]
        scores = [[similarity(c["name"], json.loads(c["arguments"]), g) for g in gold] for c in calls]
        if calls and gold:
            matrix = np.array(scores)
            total += matrix[linear_sum_assignment(matrix, maximize=True)].sum()
    assert sum(sum(record["call_rewards"]) for record in scored) == pytest.approx(total, abs=1e-9)
    assert total > 300  # the file has something to match
