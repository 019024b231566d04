"""The sandbox where there is no seccomp: refused, or, where it may be unsafe, only limits and deadlines."""

from __future__ import annotations

import pytest

from matchtir.errors import SandboxError, SandboxWarning
from matchtir.tools import Call, Sandbox
from matchtir.tools.sandbox import process


def forget_machines(patch: pytest.MonkeyPatch) -> None:
    """Have workers start as on a machine for which no filter is known."""
    start, rest = process._BOOTSTRAP.split("from worker.main", 1)
    forget = "import worker.seccomp\nworker.seccomp.MACHINES = {}\n"
    patch.setattr(process, "_BOOTSTRAP", f"{start}{forget}from worker.main{rest}")


def test_without_a_filter_it_refuses_to_run(monkeypatch):
    forget_machines(monkeypatch)
    with pytest.raises(SandboxError, match=r"seccomp is not available .*allow_unsafe=True"):
        Sandbox(1)


@pytest.fixture(scope="module")
def box():
    with pytest.MonkeyPatch.context() as patch:
        forget_machines(patch)
        with pytest.warns(SandboxWarning, match="not safe here: seccomp is not available"):
            box = Sandbox(2, timeout=1.0, memory_mb=128, allow_unsafe=True)
    with box:
        yield box


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("return 7", "ok"),
        ("raise ValueError('no')", "error"),
        ("while True: pass", "timeout"),
        ("import time; time.sleep(60)", "timeout"),
        ("return len(bytes(1 << 30))", "memory"),
        ("return 'x' * 10 ** 7", "output"),
        ("import os; os._exit(3)", "crash"),
        ("import os; os.fork()", "error"),
        ("import threading; threading.Thread(target=print).start()", "error"),
    ],
)
def test_limits_and_deadlines_hold_without_a_filter(box, body, status):
    assert not box.safe
    assert box.report["seccomp"] is False
    assert box.call(f"def f():\n    {body}", "f").status == status
    assert [result.value for result in box.map([Call("def f(): return 7", "f")] * 4)] == [7] * 4
