"""FTRL's 1,852 real tools: all load, and in the sandbox they answer as they do in a plain process.

The plain process runs tests/plain_calls.py; the calls come from tests/ftrl_calls.py.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from ftrl_calls import SweepCall, arguments_of, constants, sweep

from matchtir.tasks import read_tasks
from matchtir.tools import Call, Result, Sandbox, ToolRegistry
from matchtir.types import Tool

pytest.importorskip("jsonschema")
pytest.importorskip("pyarrow")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox holds on Linux only")

Outcome = tuple[str, str]
"""Status and JSON text of the value, or of the error's text."""

CLOCK = "it reads today's date, which changes at midnight"
EXPLAINED = {
    "earthquake_data_analyzer": CLOCK,
    "fishing_catch_tracker": CLOCK,
    "fishing_port_catch_analyzer": CLOCK,
    "flight_status_checker": CLOCK,
    "fuel_price_checker": CLOCK,
    "organization_membership_checker": CLOCK,
}
"""Tools that may answer differently in the sandbox, and why."""

EVERY = 5  # one call in so many also runs in a process of its own


class Sweep(NamedTuple):
    """The calls; their outcomes in a plain process, in the sandbox, and, of a sample, in a process each."""

    calls: list[SweepCall]
    plain: list[Outcome]
    grouped: list[Outcome]
    single: list[Outcome]


def in_process(calls: Sequence[Call]) -> list[Outcome]:
    """Outcomes in one plain process of this interpreter, with the hashes and the time zone of the sandbox."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("plain_calls.py"))],
        input=json.dumps(calls),
        capture_output=True,
        text=True,
        check=False,
        env={"TZ": ":/etc/localtime", **os.environ, "PYTHONHASHSEED": "0"},
    )
    assert done.returncode == 0, done.stderr
    return [(status, text) for status, text in json.loads(done.stdout)]


def outcome(result: Result) -> Outcome:
    """A result of the sandbox as the plain process would write it; the order of keys counts."""
    return result.status, json.dumps(result.value if result.status == "ok" else result.error)


def differences(
    calls: Sequence[SweepCall], plain: Sequence[Outcome], boxed: Sequence[Outcome]
) -> dict[str, list[str]]:
    """For each tool that answered differently, its calls with both outcomes."""
    found = defaultdict(list)
    for call, expected, came in zip(calls, plain, boxed, strict=True):
        if came != expected:
            found[call.tool].append(
                f"{call.tool} of task {call.row}, {json.dumps(call.call.arguments)}\n"
                f"  in process: {expected}\n  in sandbox: {came}"
            )
    return dict(found)


def is_answer(outcome: Outcome) -> bool:
    """Whether a tool had something to say but an error."""
    value = json.loads(outcome[1])
    told = isinstance(value, dict) and "error" in value
    return outcome[0] == "ok" and not told and not (isinstance(value, str) and value.startswith("Error"))


@pytest.fixture(scope="module")
def box():
    with Sandbox(2, timeout=10.0) as box:
        yield box


@pytest.fixture(scope="module")
def tools(ftrl_path) -> list[tuple[int, Tool]]:
    rows = list(read_tasks(ftrl_path))
    assert [row.error for row in rows if row.error] == []
    return [(row.row, tool) for row in rows for tool in row.task.tools]


@pytest.fixture(scope="module")
def found(tools, box) -> Sweep:
    calls = sweep(tools)
    grouped = box.map([call.call for call in calls], groups=[call.row for call in calls])
    single = box.map([call.call for call in calls[::EVERY]])
    plain = in_process([call.call for call in calls])
    return Sweep(calls, plain, [*map(outcome, grouped)], [*map(outcome, single)])


# The real tools


def test_all_tools_load(tools, box):
    by_task = defaultdict(list)
    for row, tool in tools:
        by_task[row].append(tool)
    assert len(tools) == 1852
    assert sum(len(ToolRegistry(some)) for some in by_task.values()) == 1852
    calls = [
        Call(f"{tool.source}\n\ndef is_there_():\n    return callable({tool.name})\n", "is_there_")
        for _, tool in tools
    ]
    results = box.map(calls, groups=[row for row, _ in tools])
    missing = [
        (tool.name, result) for (_, tool), result in zip(tools, results, strict=True) if not result.value
    ]
    assert missing == []


def test_sweep_calls_each_tool_in_three_ways(tools, found):
    ways = defaultdict(set)
    for call in found.calls:
        ways[call.row, call.tool].add(json.dumps(call.call.arguments, sort_keys=True))
    assert set(ways) == {(row, tool.name) for row, tool in tools}
    assert {len(some) for some in ways.values()} == {3}
    assert len(found.calls) == 5556


def test_sweep_reaches_what_tools_know(found):
    # Measured: 57 % answers, 43 % errors that a tool reports or raises; 3,481 different outcomes.
    answers = [outcome for outcome in found.plain if is_answer(outcome)]
    assert len(answers) > 0.5 * len(found.plain)
    assert len(found.plain) - len(answers) > 0.2 * len(found.plain)
    assert len(set(answers)) > 1500
    assert len(set(found.plain)) > 3000
    assert sum(status == "error" for status, _ in found.plain) > 200


def test_sandbox_equals_in_process(found):
    different = differences(found.calls, found.plain, found.grouped)
    assert [text for tool, texts in different.items() if tool not in EXPLAINED for text in texts] == []
    assert sum(map(len, different.values())) <= 0.001 * len(found.calls)


def test_sandbox_equals_in_process_with_a_process_for_each_call(found):
    different = differences(found.calls[::EVERY], found.plain[::EVERY], found.single)
    assert len(found.single) > 1000
    assert [text for tool, texts in different.items() if tool not in EXPLAINED for text in texts] == []


def test_explained_tools_are_those_that_read_the_clock_or_chance(tools):
    reads = re.compile(r"\.(now|today|utcnow)\(|^\s*(import|from) (random|secrets|time|uuid)\b", re.MULTILINE)
    assert {tool.name for _, tool in tools if reads.search(tool.source)} == set(EXPLAINED)


# The comparison itself, on tools made up here


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return (1, (2.5, None), [True])", ("ok", "[1, [2.5, null], [true]]")),
        ("return {'b': 1, 'a': 2}", ("ok", '{"b": 1, "a": 2}')),
        ("return [float('nan'), -math.inf]", ("ok", "[NaN, -Infinity]")),
        ("return {1: 'a', None: 'b', 2.5: 'c'}", ("ok", '{"1": "a", "null": "b", "2.5": "c"}')),
        ("return [{('a', 1): datetime.date(2024, 5, 12)}]",
         ("ok", '"[{(\'a\', 1): datetime.date(2024, 5, 12)}]"')),
        ("return datetime.datetime(2024, 5, 12, 8), Decimal('1.10')",
         ("ok", '["2024-05-12 08:00:00", "1.10"]')),
        ("print('word'); return 1", ("ok", "1")),
        ("raise ValueError('no ☃')", ("error", '"no \\u2603"')),
        ("raise ValueError", ("error", '"ValueError"')),
        ("return {}['k']", ("error", '"\'k\'"')),
        ("sys.exit(3)", ("error", '"SystemExit: 3"')),
        ("raise KeyboardInterrupt", ("error", '"KeyboardInterrupt"')),
    ],
)  # fmt: skip
def test_made_up_tool_equals_in_process(body, expected, box):
    source = f"import datetime, math, sys\nfrom decimal import Decimal\ndef tool():\n    {body}\n"
    assert in_process([Call(source, "tool")]) == [expected]
    assert outcome(box.call(source, "tool")) == expected


@pytest.mark.parametrize(
    "body",
    [
        "return set('order of sets'), list({'a', 'b', 'c', 'd'})",
        "return time.strftime('%Z %z'), time.timezone, time.localtime(0).tm_hour",
        "return datetime.datetime.fromtimestamp(1e9).isoformat()",
        "return tool(1)",
        "def inner(n): return inner(n + 1)\n    return inner(0)",
        "return str(10 ** 5000)",
    ],
)
def test_made_up_tool_equals_in_process_whatever_it_says(body, box):
    source = f"import datetime, time\ndef tool():\n    {body}\n"
    assert in_process([Call(source, "tool")]) == [outcome(box.call(source, "tool"))]


def test_syntax_error_equals_in_process(box):
    source = "def tool():\n    return f(\n"
    assert in_process([Call(source, "tool")]) == [outcome(box.call(source, "tool"))]


def test_calls_in_process_see_fresh_names(box):
    source = "seen = []\ndef tool():\n    seen.append(1)\n    return len(seen)\n"
    assert in_process([Call(source, "tool")] * 2) == [("ok", "1")] * 2
    assert [*map(outcome, box.map([Call(source, "tool")] * 2, groups=[0, 0]))] == [("ok", "1")] * 2


def test_difference_is_told_with_tool_and_both_outcomes():
    call = SweepCall(7, "clock", Call("…", "clock", {"zone": "UTC"}))
    told = differences([call, call], [("ok", "1"), ("ok", "1")], [("ok", "1"), ("error", '"no zone"')])
    (text,) = told["clock"]
    assert all(part in text for part in ("clock of task 7", '{"zone": "UTC"}', "('ok', '1')", '"no zone"'))


# The calls, for a tool made up here

LOOKUP = """
def lookup(city, year=2000, parts=None):
    \"\"\"Not a constant.\"\"\"
    table = [{"city": "Ulm", "year": 1377}]
    if city.strip().lower() == "trier" and "wall" in (parts or []):
        return f"part {city}"
"""
PROPERTIES: dict[str, Any] = {
    "city": {"type": "string"},
    "year": {"type": "integer", "minimum": 1000, "maximum": 1400},
    "parts": {"type": "array", "items": {"enum": ["wall", "gate"]}},
}
LOOKUP_TOOL = Tool("lookup", "", {"type": "object", "properties": PROPERTIES, "required": ["city"]}, LOOKUP)


def test_constants_of_a_source_are_its_texts_numbers_and_conditions():
    assert constants(LOOKUP, PROPERTIES) == (
        ["city", "year", "Ulm", "trier", "wall"],
        [2000, 1377],
        [{"city": "trier"}, {"city": "Ulm", "year": 1377}],
    )


def test_generated_arguments_are_the_same_for_a_seed_and_fit_the_schema():
    assert sweep([(3, LOOKUP_TOOL)], seed=1) == sweep([(3, LOOKUP_TOOL)], seed=1)
    assert sweep([(3, LOOKUP_TOOL)], seed=1) != sweep([(3, LOOKUP_TOOL)], seed=2)
    for seed in range(50):
        required, every, _ = arguments_of(LOOKUP_TOOL, random.Random(seed))
        assert set(required) == {"city"}
        assert set(every) == {"city", "year", "parts"}
        assert 1000 <= every["year"] <= 1400
        assert set(every["parts"]) <= {"wall", "gate"}


def test_generated_arguments_meet_the_table_and_now_and_then_have_a_fault():
    made = [arguments for seed in range(50) for arguments in arguments_of(LOOKUP_TOOL, random.Random(seed))]
    assert any(some.get("city") == "Ulm" and some.get("year") == 1377 for some in made)
    assert any("unexpected" in some for some in made)
    assert any("city" not in some for some in made)
    assert any(not isinstance(some.get("city", ""), str) for some in made)
