"""Calls that import what few tools need run in the reserve, and nothing but their process tells."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from matchtir.errors import ConfigError, SandboxError
from matchtir.tools import Call, Sandbox
from matchtir.tools.sandbox import process
from matchtir.tools.sandbox.worker import wire
from matchtir.tools.sandbox.worker.reserve import Reserve, merged

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox holds on Linux only")

PARENT = "import os\ndef tool():\n    {}\n    return os.getppid()"
USUAL = PARENT.format("import re, json, datetime")
RARE = PARENT.format("import dataclasses")


@pytest.fixture
def box():
    with Sandbox(1, timeout=5.0, memory_mb=256) as box:
        yield box


def reserve_of(box: Sandbox) -> int:
    """Process id of the reserve of the only worker: its first child, while it ends another one perhaps."""
    (worker,) = box.pids
    return int(Path(f"/proc/{worker}/task/{worker}/children").read_text().split()[0])


def test_call_runs_in_the_reserve_if_it_imports_a_rare_module(box):
    reserve = reserve_of(box)
    assert box.call(USUAL, "tool").value == box.pids[0]
    for _ in range(3):
        assert box.call(RARE, "tool").value == reserve
        assert box.call(USUAL, "tool").value == box.pids[0]


@pytest.mark.parametrize(
    "statement",
    [
        "from decimal import Decimal",
        "__import__('stat' + 'istics')",
        "'x'.encode('cp1252')",
        "import importlib; importlib.import_module('fractions')",
        "\n    try: import dataclasses\n    except BaseException: return 'caught'",
    ],
)
def test_every_way_of_importing_leads_to_the_reserve(box, statement):
    assert box.call(PARENT.format(statement), "tool").value == reserve_of(box)


def test_module_that_nobody_has_is_missing_in_both(box):
    for source in (USUAL, RARE):
        found = box.call(source.replace("return", "import sqlite3; return"), "tool")
        assert found.error == "No module named 'sqlite3'"


def test_modules_that_were_asked_for_are_in_the_reserve():
    with Sandbox(1, modules=["html"]) as box:
        assert box.call(PARENT.format("import html"), "tool").value == reserve_of(box)


def test_group_goes_on_in_the_reserve_from_the_call_that_needs_it(box):
    worker, reserve = box.pids[0], reserve_of(box)
    calls = [Call(USUAL, "tool")] * 2 + [Call(RARE, "tool")] + [Call(USUAL, "tool")] * 2
    found = [result.value for result in box.map(calls, groups=[0] * 5)]
    assert found == [worker, worker, reserve, reserve, reserve]
    # Now its source is known, and the whole group goes there.
    assert [result.value for result in box.map(calls, groups=[0] * 5)] == [reserve] * 5
    alone = [result.value for result in box.map(calls)]
    assert alone == [worker, worker, reserve, worker, worker]


def test_time_in_the_worker_counts_against_the_deadline(box):
    source = "import time\ndef tool():\n    time.sleep(1.5)\n    import dataclasses\n    while True: pass"
    begin = time.monotonic()
    found = box.call(source, "tool", timeout=2.0)
    assert time.monotonic() - begin < 3.4  # not 1.5 s and then another 2 s
    assert (found.status, found.error) == ("timeout", "gave no result within 2 s")
    assert 2.0 <= found.seconds < 3.4


def test_time_that_one_call_lost_is_not_taken_from_the_next(box):
    slow = "import time\ndef tool():\n    time.sleep(1.0)\n    import fractions\n    return 1"
    next_one = "import time\ndef tool():\n    time.sleep(1.0)\n    return 2"
    for _ in range(2):
        found = box.map([Call(slow, "tool"), *[Call(next_one, "tool")] * 2], groups=[0] * 3, timeout=2.7)
        assert [(result.status, result.value) for result in found] == [("ok", 1), ("ok", 2), ("ok", 2)]


def test_forged_turn_to_the_reserve_gains_nothing(box):
    frame = wire.FRAME.pack(wire.ELSEWHERE, 0)
    source = f"import os\ndef tool():\n    os.write(3, {frame!r})\n    os._exit(0)"
    for _ in range(2):
        assert box.call(source, "tool").status == "crash"
    assert box.call(USUAL, "tool").value == box.pids[0]
    assert box.call(RARE, "tool").value == reserve_of(box)


def test_memory_is_limited_in_the_reserve(box):
    source = "import dataclasses\ndef tool(): return len(bytes({} << 20))"
    assert box.call(source.format(100), "tool").value == 100 << 20
    assert box.call(source.format(400), "tool").status == "memory"


def test_reserve_that_died_costs_no_call(box):
    worker = box.pids[0]
    os.kill(reserve_of(box), signal.SIGKILL)
    time.sleep(0.2)  # until it is gone
    found = box.call(RARE, "tool")
    assert found.value == reserve_of(box)
    assert box.pids[0] != worker


def test_reserve_that_dies_in_a_call_costs_that_one(box):
    sleeping = "import dataclasses, time\ndef tool():\n    time.sleep(1.0)"
    reserve = reserve_of(box)
    killer = threading.Timer(0.5, os.kill, (reserve, signal.SIGKILL))
    killer.start()
    found = box.map([Call(sleeping, "tool"), Call(RARE, "tool")], groups=[0, 0])
    killer.join()
    assert [result.status for result in found] == ["crash", "ok"]
    assert found[1].value == reserve_of(box) != reserve


def test_module_that_ends_its_importer_is_reported(tmp_path, monkeypatch):
    (tmp_path / "leaves.py").write_text("import os\nos._exit(7)\n")
    (tmp_path / "interrupts.py").write_text("raise KeyboardInterrupt\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    if os.getuid() == 0:
        tmp_path.chmod(0o755)
    with pytest.raises(SandboxError, match="a sandbox worker died while it started"):
        Sandbox(1, modules=["leaves"])
    with pytest.raises(ConfigError, match=r"modules cannot be imported: interrupts \(KeyboardInterrupt: \)"):
        Sandbox(1, modules=["interrupts"])


def test_module_that_never_ends_its_import_does_not_outlive_its_worker(tmp_path, monkeypatch):
    (tmp_path / "endless.py").write_text("while True: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("matchtir.tools.sandbox.process._START_SECONDS", 1.0)
    # The same number in the program of the worker; what it has as a default is a minute.
    program = process._BOOTSTRAP.replace("main(int", "worker.main._IMPORT_SECONDS = 2\nmain(int")
    program = program.replace(
        "from worker.main import main", "import worker.main\nfrom worker.main import main"
    )
    monkeypatch.setattr(process, "_BOOTSTRAP", program)
    with pytest.raises(SandboxError):
        Sandbox(1, modules=["endless"])

    def importers() -> list[str]:
        marked = (str(os.getpid()), "_IMPORT_SECONDS = 2")
        found = []
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                text = file.read_text()
                found += [text] if all(mark in text for mark in marked) else []
        return found

    deadline = time.monotonic() + 20
    while importers() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert importers() == []


def test_modules_in_a_package_that_is_there_are_found_by_attribute():
    with Sandbox(1, modules=["json.tool"]) as box:
        assert box.call("import json\ndef tool(): return json.tool.__name__", "tool").value == "json.tool"
    with Sandbox(1) as box:
        source = "import importlib\ndef tool(): return importlib.machinery.__name__"
        assert box.call(source, "tool").value == "importlib.machinery"


def test_sources_that_are_known_are_bounded(monkeypatch):
    reserve = object.__new__(Reserve)
    reserve._known = set()
    monkeypatch.setattr("matchtir.tools.sandbox.worker.reserve._MOST_SOURCES", 3)
    for i in range(10):
        call = (f"source {i}", "tool", {})
        assert not reserve.needed([call])
        reserve.remember(call)
        assert reserve.needed([("other", "tool", {}), call])
        assert len(reserve._known) <= 3
    undecoded = b"x" * 100
    reserve.remember(undecoded)
    assert not reserve.needed([undecoded])


def test_report_says_what_holds_for_both():
    good = {"seccomp": True, "memory": True, "landlock": 6, "possible": [], "missing": {}, "python": "3"}
    ours = {**good, "landlock": 4, "possible": ["trace a process"], "seccomp": False}
    theirs = {**good, "memory": False, "possible": ["open a file"], "missing": {"x": "why"}}
    assert merged(ours, theirs) == {
        "seccomp": False,
        "memory": False,
        "landlock": 4,
        "possible": ["open a file", "trace a process"],
        "missing": {"x": "why"},
        "python": "3",
    }
