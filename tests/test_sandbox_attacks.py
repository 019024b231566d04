"""Each attack on the sandbox ends as it must, as root and as nobody; `sandbox_attacks.py` lists them."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest
from sandbox_attacks import ATTACKS, FOREIGN_CALLS, MARKER, MEMORY_MB, MODULES, SECRET, TIMEOUT

from matchtir.tools import Call, Sandbox
from matchtir.tools.sandbox import process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox holds on Linux only")

HERE = Path(__file__).parent
NOBODY = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
# What nobody needs to start an interpreter that lies in somebody's closed home; the worker gives it up.
MAY_READ = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]


def command_of(user: str) -> list[str]:
    """What starts a program as a user."""
    if user == "myself":
        return []
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can become nobody, with setpriv (Debian: util-linux)")
    for command in (NOBODY, [*NOBODY, *MAY_READ]):
        starts = [
            sys.executable,
            "-c",
            "import subprocess, sys; subprocess.run([sys.executable, '-c', ''], check=True)",
        ]
        done = subprocess.run([*command, *starts], cwd="/", capture_output=True)
        if done.returncode == 0:
            return command
    pytest.fail(f"nobody cannot start {sys.executable}: {done.stderr!r}")


@cache
def carried_out(user: str) -> dict:
    """All attacks, carried out once in a program that runs as the user; all that it prints is JSON."""
    attacks = [name for name in ATTACKS if name not in FOREIGN_CALLS or platform.machine() == "x86_64"]
    paths = [str(HERE), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [*command_of(user), sys.executable, str(HERE / "sandbox_attacks.py")],
        input=json.dumps(attacks),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), SECRET: "hush"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.mark.parametrize("user", ["myself", "nobody"])
@pytest.mark.parametrize("name", ATTACKS)
def test_attack_is_contained(name, user):
    attack = ATTACKS[name]
    if name in FOREIGN_CALLS and platform.machine() != "x86_64":
        pytest.skip("this machine has no system calls of another convention")
    found = carried_out(user)["results"][name]
    assert found["status"] in attack.status.split("|"), found
    assert attack.error in (found["error"] or ""), found
    if attack.status == "ok":
        assert found["value"] == attack.value
    assert found["unharmed"], "the next call was affected"
    assert found["seconds"] < TIMEOUT + 1
    assert not os.path.exists(MARKER)


@pytest.mark.parametrize("user", ["myself", "nobody"])
def test_attacks_ran_as_that_user_with_every_layer(user):
    found = carried_out(user)
    assert found["user"] == (65534 if user == "nobody" else os.getuid())
    report = found["report"]
    assert report["seccomp"]
    assert report["memory"]
    assert report["no_new_privileges"]
    assert report["possible"] == []
    assert report["missing"] == {}
    if os.getuid() == 0:
        assert report["privileges"].startswith("user 65534")


@pytest.mark.parametrize("user", ["myself", "nobody"])
def test_tools_do_not_see_the_environment(user):
    environment = carried_out(user)["environment"]
    assert SECRET not in environment
    assert "hush" not in environment.values()
    assert "PATH" not in environment


@pytest.mark.skipif(platform.machine() != "x86_64", reason="32-bit calls are known for x86-64 here")
def test_foreign_calls_would_work_outside():
    # Otherwise the attacks that make them would prove nothing.
    code = "import attack_gadgets, os; print(attack_gadgets.call('int80') in (os.getpid(), -38))"
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


def test_tcp_connection_never_arrives():
    source = (
        "import socket\n"
        "def attack(port):\n"
        "    try: socket.create_connection(('127.0.0.1', port), 1)\n"
        "    except OSError as error: return error.errno\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as server, Sandbox(1, modules=["socket"]) as box:
        server.settimeout(0.2)
        assert box.call(source, "attack", {"port": server.getsockname()[1]}).value == 1  # EPERM
        with pytest.raises(TimeoutError):
            server.accept()


def test_several_hogs_at_once_leave_the_others_alone():
    growth = ATTACKS["growth"].source
    good = "def attack():\n    return 7"
    with Sandbox(2, 5.0, MEMORY_MB) as box:
        results = box.map([Call(growth if i % 2 else good, "attack") for i in range(16)])
    assert [result.status for result in results] == ["ok", "memory"] * 8
    assert [result.value for result in results[::2]] == [7] * 8


TRAINER = """
import os, sys, time
from matchtir.tools import Sandbox
box = Sandbox(1, timeout=60.0, modules=["os"])
worker = box.pids[0]
if sys.argv[1] in ("forked", "answered") and os.fork() == 0:
    time.sleep(60)  # such as a data loader's process: it holds the sandbox's channel open
    os._exit(0)
print(worker, flush=True)
if sys.argv[1] == "idle":
    time.sleep(60)
seconds = 1 if sys.argv[1] == "answered" else 60
box.call(f"import time\\ndef attack():\\n    time.sleep({seconds})\\n    return 'x' * 10**6", "attack")
"""


@pytest.mark.parametrize("state", ["busy", "idle", "forked", "answered"])
def test_no_orphan_is_left_when_the_trainer_dies(state):
    def children(pid: int) -> list[int]:
        return [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def alive(pid: int) -> bool:
        stat = Path(f"/proc/{pid}/stat")
        try:
            return stat.read_text().rpartition(")")[2].split()[0] != "Z"
        except (FileNotFoundError, ProcessLookupError):
            return False

    trainer = subprocess.Popen([sys.executable, "-c", TRAINER, state], stdout=subprocess.PIPE, text=True)
    helpers: list[int] = []
    try:
        worker = int(trainer.stdout.readline())
        deadline = time.monotonic() + 30
        expected = 2 if state == "idle" else 3  # the worker, its reserve, and the call
        while len(children(worker)) < expected - 1 and time.monotonic() < deadline:
            time.sleep(0.01)
        family = [worker, *children(worker)]
        assert len(family) == expected
        helpers = [pid for pid in children(trainer.pid) if pid != worker]
        if state == "answered":  # the worker is stuck in a long answer that nobody reads
            trainer.send_signal(signal.SIGSTOP)
            time.sleep(2)
        trainer.kill()
        trainer.wait()
        while any(map(alive, family)) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert [pid for pid in family if alive(pid)] == []
    finally:
        trainer.kill()
        trainer.stdout.close()
        for pid in helpers:
            os.kill(pid, 9)


def test_worker_whose_starter_died_at_once_ends():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process._set_limits(theirs, 0.1)
        folder, nobodys_parent = str(Path(process.__file__).parent), str(os.getppid())
        command = [sys.executable, "-c", process._BOOTSTRAP, folder, nobodys_parent]
        assert subprocess.run(command, stdin=theirs.fileno(), timeout=30).returncode == 0


def test_root_gives_up_what_it_can():
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can give up a part of its rights, with setpriv (Debian: util-linux)")
    code = "from matchtir.tools import Sandbox\nwith Sandbox(1) as box: print(box.report['privileges'])"
    for lacking, expected in (("setgid", "user 65534, group 0"), ("setuid", "user 0, group 65534")):
        without = ["setpriv", f"--bounding-set=-{lacking}", f"--inh-caps=-{lacking}"]
        done = subprocess.run([*without, sys.executable, "-c", code], capture_output=True, text=True)
        assert (done.stdout, done.stderr) == (f"{expected}, capabilities dropped\n", "")


def test_worker_that_is_stopped_is_given_up(monkeypatch):
    monkeypatch.setattr("matchtir.tools.sandbox.process._GRACE_SECONDS", 0.2)
    with Sandbox(1, timeout=0.5, modules=MODULES[:0]) as box:
        os.kill(box.pids[0], 19)  # SIGSTOP
        assert box.call("def f(): return 1", "f").status == "timeout"
        assert box.call("def f(): return 1", "f").value == 1
