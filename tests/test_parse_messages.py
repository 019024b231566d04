"""OpenAI messages: turns, calls, results, reasoning, answers; and the real rollouts of τ-bench."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from matchtir.errors import ConfigError, InputError
from matchtir.parse import parse_messages, parse_turn


def call(name: Any = "f", arguments: Any = "{}", id: str | None = None) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return {"id": id, **entry} if id else entry


def assistant(content: Any = None, *calls: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": list(calls) or None, **more}


def tool(content: Any, id: str | None = None) -> dict[str, Any]:
    return {"role": "tool", "content": content, "tool_call_id": id}


def test_messages_every_assistant_message_is_a_turn() -> None:
    turns = parse_messages(
        [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "u"},
            assistant(None, call("f", '{"x": 1}'), call("g", {"y": [2]})),
            assistant("Which one?"),
            {"role": "user", "content": "that"},
            assistant("<think>so</think>It is 4."),
            {"role": "user", "content": "###STOP###"},
        ]
    )
    assert [[(c.name, dict(c.arguments)) for c in turn.calls] for turn in turns] == [
        [("f", {"x": 1}), ("g", {"y": [2]})],
        [],
        [],
    ]
    assert [turn.answer for turn in turns] == [None, None, "It is 4."]
    assert turns[2].reasoning == "so"
    assert turns[2].text == "<think>so</think>It is 4."


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        (assistant("so <answer>4</answer> it is"), "4"),
        (assistant("plain"), "plain"),
        (assistant(""), None),
        (assistant(None), None),
        (assistant("<think>only"), None),
        (assistant("<answer>4</answer>", call()), None),
        (assistant([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}, "b"]), "ab"),
    ],
)
def test_messages_final_answer(message: dict[str, Any], answer: str | None) -> None:
    assert parse_messages([message])[-1].answer == answer


def test_messages_results_go_to_the_call_they_name_and_else_in_order() -> None:
    turns = parse_messages(
        [
            tool("before any turn"),
            assistant(None, call(id="a"), call(id="b"), call(id="c"), call(id="d")),
            tool("for c", "c"),
            tool("first without", None),
            tool("unknown id", "zz"),
            tool([{"type": "text", "text": "for d"}], "d"),
            tool("one too many", None),
            assistant(None, call(id="a")),
            tool("second a", "a"),
        ]
    )
    assert [c.result for c in turns[0].calls] == ["first without", "unknown id", "for c", "for d"]
    assert [c.result for c in turns[1].calls] == ["second a"]


def test_messages_malformed_calls_are_data() -> None:
    entries = [
        call("f", "{bad"),
        call("f", 3),
        call(None, "{}"),
        call("", "{}"),
        call("f", "[1]"),
        call("f", {"x": float("nan")}),
        call("f", {"x": "\ud800"}),
        {"name": "flat", "arguments": {"x": 1}},
        call("f", None),
        call("f", ""),
    ]
    calls = parse_messages([assistant(None, *entries)])[0].calls
    assert [c.malformed is not None for c in calls] == [True] * 7 + [False] * 3
    assert calls[0].raw == "{bad"
    assert calls[0].name == "f"
    assert calls[1].malformed == '"arguments" is a number; expected an object'
    assert calls[2].malformed == '"name" is null; expected a string'
    assert calls[2].raw == "{}"
    assert calls[7].arguments == {"x": 1}
    nested: Any = 1
    for _ in range(5_000):
        nested = [nested]
    assert "nested deeper" in str(
        parse_messages([assistant(None, call("f", {"x": nested}))])[0].calls[0].malformed
    )


def test_messages_content_is_parsed_for_calls_only_on_request() -> None:
    text = '<tool_call>{"name": "f"}</tool_call>'
    assert parse_messages([assistant(text)])[0].calls == ()
    assert parse_messages([assistant(text)], format="hermes")[0].calls[0].name == "f"
    both = parse_messages([assistant(text, call("g"))], format="hermes")[0]
    assert [c.name for c in both.calls] == ["g"]
    assert parse_messages([assistant("plain")], format="hermes")[0].answer == "plain"
    with pytest.raises(ConfigError, match="expected one of"):
        parse_messages([], format="xml")


def test_messages_reasoning_fields_and_legacy_function_call() -> None:
    turn = parse_messages([assistant("<think>b</think>x", reasoning_content="a\n")])[0]
    assert turn.reasoning == "a\n\nb"
    legacy = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"x": 1}'}}
    turns = parse_messages([legacy, {"role": "function", "name": "f", "content": "r"}])
    assert turns[0].calls[0].arguments == {"x": 1}
    assert turns[0].calls[0].result == "r"


def test_messages_repair_is_for_arguments_that_are_no_json() -> None:
    pytest.importorskip("json_repair")
    calls = parse_messages(
        [assistant(None, call("f", "{'x': 1}"), call("f", "[1]"), call("f", "{}"))], repair=True
    )
    assert [(c.repaired, dict(c.arguments), c.malformed is None) for c in calls[0].calls] == [
        (True, {"x": 1}, True),
        (False, {}, False),
        (False, {}, True),
    ]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("text", "messages is a string; expected a list"),
        ([3], r"messages\[0\] is a number; expected an object"),
        ([{"content": "x"}], r"messages\[0\].role is null; expected a string"),
        ([assistant(3)], r"messages\[0\].content is a number; expected a string, a list of parts, or null"),
        ([assistant([3])], r"messages\[0\].content\[0\] is a number"),
        ([assistant([{"text": 3}])], r"messages\[0\].content\[0\].text is a number"),
        (
            [{"role": "assistant", "tool_calls": "x"}],
            r"messages\[0\].tool_calls is a string; expected a list",
        ),
        ([assistant(None, call(), 3)], r"messages\[0\].tool_calls\[1\] is a number; expected an object"),
        ([assistant(None, {"function": "f"})], r"messages\[0\].tool_calls\[0\].function is a string"),
    ],
)
def test_messages_structural_errors_name_the_field(messages: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_messages(messages)


def test_messages_none_make_no_turn() -> None:
    assert parse_messages([]) == ()
    assert parse_messages([{"role": "user", "content": "hi"}]) == ()


@pytest.fixture(scope="module")
def tau_bench(tau_bench_path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(tau_bench_path.read_text())
    return rows


def test_messages_tau_bench_every_call_is_parsed(tau_bench: list[dict[str, Any]]) -> None:
    total = 0
    for row in tau_bench:
        turns = parse_messages(row["traj"])
        sources = [m for m in row["traj"] if m["role"] == "assistant"]
        assert len(turns) == len(sources)
        results = [m["content"] for m in row["traj"] if m["role"] == "tool"]
        assert [c.result for turn in turns for c in turn.calls if c.result is not None] == results
        for turn, source in zip(turns, sources, strict=True):
            expected = [entry["function"] for entry in source.get("tool_calls") or []]
            assert [c.name for c in turn.calls] == [f["name"] for f in expected]
            assert [c.arguments for c in turn.calls] == [json.loads(f["arguments"]) for f in expected]
            assert not any(c.malformed or c.repaired for c in turn.calls)
            total += len(turn.calls)
    assert total == 1164


def test_messages_tau_bench_calls_survive_every_text_format(tau_bench: list[dict[str, Any]]) -> None:
    for row in tau_bench:
        calls = [c for turn in parse_messages(row["traj"]) for c in turn.calls]
        if not calls:
            continue
        bodies = [{"name": c.name, "arguments": dict(c.arguments)} for c in calls]
        texts = {
            "hermes": "".join(f"<tool_call>{json.dumps(body)}</tool_call>" for body in bodies),
            "llama3": "\n".join(json.dumps(body) for body in bodies),
            "mistral": "[TOOL_CALLS]" + json.dumps(bodies),
        }
        for format, text in texts.items():
            parsed = parse_turn(text, format).calls
            assert [{"name": c.name, "arguments": c.arguments} for c in parsed] == bodies
            assert not any(c.malformed for c in parsed)
