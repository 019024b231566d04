"""The engine of continuous batching: the same turns and log-probabilities as the decode loop's."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from test_decode import STOP, Script, check_logps, prompts, sample, tiny_model  # noqa: E402

from matchtir.rollout.continuous import ContinuousEngine  # noqa: E402
from matchtir.rollout.engine import Request  # noqa: E402


def run(model, starts, lengths, *, temperature=1.0, greedy=False, budget=9):
    script = Script(starts, lengths, budget)
    requests = [Request(start, budget + i % 3, (0, i)) for i, start in enumerate(starts)]
    ContinuousEngine(model, {STOP}).run(requests, script, temperature=temperature, greedy=greedy)
    return script


def test_logps_are_those_of_whole_passes():
    model = tiny_model().train()
    script = run(model, prompts(7), [2, 20], temperature=0.7)
    assert model.training
    assert model.config._attn_implementation == "sdpa"
    assert all(len(spans) == 3 for spans in script.spans)
    assert {True, False} == {one for stopped in script.stopped for one in stopped}
    check_logps(model.eval(), script, temperature=0.7)


def test_greedy_turns_are_those_of_the_decode_loop():
    model = tiny_model()
    starts = prompts(6)
    ours = sample(model, starts, [3, 15], greedy=True, budget=9)
    script = Script(starts, [3, 15], 9)
    requests = [Request(start, 9, (i,)) for i, start in enumerate(starts)]
    ContinuousEngine(model, {STOP}).run(requests, script, temperature=1.0, greedy=True)
    assert script.tokens == ours.tokens


def test_turns_keep_their_own_budget():
    script = run(tiny_model(), prompts(9), [], budget=3)
    for i, (spans, stopped) in enumerate(zip(script.spans, script.stopped, strict=True)):
        ((start, stop),) = spans
        assert stop - start <= 3 + i % 3
        assert stopped == [script.tokens[i][-1] == STOP]
        assert stopped[0] or stop - start == 3 + i % 3


def test_nothing_to_sample_is_nothing():
    ContinuousEngine(tiny_model(), {STOP}).run([], lambda ended: pytest.fail("no turn"), temperature=1.0)
