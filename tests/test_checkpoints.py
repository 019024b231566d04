"""Folders of checkpoints: whole or not there, whatever happens while one is written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from matchtir.errors import InputError
from matchtir.train.checkpoints import Checkpoints

WRITER = """
import sys, time
from pathlib import Path
from matchtir.train.checkpoints import Checkpoints
checkpoints = Checkpoints(sys.argv[1])
step = 1
while True:
    with checkpoints.write(step) as folder:
        for part in range(8):
            (folder / str(part)).write_bytes(bytes([step % 256]) * 65536)
        print(step, flush=True)
    checkpoints.prune(2)
    step += 1
"""


def fill(checkpoints: Checkpoints, *steps: int) -> None:
    for step in steps:
        with checkpoints.write(step) as folder:
            (folder / "state").mkdir()
            (folder / "state" / "x").write_text(str(step))


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_checkpoint_has_its_name_only_when_it_is_complete(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c")
    assert checkpoints.newest() is None
    with checkpoints.write(40) as folder:
        (folder / "x").write_text("1")
        assert checkpoints.steps() == []
    assert (checkpoints.path(40) / "x").read_text() == "1"
    assert names(checkpoints.folder) == ["step-000040"]
    assert checkpoints.newest() == 40


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failed_checkpoint_leaves_nothing_and_earlier_ones(tmp_path, error):
    checkpoints = Checkpoints(tmp_path)
    fill(checkpoints, 1)
    with pytest.raises(error), checkpoints.write(2) as folder:  # noqa: PT012
        (folder / "half").write_text("x")
        raise error
    assert names(tmp_path) == ["step-000001"]
    with pytest.raises(InputError, match=r"step-000001 is there already"), checkpoints.write(1):
        pass
    assert (checkpoints.path(1) / "state" / "x").read_text() == "1"


def test_full_disk_is_said_in_words_whoever_raises(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(InputError, match=r"step-000003 cannot be written: the disk is full"):  # noqa: SIM117
        with checkpoints.write(3):
            raise OSError(28, "No space left on device")
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("matchtir.train.disk.shutil.disk_usage", lambda path: usage)
    with pytest.raises(InputError, match="the disk is full"), checkpoints.write(3):
        raise RuntimeError("file write failed")
    assert names(tmp_path) == []


@pytest.mark.parametrize("after", [1, 3, 4])
def test_killed_writer_leaves_whole_checkpoints_only(tmp_path, after):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= after:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    (tmp_path / ".step-000999.tmp").mkdir()
    checkpoints = Checkpoints(tmp_path)
    newest = checkpoints.newest()
    assert newest is None or newest >= after - 1
    assert not [name for name in names(tmp_path) if name.startswith(".")]
    for step in checkpoints.steps():
        for part in range(8):
            assert (checkpoints.path(step) / str(part)).read_bytes() == bytes([step % 256]) * 65536


def test_prune_keeps_the_newest_and_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    fill(checkpoints, 10, 20, 30, 40, 1_000_000)
    checkpoints.prune(2, best=20)
    assert checkpoints.steps() == [20, 40, 1_000_000]
    checkpoints.prune(5)
    assert checkpoints.steps() == [20, 40, 1_000_000]
    checkpoints.prune(1)
    assert names(tmp_path) == ["step-1000000"]


def test_removal_that_was_interrupted_is_finished_by_newest(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    fill(checkpoints, 1, 2)
    os.rename(checkpoints.path(1), tmp_path / ".step-000001.old")
    assert checkpoints.newest() == 2
    assert names(tmp_path) == ["step-000002"]


def test_best_is_remembered_while_its_checkpoint_is_there(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.best() is None
    fill(checkpoints, 1, 2)
    checkpoints.mark_best(1, score=0.5)
    assert Checkpoints(tmp_path).best() == {"step": 1, "score": 0.5}
    checkpoints.prune(1)
    assert checkpoints.best() is None
    (tmp_path / "best.json").write_text("{}")
    with pytest.raises(InputError, match=r"best\.json does not name a step"):
        checkpoints.best()


def test_only_the_first_process_renames_after_all_have_written(tmp_path):
    barrier = threading.Barrier(2)
    seen: dict[int, list[str]] = {}

    def process(rank: int) -> None:
        checkpoints = Checkpoints(tmp_path, rank=rank, barrier=barrier.wait)
        with checkpoints.write(5) as folder:
            (folder / f"share-{rank}").write_text("x")
        seen[rank] = names(checkpoints.path(5))
        if rank:
            checkpoints.mark_best(5)
            checkpoints.prune(1)

    threads = [threading.Thread(target=process, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert seen == {0: ["share-0", "share-1"], 1: ["share-0", "share-1"]}
    assert names(tmp_path) == ["step-000005"]
