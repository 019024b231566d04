"""The multi-turn loop: what is kept of a rollout, and how it ends, with scripted turns and real tools."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import matchtir as mt  # noqa: E402
from matchtir.errors import ConfigError, InputError  # noqa: E402
from matchtir.evals import measure  # noqa: E402
from matchtir.rollout.config import RolloutConfig  # noqa: E402
from matchtir.rollout.decode import DecodeEngine  # noqa: E402
from matchtir.rollout.engine import Ended  # noqa: E402
from matchtir.rollout.loop import sample_rollouts  # noqa: E402
from matchtir.rollout.template import ChatTemplate  # noqa: E402
from matchtir.tasks import embedded_tasks  # noqa: E402
from matchtir.tools import Sandbox, ToolRegistry  # noqa: E402
from matchtir.train.embedded.policy import embedded_tokenizer, new_policy  # noqa: E402
from matchtir.types import Task, Tool  # noqa: E402

CALL = '<tool_call>{"name": "%s", "arguments": {"town": "%s"}}</tool_call>'
MAYORS = {"Baldor": "Corfen", "Dunsta": "Felgar"}


@pytest.fixture(scope="module")
def template():
    return ChatTemplate(embedded_tokenizer())


@pytest.fixture(scope="module")
def box():
    with Sandbox(workers=1) as made:
        yield made


def task(id="t", **changes):
    schema = {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]}
    source = f"def mayor(town):\n    return {MAYORS!r}[town]"
    fields = {
        "messages": ({"role": "user", "content": "Give the mayor of Baldor."},),
        "tools": (Tool("mayor", "leader of a town", schema, source),),
        "gold_calls": (mt.ToolCall("mayor", {"town": "Baldor"}),),
        "gold_answer": "Corfen",
        "sub_answers": {"mayor": ("Corfen",)},
        "kind": "single_hop",
    }
    return Task(id, **fields | changes)


class Scripted:
    """An engine that writes given turns, every token at the log-probability of its place."""

    def __init__(self, template, turns):
        self.template, self.turns = template, turns
        self.said = []

    def run(self, requests, respond, *, temperature, greedy=False):
        live = {i: (list(request.prompt), request.budget) for i, request in enumerate(requests)}
        for turn in range(max(map(len, self.turns))):
            ended = []
            for i, (_, budget) in live.items():
                ids = self.template.tokenizer.encode(self.turns[i][turn], add_special_tokens=False)
                ids = [*ids, min(self.template.stop_ids)]
                kept = ids[:budget]
                ended.append(Ended(i, kept, [-0.5 - k for k in range(len(kept))], len(kept) == len(ids)))
            replies = respond(ended)
            self.said += ended
            live = {
                one.request: (reply.tokens, reply.budget)
                for one, reply in zip(ended, replies, strict=True)
                if reply is not None
            }


def talk(template, turns, box=None, config=None, tasks=None):
    engine = Scripted(template, turns)
    tasks = tasks or [task(f"t{i}") for i in range(len(turns))]
    config = config or RolloutConfig()
    found = sample_rollouts(tasks, engine, template, config, keys=[(i,) for i in range(len(tasks))], box=box)
    return found, engine


def test_a_rollout_keeps_what_was_sampled(template, box):
    turns = [CALL % ("mayor", "Baldor"), "<answer>Corfen</answer>"]
    (found,), engine = talk(template, [turns], box)
    assert found.finish == "answer"
    prompt = template.prompt(found.task.messages, ToolRegistry(found.task.tools).schemas())
    assert found.tokens[: found.prompt_length].tolist() == prompt
    for (start, stop), said in zip(found.spans, engine.said, strict=True):
        assert found.tokens[start:stop].tolist() == said.tokens
        assert found.logps[start:stop].tolist() == pytest.approx(said.logps)
    assert template.tokenizer.decode(found.tokens[found.spans[0, 1] : found.spans[1, 0]]).count("Corfen") == 1
    outside = np.ones(len(found), dtype=bool)
    for start, stop in found.spans:
        outside[start:stop] = False
    assert not found.logps[outside].any()
    assert found.turns[0].calls[0].result == "Corfen"
    assert [m["role"] for m in found.messages] == ["user", "assistant", "tool", "assistant"]
    assert found.sampled_tokens == sum(len(said.tokens) for said in engine.said)
    # The whole conversation, rendered at once, is the same tokens.
    schemas = ToolRegistry(found.task.tools).schemas()
    assert template.difference(found.messages, schemas, found.tokens) is None


def test_credit_and_metrics_take_its_trajectory(template, box):
    right = [CALL % ("mayor", "Baldor"), "<answer>Corfen</answer>"]
    wrong = [CALL % ("mayor", "Dunsta"), "<answer>Felgar</answer>"]
    found, _ = talk(template, [right, wrong], box, tasks=[task("a"), task("b")])
    trajectories = [one.trajectory() for one in found]
    credit = mt.assign_credit(trajectories)
    assert credit.turn_rewards.tolist() == [[1.0, 1.0], [pytest.approx(2 / 3), 0.0]]
    assert measure(trajectories[0]).solve_f1 == 1.0
    assert measure(trajectories[1]).solve_f1 == 0.0


def test_parallel_calls_are_answered_in_order(template, box):
    both = CALL % ("mayor", "Dunsta") + "\n" + CALL % ("mayor", "Baldor")
    (found,), _ = talk(template, [[both, "<answer>Corfen</answer>"]], box)
    assert [call.result for call in found.turns[0].calls] == ["Felgar", "Corfen"]
    assert [m["content"] for m in found.messages[2:4]] == ["Felgar", "Corfen"]


@pytest.mark.parametrize(
    ("turns", "changes", "finish", "count"),
    [
        (["<answer>Corfen</answer>"], {}, "answer", 1),
        (["Corfen"], {}, "answer", 1),
        ([""], {}, "no_answer", 1),
        ([CALL % ("mayor", "Baldor")] * 9, {"max_turns": 3}, "max_turns", 3),
        ([CALL % ("mayor", "Baldor")] * 9, {"max_turns": 1}, "max_turns", 1),
        ([CALL % ("mayor", "Baldor")] * 9, {"max_turn_tokens": 5}, "turn_tokens", 1),
        ([CALL % ("mayor", "Baldor")] * 9, {"max_response_tokens": 40}, "response_tokens", 3),
        ([CALL % ("mayor", "Baldor")] * 9, {"max_response_tokens": 9}, "response_tokens", 1),
    ],
)
def test_rollouts_end(template, box, turns, changes, finish, count):
    (found,), _ = talk(template, [turns], box, RolloutConfig(**changes))
    assert (found.finish, len(found.turns), len(found.spans)) == (finish, count, count)
    assert len(found) - found.prompt_length <= changes.get("max_response_tokens", 10**6)
    # Nothing stands behind the last turn: no token there could be learnt from.
    assert found.spans[-1, 1] == len(found)


def test_calls_of_the_last_turn_are_run(template, box):
    (found,), _ = talk(template, [[CALL % ("mayor", "Baldor")]], box, RolloutConfig(max_turns=1))
    assert found.turns[0].calls[0].result == "Corfen"


def test_calls_of_a_turn_that_was_cut_off_are_not_run(template, box):
    turn = CALL % ("mayor", "Baldor") + CALL % ("mayor", "Dunsta")
    length = len(template.tokenizer.encode(turn, add_special_tokens=False))
    (found,), _ = talk(template, [[turn]], box, RolloutConfig(max_turn_tokens=length - 3))
    assert found.finish == "turn_tokens"
    assert [call.result for call in found.turns[0].calls] == [None, None]
    assert found.turns[0].calls[1].malformed


def test_bad_calls_are_answered_and_the_rollout_goes_on(template, box):
    turns = [
        CALL % ("nayor", "Baldor"),
        '<tool_call>{"name": "mayor", "arguments": {</tool_call>',
        CALL % ("mayor", "Quomot"),
        "<answer>x</answer>",
    ]
    (found,), _ = talk(template, [turns], box)
    results = [turn.calls[0].result for turn in found.turns[:3]]
    assert "unknown tool" in json.loads(results[0])["error"]
    assert "malformed" in json.loads(results[1])["error"]
    assert "Quomot" in json.loads(results[2])["error"]
    assert found.finish == "answer"


def test_long_observations_lose_their_middle(template, box):
    source = "def mayor(town):\n    return ' of '.join(['Baldor'] * 50)"
    tools = (Tool("mayor", parameters=task().tools[0].parameters, source=source),)
    turns = [CALL % ("mayor", "Baldor"), "<answer>x</answer>"]
    (found,), _ = talk(template, [turns], box, RolloutConfig(max_observation_tokens=10), [task(tools=tools)])
    shown = found.turns[0].calls[0].result
    assert "…" in shown
    assert len(template.tokenizer.encode(shown)) < 20
    assert found.messages[2]["content"] == shown


def test_long_prompt_is_refused_by_name(template):
    with pytest.raises(InputError, match=r"task 'long' has \d+ tokens; expected at most 20"):
        talk(template, [["x"]], None, RolloutConfig(max_prompt_tokens=20), [task("long")])


def test_tools_with_a_source_need_a_sandbox(template):
    with pytest.raises(ConfigError, match="Sandbox"):
        talk(template, [[CALL % ("mayor", "Baldor")]])


@pytest.fixture(scope="module")
def sampled(template, box):
    policy = new_policy(0)
    config = RolloutConfig(max_turns=4, max_turn_tokens=30, temperature=0.8)
    tasks = embedded_tasks()[:4]
    engine = DecodeEngine(policy, template.stop_ids)
    keys = [(0, i) for i in range(4)]
    return policy, sample_rollouts(tasks, engine, template, config, keys=keys, group_size=3, box=box)


def test_groups_stand_together(sampled):
    _, rollouts = sampled
    assert [one.sample for one in rollouts] == [0, 1, 2] * 4
    assert [one.task.id for one in rollouts[::3]] == [one.id for one in embedded_tasks()[:4]]
    assert len({one.tokens.tobytes() for one in rollouts}) == 12


def test_update_sees_the_probabilities_that_were_sampled_with(sampled):
    from matchtir.train.minibatches import make_minibatches
    from matchtir.train.policy import PolicyModel

    policy, rollouts = sampled
    model = PolicyModel(policy).eval()
    turns = mt.Ragged.from_lists([[1.0] * len(one.turns) for one in rollouts])
    for packed in (False, True):
        (part,) = make_minibatches(
            rollouts,
            turns,
            mt.LossConfig(),
            minibatches=1,
            micro_batch_tokens=2000,
            skip_zero=True,
            packed=packed,
        )
        assert sum(len(batch.places) for batch in part.batches) == sum(one.sampled_tokens for one in rollouts)
        for batch in part.batches:
            with torch.no_grad():
                logps, _ = model(batch, 0.8)
            found = logps.flatten()[batch.places]
            expected = batch.sampled_logps.flatten()[batch.places]
            assert (expected < -0.01).any()
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_modules_of_tools_are_names():
    assert RolloutConfig(tool_modules=["numpy"]).tool_modules == ("numpy",)
    for given in ("numpy", [5]):
        with pytest.raises(ConfigError, match=r"tool_modules is .*; expected names of modules"):
            RolloutConfig(tool_modules=given)
