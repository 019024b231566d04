"""Live evaluation: the loop of one task, and many tasks against one server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from openai_server import OpenAIServer, Reply, calls, fails, says, scripted

from matchtir.errors import ConfigError, InputError
from matchtir.evals import evaluate, measure
from matchtir.evals.campaign import Finished, Settings, remaining, run_tasks
from matchtir.evals.chat import EndpointError, RequestError, UnavailableError
from matchtir.evals.endpoint import Endpoint
from matchtir.evals.journal import Journal
from matchtir.evals.live import rollout_row, run_task
from matchtir.evals.threads import in_threads
from matchtir.parse import trajectory_from_row
from matchtir.tools import Sandbox
from matchtir.types import Environment, Task, Tool, ToolCall, UserTurn

pytest.importorskip("openai")
pytest.importorskip("jsonschema")

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOWER = Tool("tower", "Height of a tower.", CITY, function=lambda city: {"Bern": 101, "Ulm": 162}[city])


def task(id: str = "t", **more: Any) -> Task:
    known: dict[str, Any] = {
        "gold_calls": (ToolCall("tower", {"city": "Bern"}),),
        "gold_answer": "101",
        "sub_answers": {"tower": ("101",)},
        "kind": "single_hop",
    }
    return Task(id, ({"role": "user", "content": f"How high? {id}"},), (TOWER,), **known | more)


def plays(*replies: Reply) -> Any:
    """A chat that says what a server would, and keeps what it was asked."""
    left = list(replies)
    asked: list[list[Mapping[str, Any]]] = []

    def chat(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        asked.append([dict(message) for message in messages])
        message = left.pop(0).message
        assert message is not None
        return message

    chat.asked = asked  # type: ignore[attr-defined]
    return chat


# One task


def test_run_task_calls_and_answer_become_a_rollout_that_scores() -> None:
    rollout = run_task(task(), plays(calls(("tower", {"city": "Bern"})), says("It is 101 m.")))
    assert [m["role"] for m in rollout.messages] == ["user", "assistant", "tool", "assistant"]
    assert rollout.messages[2] == {"role": "tool", "tool_call_id": "c0", "content": "101"}
    assert (rollout.finish, rollout.error) == ("answer", None)
    row = json.loads(json.dumps(rollout_row(task(), rollout)))
    trajectory = trajectory_from_row(row)
    assert [(c.name, c.arguments, c.result) for c in trajectory.calls] == [("tower", {"city": "Bern"}, "101")]
    assert trajectory.turns[-1].answer == "It is 101 m."
    assert (trajectory.group, trajectory.kind, trajectory.gold_calls) == (
        "t",
        "single_hop",
        task().gold_calls,
    )
    # One call, one sub-question, solved: P = R = F1 = 1. The answer holds 101.
    overall = evaluate([trajectory]).to_dict()["rows"][0]["metrics"]
    assert [overall[m]["mean"] for m in ("solve_p", "solve_r", "solve_f1", "correct")] == [1.0] * 4


def test_run_task_malformed_calls_are_recorded_as_they_came_and_sent_back_whole() -> None:
    chat = plays(calls(("tower", '{"city": '), ("", "{}"), ("moon", {})), says("No idea."))
    rollout = run_task(task(), chat)
    recorded = rollout.messages[1]["tool_calls"]
    assert [c["function"]["arguments"] for c in recorded] == ['{"city": ', "{}", "{}"]
    sent = chat.asked[1][1]["tool_calls"]
    assert [c["function"] for c in sent] == [
        {"name": "tower", "arguments": "{}"},
        {"name": "unknown", "arguments": "{}"},
        {"name": "moon", "arguments": "{}"},
    ]
    told = [m["content"] for m in chat.asked[1][2:]]
    assert len(told) == 3
    assert all("error" in json.loads(text) for text in told)
    assert "malformed" in told[0]
    assert "moon" in told[2]
    found = trajectory_from_row(rollout_row(task(), rollout)).calls
    assert [c.malformed is not None for c in found] == [True, True, False]
    assert [c.result for c in found] == told


def test_run_task_every_call_has_an_id_of_its_own() -> None:
    message = calls(
        ("tower", {"city": "Bern"}), ("tower", {"city": "Ulm"}), ("tower", {"city": "Oz"})
    ).message
    assert message is not None
    for entry, given in zip(message["tool_calls"], ("same", "same", None), strict=True):
        entry["id"] = given
    chat = plays(Reply(message), says("done"))
    rollout = run_task(task(), chat)
    ids = ["same", "call_0_1", "call_0_2"]
    assert [c["id"] for c in rollout.messages[1]["tool_calls"]] == ids
    assert [c["id"] for c in chat.asked[1][1]["tool_calls"]] == ids
    assert [m["tool_call_id"] for m in rollout.messages[2:5]] == ids
    results = [c.result for c in trajectory_from_row(rollout_row(task(), rollout)).calls]
    assert results[:2] == ["101", "162"]
    assert results[2] is not None
    assert "error" in json.loads(results[2])


def test_run_task_stops_after_its_last_turn_and_runs_its_calls() -> None:
    again = [calls(("tower", {"city": "Ulm"}))] * 3
    rollout = run_task(task(), plays(*again), max_turns=3)
    assert rollout.finish == "max_turns"
    assert [m["role"] for m in rollout.messages] == ["user"] + ["assistant", "tool"] * 3
    assert trajectory_from_row(rollout_row(task(), rollout)).turns[-1].answer is None


@pytest.mark.parametrize("content", [None, "", "<think>hm</think>"])
def test_run_task_an_empty_message_is_no_answer(content: str | None) -> None:
    assert run_task(task(), plays(says(content))).finish == "no_answer"


def test_run_task_calls_in_the_text_are_read_on_request() -> None:
    text = '<tool_call>{"name": "tower", "arguments": {"city": "Bern"}}</tool_call>'
    assert run_task(task(), plays(says(text))).finish == "answer"
    chat = plays(says(text), says("<answer>101</answer>"))
    rollout = run_task(task(), chat, text_format="hermes")
    assert chat.asked[1][1:] == [
        {"role": "assistant", "content": text},
        {"role": "tool", "tool_call_id": "call_0_0", "content": "101"},
    ]
    trajectory = trajectory_from_row(rollout_row(task(), rollout, text_format="hermes"))
    assert [c.result for c in trajectory.calls] == ["101"]
    assert trajectory.turns[-1].answer == "101"


def test_run_task_reasoning_is_recorded_and_not_sent_again() -> None:
    first = calls(("tower", {"city": "Bern"})).message
    assert first is not None
    chat = plays(Reply({**first, "reasoning_content": "So.", "refusal": None}), says("101"))
    rollout = run_task(task(), chat)
    assert rollout.messages[1]["reasoning_content"] == "So."
    assert "refusal" not in rollout.messages[1]
    assert set(chat.asked[1][1]) == {"role", "content", "tool_calls"}


def test_run_task_a_refused_request_ends_the_rollout_only() -> None:
    def chat(messages: Sequence[Mapping[str, Any]], tools: Any) -> Mapping[str, Any]:
        if len(messages) > 1:
            raise RequestError("too long")
        message = calls(("tower", {"city": "Bern"})).message
        assert message is not None
        return message

    rollout = run_task(task(), chat)
    assert (rollout.finish, rollout.error, len(rollout.messages)) == ("refused", "too long", 3)

    def never(messages: Any, tools: Any) -> Mapping[str, Any]:
        raise RequestError("too long")

    row = rollout_row(task(), run_task(task(), never))
    assert row["turns"] == []
    assert "messages" not in row
    assert trajectory_from_row(row).turns == ()


def test_run_task_text_that_no_request_can_carry_is_replaced_in_what_is_sent() -> None:
    chat = plays(
        Reply({**(calls(("tow\ud800er", {"city": "\ud800"})).message or {}), "content": "a\ud800"}), says("b")
    )
    rollout = run_task(task(), chat)
    assert rollout.messages[1]["content"] == "a\ud800"
    json.dumps(chat.asked[1], ensure_ascii=False).encode("utf-8")


# Threads


def test_in_threads_every_item_comes_back_once_and_errors_are_results() -> None:
    def work(x: int) -> int:
        if x % 10 == 3:
            raise ValueError(x)
        return x * x

    found = dict(in_threads(work, range(50), 7))
    assert sorted(found) == list(range(50))
    for x, result in found.items():
        if x % 10 == 3:
            assert isinstance(result, ValueError)
        else:
            assert result == x * x


def test_in_threads_what_is_given_up_starts_nothing_more() -> None:
    started: list[int] = []
    gate = threading.Event()

    def work(x: int) -> int:
        started.append(x)
        if x:
            gate.wait(10)
        return x

    results = in_threads(work, range(20), 2)
    assert next(results) == (0, 0)
    results.close()  # type: ignore[attr-defined]
    gate.set()
    for thread in threading.enumerate():
        if thread.daemon and thread.name.startswith("Thread") and "worker" in thread.name:
            thread.join(5)
    assert len(started) <= 3


# Many tasks


def solver(request: dict[str, Any]) -> Reply:
    """Calls the tool once, then answers."""
    if request["messages"][-1]["role"] == "tool":
        return says(f"It is {request['messages'][-1]['content']}.")
    return calls(("tower", {"city": "Bern"}))


def name_in(request: dict[str, Any]) -> str:
    return str(request["messages"][0]["content"]).split()[-1]


RUN = {"model": "m"}


@pytest.fixture(autouse=True)
def _fast_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits between tries are the client's; a hundredth of them will do."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.005)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rollouts.jsonl"


@pytest.fixture
def many() -> list[Task]:
    return [task(f"t{i:02}") for i in range(24)]


def run_all(tasks: Sequence[Task], server: OpenAIServer, path: Path, **options: Any) -> Iterator[Finished]:
    settings = Settings(**{"concurrency": 4, **options})
    with Journal(path, RUN) as journal:
        jobs = remaining(tasks, journal.done, settings.samples)
        yield from run_tasks(jobs, Endpoint(server.url, "m", retries=1).policy, None, journal, settings)


def keys_of(path: Path) -> list[tuple[str, int]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return sorted((r["group"], r["sample"]) for r in rows)


def test_run_tasks_every_sample_of_every_task_once(many: list[Task], path: Path) -> None:
    def slowly(request: dict[str, Any]) -> Reply:
        reply = solver(request)
        reply.delay = 0.02
        return reply

    with OpenAIServer(slowly) as server:
        finished = list(run_all(many, server, path, samples=2))
        assert 2 <= server.most <= 4
    assert all(one.error is None for one in finished)
    assert keys_of(path) == sorted((t.id, k) for t in many for k in range(2))
    trajectories = [trajectory_from_row(json.loads(line)) for line in path.read_text().splitlines()]
    assert evaluate(trajectories).to_dict()["rows"][0]["metrics"]["solve_f1"]["mean"] == 1.0


def test_run_tasks_a_server_that_is_down_for_some_leaves_them_for_the_next_run(
    many: list[Task], path: Path
) -> None:
    bad = {"t05", "t11", "t23"}

    def moody(request: dict[str, Any]) -> Reply:
        return fails(500, "oops") if name_in(request) in bad else solver(request)

    with OpenAIServer(moody) as server:
        finished = list(run_all(many, server, path))
        assert {one.key[0] for one in finished if one.error} == bad
        assert {name for name, _ in keys_of(path)} == {t.id for t in many} - bad
        before = len(server.requests)
        bad.clear()
        finished = list(run_all(many, server, path))
        assert [one.error for one in finished] == [None] * 3
        assert len(server.requests) - before == 6
    assert keys_of(path) == [(t.id, 0) for t in many]


def test_run_tasks_a_refused_task_is_recorded_with_its_reason(many: list[Task], path: Path) -> None:
    def strict(request: dict[str, Any]) -> Reply:
        return fails(400, "too long") if name_in(request) in ("t00", "t07") else solver(request)

    with OpenAIServer(strict) as server:
        assert all(one.error is None for one in run_all(many, server, path))
    rows = {r["group"]: r for r in map(json.loads, path.read_text().splitlines())}
    assert len(rows) == 24
    assert {name for name, r in rows.items() if r["finish"] == "refused"} == {"t00", "t07"}
    assert "answered 400: too long" in rows["t00"]["error"]


@pytest.mark.parametrize(
    ("fault", "error", "requests"),
    [
        (fails(401, "bad key"), EndpointError, 1),
        (fails(404, "no such model"), EndpointError, 1),
        (fails(500, "down"), UnavailableError, 2),
        (fails(400, "tools are not supported"), EndpointError, 3),
    ],
)
def test_run_tasks_an_endpoint_that_never_answers_stops_at_once(
    many: list[Task], path: Path, fault: Reply, error: Any, requests: int
) -> None:
    with OpenAIServer(scripted([fault])) as server:
        with pytest.raises(error):
            list(run_all(many, server, path))
        assert len(server.requests) == requests
    assert path.read_bytes() == b""


def test_run_tasks_a_server_that_dies_stops_the_run_and_keeps_what_is_done(
    many: list[Task], path: Path
) -> None:
    down = threading.Event()

    def mortal(request: dict[str, Any]) -> Reply:
        return fails(503, "dead") if down.is_set() else solver(request)

    with OpenAIServer(mortal) as server:
        run = run_all(many, server, path)
        assert all(next(run).error is None for _ in range(10))
        down.set()
        with pytest.raises(UnavailableError, match="4 tasks in a row failed"):
            list(run)
        done = keys_of(path)
        assert 10 <= len(done) < 24
        down.clear()
        assert all(one.error is None for one in run_all(many, server, path))
    assert keys_of(path) == [(t.id, 0) for t in many]


def test_run_tasks_an_error_of_ours_is_not_taken_for_the_endpoints(many: list[Task], path: Path) -> None:
    sandboxed = Tool("tower", "", CITY, source="def tower(city): return 101")
    tasks = [*many[:3], Task("odd", many[0].messages, (sandboxed,))]
    with OpenAIServer(solver) as server, pytest.raises(ConfigError, match="box is None"):
        list(run_all(tasks, server, path))


def test_remaining_refuses_two_tasks_of_one_name() -> None:
    with pytest.raises(InputError, match="two tasks have the id 'a'"):
        remaining([task("a"), task("b"), task("a")], set(), 1)
    tasks = [task("a"), task("b")]
    assert [(t.id, k) for t, k in remaining(tasks, {("b", 0), ("a", 1)}, 2)] == [("a", 0), ("b", 1)]


@pytest.mark.parametrize("name", ["samples", "concurrency", "max_turns"])
def test_settings_refuse_what_is_less_than_one(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is 0; expected at least 1"):
        Settings(**{name: 0})


ACCOUNT = """
class Account:
    def __init__(self, balance):
        self.balance = balance

    def add(self, amount):
        self.balance += amount
        return self.balance

    def judge(self, answer):
        return float(self.balance == 8)
"""


def test_dialogue_with_an_environment_is_judged_after_each_user_turn() -> None:
    amount = {"type": "object", "properties": {"amount": {"type": "integer"}}, "required": ["amount"]}
    task = Task(
        "t",
        ({"role": "user", "content": "Add 3."},),
        (Tool("add", parameters=amount),),
        (ToolCall("add", {"amount": 3}),),
        environment=Environment(ACCOUNT, "Account", {"balance": 5}, "judge"),
        later=(UserTurn(({"role": "user", "content": "Take it back."},), (Tool("undo"),)),),
    )
    offered = []

    def chat(messages: Any, tools: Any) -> dict[str, Any]:
        offered.append([tool["function"]["name"] for tool in tools])
        if messages[-1]["role"] == "tool":
            return {"role": "assistant", "content": "Done."}
        name, arguments = ("undo", "{}") if len(offered) > 2 else ("add", '{"amount": 3}')
        function = {"name": name, "arguments": arguments}
        return {"role": "assistant", "content": None, "tool_calls": [{"id": "a", "function": function}]}

    with Sandbox(workers=1) as box:
        rollout = run_task(task, chat, box)
    assert offered == [["add"], ["add"], ["add", "undo"], ["add", "undo"]]
    assert (rollout.finish, rollout.rounds, rollout.outcomes, rollout.fault) == (
        "answer",
        (2, 2),
        (1, 1),
        None,
    )
    returned = [m["content"] for m in rollout.messages if m["role"] == "tool"]
    assert returned[0] == "8"
    assert "no method 'undo'" in returned[1]
    row = rollout_row(task, rollout)
    assert [(r["turns"], r["outcome"], len(r["gold_calls"])) for r in row["rounds"]] == [(2, 1, 1), (2, 1, 0)]
    assert measure(trajectory_from_row(row)).correct == 1.0
