"""No text raises, no call is lost, and cost grows with the text: random soups and broken calls."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from typing import Any

import pytest

from matchtir.parse import parse_turn
from matchtir.parse.json_text import MAX_DEPTH
from matchtir.types import Turn

FORMATS = ("hermes", "llama3", "mistral")
PIECES = [
    "<tool_call>", "</tool_call>", "<think>", "</think>", "<answer>", "</answer>", "[TOOL_CALLS]", "[ARGS]",
    "[CALL_ID]", "<|python_tag|>", "<|eot_id|>", "<|im_end|>", "</s>", "{", "}", "[", "]", '"', "\\", "'",
    ",", ":", ";", "\n", " ", "\t", '{"name": "f"', '"arguments": {', '"parameters": {',
    '{"name": "f", "arguments": {"x": 1}}', '{"name": "g", "parameters": {}}', '{"name": 3}',
    "{'name': 'f'}", '"a"', '"<tool_call>"', '"</think>"', "NaN", "-Infinity", "1e999", "9" * 400, "true",
    "null", "nul", "f", "lookup", "word", "\u00e9", "\U0001f600", "\ud800", '"\\ud800"', "\x00", "\u2028",
    "[" * 120, '{"a":' * 120, "<tool", "_call>", "<think", "[TOOL_", "CALLS]",
]  # fmt: skip
CLOSED = [
    '{"name": "f", "arguments": {"x": 1}}',
    '{"name": "f", "arguments": {"x": "<tool_call>[TOOL_CALLS]</think>"}}', '{"name": 3}', "{'name': 'f'}",
    '{"name": "f", "arguments": {"x": 1}', "words", "", '{"name": "f, "arguments": {}}', '"', "{",
    '{"a": NaN}', '{"name": "f"}}',
]  # fmt: skip


def check(turn: Turn, text: str) -> None:
    """What holds for every turn."""
    assert turn.text == text
    assert not (turn.calls and turn.answer is not None)
    for call in turn.calls:
        assert isinstance(call.name, str)
        if call.malformed is None:
            assert call.name.strip()
            assert depth_of(dict(call.arguments)) <= MAX_DEPTH
            json.dumps(dict(call.arguments), allow_nan=False, ensure_ascii=False).encode()
        else:
            assert call.malformed
            assert call.arguments == {}
            assert not call.repaired


def depth_of(value: Any) -> int:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if children is None else 1 + max((depth_of(child) for child in children), default=0)


def openings(text: str, marker: str, head: str, ends: tuple[str, ...]) -> int:
    """Calls that open in `text`, character by character: an independent reading of the same rules.

    A marker opens a call unless it stands in a think block or in the JSON of an earlier call.
    """

    def skip_json(i: int) -> int:
        while True:
            i += len(text[i:]) - len(text[i:].lstrip())
            if text[i : i + 1] not in ("{", "["):
                return i
            try:
                _, i = json.JSONDecoder().raw_decode(text, i)
            except (ValueError, RecursionError):
                return i

    i = count = 0
    thought = False
    while i < len(text):
        if text.startswith("<think>", i):
            thought, close = True, text.find("</think>", i)
            if close < 0:
                break
            i = close + len("</think>")
        elif text.startswith("</think>", i):
            count, thought = count if thought else 0, True
            i += len("</think>")
        elif text.startswith(marker, i):
            count += 1
            i += len(marker)
            skipped = re.compile(head).match(text, i)
            i = skip_json(skipped.end() if skipped else i)
            if marker == "<tool_call>":
                # Text of the block that is no JSON: only these end it.
                stops = (*ends, marker) if thought else (*ends, marker, "</think>")
                while i < len(text) and not text.startswith(stops, i):
                    i += 1
        else:
            i += 1
    return count


HERMES = ("<tool_call>", "", ("</tool_call>", "<|im_end|>", "<|endoftext|>"))
MISTRAL = ("[TOOL_CALLS]", r"\s*[^\s\[\]{}<>\"',:;]*\s*(\[CALL_ID\][^\[\]{}<>]*)?(\[ARGS\])?\s*", ("</s>",))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("repair", [False, True])
def test_parse_random_text_never_raises(format: str, repair: bool) -> None:
    if repair:
        pytest.importorskip("json_repair")
    rng = random.Random(20)
    for _ in range(1_000 if repair else 10_000):
        text = "".join(rng.choices(PIECES, k=rng.randrange(24)))
        check_calls = parse_turn(text, format, repair=repair)
        if not repair:
            check(check_calls, text)
        else:
            assert not (check_calls.calls and check_calls.answer is not None)


def test_parse_hermes_random_text_loses_no_call() -> None:
    rng = random.Random(21)
    found = 0
    for _ in range(10_000):
        parts = rng.choices(
            [
                "<tool_call>",
                "</tool_call>",
                "<think>",
                "</think>",
                "words",
                "<|im_end|>",
                "<answer>a</answer>",
                "{",
                '"',
            ],
            weights=[4, 2, 1, 1, 2, 1, 1, 1, 1],
            k=rng.randrange(8),
        )
        parts.insert(rng.randrange(len(parts) + 1), f"<tool_call>{rng.choice(CLOSED)}</tool_call>")
        text = "".join(parts)
        turn = parse_turn(text)
        check(turn, text)
        expected = openings(text, *HERMES)
        assert len(turn.calls) == expected, text
        found += expected
    assert found > 10_000


@pytest.mark.parametrize(("format", "rules"), [("hermes", HERMES), ("mistral", MISTRAL)])
def test_parse_random_text_has_a_call_for_every_opening(format: str, rules: Any) -> None:
    rng = random.Random(22)
    safe = [
        piece
        for piece in PIECES
        if piece not in ("NaN", "-Infinity", "1e999", "9" * 400) and "think" not in piece
    ]
    for _ in range(3_000):
        text = "".join(rng.choices([*safe, rules[0], rules[0]], k=rng.randrange(16)))
        assert len(parse_turn(text, format).calls) >= openings(text, *rules), text


RENDER: dict[str, Callable[[list[str]], str]] = {
    "hermes": lambda bodies: "".join(f"<tool_call>\n{body}\n</tool_call>\n" for body in bodies),
    "llama3": lambda bodies: "\n".join(body.replace('"arguments"', '"parameters"') for body in bodies),
    "mistral": lambda bodies: "".join(f"[TOOL_CALLS]{body}" for body in bodies),
}


@pytest.mark.parametrize("format", FORMATS)
def test_parse_mutated_call_leaves_its_neighbours_whole(format: str) -> None:
    rng = random.Random(23)
    broken = 0
    for _ in range(3_000):
        bodies = [
            json.dumps({"name": f"t{k}", "arguments": {"a": k, "b": ["x", {"c": "d"}]}}) for k in range(3)
        ]
        victim = bodies[1]
        # The first key stays: in Llama's format nothing else says that a call opened.
        at = rng.randrange(len('{"name": '), len(victim))
        edit = rng.choice(["", *"\"{}:,x\\' 1"])
        bodies[1] = victim[:at] + edit + victim[at + rng.randrange(2) :]
        text = RENDER[format](bodies)
        calls = parse_turn(text, format).calls
        check(parse_turn(text, format), text)
        assert [call.name for call in calls if call.name in ("t0", "t2") and not call.malformed] == [
            "t0",
            "t2",
        ], text
        assert len(calls) >= 3, text
        broken += any(call.malformed for call in calls)
    assert broken > 1_000


@pytest.mark.parametrize("format", FORMATS)
def test_parse_truncated_text_keeps_every_call_that_opened(format: str) -> None:
    bodies = [json.dumps({"name": f"t{k}", "arguments": {"a": [k, "}"], "b": {}}}) for k in range(3)]
    text = RENDER[format](bodies)
    opening = {"hermes": "<tool_call>", "mistral": "[TOOL_CALLS]", "llama3": '{"name":'}[format]
    for cut in range(len(text) + 1):
        calls = parse_turn(text[:cut], format).calls
        assert len(calls) == text[:cut].count(opening)
        assert all(call.malformed is None for call in calls[:-1])


@pytest.mark.parametrize("repair", [False, True])
@pytest.mark.parametrize(
    ("format", "unit", "calls"),
    [
        ("hermes", "<tool_call>", 100_000),
        ("hermes", "<tool_call>{", 100_000),
        ("hermes", '<tool_call>["', 100_000),
        ("hermes", "<tool_call>x</tool_call>", 100_000),
        ("mistral", "[TOOL_CALLS]", 100_000),
        ("mistral", "[TOOL_CALLS]f{", 100_000),
        ("hermes", "<think>", 0),
        ("hermes", "</think>", 0),
        ("hermes", "<answer>", 0),
        ("llama3", '{"name":', 1),
        ("llama3", "[\n", 0),
    ],
)
def test_parse_repeated_openings_are_read_in_one_pass(
    format: str, unit: str, calls: int, repair: bool
) -> None:
    # Work that grows with the square of the text would not end here.
    if repair:
        pytest.importorskip("json_repair")
    count = 100_000 if not repair else 20_000
    expected = calls if not repair else min(calls, count)
    assert len(parse_turn(unit * count, format, repair=repair).calls) == expected


@pytest.mark.parametrize("nest", ["[", '{"a":', '[{"a":'])
@pytest.mark.parametrize("repair", [False, True])
def test_parse_deep_nesting_is_malformed(nest: str, repair: bool) -> None:
    if repair:
        pytest.importorskip("json_repair")
    body = '{"name": "f", "arguments": {"x": ' + nest * 100_000
    for format, text in {
        "hermes": f"<tool_call>{body}</tool_call>",
        "llama3": body,
        "mistral": f"[TOOL_CALLS]{body}",
    }.items():
        (call,) = parse_turn(text, format, repair=repair).calls
        assert call.malformed == f"nested deeper than {MAX_DEPTH} levels"


def test_parse_calls_of_one_array_keep_their_own_text() -> None:
    text = '<tool_call>[{"name": "a"}, {"name": 1}]</tool_call>'
    assert [call.raw for call in parse_turn(text).calls] == ['{"name": "a"}', '{"name": 1}']
