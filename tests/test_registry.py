"""Tools by name: what makes one, what a call must look like, and what the model is shown of it."""

# ruff: noqa: UP007, UP045 (both spellings of a union are tested)

from __future__ import annotations

import functools
import http.server
import inspect
import json
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Optional, Union

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matchtir.errors import ConfigError, InputError
from matchtir.tools import (
    Call,
    Observation,
    Result,
    Sandbox,
    ToolRegistry,
    call_failed,
    tool_from_function,
    tool_from_mcp,
    tool_from_schema,
)
from matchtir.tools import arguments as arguments_module
from matchtir.tools.arguments import MAX_DEPTH, MAX_MESSAGE
from matchtir.types import Tool, ToolCall

jsonschema = pytest.importorskip("jsonschema")

WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1}},
    "required": ["city"],
}


class InProcess:
    """Stands in for the sandbox: the same `map`, in this process. It keeps what it was asked."""

    def __init__(self, *fixed: Result) -> None:
        self.asked: list[tuple[list[Call], Sequence[Any] | None]] = []
        self.fixed = list(fixed)

    def map(self, calls: Sequence[Call], *, groups: Sequence[Any] | None = None) -> list[Result]:
        self.asked.append((list(calls), groups))
        return [self.fixed.pop(0) if self.fixed else self.run(call) for call in calls]

    def run(self, call: Call) -> Result:
        space: dict[str, Any] = {}
        try:
            exec(call.source, space)
            return Result("ok", space[call.name](**call.arguments), seconds=0.25)
        except Exception as error:
            return Result("error", error=str(error), seconds=0.25)


def registry_of(parameters: Any, name: str = "f", function: Any = None) -> ToolRegistry:
    return ToolRegistry([Tool(name, "", parameters, function=function or (lambda **given: given))])


def property_check(schema: Any, value: Any) -> str | None:
    """What is said of the one argument `x`."""
    registry = registry_of({"type": "object", "properties": {"x": schema}})
    return registry.check(ToolCall("f", {"x": value}))


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


# The mapping


def test_registry_is_a_mapping_in_the_order_given() -> None:
    tools = [Tool("b"), Tool("a", "first letter")]
    registry = ToolRegistry(tools)
    assert list(registry) == ["b", "a"]
    assert len(registry) == 2
    assert registry["a"] is tools[1]
    assert "c" not in registry
    assert len(ToolRegistry()) == 0


def test_registry_schemas_are_openai_s_and_copies() -> None:
    registry = ToolRegistry([Tool("w", "Weather.", MappingProxyType(WEATHER))])
    expected = {"name": "w", "description": "Weather.", "parameters": WEATHER}
    first = registry.schemas()
    assert first == [{"type": "function", "function": expected}]
    first[0]["function"]["parameters"]["properties"].clear()
    assert registry.schemas()[0]["function"] == expected


@pytest.mark.parametrize(
    ("tools", "said"),
    [
        ([Tool("a"), Tool("a")], r"tools\[1\]: two tools are named a"),
        ([Tool("")], r"tools\[0\] has the name ''"),
        (["a"], r"tools\[0\] is str; expected a Tool"),
        ([Tool("a", "", {"type": "string"})], r"parameters of a: type is 'string'; expected 'object'"),
        ([Tool("a", "", [])], r"parameters of a: got list; expected a JSON schema of type object"),
        ([Tool("a", "", {"x": {1, 2}})], r"parameters of a: set is no JSON value"),
        ([Tool("a", "", {"x": nested(100_000)})], r"parameters of a: "),
    ],
)
def test_registry_refuses_what_is_no_tool(tools: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        ToolRegistry(tools)


def test_registry_refuses_a_circular_schema() -> None:
    parameters: dict[str, Any] = {"type": "object"}
    parameters["properties"] = {"x": parameters}
    with pytest.raises(InputError, match="parameters of a: Circular"):
        ToolRegistry([Tool("a", "", parameters)])


def test_registry_names_the_package_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments_module._validator_class.cache_clear()
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    try:
        with pytest.raises(ImportError, match=r'pip install "matchtir\[tools\]"'):
            registry_of({"type": "object", "description": "compiled by this test only"})
    finally:
        arguments_module._validator_class.cache_clear()


def test_registry_compiles_a_schema_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = {"type": "object", "description": "shared by two registries"}
    registry_of(parameters)

    def refuse(schema: Any) -> Any:
        raise AssertionError("compiled again")

    monkeypatch.setattr(arguments_module, "_repair", refuse)
    assert registry_of(dict(parameters)).check(ToolCall("f")) is None
    with pytest.raises(AssertionError, match="compiled again"):
        registry_of({"type": "object", "description": "another one"})


# The check


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"city": "Bern"}, None),
        ({"city": "Bern", "days": 3}, None),
        ({"city": "Bern", "days": 3.0}, None),
        ({"city": "Bern", "planet": "Mars"}, None),
        (
            {"days": "three"},
            "arguments of w: days: 'three' is not of type 'integer'; 'city' is a required property",
        ),
        ({"city": None}, "arguments of w: city: None is not of type 'string'"),
        ({"city": "Bern", "days": True}, "arguments of w: days: True is not of type 'integer'"),
        ({"city": "Bern", "days": 0}, "arguments of w: days: 0 is less than the minimum of 1"),
    ],
)
def test_check_tells_what_does_not_fit(arguments: dict[str, Any], said: str | None) -> None:
    registry = registry_of(WEATHER, "w")
    assert registry.check(ToolCall("w", arguments)) == said
    assert registry.check(ToolCall("w", MappingProxyType(arguments))) == said


def test_check_names_the_place_inside_an_argument() -> None:
    schema = {"type": "array", "items": {"type": "object", "properties": {"y": {"type": "number"}}}}
    assert property_check(schema, [{"y": 1}, {"y": "2"}]) == (
        "arguments of f: x[1].y: '2' is not of type 'number'"
    )


def test_check_tells_alternatives_apart() -> None:
    schema = {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "integer"}}]}
    assert property_check(schema, [1]) is None
    assert property_check(schema, ["a"]) == (
        "arguments of f: x: ['a'] fits no alternative: "
        "is not of type 'integer' | [0]: 'a' is not of type 'integer'"
    )


def test_check_refuses_unknown_arguments_only_where_the_schema_does() -> None:
    call = ToolCall("f", {"x": 1})
    assert registry_of({"type": "object", "properties": {}}).check(call) is None
    assert registry_of({"type": "object", "additionalProperties": {"type": "integer"}}).check(call) is None
    strict = registry_of({"type": "object", "properties": {}, "additionalProperties": False})
    assert strict.check(call) == (
        "arguments of f: Additional properties are not allowed ('x' was unexpected)"
    )


def test_check_suggests_tools_for_an_unknown_name() -> None:
    registry = ToolRegistry([Tool("get_weather"), Tool("get_time"), Tool("add")])
    assert registry.check(ToolCall("get_wether")) == (
        "unknown tool 'get_wether'; did you mean get_weather or get_time?"
    )
    assert registry.check(ToolCall("zzz")) == (
        "unknown tool 'zzz'; the tools are: get_weather, get_time, add"
    )
    assert ToolRegistry().check(ToolCall("zzz")) == "unknown tool 'zzz'; the tools are: none"


def test_check_tells_why_a_call_is_malformed() -> None:
    registry = registry_of(WEATHER, "w")
    assert registry.check(ToolCall("", malformed='no "name"')) == 'malformed call: no "name"'
    assert registry.check(ToolCall("w", malformed="no JSON")) == "malformed call of w: no JSON"


LONG = "x" * 1_000_000


@pytest.mark.parametrize(
    "call",
    [
        ToolCall("w", {"city": ["x" * 100] * 10_000}),
        ToolCall("w", {"city": LONG, "days": LONG}),
        ToolCall("w", {"city": "a", "more": {str(i): {LONG: i} for i in range(1_000)}}),
        ToolCall(LONG),
        ToolCall(LONG, malformed=LONG),
        ToolCall("\ud800", {}),
    ],
)
def test_check_keeps_its_message_short(call: ToolCall) -> None:
    strict = {
        **WEATHER,
        "properties": {**WEATHER["properties"], "more": {"additionalProperties": {"type": "null"}}},
    }
    said = registry_of(strict, "w").check(call)
    assert said is not None
    assert 10 < len(said) <= MAX_MESSAGE
    said.encode()


def test_check_marks_a_cut_and_keeps_the_reason_of_a_long_value() -> None:
    registry = registry_of(WEATHER, "w")
    said = registry.check(ToolCall("w", {"city": "a", "days": LONG}))
    assert said is not None
    assert said.endswith("x… is not of type 'integer'")
    cut = registry.check(ToolCall("w", malformed="m" * 1_000))
    assert cut is not None
    assert len(cut) == MAX_MESSAGE
    # "malformed call of w: " has 21 characters.
    assert cut.endswith("mmm … (cut, 1,021 characters)")


def test_check_stops_after_five_errors() -> None:
    said = property_check({"type": "array", "items": {"type": "integer"}}, ["a"] * 7)
    assert said is not None
    assert said.count("is not of type") == 5
    assert said.endswith("; and more")
    five = property_check({"type": "array", "items": {"type": "integer"}}, ["a"] * 5)
    assert five is not None
    assert not five.endswith("more")


@pytest.mark.parametrize("schema", [{}, {"$ref": "#/$defs/t"}])
def test_check_refuses_deep_arguments(schema: dict[str, Any]) -> None:
    tree = {"type": "array", "items": {"$ref": "#/$defs/t"}}
    registry = registry_of({"type": "object", "properties": {"x": schema}, "$defs": {"t": tree}})
    for depth in (MAX_DEPTH, 900, 100_000):
        said = registry.check(ToolCall("f", {"x": nested(depth)}))
        assert said == f"arguments of f are nested too deeply; at most {MAX_DEPTH} levels"
    # The object of the arguments is a level, the number inside is none.
    assert registry_of({}).check(ToolCall("f", {"x": nested(MAX_DEPTH - 1)})) is None


def test_check_survives_what_breaks_the_validator() -> None:
    assert property_check({"multipleOf": 0.5}, 10**400) == "arguments of f cannot be checked: OverflowError"
    loop = {"type": "object", "$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}
    assert registry_of(loop).check(ToolCall("f")) == "arguments of f cannot be checked: RecursionError"


def _doubling(levels: int) -> dict[str, Any]:
    """Definitions that ask for each other twice."""
    twice = {f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(levels)}
    return {"$defs": {**twice, f"a{levels}": {}}, "allOf": [{"$ref": "#/$defs/a0"}]}


def _nested(levels: int, inner: dict[str, Any], **schema: Any) -> dict[str, Any]:
    """A schema in a schema in a schema."""
    for _ in range(levels):
        inner = {**schema, "allOf": [inner]}
    return inner


@pytest.mark.parametrize(
    ("schema", "arguments"),
    [
        (_doubling(60), {"x": 1}),
        (_nested(60, {}, unevaluatedProperties=True), {"x": 1}),
        ({"anyOf": [{"type": "string"}] * 30_000}, {"x": "long " * 100_000}),
    ],
    ids=["references", "unevaluated", "errors"],
)
def test_check_gives_up_on_a_schema_that_takes_too_long(schema: Any, arguments: Any) -> None:
    registry = ToolRegistry([Tool("f", "", {"type": "object", **schema})])
    start = time.perf_counter()
    assert registry.check(ToolCall("f", arguments)) == (
        "arguments of f cannot be checked: it would take too long"
    )
    assert time.perf_counter() - start < 30.0
    assert ToolRegistry([Tool("f", "", {"type": "object"})]).check(ToolCall("f", arguments)) is None


def test_references_to_anchors_are_left_out_of_the_check() -> None:
    properties = {"x": {"type": "integer", "$anchor": "x"}, "y": {"$ref": "#x"}}
    properties |= {f"z{i}": {"$ref": f"#z{i}"} for i in range(10_000)}
    start = time.perf_counter()
    registry = ToolRegistry([Tool("f", "", {"type": "object", "properties": properties})])
    assert registry.check(ToolCall("f", {"x": 1, "y": "a", "z0": "b"})) is None
    assert time.perf_counter() - start < 30.0


def test_pattern_that_is_long_is_not_looked_at() -> None:
    pattern = "(?#" + "[" * 100_000 + ")a"
    properties = {"x": {"type": "string", "pattern": pattern}}
    registry = ToolRegistry([Tool("f", "", {"type": "object", "properties": properties})])
    start = time.perf_counter()
    assert registry.check(ToolCall("f", {"x": "b"})) is None
    assert time.perf_counter() - start < 10.0


def test_check_enforces_patterns_that_are_quick() -> None:
    assert property_check({"pattern": r"^\d{4}-\d{2}$"}, "2026-01") is None
    assert property_check({"pattern": r"^\d{4}-\d{2}$"}, "January") == (
        r"arguments of f: x: 'January' does not match '^\\d{4}-\\d{2}$'"
    )
    assert property_check({"pattern": r"^[0-9]+$"}, "x" * 3_000) is not None


@pytest.mark.parametrize(
    ("pattern", "value"),
    [
        (r"^(a+)+$", "a" * 64 + "!"),
        (r"^(?:a|a)*$", "a" * 64 + "!"),
        (r"^(a?){64}$", "a" * 64 + "!"),
        (r"(?x)^(a+) +$", "a" * 64 + "!"),
        (r"^(a+)(?#)+$", "a" * 64 + "!"),
        ("^" + "a?" * 64 + "a" * 64 + "$", "a" * 64),
        (r"^a*a*a*a*a*$", "a" * 20_000 + "!"),
        (r"^[)]*[*+]*[\]a]*a*$", "a" * 20_000 + "!"),
        (r"a*b", "a" * 200_000),
    ],
)
def test_check_never_runs_a_pattern_that_may_hang(pattern: str, value: str) -> None:
    # It would take minutes to years.
    assert property_check({"type": "string", "pattern": pattern}, value) is None


def test_check_compares_the_items_of_short_arrays_only() -> None:
    unique = {"type": "array", "uniqueItems": True}
    assert property_check(unique, [1, "1", True]) is None
    assert property_check(unique, [1, "a", 1]) is not None
    assert property_check(unique, [{"k": i % 2} for i in range(1_001)]) is None


# Schemas that are not quite


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "string", "required": True}, "a", 1),
        ({"type": "string", "optional": True, "format": "date"}, "some day", 1),
        ({"type": "dict", "properties": {"y": {"type": "float"}}}, {"y": 1.5}, {"y": "1.5"}),
        ({"type": ["int", "str"]}, "a", 1.5),
        ({"type": "integer", "minimum": "0"}, -1, "a"),
        ({"type": "integer", "minimum": True, "maximum": 5}, -1, 6),
        ({"type": "integer", "enum": "1"}, 2, "a"),
        ({"type": "array", "items": [{"type": "string"}], "maxItems": 2.0}, [1], [1, 2, 3]),
        ({"type": "array", "minItems": -1, "maxItems": 1}, [], [1, 2]),
        ({"type": "number", "multipleOf": 0, "exclusiveMinimum": True}, 0, "a"),
        ({"type": "string", "pattern": "("}, "b", 1),
        ({"type": "string", "pattern": "a{99999999999999999999}"}, "b", 1),
        ({"type": "object", "properties": {"y": "string", "z": {"type": "null"}}}, {"y": 1}, {"z": 1}),
        ({"type": "string", "anyOf": []}, "a", 1),
        ({"type": "string", "anyOf": ["string"]}, "a", 1),
        ({"type": "string", "$ref": "#/$defs/none"}, "a", 1),
        ({"type": "string", "$ref": 5, "$id": 5, "$anchor": 5}, "a", 1),
        ({"type": "string", "$ref": "#/properties/x/type"}, "a", 1),
        ({"type": "object", "patternProperties": {"(": {}}, "additionalProperties": False}, {"a": 1}, 1),
        ({"$schema": "http://json-schema.org/draft-04/schema#", "type": "string"}, "a", 1),
        ({"type": "object", "dependentRequired": {"a": "b"}}, {"a": 1}, 1),
        ({"type": "object", "properties": {"type": {"type": "integer"}}}, {"type": 1}, {"type": "a"}),
        ({"type": "object", "properties": {"pattern": {"type": "int"}}}, {"pattern": 1}, {"pattern": "a"}),
    ],
)
def test_registry_leaves_out_what_json_schema_does_not_allow(schema: Any, good: Any, bad: Any) -> None:
    parameters = {"type": "object", "properties": {"x": schema}}
    registry = registry_of(parameters)
    assert registry.check(ToolCall("f", {"x": good})) is None
    assert registry.check(ToolCall("f", {"x": bad})) is not None
    assert registry.schemas()[0]["function"]["parameters"] == parameters


@pytest.mark.parametrize("type_", [{}, {"type": "dict"}, {"type": ["object", "null"]}, {"type": "any"}])
def test_registry_takes_other_words_for_object(type_: dict[str, Any]) -> None:
    registry = registry_of({**type_, "required": ["x"]})
    assert registry.check(ToolCall("f", {"x": 1})) is None
    assert registry.check(ToolCall("f")) == "arguments of f: 'x' is a required property"


def junk_schemas(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects of keywords that the validator reads, whatever they hold."""
    keywords = set(jsonschema.Draft202012Validator.VALIDATORS) | {"$defs", "$id", "minContains", "a"}
    return st.dictionaries(st.sampled_from(sorted(keywords - {"format"})), inner, max_size=4)


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 5)
    | st.floats(-2, 3)
    | st.sampled_from(["a", "(", "string", "dict", "#", "#/properties/x"]),
    lambda inner: st.lists(inner, max_size=3) | junk_schemas(inner),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["x", "y", "type"]), junk_schemas(JUNK), max_size=3), JUNK)
def test_registry_repairs_any_property_to_a_schema(properties: dict[str, Any], value: Any) -> None:
    parameters = {"type": "object", "properties": properties}
    registry = registry_of(parameters)
    # The specification's own schema of schemas finds nothing to blame in what is left.
    jsonschema.Draft202012Validator.check_schema(registry._validators["f"].schema)
    said = registry.check(ToolCall("f", {"x": value}))
    assert said is None or "cannot be checked" not in said or "$ref" in json.dumps(parameters)


@given(st.data())
def test_registry_leaves_a_valid_schema_as_it_is(data: st.DataObject) -> None:
    number = st.floats(-2, 3) | st.integers(-2, 3)
    leaf = st.fixed_dictionaries(
        {"type": st.sampled_from(["string", "number", "integer", "null", "boolean"])},
        optional={"minimum": number, "maxLength": st.integers(0, 3), "enum": st.lists(JUNK, max_size=3)},
    )
    inner = st.recursive(
        leaf,
        lambda x: (
            st.builds(lambda a: {"type": "array", "items": a}, x)
            | st.builds(
                lambda a: {"type": "object", "properties": a}, st.dictionaries(st.text(max_size=2), x)
            )
            | st.builds(lambda a: {"anyOf": a}, st.lists(x, min_size=1, max_size=2))
        ),
        max_leaves=5,
    )
    parameters = {"type": "object", "properties": data.draw(st.dictionaries(st.text(max_size=2), inner))}
    assert registry_of(parameters)._validators["f"].schema == parameters


def test_registry_fetches_no_reference() -> None:
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"type": "integer"}')

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}/"
        parameters = {
            "type": "object",
            "$id": base + "root",
            "$schema": base + "dialect",
            "properties": {
                "x": {"$ref": base + "a"},
                "y": {"$dynamicRef": base + "b"},
                "z": {"$id": base + "c", "$ref": "d", "type": "string"},
                "w": {"$ref": "#/odd/place"},
            },
            "odd": {"place": {"$ref": base + "e"}},
        }
        registry = registry_of(parameters)
        assert registry.check(ToolCall("f", {"x": "no integer", "y": 1, "z": "a"})) is None
        assert registry.check(ToolCall("f", {"z": 1})) is not None
        # A schema where no schema belongs is not looked into; what it refers to is not fetched either.
        said = registry.check(ToolCall("f", {"w": 1}))
        server.shutdown()
    assert said is not None
    assert said.startswith("arguments of f cannot be checked")
    assert asked == []


def test_registry_follows_references_inside_the_document() -> None:
    for word in ("$defs", "definitions"):
        registry = registry_of(
            {"properties": {"x": {"$ref": f"#/{word}/day"}}, word: {"day": {"enum": ["Mon", "Tue"]}}}
        )
        assert registry.check(ToolCall("f", {"x": "Mon"})) is None
        assert registry.check(ToolCall("f", {"x": "Sun"})) is not None


# The run


def test_run_shows_values_as_the_model_reads_them() -> None:
    values = [
        "a text",
        {"b": "é", "a": [1, None, True]},
        (1, 2),
        1.5,
        None,
        np.float32(0.5),
        np.arange(2),
        {3},
    ]
    values += [float("nan"), {(1, 2): 3}, ""]
    registry = registry_of({}, function=lambda i: values[i])
    seen = registry.run([ToolCall("f", {"i": i}) for i in range(len(values))])
    assert [o.text for o in seen] == [
        "a text",
        '{"b": "é", "a": [1, null, true]}',
        "[1, 2]",
        "1.5",
        "null",
        "0.5",
        "[0, 1]",
        '"{3}"',
        "NaN",
        "{(1, 2): 3}",
        "",
    ]
    assert not any(o.failed for o in seen)
    assert all(o.seconds >= 0 for o in seen)


def test_run_keeps_order_and_sends_sources_as_one_group() -> None:
    ran: list[str] = []
    source = "def s(x): return x + 1"
    registry = ToolRegistry(
        [
            tool_from_schema({"name": "s"}, source),
            Tool("f", function=lambda x: ran.append(x) or x),
            Tool("n"),
            # The function of the host is preferred to the source.
            Tool("both", source="def both(): return 'boxed'", function=lambda: "here"),
        ]
    )
    box = InProcess()
    calls = [
        ToolCall("s", {"x": 1}),
        ToolCall("f", {"x": "a"}),
        ToolCall("s", {"y": 1}),
        ToolCall("zzz"),
        ToolCall("both"),
        ToolCall("n"),
        ToolCall("s", {"x": 5}),
        ToolCall("f", {"x": "b"}),
    ]
    seen = registry.run(calls, box)  # type: ignore[arg-type]
    assert [o.text for o in seen] == [
        "2",
        "a",
        '{"error": "s() got an unexpected keyword argument \'y\'"}',
        '{"error": "unknown tool \'zzz\'; the tools are: s, f, n, both"}',
        "here",
        '{"error": "n cannot be run: only its schema is known"}',
        "6",
        "b",
    ]
    assert [o.failed for o in seen] == [False, False, True, True, False, True, False, False]
    assert [o.seconds for o in seen if o.text in ("2", "6")] == [0.25, 0.25]
    assert ran == ["a", "b"]
    ((sent, groups),) = box.asked
    assert sent == [Call(source, "s", {"x": 1}), Call(source, "s", {"y": 1}), Call(source, "s", {"x": 5})]
    assert groups is not None
    assert len(groups) == 3
    assert len(set(groups)) == 1


def test_run_asks_the_sandbox_nothing_without_sources() -> None:
    box = InProcess()
    registry = ToolRegistry([tool_from_schema({"name": "s", "parameters": WEATHER}, "def s(): pass")])
    assert registry.run([], box) == []  # type: ignore[arg-type]
    # A call that does not fit its schema never reaches the tool, and needs no sandbox.
    assert [o.failed for o in registry.run([ToolCall("s")])] == [True]
    assert box.asked == []


def test_run_without_the_sandbox_it_needs_runs_nothing() -> None:
    ran: list[int] = []
    registry = ToolRegistry([Tool("f", function=lambda: ran.append(1)), Tool("s", source="def s(): pass")])
    with pytest.raises(ConfigError, match="s has a source, which runs in a Sandbox; box is None"):
        registry.run([ToolCall("f"), ToolCall("s")])
    assert ran == []


def test_run_tells_every_status_of_the_sandbox() -> None:
    results = [
        Result("ok", {"error": "no such city"}, seconds=1.0),
        Result("ok", {"data": {"error": 1}}),
        Result("ok", "Error: none"),
        Result("error", error="division by zero"),
        Result("timeout", error="gave no result within 10 s", seconds=10.0),
        Result("memory", error="asked for more than 512 MiB"),
        Result("crash"),
        Result("error", error=""),
    ]
    registry = ToolRegistry([Tool("s", source="def s(): pass")])
    seen = registry.run([ToolCall("s")] * len(results), InProcess(*results))  # type: ignore[arg-type]
    assert seen == [
        Observation('{"error": "no such city"}', True, 1.0),
        Observation('{"data": {"error": 1}}', False, 0.0),
        Observation("Error: none", True, 0.0),
        Observation('{"error": "division by zero"}', True, 0.0),
        Observation('{"error": "gave no result within 10 s"}', True, 10.0),
        Observation('{"error": "asked for more than 512 MiB"}', True, 0.0),
        Observation('{"error": "the call ended with status crash"}', True, 0.0),
        Observation('{"error": "the call ended with status error"}', True, 0.0),
    ]


def test_run_survives_a_value_that_cannot_be_shown() -> None:
    box = InProcess(Result("ok", nested(100_000)))
    (seen,) = ToolRegistry([Tool("s", source="def s(): pass")]).run([ToolCall("s")], box)  # type: ignore[arg-type]
    assert seen.failed
    assert seen.text.startswith('{"error": "the value cannot be shown: ')


class SilentError(Exception):
    """Has no text that can be had."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class Shapeless:
    """A value that cannot be shown."""

    def __repr__(self) -> str:
        raise ValueError("no shape")


def circle() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


def fail(error: BaseException) -> Any:
    raise error


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda: fail(ValueError("no")), '{"error": "no"}'),
        (lambda: fail(ValueError()), '{"error": "ValueError"}'),
        (lambda: fail(SilentError()), '{"error": "SilentError"}'),
        (lambda: fail(RecursionError("deep")), '{"error": "deep"}'),
        (lambda: Shapeless(), '{"error": "no shape"}'),
        (lambda: fail(ValueError("\ud83d")), '{"error": "\ufffd"}'),
        (circle, "[[...]]"),
    ],
)
def test_run_turns_what_a_function_does_into_text(function: Any, text: str) -> None:
    (seen,) = registry_of({}, function=function).run([ToolCall("f")])
    assert seen.text == text
    assert seen.failed == text.startswith("{")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_run_lets_the_host_be_stopped(error: type[BaseException]) -> None:
    with pytest.raises(error):
        registry_of({}, function=lambda: fail(error())).run([ToolCall("f")])


def test_run_gives_functions_a_copy_of_the_arguments() -> None:
    call = ToolCall("f", {"x": {"y": [1]}})
    (seen,) = registry_of({}, function=lambda x: x["y"].append(2) or x).run([call])
    assert seen.text == '{"y": [1, 2]}'
    assert call.arguments == {"x": {"y": [1]}}


TEXTS = st.text(st.characters(exclude_categories=[]), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS | st.sampled_from(["error", "Error"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(TEXTS | st.sampled_from(["error", "x"]), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(VALUES)
def test_run_text_is_utf8_and_tells_of_failure_once_saved(value: Any) -> None:
    (seen,) = registry_of({}, function=lambda: value).run([ToolCall("f")])
    seen.text.encode()
    # The oracle asks the value; the code asks the text.
    is_error_text = isinstance(value, str) and value.lstrip().startswith("Error")
    if not (isinstance(value, str) and value.lstrip().startswith("{")):
        assert seen.failed == (is_error_text or (isinstance(value, dict) and "error" in value))
    assert call_failed(ToolCall("f", result=seen.text)) == seen.failed
    if isinstance(value, str) and value.isascii():
        assert seen.text == value


@given(st.dictionaries(TEXTS | st.sampled_from(["error", "x", "error:"]), VALUES, max_size=4), st.booleans())
def test_call_failed_finds_the_key_in_json_and_python(value: dict[str, Any], as_json: bool) -> None:
    text = json.dumps(value) if as_json else str(value)
    assert call_failed(ToolCall("f", result=text)) == ("error" in value)


@pytest.mark.parametrize(
    ("text", "failed"),
    [
        ("Error: no", True),
        ("  Error", True),
        ("An Error", False),
        ("error", False),
        ("", False),
        ("{", False),
        ('{"a": {"error": 1}}', False),
        ('{"a": "\\"error\\": 1"}', False),
        ('{"a": "it\'s", "error": null}', True),
        ('{"a": [1, {"error": 2}], "error": "x', True),
        ('{"a": "cut off, "error": 1', False),
        ("{'error', 'warning'}", False),
        ("{'error'", False),
        ('{"error" : 1}', True),
        ('[{"error": 1}]', False),
        ('{"a": 1} {"error": 1}', False),
        ('{"x": "error", "y": 1}', False),
        ("{'a': \"it's\", 'error': 1}", True),
        ('{"errors": 1}', False),
    ],
)
def test_call_failed_reads_saved_text(text: str, failed: bool) -> None:
    assert call_failed(ToolCall("f", result=text)) is failed


def test_call_failed_counts_malformed_calls_and_not_missing_results() -> None:
    assert call_failed(ToolCall("f", malformed="no JSON", result="fine"))
    assert not call_failed(ToolCall("f"))


@pytest.mark.parametrize("unit", ["{'error", "'\\'", "{", '"', "\\'", "{'a':", " "])
def test_call_failed_is_linear_in_hostile_text(unit: str) -> None:
    # A quadratic reader would take hours.
    assert not call_failed(ToolCall("f", result="{error" + unit * 300_000))


# Tools from schemas and MCP definitions


def test_tool_from_schema_takes_both_forms() -> None:
    inner = {"name": "w", "description": "Weather.", "parameters": WEATHER}
    expected = Tool("w", "Weather.", WEATHER, "def w(city): ...")
    assert tool_from_schema(inner, "def w(city): ...") == expected
    assert tool_from_schema({"type": "function", "function": inner}, "def w(city): ...") == expected
    assert tool_from_schema({"name": "w", "description": None}) == Tool("w")
    assert tool_from_schema({"name": "w"}, function=len).function is len


def test_tool_from_mcp_reads_a_definition() -> None:
    definition = {
        "name": "w",
        "title": "Weather",
        "description": "Weather of a city.",
        "inputSchema": WEATHER,
        "annotations": {"readOnlyHint": True},
    }
    assert tool_from_mcp(definition) == Tool("w", "Weather of a city.", WEATHER)
    del definition["description"]
    tool = tool_from_mcp(definition, lambda city: f"sun in {city}")
    assert tool.description == "Weather"
    assert ToolRegistry([tool]).run([ToolCall("w", {"city": "Bern"})])[0].text == "sun in Bern"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: tool_from_schema([]), "definition of a tool is list"),
        (lambda: tool_from_schema({"function": []}), "definition of a tool is list"),
        (lambda: tool_from_schema({"parameters": {}}), "has the name None"),
        (lambda: tool_from_schema({"name": 5}), "has the name 5"),
        (lambda: tool_from_schema({"name": "w", "parameters": []}), "parameters of w is list"),
        (lambda: tool_from_schema({"name": "w", "description": 5}), "description of w is int"),
        (lambda: tool_from_mcp({"name": "w"}), "inputSchema of 'w' is missing"),
        (lambda: tool_from_mcp({"name": "w", "inputSchema": "x"}), "inputSchema of w is str"),
        (lambda: tool_from_mcp({"inputSchema": {}}), "has the name None"),
        (lambda: tool_from_mcp(None), "definition of a tool is NoneType"),
    ],
)
def test_tool_definitions_are_refused_by_name(make: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        make()


# Tools from functions


def numpy_style(
    city: str,
    days: int = 3,
    unit: Literal["C", "F"] = "C",
    *,
    near: Optional[list[float]] = None,
    extra=(1, 2),
) -> str:
    """Weather of
    a city.

    More about it.

    Parameters
    ----------
    city : str
        Its name,
        in English.
    days, unit : what they are
        Shared words.
    nobody : int
        Not a parameter.

    Returns
    -------
    near : str
        Not a parameter here.
    """
    return f"{city} {days} {unit} {near} {extra}"


def google_style(city, days: int | None = None, table: dict[str, int] = {}):  # noqa: B006
    """Weather of a city.

    Args:
        city (str): Its name: long
            or short.
        days (Optional[int], optional): How many.

    table: not a parameter here.

    Returns:
        table: nor here.
    """


def test_tool_from_function_reads_hints_defaults_and_numpy_docstring() -> None:
    tool = tool_from_function(numpy_style)
    assert (tool.name, tool.description, tool.source) == ("numpy_style", "Weather of a city.", None)
    assert tool.function is numpy_style
    assert tool.parameters == {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Its name, in English."},
            "days": {"type": "integer", "default": 3, "description": "Shared words."},
            "unit": {"type": "string", "enum": ["C", "F"], "default": "C", "description": "Shared words."},
            "near": {"type": ["array", "null"], "items": {"type": "number"}, "default": None},
            "extra": {"default": [1, 2]},
        },
        "required": ["city"],
    }


def test_tool_from_function_reads_google_docstring() -> None:
    assert tool_from_function(google_style).parameters == {
        "type": "object",
        "properties": {
            "city": {"description": "Its name: long or short."},
            "days": {"type": ["integer", "null"], "default": None, "description": "How many."},
            "table": {"type": "object", "additionalProperties": {"type": "integer"}, "default": {}},
        },
        "required": ["city"],
    }


@pytest.mark.parametrize(
    ("hint", "schema"),
    [
        (str, {"type": "string"}),
        (bool, {"type": "boolean"}),
        (None, {"type": "null"}),
        (Any, {}),
        (list, {"type": "array"}),
        (list[Any], {"type": "array"}),
        (Sequence[list[int]], {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}),
        (dict[str, bool], {"type": "object", "additionalProperties": {"type": "boolean"}}),
        (Mapping[str, Any], {"type": "object"}),
        (Literal[1, "a", None], {"type": ["integer", "string", "null"], "enum": [1, "a", None]}),
        (Optional[Literal["a"]], {"type": ["string", "null"], "enum": ["a", None]}),
        (Union[int, str], {"anyOf": [{"type": "integer"}, {"type": "string"}]}),
        (int | str | None, {"anyOf": [{"type": "integer"}, {"type": "string"}, {"type": "null"}]}),
        (Union[int, Any], {}),
        (Optional[Any], {}),
    ],
)
def test_tool_from_function_hint(hint: Any, schema: dict[str, Any]) -> None:
    def f(x):
        return x

    f.__annotations__ = {"x": hint}
    tool = tool_from_function(f)
    assert tool.parameters["properties"]["x"] == schema
    jsonschema.Draft202012Validator.check_schema(tool.parameters)


def test_tool_from_function_default_none_allows_null_in_every_python() -> None:
    def f(x: int = None, y: int | str = None, z: int | str | None = None):  # type: ignore[assignment]  # noqa: RUF013
        return [x, y]

    tool = tool_from_function(f)
    assert tool.parameters["properties"]["x"] == {"type": ["integer", "null"], "default": None}
    registry = ToolRegistry([tool])
    both = {"anyOf": [{"type": "integer"}, {"type": "string"}, {"type": "null"}], "default": None}
    assert tool.parameters["properties"]["y"] == both
    assert tool.parameters["properties"]["z"] == both
    (seen,) = registry.run([ToolCall("f", {"x": None, "y": None})])
    assert seen.text == "[null, null]"


def test_tool_from_function_leaves_out_a_default_json_cannot_say() -> None:
    def f(x: Any = object, y: float = float("inf")):
        return x is object

    tool = tool_from_function(f)
    assert tool.parameters["properties"] == {"x": {}, "y": {"type": "number"}}
    assert tool.parameters["required"] == []
    assert ToolRegistry([tool]).run([ToolCall("f")])[0].text == "true"


class Counter:
    """Has a method that is a tool."""

    def __init__(self) -> None:
        self.count = 0

    def increase(self, by: int) -> int:
        """Count on."""
        self.count += by
        return self.count

    def __call__(self) -> None: ...


def test_tool_from_function_takes_bound_methods() -> None:
    counter = Counter()
    tool = tool_from_function(counter.increase)
    assert list(tool.parameters["properties"]) == ["by"]
    seen = ToolRegistry([tool]).run([ToolCall("increase", {"by": 2}), ToolCall("increase", {"by": 3})])
    assert [o.text for o in seen] == ["2", "5"]
    assert counter.count == 5
    # The model may not choose the object.
    assert ToolRegistry([tool]).run([ToolCall("increase", {"by": 2, "self": 0})])[0].failed


def starred(*values): ...
def double_starred(a, **more): ...
def positional(a, /): ...
async def later(a): ...
def odd(a: set[int]): ...
def deep_odd(a: list[bytes]): ...
def odd_keys(a: dict[int, str]): ...
def half_odd(a: Union[int, bytes]): ...
def dangling(a: Nowhere): ...  # type: ignore[name-defined]  # noqa: F821
def odd_literal(a: Literal[b"x"]): ...


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (starred, r"starred takes \*values"),
        (double_starred, r"double_starred takes \*\*more"),
        (positional, "positional takes a, positional only"),
        (later, "later is a coroutine function"),
        (odd, r"odd: parameter a has the hint set\[int\]; expected one of str"),
        (deep_odd, "deep_odd: parameter a has the hint"),
        (odd_keys, "odd_keys: parameter a has the hint"),
        (half_odd, "half_odd: parameter a has the hint"),
        (odd_literal, "odd_literal: parameter a has the hint"),
        (dangling, "signature of dangling cannot be read: name 'Nowhere'"),
        (lambda a: a, "cannot be a tool; expected a named function"),
        (functools.partial(odd, a=1), "cannot be a tool"),
        (Counter, "cannot be a tool"),
        (Counter(), "cannot be a tool"),
        (5, "5 cannot be a tool"),
    ],
)
def test_tool_from_function_refuses_by_name(function: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        tool_from_function(function)


# A hint, values that fit it, values that do not.
_TEXT = st.text(max_size=4)
_INTEGERS = st.integers(-(2**60), 2**60)
_FLOATS = st.floats(allow_nan=False, allow_infinity=False)
LEAVES: list[tuple[Any, st.SearchStrategy[Any], st.SearchStrategy[Any]]] = [
    (str, _TEXT, st.integers() | st.none() | st.lists(_TEXT, max_size=1)),
    (int, _INTEGERS, _TEXT | st.booleans() | st.just(0.5)),
    (float, _INTEGERS | _FLOATS, _TEXT | st.booleans()),
    (bool, st.booleans(), st.integers() | _TEXT),
    (Literal["a", "b"], st.sampled_from(["a", "b"]), st.sampled_from(["c", 1, None])),
    (Literal[1, 2], st.sampled_from([1, 2]), st.sampled_from([3, "1", True])),
]
NO_CONTAINER = st.integers() | _TEXT | st.booleans()


@st.composite
def hinted(draw: st.DrawFn) -> tuple[Any, Any, Any]:
    hint, fits, misses = draw(st.sampled_from(LEAVES))
    shape = draw(st.sampled_from(["leaf", "list", "dict", "optional", "optional list"]))
    good, bad = draw(fits), draw(misses.filter(lambda value: value is not None))
    if shape == "list":
        return list[hint], [good, good], [good, bad]
    if shape == "dict":
        return dict[str, hint], {"k": good}, {"k": bad}
    if shape == "optional":
        return Optional[hint], draw(st.sampled_from([good, None])), bad
    if shape == "optional list":
        return Optional[list[hint]], draw(st.sampled_from([[good], [], None])), draw(NO_CONTAINER)
    return hint, good, bad


@given(st.lists(st.tuples(hinted(), st.booleans()), min_size=1, max_size=4), st.data())
def test_function_round_trip(
    parameters: list[tuple[tuple[Any, Any, Any], bool]], data: st.DataObject
) -> None:
    def f(**given):
        return given

    names = [f"p{i}" for i in range(len(parameters))]
    kind = inspect.Parameter.KEYWORD_ONLY
    f.__annotations__ = {name: hint for name, ((hint, _, _), _) in zip(names, parameters, strict=True)}
    f.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, kind, default=good if optional else inspect.Parameter.empty)
            for name, ((_, good, _), optional) in zip(names, parameters, strict=True)
        ]
    )
    tool = tool_from_function(f)
    jsonschema.Draft202012Validator.check_schema(tool.parameters)
    registry = ToolRegistry([tool])
    required = [name for name, (_, optional) in zip(names, parameters, strict=True) if not optional]
    assert tool.parameters["required"] == required

    left_out = {
        n for n, (_, optional) in zip(names, parameters, strict=True) if optional and data.draw(st.booleans())
    }
    arguments = {n: good for n, ((_, good, _), _) in zip(names, parameters, strict=True) if n not in left_out}
    assert registry.check(ToolCall("f", arguments)) is None
    (seen,) = registry.run([ToolCall("f", arguments)])
    assert (json.loads(seen.text), seen.failed) == (arguments, False)

    # One argument that does not fit, or that is missing, is named.
    wrong = data.draw(st.sampled_from(names))
    bad = dict(zip(names, (bad for (_, _, bad), _ in parameters), strict=True))[wrong]
    said = registry.check(ToolCall("f", {**arguments, wrong: bad}))
    assert said is not None
    assert said.startswith(f"arguments of f: {wrong}")
    if required:
        missing = {k: v for k, v in arguments.items() if k != required[0]}
        assert registry.check(ToolCall("f", missing)) == (
            f"arguments of f: {required[0]!r} is a required property"
        )


# Real tools


def ftrl_rows(path: Path) -> list[tuple[list[dict[str, Any]], dict[str, str]]]:
    """Schemas and sources of each task, by a reader of its own."""
    table = pytest.importorskip("pyarrow.parquet").read_table(path, columns=["tools", "codes"])
    return [(json.loads(row["tools"]), json.loads(row["codes"])) for row in table.to_pylist()]


def example(schema: Mapping[str, Any]) -> Any:
    """A value that fits a schema without a pattern, made by hand."""
    if schema.get("enum"):
        return schema["enum"][0]
    kind = schema["type"][0] if isinstance(schema["type"], list) else schema["type"]
    low = schema.get("minimum", 0)
    if kind == "array":
        return [example(schema.get("items", {"type": "string"}))] * max(1, schema.get("minItems", 1))
    if kind == "object":
        inner = schema.get("properties", {})
        return {key: example(inner[key]) for key in schema.get("required", []) if key in inner}
    return {"string": "a", "boolean": True, "number": low, "integer": low}[kind]


def test_ftrl_tools_all_load_and_are_shown_as_they_came(ftrl_path: Path) -> None:
    count = 0
    for schemas, codes in ftrl_rows(ftrl_path):
        registry = ToolRegistry(tool_from_schema(s, codes[s["function"]["name"]]) for s in schemas)
        assert registry.schemas() == schemas
        count += len(registry)
    assert count == 1852


def test_ftrl_checks_agree_with_the_plain_validator(ftrl_path: Path) -> None:
    asked = {"fits": 0, "refused": 0}
    for schemas, _ in ftrl_rows(ftrl_path):
        registry = ToolRegistry(map(tool_from_schema, schemas))
        for name, tool in registry.items():
            # FTRL's schemas are valid, so the validator of the specification takes them unrepaired.
            oracle = jsonschema.Draft202012Validator(tool.parameters)
            good = example(tool.parameters)
            first = next(iter(tool.parameters["properties"]), None)
            for arguments in (
                good,
                {},
                {**good, first: [{}]},
                {**good, first: "12:30"},
                {**good, "unknown": 1},
            ):
                said = registry.check(ToolCall(name, arguments))
                assert (said is None) == oracle.is_valid(arguments), said
                assert said is None or said.startswith(f"arguments of {name}: ")
                asked["refused" if said else "fits"] += 1
    assert asked["fits"] > 2_000
    assert asked["refused"] > 2_000


def test_ftrl_patterns_are_all_enforced(ftrl_path: Path) -> None:
    patterns = {
        part["pattern"]
        for schemas, _ in ftrl_rows(ftrl_path)
        for schema in schemas
        for part in arguments_module._repair(schema["function"]["parameters"])
        if "pattern" in part
    }
    assert len(patterns) > 10
    for pattern in patterns:
        said = property_check({"type": "string", "pattern": pattern}, "!" * 24)
        assert said is not None, pattern


def test_ftrl_tools_run_in_the_sandbox(ftrl_path: Path) -> None:
    with Sandbox(workers=1) as box:
        for schemas, codes in ftrl_rows(ftrl_path)[:10]:
            registry = ToolRegistry(tool_from_schema(s, codes[s["function"]["name"]]) for s in schemas)
            calls = [ToolCall(name, example(tool.parameters)) for name, tool in registry.items()]
            calls = [call for call in calls if registry.check(call) is None]
            seen = registry.run(calls, box)
            expected = registry.run(calls, InProcess())  # type: ignore[arg-type]
            assert [(o.text, o.failed) for o in seen] == [(o.text, o.failed) for o in expected]
            assert [call_failed(replace(c, result=o.text)) for c, o in zip(calls, seen, strict=True)] == [
                o.failed for o in seen
            ]


def test_run_in_the_sandbox_keeps_order_and_reports_failures() -> None:
    sources = {
        "add": "def add(a, b):\n    return a + b",
        "stop": "import os\ndef stop():\n    os._exit(3)",
        "spin": "def spin():\n    while True: pass",
        "talk": "def talk(text):\n    return {'said': text}",
    }
    registry = ToolRegistry([tool_from_schema({"name": name}, source) for name, source in sources.items()])
    calls = [
        ToolCall("add", {"a": 1, "b": 2}),
        ToolCall("stop"),
        ToolCall("talk", {"text": "\ud83d é"}),
        ToolCall("spin"),
        ToolCall("add", {"a": 1, "c": 2}),
        ToolCall("add", {"a": "x", "b": "y"}),
    ]
    with Sandbox(workers=1, timeout=1.0) as box:
        seen = registry.run(calls, box)
    assert [o.failed for o in seen] == [False, True, False, True, True, False]
    assert (seen[0].text, seen[5].text) == ("3", "xy")
    assert "unexpected keyword argument 'c'" in json.loads(seen[4].text)["error"]
    assert all(len(json.loads(seen[k].text)["error"]) > 5 for k in (1, 3))
    for o in seen:
        o.text.encode()
