"""Each format by hand, and the way back: calls rendered in a format and parsed again are the same."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matchtir.errors import ConfigError
from matchtir.parse import formats, parse_turn, register
from matchtir.parse.json_text import MAX_DEPTH, fault_in
from matchtir.types import ToolCall, Turn

F = '{"name": "f", "arguments": {"x": 1}}'
G = '{"name": "g", "arguments": {"y": "b"}}'
P = '{"name": "f", "parameters": {"x": 1}}'
Q = '{"name": "g", "parameters": {}}'
Pair = tuple[str, dict[str, Any]]


def pairs(turn: Turn) -> list[Pair]:
    assert all(call.malformed is None for call in turn.calls), turn.calls
    return [(call.name, dict(call.arguments)) for call in turn.calls]


def hermes(*bodies: str) -> str:
    return "".join(f"<tool_call>{body}</tool_call>\n" for body in bodies)


@pytest.mark.parametrize(
    ("format", "text", "expected"),
    [
        ("hermes", hermes(F), [("f", {"x": 1})]),
        ("hermes", f"<tool_call>\n{F}\n</tool_call>", [("f", {"x": 1})]),
        ("hermes", "Let me see.\n" + hermes(F, G) + "<|im_end|>", [("f", {"x": 1}), ("g", {"y": "b"})]),
        ("hermes", hermes(f"[{F}, {G}]"), [("f", {"x": 1}), ("g", {"y": "b"})]),
        ("hermes", hermes(f"{F}\n{G}"), [("f", {"x": 1}), ("g", {"y": "b"})]),
        ("hermes", hermes('{"name": "f"}'), [("f", {})]),
        ("hermes", hermes('{"name": "f", "arguments": null}'), [("f", {})]),
        ("hermes", hermes('{"name": "f", "arguments": ""}'), [("f", {})]),
        ("hermes", hermes('{"name": "f", "arguments": "{\\"x\\": [1]}"}'), [("f", {"x": [1]})]),
        ("hermes", hermes(P), [("f", {"x": 1})]),
        ("hermes", hermes('{"name": "f", "name": "g"}'), [("g", {})]),
        (
            "hermes",
            hermes('{"name": "f", "arguments": {"a": "</tool_call>"}}'),
            [("f", {"a": "</tool_call>"})],
        ),
        ("qwen3", "<think>\nplan\n</think>\n\n" + hermes(F), [("f", {"x": 1})]),
        ("llama3", P, [("f", {"x": 1})]),
        ("llama3", "<|python_tag|>" + P + "<|eom_id|>", [("f", {"x": 1})]),
        ("llama3", P + "; " + Q, [("f", {"x": 1}), ("g", {})]),
        ("llama3", P + "\n" + Q + "<|eot_id|>", [("f", {"x": 1}), ("g", {})]),
        ("llama3", f"<|python_tag|>{P}<|python_tag|>{Q}", [("f", {"x": 1}), ("g", {})]),
        ("llama3", f"[{P}, {Q}]", [("f", {"x": 1}), ("g", {})]),
        ("llama3", "I will call it.\n" + P, [("f", {"x": 1})]),
        ("llama3", '{"type": "function", "name": "f", "parameters": {}}', [("f", {})]),
        ("llama3", '{"id": 1, "name": "f", "arguments": {"x": 1}}', [("f", {"x": 1})]),
        ("mistral", f"[TOOL_CALLS] [{F}, {G}]</s>", [("f", {"x": 1}), ("g", {"y": "b"})]),
        ("mistral", "Sure.[TOOL_CALLS]" + F, [("f", {"x": 1})]),
        ("mistral", '[TOOL_CALLS]f{"x": 1}[TOOL_CALLS]g{}', [("f", {"x": 1}), ("g", {})]),
        ("mistral", '[TOOL_CALLS]f[ARGS]{"x": 1}</s>', [("f", {"x": 1})]),
        ("mistral", '[TOOL_CALLS]f[CALL_ID]a1b2[ARGS]{"x": 1}', [("f", {"x": 1})]),
    ],
)
def test_parse_reads_well_formed_calls(format: str, text: str, expected: list[Pair]) -> None:
    assert pairs(parse_turn(text, format)) == expected


@pytest.mark.parametrize(
    ("format", "text", "expected"),
    [
        ("hermes", hermes("{'name': 'f'}"), [("", "at character 1")]),
        ("hermes", hermes(F[:-1]), [("", "no JSON")]),
        ("hermes", hermes("3"), [("", "no JSON")]),
        ("hermes", hermes(""), [("", "no JSON")]),
        ("hermes", hermes("[]"), [("", "empty array")]),
        ("hermes", hermes("[3]"), [("", "expected an object")]),
        ("hermes", hermes("[[]]"), [("", "expected an object, got an array")]),
        ("hermes", hermes('{"arguments": {}}'), [("", 'no "name"')]),
        ("hermes", hermes('{"name": 3}'), [("", '"name" is a number')]),
        ("hermes", hermes('{"name": " "}'), [("", '"name" is empty')]),
        ("hermes", hermes('{"name": "f", "arguments": [1]}'), [("f", '"arguments" is an array')]),
        ("hermes", hermes('{"name": "f", "arguments": true}'), [("f", '"arguments" is a boolean')]),
        ("hermes", hermes('{"name": "f", "arguments": "[1]"}'), [("f", '"arguments", a string')]),
        (
            "hermes",
            hermes('{"name": "f", "arguments": "{\\"x\\""}'),
            [("f", '"arguments", a string: no JSON')],
        ),
        ("hermes", hermes('{"name": "f", "arguments": {"x": NaN}}'), [("", "NaN")]),
        ("hermes", hermes('{"name": "f", "arguments": {"x": -Infinity}}'), [("", "-Infinity")]),
        ("hermes", hermes('{"name": "f", "arguments": {"x": 1e999}}'), [("", "double's range")]),
        ("hermes", hermes('{"name": "f", "arguments": {"x": ' + "9" * 5000 + "}}"), [("", "5000 digits")]),
        ("hermes", hermes('{"name": "f", "arguments": {"x": "\\ud800"}}'), [("", "surrogate")]),
        ("hermes", hermes(F + "}"), [("", "extra data at character 36")]),
        ("hermes", "<tool_call>" + F, [("f", "unclosed <tool_call>")]),
        ("hermes", "<tool_call>" + F[:9] + "<|im_end|>", [("", "unclosed <tool_call>; no JSON")]),
        ("hermes", "<tool_call>" + F + hermes(G), [("f", "unclosed <tool_call>"), ("g", None)]),
        ("hermes", hermes(F, "{bad}", G), [("f", None), ("", "no JSON"), ("g", None)]),
        ("hermes", hermes(F + '{"a" 1}' + G), [("f", None), ("", "no JSON"), ("g", None)]),
        # A quote is missing: what looks like a string runs into the next call, and must not take it.
        ("hermes", hermes('{"name": "f, "arguments": {}}', G), [("", "no JSON"), ("g", None)]),
        # There it even closes its brackets, in the next call's string.
        (
            "hermes",
            hermes('{"name": "f, "x": 1}', '{"name": "g", "arguments": {"a": "}"}}'),
            [("", "no JSON"), ("g", None)],
        ),
        ("llama3", P[:-3], [("", "no JSON")]),
        ("llama3", "{'name': 'f', 'parameters': {}}", [("", "at character 1")]),
        ("llama3", "<|python_tag|>import os", [("", "no object after")]),
        ("llama3", "<|python_tag|>", [("", "no object after")]),
        ("llama3", '{"name": 3, "parameters": {}}', [("", '"name" is a number')]),
        ("llama3", '{"name": "f", "parameters": [1]}', [("f", '"parameters" is an array')]),
        ("llama3", P[:-2] + "\n  " + Q, [("", "no JSON"), ("g", None)]),
        # A value is due there, and the next line is one: as JSON goes, it is inside the first call.
        ("llama3", P[:-3] + "\n  " + Q, [("", "no JSON")]),
        ("llama3", P + "; {bad", [("f", None), ("", "no JSON")]),
        ("mistral", "[TOOL_CALLS]", [("", "neither an array nor a name")]),
        ("mistral", "[TOOL_CALLS]f", [("f", "no arguments after the name")]),
        ("mistral", "[TOOL_CALLS]f{bad[TOOL_CALLS]g{}", [("f", "at character 1"), ("g", None)]),
        ("mistral", f"[TOOL_CALLS][{F}, {{bad}}, {G}]", [("f", None), ("", "no JSON"), ("g", None)]),
        ("mistral", f"[TOOL_CALLS][{F} {G}]", [("f", None), ("", "no comma")]),
        ("mistral", f"[TOOL_CALLS][{F}, {G}", [("f", None), ("", "not closed")]),
        ("mistral", f"[TOOL_CALLS][{F},]", [("", "comma")]),
    ],
)
def test_parse_keeps_malformed_calls_in_place_with_the_reason(
    format: str, text: str, expected: list[tuple[str, str | None]]
) -> None:
    turn = parse_turn(text, format)
    assert [call.name for call in turn.calls] == [name for name, _ in expected]
    for call, (_, reason) in zip(turn.calls, expected, strict=True):
        if reason is None:
            assert call.malformed is None
        else:
            assert call.malformed is not None
            assert reason in call.malformed
            assert call.arguments == {}
            assert not call.repaired
            assert call.raw is not None
            assert call.raw in text


@pytest.mark.parametrize(
    ("text", "reasoning", "names", "answer"),
    [
        ("<think>a</think>b<answer> c </answer>", "a", [], "c"),
        ("<think>" + hermes(F) + "</think>" + hermes(G), hermes(F).strip(), ["g"], None),
        ("plan " + hermes(F) + "</think>" + hermes(G), "plan " + hermes(F).strip(), ["g"], None),
        ("use <tool_call> here</think>" + hermes(G), "use <tool_call> here", ["g"], None),
        ("plan</think><answer>4</answer>", "plan", [], "4"),
        (
            "<think>plan " + hermes(F) + "<answer>4</answer>",
            "plan " + hermes(F) + "<answer>4</answer>",
            [],
            None,
        ),
        ("<think>a</think>b<think>c</think>" + hermes(F), "a\n\nc", ["f"], None),
        ("<think></think>", "", [], None),
        ("a</think>" + hermes(F) + "</think>", "a", ["f"], None),
        ('<tool_call>{"name": "f", "arguments": {"a": "</think>"}}</tool_call>', None, ["f"], None),
        ('<tool_call>{"name": "f", "arguments": {"a": "<think>"}}</tool_call>', None, ["f"], None),
        ("<answer>a</answer> or <answer>b</answer>", None, [], "b"),
        ("<answer>a</answer> or <answer>b", None, [], "a"),
        ("<answer></answer>", None, [], ""),
        ("<answer>a", None, [], None),
        ("a</answer>", None, [], None),
        ("<think><answer>a</answer></think>", "<answer>a</answer>", [], None),
        ("<answer>a</answer>" + hermes(F), None, ["f"], None),
        ("", None, [], None),
    ],
)
def test_parse_separates_reasoning_calls_and_answer(
    text: str, reasoning: str | None, names: list[str], answer: str | None
) -> None:
    turn = parse_turn(text)
    assert [call.name for call in turn.calls] == names
    assert (turn.reasoning.strip() if turn.reasoning else turn.reasoning) == (
        reasoning.strip() if reasoning else reasoning
    )
    assert turn.answer == answer
    assert turn.text == text


@pytest.mark.parametrize("format", ["llama3", "mistral"])
def test_parse_takes_no_call_from_a_think_block_in_any_format(format: str) -> None:
    call = P if format == "llama3" else "[TOOL_CALLS]f{}"
    assert parse_turn(f"<think>\n{call}\n</think>\n<answer>1</answer>", format).answer == "1"
    assert parse_turn(f"{call}\n</think>\n{call}", format).calls[0].name == "f"
    assert len(parse_turn(f"{call}\n</think>\n{call}", format).calls) == 1
    assert parse_turn(f"<think>\n{call}\n", format).calls == ()


@pytest.mark.parametrize(
    "text",
    [
        '{"result": 4}',
        '{"people": [\n  {"name": "Ann", "age": 3},\n  {"name": "Bo"}\n]}',
        "[1, 2]\n<answer>x</answer>",
        "f(x) = {y}",
        '{"a": {"name": "f", "parameters": {}}}',
        "[x](http://example.org)",
    ],
)
def test_parse_llama3_leaves_json_that_is_no_call_as_text(text: str) -> None:
    assert parse_turn(text, "llama3").calls == ()


def test_parse_bounds_nesting_at_exactly_the_limit() -> None:
    def text(levels: int) -> str:
        return hermes('{"name": "f", "arguments": {"x": ' + "[" * (levels - 2) + "]" * (levels - 2) + "}}")

    assert parse_turn(text(MAX_DEPTH)).calls[0].malformed is None
    assert parse_turn(text(MAX_DEPTH + 1)).calls[0].malformed == f"nested deeper than {MAX_DEPTH} levels"
    nested: Any = []
    for _ in range(MAX_DEPTH - 1):
        nested = [nested]
    assert fault_in(nested) is None
    assert fault_in([nested]) == f"nested deeper than {MAX_DEPTH} levels"
    strings = json.dumps({"name": "f", "arguments": "[" * 50_000})
    assert parse_turn(hermes(strings)).calls[0].malformed is not None


def test_parse_repair_marks_what_it_repaired_and_nothing_else() -> None:
    pytest.importorskip("json_repair")
    text = hermes(
        "{'name': 'f', 'arguments': {'x': 1}}", G, '{"name": 3}', "words", '{"name": "h", "arguments": [1]}'
    )
    calls = parse_turn(text, repair=True).calls
    assert [(c.name, c.repaired, c.malformed is None) for c in calls] == [
        ("f", True, True),
        ("g", False, True),
        ("", False, False),
        ("", False, False),
        ("h", False, False),
    ]
    assert calls[0].arguments == {"x": 1}
    assert parse_turn("<tool_call>" + F, repair=True).calls[0].malformed == "unclosed <tool_call>"
    (cut,) = parse_turn("<tool_call>" + F[:-2], repair=True).calls
    assert cut.malformed is not None
    assert not cut.repaired
    assert cut.name == ""
    mistral = parse_turn(
        "[TOOL_CALLS]f{'x': 1}[TOOL_CALLS][{'name': 'g'}, {'name': 'h'}]", "mistral", repair=True
    )
    assert [(c.name, c.repaired, dict(c.arguments)) for c in mistral.calls] == [
        ("f", True, {"x": 1}),
        ("g", True, {}),
        ("h", True, {}),
    ]
    llama = parse_turn("{'name': 'f', 'parameters': {'x': 1}}", "llama3", repair=True)
    assert llama.calls[0].repaired
    assert llama.calls[0].arguments == {"x": 1}
    inside = parse_turn(hermes('{"name": "f", "arguments": "{\'x\': 1}"}'), repair=True).calls[0]
    assert inside.repaired
    assert inside.arguments == {"x": 1}


def test_parse_repair_without_json_repair_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "json_repair", None)
    with pytest.raises(ImportError, match=r'pip install "matchtir\[repair\]"'):
        parse_turn("no call at all", repair=True)
    assert pairs(parse_turn(hermes(F))) == [("f", {"x": 1})]


def test_parse_unknown_format_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'xml'; expected one of hermes, llama3, mistral, qwen3"):
        parse_turn("", "xml")


def test_register_adds_a_format_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matchtir.parse.registry._PARSERS", {})

    def shout(text: str, *, repair: bool = False) -> Turn:
        return Turn((ToolCall(text.upper()),))

    register("shout", shout)
    assert formats() == ("shout",)
    assert parse_turn("f", "shout").calls[0].name == "F"
    with pytest.raises(ConfigError, match="registered already"):
        register("shout", shout)
    register("shout", shout, replace=True)
    with pytest.raises(ConfigError, match="expected a string"):
        register("", shout)


MARKERS = [
    "<tool_call>",
    "</tool_call>",
    "<think>",
    "</think>",
    "[TOOL_CALLS]",
    "<|python_tag|>",
    "</s>",
    "\\",
    '"',
    "\n{",
]
TEXT = st.text(max_size=8) | st.sampled_from(MARKERS)
NUMBER = st.integers(-(10**300), 10**300) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(TEXT, JSON, max_size=4)
NAME = TEXT.filter(lambda name: bool(name.strip()))
PLAIN_NAME = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.\-]{0,9}", fullmatch=True)


def dumps(value: Any, ascii: bool, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=ascii, indent=indent)


@settings(max_examples=100, deadline=None)
@given(
    calls=st.lists(st.tuples(NAME, ARGUMENTS), min_size=1, max_size=3),
    ascii=st.booleans(),
    indent=st.sampled_from([None, 2]),
    style=st.sampled_from(["blocks", "array", "lines", "string"]),
    thought=st.sampled_from(["", "<think>x</think>", "x</think>"]),
)
def test_parse_hermes_round_trip(
    calls: list[Pair], ascii: bool, indent: int | None, style: str, thought: str
) -> None:
    values: list[Any] = [{"name": name, "arguments": arguments} for name, arguments in calls]
    if style == "array":
        text = hermes(dumps(values, ascii, indent))
    elif style == "lines":
        text = hermes("\n".join(dumps(value, ascii, indent) for value in values))
    elif style == "string":
        text = hermes(*(dumps({"name": n, "arguments": dumps(a, ascii)}, ascii, indent) for n, a in calls))
    else:
        text = hermes(*(dumps(value, ascii, indent) for value in values))
    assert pairs(parse_turn(thought + text)) == calls


@settings(max_examples=100, deadline=None)
@given(
    calls=st.lists(st.tuples(NAME, ARGUMENTS), min_size=1, max_size=3),
    ascii=st.booleans(),
    indent=st.sampled_from([None, 2]),
    separator=st.sampled_from(["; ", ";", "\n", " ;\n", "\n\n"]),
    tag=st.sampled_from(["", "<|python_tag|>", "\n", "Now.\n"]),
)
def test_parse_llama3_round_trip(
    calls: list[Pair], ascii: bool, indent: int | None, separator: str, tag: str
) -> None:
    values = [dumps({"name": name, "parameters": arguments}, ascii, indent) for name, arguments in calls]
    assert pairs(parse_turn(tag + separator.join(values) + "<|eot_id|>", "llama3")) == calls


@settings(max_examples=100, deadline=None)
@given(
    calls=st.lists(st.tuples(PLAIN_NAME, ARGUMENTS), min_size=1, max_size=3),
    ascii=st.booleans(),
    indent=st.sampled_from([None, 2]),
    style=st.sampled_from(["array", "", "[ARGS]", "[CALL_ID]a1[ARGS]"]),
)
def test_parse_mistral_round_trip(calls: list[Pair], ascii: bool, indent: int | None, style: str) -> None:
    if style == "array":
        values = [{"name": name, "arguments": arguments, "id": "a"} for name, arguments in calls]
        text = "[TOOL_CALLS] " + dumps(values, ascii, indent)
    else:
        text = "".join(
            f"[TOOL_CALLS]{name}{style}{dumps(arguments, ascii, indent)}" for name, arguments in calls
        )
    assert pairs(parse_turn(text + "</s>", "mistral")) == calls


@settings(max_examples=50, deadline=None)
@given(calls=st.lists(st.tuples(PLAIN_NAME, ARGUMENTS), min_size=1, max_size=3))
def test_parse_hermes_agrees_with_transformers_on_well_formed_text(calls: list[Pair]) -> None:
    chat_parsing = pytest.importorskip("transformers.utils.chat_parsing")
    if any("</tool_call>" in json.dumps(arguments) for _, arguments in calls):
        return  # there a marker inside a string ends the call
    template = {
        "start_anchor": "<|im_start|>assistant\n",
        "fields": {
            "content": {"content": "text"},
            "tool_calls": {
                "open": "<tool_call>",
                "close": "</tool_call>",
                "content": "json",
                "repeats": True,
            },
        },
    }
    text = hermes(*(json.dumps({"name": name, "arguments": arguments}) for name, arguments in calls))
    theirs = chat_parsing.parse_response(text, template, prefix="")["tool_calls"]
    assert pairs(parse_turn(text)) == [(call["name"], call["arguments"]) for call in theirs]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('[TOOL_CALLS] {"name": "f"} {"name": "g"}', ["f", "g"]),
        ('[TOOL_CALLS][{"name": "f"}] [{"name": "g"}, {"name": "h"}]', ["f", "g", "h"]),
        ('[TOOL_CALLS]f{"a": 1}g{"b": 2}', ["f", "g"]),
        ('[TOOL_CALLS] [{"name": "f"}], {"name": "g"}]', ["f", "g"]),
        ('[TOOL_CALLS][{"name": "f"}] Both are asked for.', ["f"]),
        ('[TOOL_CALLS][{"name": "f"}][TOOL_CA', ["f"]),
        ('[TOOL_CALLS][{"name": "f"}] {"name": 3}', ["f", ""]),
    ],
)
def test_mistral_calls_behind_the_first_value_of_a_tag_are_calls(text: str, names: list[str]) -> None:
    assert [call.name for call in parse_turn(text, "mistral").calls] == names


def test_llama3_json_in_an_answer_is_an_answer() -> None:
    turn = parse_turn('<answer>\n{"name": "Lily Chen", "age": 3}\n</answer>', "llama3")
    assert turn.calls == ()
    assert turn.answer == '{"name": "Lily Chen", "age": 3}'
    # A tag is a call wherever it stands, and so is what follows the answer.
    tagged = '<answer><|python_tag|>{"name": "f", "parameters": {}}</answer>'
    assert [call.name for call in parse_turn(tagged, "llama3").calls] == ["f"]
    after = '<answer>4</answer>\n{"name": "f", "parameters": {}}'
    assert [call.name for call in parse_turn(after, "llama3").calls] == ["f"]
    unclosed = '<answer>\n{"name": "f", "parameters": {}}'
    assert [call.name for call in parse_turn(unclosed, "llama3").calls] == ["f"]
