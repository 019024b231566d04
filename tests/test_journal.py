"""The file of a live evaluation: resumed, cut off half-way, locked, and never somebody else's."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest

from matchtir.errors import InputError
from matchtir.evals.journal import Journal, tasks_digest
from matchtir.parse import trajectory_from_row
from matchtir.types import Task, Tool, ToolCall

RUN = {"model": "m", "temperature": None, "extra": {"a": [1]}}


def row(group: str) -> dict[str, Any]:
    return {"group": group, "turns": ["<answer>ä\ud800</answer>"]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rollouts.jsonl"


def test_journal_goes_on_where_it_stopped(path: Path) -> None:
    with Journal(path, RUN) as journal:
        assert journal.done == set()
        journal.append(row("a"), 0)
        journal.append(row("a"), 1)
        with pytest.raises(InputError, match="has sample 1 of task 'a' already"):
            journal.append(row("a"), 1)
    with Journal(path, RUN) as journal:
        assert journal.done == {("a", 0), ("a", 1)}
        assert journal.cut == 0
        journal.append(row("b"), 0)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(r["group"], r["sample"], r["run"]) for r in rows] == [
        ("a", 0, RUN),
        ("a", 1, RUN),
        ("b", 0, RUN),
    ]
    assert trajectory_from_row(rows[0]).turns[0].answer == "ä\ud800"


def test_journal_cut_anywhere_loses_the_last_line_only(path: Path) -> None:
    with Journal(path, RUN) as journal:
        journal.append(row("a"), 0)
        journal.append(row("b"), 0)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with Journal(path, RUN) as journal:
            assert journal.done == ({("a", 0)} if end >= first else set())
            assert journal.cut == (end - first if end >= first else end)
            for name in ("a", "b"):
                if (name, 0) not in journal.done:
                    journal.append(row(name), 0)
        assert path.read_bytes() == whole


def test_journal_zeros_that_a_crashed_disk_leaves_are_cut(path: Path) -> None:
    with Journal(path, RUN) as journal:
        journal.append(row("a"), 0)
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(4096))
    with Journal(path, RUN) as journal:
        assert (journal.done, journal.cut) == ({("a", 0)}, 4096)
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"notes", "was not written by an evaluation"),
        (b'{"id": 1}\n', "line 1 was not written by an evaluation"),
        (b"[1]\n", "line 1 was not written"),
        (b'{"group": "a", "sample": 0, "run": 3}\n', "line 1 was not written"),
        (b'{"group": ["a"], "sample": 0, "run": {}}\n', "line 1 was not written"),
        (b"not json\n", "line 1 was not written"),
        (b"\xff\n", "line 1 was not written"),
        (b'{"group": "a", "sample": 0, "run": {"model": "n"}}\n', 'model="n", not "m"'),
        (
            b'{"group": "a", "sample": 0, "run": %s}\n' % json.dumps(RUN).encode() * 2,
            "line 2 repeats sample 0",
        ),
    ],
)
def test_journal_leaves_a_file_that_is_not_its_own_as_it_is(path: Path, content: bytes, words: str) -> None:
    path.write_bytes(content)
    with pytest.raises(InputError, match=words):
        Journal(path, RUN)
    assert path.read_bytes() == content
    with Journal(path, RUN, fresh=True) as journal:
        assert journal.done == set()
    assert path.read_bytes() == b""


def test_journal_other_settings_are_named(path: Path) -> None:
    with Journal(path, RUN) as journal:
        journal.append(row("a"), 0)
    with pytest.raises(InputError, match=r"with temperature=null, not 0\.5; expected .* --fresh"):
        Journal(path, {**RUN, "temperature": 0.5})
    with pytest.raises(InputError, match=r"with new=null, not 1; expected"):
        Journal(path, {**RUN, "new": 1})


def test_journal_belongs_to_one_process_at_a_time(path: Path) -> None:
    with Journal(path, RUN), pytest.raises(InputError, match="being written by another process"):
        Journal(path, RUN, fresh=True)
    other = os.open(path, os.O_RDWR)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(InputError, match="another process"):
        Journal(path, RUN)
    os.close(other)
    Journal(path, RUN).close()


def task(id: str, **more: Any) -> Task:
    known: dict[str, Any] = {
        "tools": (Tool("tower", source="def tower(): return 101"),),
        "gold_calls": (ToolCall("tower"),),
        "gold_answer": "101",
        "sub_answers": {"tower": ("101",)},
    }
    return Task(id, ({"role": "user", "content": "How high?"},), **known | more)


def test_tasks_digest_tells_tasks_apart() -> None:
    tasks = [task("a"), task("b")]
    others = [
        [task("a")],
        [task("b"), task("a")],
        [task("a"), task("c")],
        [task("a"), task("b", gold_answer="102")],
        [task("a"), task("b", sub_answers={"tower": ("102",)})],
        [task("a"), task("b", gold_calls=())],
        [task("a"), task("b", kind="parallel")],
        [task("a"), task("b", tools=())],
        [task("a"), task("b", tools=(Tool("tower", source="def tower(): return 102"),))],
    ]
    digests = [tasks_digest(x) for x in (tasks, *others)]
    assert len(set(digests)) == len(digests)
    assert tasks_digest([task("a"), task("b")]) == digests[0]
