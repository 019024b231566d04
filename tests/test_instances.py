"""Objects with state in the sandbox: what they keep, what ends them, that none touches another."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from matchtir.errors import ConfigError, InputError, SandboxError
from matchtir.tools import Instance, Result, Sandbox, ToolRegistry
from matchtir.types import Tool, ToolCall

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox holds on Linux only")

BOOK = """
import os
import random
import time


class Book:
    def __init__(self, owner="", balance=0):
        self.owner = owner
        self.entries = [balance]

    def add(self, amount):
        self.entries.append(amount)
        if amount < 0:
            raise ValueError("nothing is taken out")
        return sum(self.entries)

    def told(self):
        return [self.owner, self.entries]

    def hang(self):
        while True:
            pass

    def leave(self):
        os._exit(3)

    def pid(self):
        return os.getpid()

    def draw(self):
        return random.random()

    def fill(self):
        self.kept = bytes(1 << 40)

    def run(self, source):
        return eval(source)

    def _hidden(self):
        return "hidden"


def broken():
    raise RuntimeError("no book today")
"""


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with Sandbox(2, timeout=5.0, memory_mb=256) as box:
        yield box


@pytest.fixture
def book(box: Sandbox) -> Iterator[Instance]:
    with box.open(BOOK, "Book", {"owner": "Ida", "balance": 5}) as book:
        yield book


@pytest.fixture
def branching(box: Sandbox) -> Iterator[Instance]:
    with box.open(BOOK, "Book", {"owner": "Ida", "balance": 5}, branching=True) as book:
        yield book


def test_state_lasts_from_call_to_call(book):
    assert book.start == Result("ok")
    assert book.alive
    assert [book.call("add", {"amount": n}).value for n in (1, 2, 3)] == [6, 8, 11]
    assert book.call("told") == Result("ok", ["Ida", [5, 1, 2, 3]])


def test_exception_is_a_result_and_what_was_changed_before_stays(book):
    assert book.call("add", {"amount": -1}) == Result("error", error="nothing is taken out")
    assert book.call("told").value == ["Ida", [5, -1]]


def test_too_much_memory_is_a_result_and_the_object_lives_on(book):
    assert book.call("fill").status == "memory"
    assert book.call("told").value == ["Ida", [5]]


@pytest.mark.parametrize("name", ["_hidden", "__class__", "__init__", "nothing", "owner"])
def test_only_public_methods_can_be_called(book, name):
    assert book.call(name) == Result("error", error=f"the environment has no method {name!r}")


def test_object_that_cannot_be_made_answers_that_it_has_ended(box):
    made = box.open_all(
        [(BOOK, "broken", {}), (BOOK, "Book", {}), ("class", "Book", {}), (BOOK, "Other", {})]
    )
    assert [one.alive for one in made] == [False, True, False, False]
    assert made[0].start == Result("error", error="no book today")
    assert "invalid syntax" in (made[2].start.error or "")
    assert made[3].start.error == "the source defines no function 'Other'"
    assert made[0].call("told") == Result("crash", error="its process has ended")
    assert made[1].call("told").status == "ok"
    made[1].close()


@pytest.mark.parametrize(
    ("name", "status", "error"),
    [("hang", "timeout", "gave no result within 0.3 s"), ("leave", "crash", "left with exit code 3")],
)
def test_call_that_ends_the_process_ends_no_other(box, name, status, error):
    first, second, third = box.open_all([(BOOK, "Book", {"balance": n}) for n in range(3)])
    result = first.call(name, timeout=0.3)
    assert result.status == status
    assert error in (result.error or "")
    assert not first.alive
    assert first.call("told") == Result("crash", error="its process has ended")
    assert [one.call("told").value[1] for one in (second, third)] == [[1], [2]]
    for one in (first, second, third):
        one.close()


def test_closed_object_is_gone(box):
    book = box.open(BOOK, "Book")
    pid = book.call("pid").value
    book.close()
    book.close()
    assert not book.alive
    assert not Path(f"/proc/{pid}").exists()


def test_process_stands_still_between_calls(book):
    pid = book.call("pid").value
    deadline = time.monotonic() + 5
    while (state := Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]) != "T":
        assert time.monotonic() < deadline, state


@pytest.mark.parametrize(
    "source",
    [
        "open('/etc/passwd')",
        "__import__('os').fork()",
        "__import__('os').kill(os.getppid(), 9)",
        "__import__('os').execv('/bin/true', ['true'])",
        "__import__('_socket').socket()",
        "__import__('_socket').socketpair()",
    ],
)
def test_what_a_tool_may_not_do_an_object_may_not_do(book, source):
    result = book.call("run", {"source": source})
    assert result.status == "error"
    assert "Operation not permitted" in (result.error or "")
    assert book.call("told").value == ["Ida", [5]]


@pytest.mark.parametrize(
    "source",
    [
        "open('/etc/passwd')",
        "__import__('os').kill(os.getppid(), 9)",
        "__import__('os').execv('/bin/true', ['true'])",
        "__import__('_socket').socket()",
        "__import__('os').fork()",  # but by the flags of a copy: see tests/test_seccomp.py
        "__import__('os').setsid()",
        "__import__('os').setpgid(0, 0)",
    ],
)
def test_object_that_may_be_copied_may_do_no_more(branching, source):
    result = branching.call("run", {"source": source})
    assert result.status == "error"
    assert "Operation not permitted" in (result.error or "")


def test_answers_that_nobody_asked_for_are_nobody_elses(box):
    book, other = box.open_all([(BOOK, "Book", {})] * 2)
    said = "os.write(3, bytes([0, 1, 0, 0, 0]) + b'7') and 1"
    assert book.call("run", {"source": said}) == Result("ok", 7)
    assert other.call("told").value == ["", [0]]
    book.close()
    other.close()


# Copies

HOARDER = """
import os
import struct


class Hoarder:
    def refuse(self):
        os.write(3, struct.pack("<BI", 0, 4) + b"null")
        while True:  # each request for a copy is answered beforehand, and its channel never taken
            os.write(3, struct.pack("<BI", 1, 4) + b'"no"')

    def told(self):
        return "well"
"""


def test_copy_has_the_state_and_goes_its_own_way(branching):
    branching.call("add", {"amount": 1})
    with branching.copy() as copy:
        assert copy.start == Result("ok")
        assert copy.call("add", {"amount": 10}).value == 16
        assert branching.call("add", {"amount": 100}).value == 106
        with copy.copy() as second:
            assert second.call("told").value == ["Ida", [5, 1, 10]]
            copy.close()
            assert second.call("add", {"amount": 1}).value == 17
        assert branching.call("told").value == ["Ida", [5, 1, 100]]


def test_copy_draws_the_same_random_numbers(branching):
    with branching.copy() as copy:
        assert [copy.call("draw").value for _ in range(3)] == [branching.call("draw").value for _ in range(3)]


def test_copy_outlives_the_original_and_the_original_a_copy_that_hangs(branching):
    first, second = branching.copy(), branching.copy()
    assert first.call("hang", timeout=0.3).status == "timeout"
    assert branching.call("told").value == ["Ida", [5]]
    branching.close()
    assert second.call("add", {"amount": 1}).value == 6
    second.close()


def test_object_that_was_not_opened_for_it_is_not_copied(book):
    copy = book.copy()
    assert copy.start == Result("error", error="it was opened without branching=True")
    assert not copy.alive
    assert book.call("told").value == ["Ida", [5]]


def test_channels_that_nobody_takes_harm_no_other_object():
    with Sandbox(1, timeout=10.0, memory_mb=256) as box:
        other, *hoarders = box.open_all([(HOARDER, "Hoarder", {})] * 6, branching=True)
        for hoarder in hoarders:
            assert hoarder.call("refuse").status == "ok"
        errors = {hoarder.copy().start.error for hoarder in hoarders for _ in range(220)}
        # As many as descriptors are on their way, where the system counts them.
        assert errors <= {"no", "no process can be made: [Errno 109] Too many references: cannot splice"}
        assert other.call("told") == Result("ok", "well")
        for hoarder in hoarders:
            hoarder.close()
        with other.copy() as copy:
            assert copy.call("told").value == "well"


def test_copy_of_nothing_is_nothing(box):
    copy = box.open(BOOK, "broken", branching=True).copy()
    assert (copy.start.status, copy.alive) == ("crash", False)


# Tools of a registry


def test_registry_runs_methods_in_the_order_of_the_calls(book, box):
    schema = {"type": "object", "properties": {"amount": {"type": "integer"}}, "required": ["amount"]}
    registry = ToolRegistry(
        [Tool("add", parameters=schema), Tool("told"), Tool("here", function=lambda: "yes")]
    )
    calls = [
        ToolCall("add", {"amount": 1}),
        ToolCall("here"),
        ToolCall("add", {"amount": "x"}),
        ToolCall("told"),
    ]
    seen = registry.run(calls, box, book)
    assert [one.text for one in seen[:2]] == ["6", "yes"]
    assert "is not of type 'integer'" in seen[2].text
    assert seen[3].text == '["Ida", [5, 1]]'
    unchecked = ToolRegistry(registry.values(), methods_checked=False)
    assert "not supported between" in unchecked.run(calls[2:3], box, book)[0].text


def test_registry_needs_the_sandbox_for_methods(book):
    with pytest.raises(ConfigError, match="told is a method of an environment in a Sandbox; box is None"):
        ToolRegistry([Tool("told")]).run([ToolCall("told")], None, book)


# Wrong use, and dead workers


def test_calls_that_are_none_are_refused(box, book):
    with pytest.raises(InputError, match="name of the call is int"):
        book.call(5)
    with pytest.raises(InputError, match="arguments of the call are no JSON object"):
        book.call("add", {"amount": object()})
    with pytest.raises(InputError, match=r"source of calls\[1\] is NoneType"):
        box.open_all([(BOOK, "Book", {}), (None, "Book", {})])
    with pytest.raises(InputError, match=r"arguments of call 1 of batch\[0\]"):
        box.call_all([(book, [("told", {}), ("add", {"amount": {1}})])])


def test_closed_sandbox_says_so():
    with Sandbox(1) as box:
        book = box.open(BOOK, "Book")
    with pytest.raises(SandboxError, match="closed"):
        book.call("told")
    with pytest.raises(SandboxError, match="closed"):
        box.open(BOOK, "Book")
    book.close()


def test_worker_that_dies_takes_its_objects_and_is_replaced():
    with Sandbox(1) as box:
        before = set(box.pids)
        books = box.open_all([(BOOK, "Book", {})] * 3)
        (host,) = set(box.pids) - before
        os.kill(host, signal.SIGKILL)
        assert books[0].call("told") == Result("crash", error="the worker that ran it died")
        assert books[1].call("told") == Result("crash", error="its process has ended")
        assert not any(one.alive for one in books)
        assert box.open(BOOK, "Book").call("add", {"amount": 2}).value == 2


_OWNER = f"""
import os, signal, sys
from matchtir.tools import Sandbox
box = Sandbox(1)
book = box.open({BOOK!r}, "Book", branching=True)
copy = book.copy()
book.call("run", {{"source": "os.fork()"}})
print(*box.pids, flush=True)
if sys.argv[1] == "close":
    box.close()
else:
    os.kill(os.getpid(), signal.SIGKILL)
"""


def members(groups: set[int]) -> list[int]:
    """Processes that are in one of these process groups."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            group = int(stat.read_text().rpartition(")")[2].split()[2])
        except OSError:  # it has ended
            continue
        if group in groups:
            found.append(int(stat.parent.name))
    return found


@pytest.mark.parametrize("end", ["close", "kill"])
def test_nothing_outlives_the_owner(end):
    done = subprocess.run([sys.executable, "-c", _OWNER, end], capture_output=True, text=True, check=False)
    groups = {int(word) for word in done.stdout.split()}
    assert len(groups) == 2, done.stderr
    deadline = time.monotonic() + 20
    while left := members(groups):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def test_many_objects_at_once_with_some_killed_keep_to_themselves(box):
    count, rounds = 64, 5
    books = box.open_all([(BOOK, "Book", {"owner": str(i), "balance": i}) for i in range(count)])
    killed = {i for i in range(count) if i % 20 == 7}
    for step in range(rounds):
        batch = [
            (one, [("add", {"amount": i + step}), ("told", {})])
            for i, one in enumerate(books)
            if step < 3 or i not in killed
        ]
        results = box.call_all(batch)
        assert [len(one) for one in results] == [2] * len(batch)
        if step == 2:
            ended = box.call_all(
                [(books[i], [("leave" if i == 7 else "hang", {})]) for i in sorted(killed)], timeout=0.2
            )
            assert [one[0].status for one in ended] == ["crash", "timeout", "timeout"]
    for i, one in enumerate(books):
        assert one.alive == (i not in killed)
        if i not in killed:
            assert one.call("told").value == [str(i), [i, *(i + step for step in range(rounds))]]
        one.close()
