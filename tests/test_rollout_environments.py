"""The loop with environments and several user turns: state, judgement, new tools, limits, credit."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from chat_templates import chat_tokenizer

import matchtir as mt
from matchtir.errors import ConfigError
from matchtir.evals import measure
from matchtir.rollout.config import RolloutConfig
from matchtir.rollout.engine import Ended
from matchtir.rollout.loop import sample_rollouts
from matchtir.rollout.records import Rollout
from matchtir.rollout.template import ChatTemplate
from matchtir.tools import Sandbox, ToolRegistry
from matchtir.train.rollout_rows import rollout_rows
from matchtir.types import Environment, Task, Tool, ToolCall, UserTurn

ACCOUNT = """
import os


class Account:
    def __init__(self, balance, expected):
        self.balance, self.expected, self.turn = balance, expected, -1

    def add(self, amount):
        self.balance += amount
        return self.balance

    def show(self):
        return self.balance

    def leave(self):
        os._exit(1)

    def judge(self, answer):
        self.turn += 1
        return float(self.balance == self.expected[self.turn])

    def lie(self, answer):
        return 7
"""
_AMOUNT = {"type": "object", "properties": {"amount": {"type": "integer"}}, "required": ["amount"]}
ADD, SHOW, LEAVE = Tool("add", "Add.", _AMOUNT), Tool("show", "Show."), Tool("leave", "Leave.")


def call(name: str, **arguments: Any) -> str:
    return "<tool_call>\n" + str({"name": name, "arguments": arguments}).replace("'", '"') + "\n</tool_call>"


def account(judge: str | None = "judge", id: str = "t", **changes: Any) -> Task:
    """Add 3, then add 4 and show, then show with a tool that appears."""
    fields: dict[str, Any] = {
        "messages": ({"role": "user", "content": "Add 3."},),
        "tools": (ADD, LEAVE),
        "gold_calls": (ToolCall("add", {"amount": 3}),),
        "environment": Environment(ACCOUNT, "Account", {"balance": 5, "expected": [8, 12, 12]}, judge),
        "later": (
            UserTurn(({"role": "user", "content": "Add 4."},), gold_calls=(ToolCall("add", {"amount": 4}),)),
            UserTurn(
                ({"role": "user", "content": "What is it now?"},), (SHOW,), (ToolCall("show", {}),), "12"
            ),
        ),
    }
    return Task(id, **fields | changes)


RIGHT = [call("add", amount=3), "Done.", call("add", amount=4), "Done.", call("show"), "12"]


class Scripted:
    """An engine that writes given turns."""

    def __init__(self, template: ChatTemplate, turns: Sequence[Sequence[str]]) -> None:
        self.template, self.turns = template, turns

    def run(self, requests: Any, respond: Any, *, temperature: float, greedy: bool = False) -> None:
        live = {i: request.budget for i, request in enumerate(requests)}
        for k in range(max(map(len, self.turns))):
            ended = []
            for i, budget in live.items():
                ids = self.template.tokenizer.encode(self.turns[i][k], add_special_tokens=False)
                ids.append(self.template.tokenizer.eos_token_id)
                ended.append(Ended(i, ids[:budget], [-1.0] * len(ids[:budget]), len(ids) <= budget))
            replies = respond(ended)
            live = {one.request: reply.budget for one, reply in zip(ended, replies, strict=True) if reply}


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return ChatTemplate(chat_tokenizer("qwen2"))


@pytest.fixture(scope="module")
def box():
    with Sandbox(2, timeout=5.0) as box:
        yield box


def talk(
    template: ChatTemplate,
    box: Sandbox | None,
    *turns: Sequence[str],
    tasks: Sequence[Task] | None = None,
    **limits: Any,
) -> list[Rollout]:
    tasks = tasks or [account(id=f"t{i}") for i in range(len(turns))]
    config = RolloutConfig(**limits)
    keys = [(i,) for i in range(len(tasks))]
    return sample_rollouts(tasks, Scripted(template, turns), template, config, keys=keys, box=box)


def test_dialogue_keeps_state_and_is_judged_after_each_user_turn(template, box):
    (found,) = talk(template, box, RIGHT)
    assert (found.finish, found.rounds, found.outcomes, found.fault) == ("answer", (2, 2, 2), (1, 1, 1), None)
    assert [c.result for turn in found.turns for c in turn.calls] == ["8", "12", "12"]
    roles = [message["role"] for message in found.messages]
    assert roles == ["user", "assistant", "tool", "assistant"] * 3
    # Spans are what was sampled, and all else is the environment's.
    text = template.tokenizer.decode(found.tokens)
    for (start, stop), said in zip(found.spans, RIGHT, strict=True):
        assert template.decode(found.tokens[start:stop]) == said
    assert [text.count(words) for words in ("Add 3.", "Add 4.", "What is it now?")] == [1, 1, 1]


def test_tokens_are_those_of_the_whole_conversation(template, box):
    (found,) = talk(template, box, RIGHT)
    schemas = ToolRegistry(found.task.tools).schemas()
    assert template.difference(found.messages, schemas, found.tokens) is None


def test_tool_that_appears_is_described_then_and_unknown_before(template, box):
    early = [call("add", amount=3), call("show"), "Done.", *RIGHT[2:]]
    (found,) = talk(template, box, early)
    assert re.match(r'\{"error": "unknown tool', found.turns[1].calls[0].result)
    last = found.messages[-4]["content"]
    assert last.startswith("What is it now?\n\n")
    assert '"description": "Show."' in last
    assert "Show." not in str(found.messages[:-4])
    assert template.tokenizer.decode(found.tokens).count("Show.") == 1
    assert found.outcomes == (1, 1, 1)


def test_wrong_state_fails_its_user_turn_and_can_be_put_right(template, box):
    late = ["Done.", call("add", amount=7), "Done.", call("show"), "12"]
    (found,) = talk(template, box, late)
    assert (found.rounds, found.outcomes) == ((1, 2, 2), (0, 1, 1))


def test_rollouts_of_one_task_do_not_share_their_environment(template, box):
    config, engine = RolloutConfig(), Scripted(template, [RIGHT] * 5)
    found = sample_rollouts([account()], engine, template, config, keys=[(0,)], group_size=5, box=box)
    assert [one.outcomes for one in found] == [(1, 1, 1)] * 5


def test_limit_of_turns_is_each_user_turns_own(template, box):
    (found,) = talk(template, box, RIGHT, max_turns=2)
    assert found.finish == "answer"
    (found,) = talk(template, box, [call("add", amount=3), call("add", amount=0)], max_turns=2)
    assert (found.finish, found.rounds, found.outcomes) == ("max_turns", (2,), ())


def test_trajectory_has_all_user_turns_and_those_not_reached_fail(template, box):
    found = talk(
        template, box, RIGHT, [call("add", amount=3), "Done.", *[call("add", amount=9)] * 2], max_turns=2
    )
    whole, cut = (one.trajectory() for one in found)
    assert [(r.turns, r.gold_calls, r.outcome) for r in whole.rounds] == [(2, 1, 1), (2, 1, 1), (2, 1, 1)]
    assert [(r.turns, r.gold_calls, r.outcome) for r in cut.rounds] == [(2, 1, 1), (2, 1, 0), (0, 1, 0)]
    assert [c.name for c in cut.gold_calls] == ["add", "add", "show"]
    assert (whole.outcome, whole.gold_answer, whole.rounds[2].gold_answer) == (None, None, "12")


def test_without_a_judge_answers_are_compared(template, box):
    (found,) = talk(template, box, RIGHT, tasks=[account(judge=None)])
    assert (found.outcomes, found.fault) == ((), None)
    assert [r.outcome for r in found.trajectory().rounds] == [None, None, None]


def test_single_user_turn_with_a_judge_has_its_outcome(template, box):
    (found,) = talk(template, box, RIGHT[:2], tasks=[account(later=())])
    (one,) = found.trajectory().rounds
    assert (found.trajectory().outcome, one.outcome, one.turns, one.gold_calls) == (None, 1.0, 2, 1)
    assert measure(found.trajectory()).correct == 1.0
    (found,) = talk(template, box, [call("add", amount=3)], tasks=[account(later=())], max_turns=1)
    assert measure(found.trajectory()).correct == 0.0


def test_killed_environment_fails_its_rollout_alone(template, box):
    killed = [call("leave"), call("add", amount=3), "Done.", "Done.", "12", ""]
    bad, good = talk(template, box, killed, RIGHT)
    assert "exit code 1" in bad.turns[0].calls[0].result
    assert "its process has ended" in bad.turns[1].calls[0].result
    assert bad.outcomes == (0, 0, 0)
    assert bad.fault == "the judge failed: its process has ended"
    assert (good.outcomes, good.fault) == ((1, 1, 1), None)


@pytest.mark.parametrize(
    ("environment", "fault"),
    [
        (Environment(ACCOUNT, "Account", {}, "judge"), "could not be made: .*missing 2 required"),
        (Environment("class", "Account", {}, "judge"), "could not be made: invalid syntax"),
        (
            Environment(ACCOUNT, "Account", {"balance": 0, "expected": []}, "judge"),
            "judge failed: list index",
        ),
        (
            Environment(ACCOUNT, "Account", {"balance": 0, "expected": []}, "lie"),
            "judge returned 7; expected",
        ),
        (
            Environment(ACCOUNT, "Account", {"balance": 0, "expected": []}, "no"),
            "judge failed: .*no method 'no'",
        ),
    ],
)
def test_what_is_wrong_with_an_environment_is_said(template, box, environment, fault):
    (found,) = talk(template, box, RIGHT[:2], tasks=[account(later=(), environment=environment)])
    assert re.search(fault, found.fault or ""), found.fault
    assert found.trajectory().rounds[0].outcome == 0.0


def test_environment_needs_a_sandbox(template):
    with pytest.raises(ConfigError, match="environment, which runs in a Sandbox"):
        talk(template, None, RIGHT)


def test_environments_are_closed_with_their_rollouts(template, box):
    talk(template, box, RIGHT, RIGHT)
    assert sum(len(host) for host in box._hosts._hosts) == 0


def test_credit_of_a_dialogue_stays_inside_its_user_turns(template, box):
    # The second rollout makes the gold call of the second user turn in the first.
    early = [call("add", amount=4), "Done.", call("add", amount=3), "Done.", call("show"), "12"]
    found = talk(template, box, RIGHT, early, tasks=[account(id="a"), account(id="b")])
    credit = mt.assign_credit([one.trajectory() for one in found])
    assert credit.call_rewards.tolist() == [[1, 1, 1], [pytest.approx(2 / 3), pytest.approx(2 / 3), 1]]
    assert credit.turn_rewards.tolist()[0] == [1, 1, 1, 1, 1, 1]
    assert credit.turn_rewards.tolist()[1][1] == 0  # 9 and not 8


def test_row_of_a_rollout_reads_back_as_its_trajectory(template, box):
    cut = [call("add", amount=3), "Done.", *[call("add", amount=9)] * 2]
    for found in talk(template, box, RIGHT, cut, max_turns=2):
        (row,) = rollout_rows([found], step=0, text_format=template.format)
        read = mt.trajectory_from_row(json.loads(json.dumps(row)))
        assert read.rounds == found.trajectory().rounds
        assert [c.name for c in read.gold_calls] == ["add", "add", "show"]
        credit = mt.assign_credit([read, read]).turn_rewards.tolist()
        assert credit == mt.assign_credit([found.trajectory()] * 2).turn_rewards.tolist()
