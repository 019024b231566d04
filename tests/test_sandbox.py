"""The sandbox's face: results, order, groups, limits, dead workers, closing, and what it says of itself."""

from __future__ import annotations

import errno
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest

from matchtir.errors import ConfigError, InputError, SandboxError, SandboxWarning
from matchtir.tools import Call, Result, Sandbox
from matchtir.tools.sandbox import MODULES, process
from matchtir.tools.sandbox.worker import probe

linux = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox holds on Linux only")
pytestmark = linux

ADD = "def add(a, b=1):\n    return a + b\n"


@pytest.fixture(scope="module")
def box():
    with Sandbox(2, timeout=5.0, memory_mb=256) as box:
        yield box


def returned(box: Sandbox, expression: str, before: str = "") -> Result:
    """Result of a tool that returns the value of an expression."""
    return box.call(f"{before}\ndef tool():\n    return {expression}", "tool")


# Results


def test_value_is_what_the_function_returns(box):
    assert box.call(ADD, "add", {"a": 2, "b": 3}) == Result("ok", 5)
    assert box.call(ADD, "add", {"a": "x", "b": "é"}) == Result("ok", "xé")
    assert box.call("def f(): pass", "f") == Result("ok", None)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("{'a': [1, 2.5, True, None, 'x']}", {"a": [1, 2.5, True, None, "x"]}),
        ("(1, (2, 3))", [1, [2, 3]]),
        ("{1: 'a', None: 'b', True: 'c'}", {"1": "c", "null": "b"}),
        ("{(1, 2): 'a'}", "{(1, 2): 'a'}"),
        ("datetime.date(2024, 5, 12)", "2024-05-12"),
        ("[decimal.Decimal('1.10'), 1j]", ["1.10", "1j"]),
        ("float('inf')", math.inf),
        ("10 ** 400", 10**400),
        ("'\\u2603\\U0001f600'", "☃😀"),
        ("print('text') or 1", 1),
    ],
)
def test_value_is_json(box, expression, value):
    assert returned(box, expression, "import datetime, decimal") == Result("ok", value)


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("def tool(): raise ValueError('no such town')", "no such town"),
        ("def tool(): return {}['k']", "'k'"),
        ("def tool(): raise ValueError", "ValueError"),
        ("def tool(): return 1 / 0", "division by zero"),
        ("def other(): pass", "the source defines no function 'tool'"),
        ("tool = 5", "'int' object is not callable"),
        ("def tool(a): pass", "tool() missing 1 required positional argument: 'a'"),
        ("import numpy\ndef tool(): pass", "No module named 'numpy'"),
        ("def tool():\n    import sqlite3", "No module named 'sqlite3'"),
        ("def tool():\n    x = []; x.append(x); return x", "Circular reference detected"),
        (
            "class E(Exception):\n    def __str__(self): 1 / 0\ndef tool(): raise E",
            "E, whose text raises ZeroDivisionError",
        ),
    ],
)
def test_error_is_the_text_of_the_exception(box, source, error):
    assert box.call(source, "tool") == Result("error", error=error)


def test_seconds_are_the_time_of_the_call(box):
    result = returned(box, "time.sleep(0.3)", "import time")
    assert 0.3 <= result.seconds < 3


@pytest.mark.parametrize("module", MODULES)
def test_usual_modules_are_there(box, module):
    assert returned(box, f"bool({module}.__name__)", f"import {module}").value is True


def test_lazy_parts_of_modules_work_without_files(box):
    before = "import datetime, time, unicodedata"
    assert returned(box, "datetime.datetime.strptime('3 May 2020', '%d %B %Y').isoformat()", before).value
    assert returned(box, "time.strftime('%Y', time.localtime(0))", before).status == "ok"
    assert returned(box, "'bücher.example'.encode('idna').decode()").value == "xn--bcher-kva.example"
    assert returned(box, "b'\\xe9'.decode('cp1252')").value == "é"


def test_time_zones_by_name_are_there(box):
    pytz = pytest.importorskip("pytz")
    expression = "str(datetime(2024, 7, 1, tzinfo=pytz.utc).astimezone(pytz.timezone('Asia/Tokyo')))"
    before = "import pytz\nfrom datetime import datetime"
    assert returned(box, expression, before).value == "2024-07-01 09:00:00+09:00"
    zones = "[pytz.timezone(name).zone for name in pytz.all_timezones]"
    assert returned(box, zones, before).value == list(pytz.all_timezones)
    unknown = returned(box, "pytz.timezone('Nowhere')", before)
    assert (unknown.status, unknown.error) == ("error", "'Nowhere'")


def test_more_modules_can_be_asked_for():
    with Sandbox(1, modules=["zoneinfo", "html", "xml.etree.ElementTree"]) as box:
        before = "import html, zoneinfo, datetime\nimport xml.etree.ElementTree as tree"
        assert returned(box, "html.escape('<')", before).value == "&lt;"
        assert returned(box, "tree.fromstring('<a b=\"c\"/>').get('b')", before).value == "c"
        hours = "datetime.datetime(2024, 7, 1, tzinfo=zoneinfo.ZoneInfo('Asia/Tokyo')).utcoffset().seconds"
        assert returned(box, hours, before).value == 9 * 3600


def test_random_numbers_differ_and_hashes_do_not(box):
    draws = box.map([Call("import random\ndef f(): return random.random()", "f")] * 20)
    assert len({result.value for result in draws}) == 20
    hashes = box.map([Call("def f(): return hash('text')", "f")] * 20)
    assert len({result.value for result in hashes}) == 1


def test_worker_runs_no_hooks_in_its_children():
    # They would make every child touch a hundred pages more.
    code = (
        "import os, sys\n"
        "sys.path[0] = sys.argv[1]\n"
        "hooks = []\n"
        "os.register_at_fork = lambda **hook: hooks.append(hook)\n"
        "from worker import main\n"
        "main.preload.preload_usual([])\n"
        "main.preload.preload_rest(['threading'], [])\n"
        "print(len(hooks), 'threading' in sys.modules)\n"
    )
    folder = str(Path(process.__file__).parent)
    done = subprocess.run([sys.executable, "-S", "-c", code, folder], capture_output=True, text=True)
    assert done.stdout == "0 True\n", done.stderr


# Many calls


def test_map_keeps_the_order(box):
    calls = [Call(ADD, "add", {"a": i}) for i in range(100)]
    assert [result.value for result in box.map(calls)] == [i + 1 for i in range(100)]
    assert box.map([]) == []
    assert box.map([(ADD, "add", {"a": 1})]) == [Result("ok", 2)]
    assert [r.value for r in box.map(iter(calls[:3]))] == [1, 2, 3]


COUNT = "import sys\ndef count():\n    sys.calls = getattr(sys, 'calls', 0) + 1\n    return sys.calls\n"


def test_calls_of_a_group_share_a_process_and_no_others():
    groups = ["b", "a", "b", "b", "c", "a"]
    with Sandbox(2) as box:
        shared = box.map([Call(COUNT, "count")] * 6, groups=groups)
        alone = box.map([Call(COUNT, "count")] * 6)
    assert [result.value for result in shared] == [1, 1, 2, 3, 1, 2]
    assert [result.value for result in alone] == [1] * 6


@pytest.mark.parametrize(
    ("bad", "status"),
    [
        ("import os\ndef f(): os._exit(1)", "crash"),
        ("def f():\n    while True: pass", "timeout"),
        ("def f(): return 'x' * 10 ** 7", "output"),
        ("def f(): return 'x' * 10 ** 12", "memory"),
        ("def f(): raise KeyError", "error"),
    ],
)
def test_bad_call_of_a_group_harms_no_other(bad, status):
    calls = [Call(bad, "f") if i in (0, 3, 4, 9) else Call(ADD, "add", {"a": i}) for i in range(10)]
    with Sandbox(1, timeout=0.5) as box:
        results = box.map(calls, groups=[0] * 10)
    assert [r.status for r in results] == [status if i in (0, 3, 4, 9) else "ok" for i in range(10)]
    assert [r.value for r in results if r.status == "ok"] == [i + 1 for i in (1, 2, 5, 6, 7, 8)]


def test_mixture_of_good_and_bad_calls_loses_and_confuses_nothing():
    kinds = {
        "ok": "def f(i): return i",
        "timeout": "def f(i):\n    while True: pass",
        "crash": "import os\ndef f(i): os._exit(i % 7)",
        "output": "def f(i): return 'x' * 3 * 10 ** 6",
        "error": "def f(i): raise ValueError(i)",
    }
    choice = random.Random(0)
    expected = [choice.choices(list(kinds), [90, 2, 2, 2, 4])[0] for _ in range(600)]
    calls = [Call(kinds[kind], "f", {"i": i}) for i, kind in enumerate(expected)]
    with Sandbox(2, timeout=0.5) as box:
        for groups in (None, [i // 8 for i in range(600)]):
            results = box.map(calls, groups=groups)
            assert [result.status for result in results] == expected
            for i, result in enumerate(results):
                assert result.value == (i if result.status == "ok" else None)
                assert result.status != "error" or result.error == str(i)


def test_threads_share_a_sandbox(box):
    found = {}

    def use(first: int) -> None:
        for i in range(first, first + 20):
            found[i] = box.call(ADD, "add", {"a": i}).value

    threads = [threading.Thread(target=use, args=(100 * t,)) for t in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {100 * t + i: 100 * t + i + 1 for t in range(6) for i in range(20)}


# Limits


def test_timeout_of_one_call_can_be_changed(box):
    source = "import time\ndef f():\n    time.sleep(1)\n    return 1"
    assert box.call(source, "f", timeout=0.2) == Result("timeout", error="gave no result within 0.2 s")
    assert box.call(source, "f") == Result("ok", 1)
    assert [r.status for r in box.map([Call(source, "f")] * 2, timeout=0.2)] == ["timeout"] * 2


def test_memory_limit_is_the_one_that_was_asked_for():
    source = "def f(mib): return len(bytearray(mib << 20)) >> 20"
    with Sandbox(1, memory_mb=100) as box:
        assert box.call(source, "f", {"mib": 80}) == Result("ok", 80)
        assert box.call(source, "f", {"mib": 110}).status == "memory"


def test_memory_does_not_count_other_calls():
    source, text = "def f(text): return len(text)", "x" * (2 << 20)
    with Sandbox(1, memory_mb=16) as box:
        results = box.map([Call(source, "f", {"text": text})] * 64)
    assert results == [Result("ok", len(text))] * 64


def test_output_limit_counts_bytes_of_json():
    source = "def f(n): return 'x' * n"
    with Sandbox(1, max_output=100) as box:
        assert box.call(source, "f", {"n": 98}).status == "ok"
        long = box.call(source, "f", {"n": 99})
        assert long == Result("output", error="what it returned takes 101 bytes; the limit is 100")
        error = box.call("def f(): raise ValueError('x' * 200)", "f")
        assert error == Result("output", error="the text of its error takes 202 bytes; the limit is 100")


def test_smallest_limit_of_output_still_says_why():
    with Sandbox(1, max_output=1) as box:
        assert box.call("def f(): return 1", "f") == Result("ok", 1)
        assert box.call("def f(): return 12", "f").status == "output"


@pytest.mark.parametrize(("failures", "status"), [(2, 0), (3, 4)])
def test_fork_that_fails_is_tried_again(failures, status, monkeypatch):
    from matchtir.tools.sandbox.worker import children

    class Answering:
        def frame(self, pool, deadline, max_output, statuses):
            return 0, b"7"

        def end(self):
            pass

    def make():
        tries.append(1)
        if len(tries) <= failures:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return Answering()

    monkeypatch.setattr(children, "_FORK_PAUSES", (0.0, 0.0))
    tries, answers = [], []
    assert children.run_group(make, None, 1, 1.0, 100, lambda *given: answers.append(given)) == (1, None)
    assert len(tries) == 3
    assert [answer[0] for answer in answers] == [status]


def test_large_values_go_both_ways(box):
    text = "é" * 300_000
    with Sandbox(1, max_output=10**7) as large:
        assert large.call("def f(text): return text[::-1]", "f", {"text": text}).value == text


def test_values_are_nested_no_deeper_than_they_may_be(box):
    nested = (
        "def f(depth):\n    value = []\n    for _ in range(depth - 1): value = {'[': value}\n    return value"
    )
    assert box.call(nested, "f", {"depth": 200}).status == "ok"
    too_deep = box.call(nested, "f", {"depth": 201})
    assert too_deep.status == "crash"
    assert "answered what is no JSON, or is nested deeper than 200" in too_deep.error
    text = '[{"\\\\' * 300
    assert returned(box, "text", f"text = {text!r}").value == text


@pytest.mark.skipif(not hasattr(sys, "set_int_max_str_digits"), reason="this Python has no such limit")
def test_numbers_are_no_longer_than_can_be_read_quickly(box):
    lift = "import sys\nsys.set_int_max_str_digits(0)"
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)  # as trainers do that check sums
    try:
        assert returned(box, "10 ** 4299", lift).value == 10**4299
        long = returned(box, "[7, 10 ** 4300]", lift)
    finally:
        sys.set_int_max_str_digits(limit)
    assert long.status == "crash"
    assert "a number of more than 4300 digits" in long.error
    assert returned(box, "['1' * 5000, 7]").value == ["1" * 5000, 7]


# Workers that die


def test_arguments_that_a_worker_cannot_decode_harm_no_other_call(box):
    calls = [Call(ADD, "add", {"a": 10**5000 if i == 2 else i}) for i in range(5)]
    limit, pids = sys.get_int_max_str_digits(), set(box.pids)
    sys.set_int_max_str_digits(0)  # a trainer may; its workers keep the limit
    try:
        results = box.map(calls, groups=[0] * 5)
    finally:
        sys.set_int_max_str_digits(limit)
    assert (results[2].status, "Exceeds the limit" in results[2].error) == ("error", True)
    assert [result.value for i, result in enumerate(results) if i != 2] == [1, 2, 4, 5]
    assert set(box.pids) == pids


def test_worker_is_replaced_even_if_its_end_was_interrupted(monkeypatch):
    def interrupted(worker):
        raise KeyboardInterrupt

    with Sandbox(1) as box:
        monkeypatch.setattr(box, "_forget", interrupted)
        os.kill(box.pids[0], signal.SIGKILL)
        with pytest.raises(KeyboardInterrupt):
            box.call(ADD, "add", {"a": 1})
        monkeypatch.undo()
        assert box._idle.qsize() == 1
        assert box.call(ADD, "add", {"a": 1}).value == 2


def test_calls_that_a_dying_worker_had_not_started_run_elsewhere(box):
    kill_worker = threading.Event()
    with Sandbox(2, timeout=5.0) as box:

        def kill_now_and_then() -> None:
            choice = random.Random(1)
            while not kill_worker.wait(0.05):
                with box._lock:
                    pids = [worker.pid for worker in box._live if worker.report]
                if pids:
                    os.kill(choice.choice(pids), signal.SIGKILL)

        killer = threading.Thread(target=kill_now_and_then)
        killer.start()
        try:
            results = box.map([Call(ADD, "add", {"a": i}) for i in range(1000)])
        finally:
            kill_worker.set()
            killer.join()
        died = [i for i, result in enumerate(results) if result.status == "crash"]
        assert all(results[i].error == "the worker that ran it died" for i in died)
        assert all(r.value == i + 1 for i, r in enumerate(results) if i not in died)
        assert box.call(ADD, "add", {"a": 1}).value == 2


def test_idle_worker_that_was_killed_is_replaced_unnoticed():
    with Sandbox(1) as box:
        for _ in range(3):
            os.kill(box.pids[0], signal.SIGKILL)
            time.sleep(0.05)
            assert box.call(ADD, "add", {"a": 1}) == Result("ok", 2)


def test_workers_that_die_at_once_are_an_error(monkeypatch):
    with Sandbox(1) as box:
        start = box._make

        def stillborn():
            worker = start()
            confirm = worker.confirm
            worker.confirm = lambda: (confirm(), os.kill(worker.pid, signal.SIGKILL), time.sleep(0.05))
            return worker

        monkeypatch.setattr(box, "_make", stillborn)
        os.kill(box.pids[0], signal.SIGKILL)
        with pytest.raises(SandboxError, match="5 workers in a row died before"):
            box.call(ADD, "add", {"a": 1})


# Wrong use


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workers": 0}, "workers is 0; expected a positive integer"),
        ({"workers": True}, "workers is True; expected a positive integer"),
        ({"memory_mb": 1.5}, "memory_mb is 1.5; expected a positive integer"),
        ({"max_output": -1}, "max_output is -1; expected a positive integer"),
        ({"timeout": 0}, "timeout is 0; expected a positive number of seconds"),
        ({"timeout": math.inf}, "timeout is inf; expected a positive number of seconds, at most 1,000,000"),
        ({"timeout": 10**400}, "timeout is 1000.*; expected a positive number of seconds"),
        ({"modules": ["nowhere_to_be_found"]}, "modules cannot be imported: nowhere_to_be_found"),
        ({"modules": "json"}, "modules is 'json'; expected a sequence of module names"),
    ],
)
def test_impossible_settings_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Sandbox(**arguments)


def test_calls_that_are_none_are_refused(box):
    with pytest.raises(InputError, match="source of the call is NoneType; expected a string"):
        box.call(None, "f")
    with pytest.raises(InputError, match=r"arguments of the call are no JSON object: .*set"):
        box.call(ADD, "add", {"a": {1}})
    with pytest.raises(InputError, match=r"arguments of calls\[1\] are no JSON object"):
        box.map([Call(ADD, "add", {"a": 1}), Call(ADD, "add", [1])])
    with pytest.raises(InputError, match=r"calls\[0\] is 5; expected \(source, name, arguments\)"):
        box.map([5])
    with pytest.raises(InputError, match="groups has 1 entries for 2 calls"):
        box.map([Call(ADD, "add", {"a": 1})] * 2, groups=[1])
    with pytest.raises(ConfigError, match="timeout is -1"):
        box.call(ADD, "add", {"a": 1}, timeout=-1)


def test_closed_sandbox_runs_nothing():
    box = Sandbox(1)
    pid = box.pids[0]
    box.close()
    box.close()
    with pytest.raises(SandboxError, match="the sandbox is closed"):
        box.call(ADD, "add", {"a": 1})
    with pytest.raises(SandboxError, match="the sandbox is closed"):
        box.map([Call(ADD, "add", {"a": 1})])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


SLEEP = "import time\ndef f(): time.sleep(60)"


@pytest.mark.parametrize(
    "use",
    [lambda box: box.call(SLEEP, "f"), lambda box: box.map([Call(SLEEP, "f")] * 2)],
    ids=["call", "map"],
)
def test_closing_ends_calls_in_progress_and_those_that_wait(use):
    box = Sandbox(1, timeout=60.0)
    raised = []

    def try_it() -> None:
        try:
            use(box)
        except Exception as error:
            raised.append(repr(error))

    threads = [threading.Thread(target=try_it) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    box.close()
    for thread in threads:
        thread.join(10)
    assert raised == ["SandboxError('the sandbox is closed')"] * 3


def test_closing_works_for_root_that_may_not_signal_others():
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can give up the right, with setpriv (Debian: util-linux)")
    code = "from matchtir.tools import Sandbox\nwith Sandbox(1) as box: print(box.report['privileges'])"
    command = ["setpriv", "--bounding-set=-kill", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_closing_waits_for_no_worker():
    box = Sandbox(1)
    worker = box._idle.get()  # as if Ctrl-C had come between taking a worker and using it

    def use() -> None:
        with pytest.raises(SandboxError, match="the sandbox is closed"):
            box.map([Call(ADD, "add", {"a": 1})] * 3)

    threads = [threading.Thread(target=use), threading.Thread(target=box.close)]
    for thread in threads:
        thread.start()
        time.sleep(0.2)
    for thread in threads:
        thread.join(10)
    alive = [thread for thread in threads if thread.is_alive()]
    box._idle.put(worker)
    assert alive == []


@pytest.mark.parametrize(
    "odd",
    [
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
        "os.closerange(0, 3)",
        "import socket; socket.setdefaulttimeout(0.1)",
    ],
)
def test_odd_trainers_get_results(odd):
    code = (
        f"import os, signal\n{odd}\n"
        "from matchtir.tools import Sandbox\n"
        "with Sandbox(1) as box:\n"
        "    value = box.call('import time\\ndef f(): time.sleep(0.3); return 7', 'f').value\n"
        "os._exit(value)\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 7


def test_forked_process_must_make_its_own(box):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            box.call(ADD, "add", {"a": 1})
        except SandboxError as error:
            code = 0 if f"belongs to process {os.getppid()}" in str(error) else 2
        finally:
            box.close()  # must not end the parent's workers
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert box.call(ADD, "add", {"a": 1}).value == 2


def test_trainers_output_and_signals_are_left_alone():
    code = (
        "import os, signal\n"
        "from matchtir.tools import Sandbox\n"
        "with Sandbox(1) as box:\n"
        "    box.call('import os\\ndef f():\\n    print(1)\\n    os.write(2, b\"x\")', 'f')\n"
        "    os.killpg(0, signal.SIGUSR1)\n"  # as Ctrl-C in a terminal goes to the whole group
        "    print(box.call('def f(): return 7', 'f').value)\n"
    )
    program = f"import signal\nsignal.signal(signal.SIGUSR1, lambda *_: None)\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, start_new_session=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "7\n", "")


# What it says of itself


def test_report_names_the_layers(box):
    assert box.safe
    report = box.report
    assert (report["seccomp"], report["memory"], report["possible"]) == (True, True, [])
    assert report["no_new_privileges"] is True
    assert report["landlock"] >= 0
    assert report["python"] == sys.version


def test_probe_tells_refusals_apart():
    def fail():
        raise OSError(errno.ENOENT, "no such file")

    assert probe.refused(fail)
    assert probe.refused(fail, errno.EACCES, errno.ENOENT)
    assert not probe.refused(fail, errno.EACCES)
    assert not probe.refused(lambda: None)


@pytest.fixture
def altered_report(monkeypatch):
    """Makes workers report something else than they found."""

    def alter(**changes):
        from matchtir.tools.sandbox import process

        confirm = process.WorkerProcess.confirm

        def confirm_and_alter(self):
            confirm(self)
            self.report |= changes

        monkeypatch.setattr(process.WorkerProcess, "confirm", confirm_and_alter)

    return alter


def test_sandbox_without_seccomp_refuses_unless_it_may_be_unsafe(altered_report):
    altered_report(seccomp=False, seccomp_reason="no filter is known for linux on riscv64")
    with pytest.raises(SandboxError, match=r"not available \(no filter .* riscv64\).*allow_unsafe=True"):
        Sandbox(1)
    with pytest.warns(SandboxWarning, match="the sandbox is not safe here: seccomp is not available"):
        box = Sandbox(1, allow_unsafe=True)
    with box:
        assert not box.safe
        assert box.call(ADD, "add", {"a": 1}).value == 2


def test_sandbox_whose_filter_does_not_hold_refuses(altered_report):
    altered_report(seccomp=False, possible=["open a file"])
    with pytest.raises(SandboxError, match=r"seccomp does not hold \(possible: open a file\)"):
        Sandbox(1)


def test_sandbox_without_landlock_warns(altered_report):
    altered_report(landlock=0, landlock_reason="landlock: the kernel does not offer it")
    with pytest.warns(SandboxWarning, match="runs without Landlock .*seccomp holds"):
        Sandbox(1).close()


def test_sandbox_with_all_layers_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Sandbox(1) as box:
            if not box.report["landlock"]:
                pytest.skip("this kernel has no Landlock")


def test_worker_gets_of_the_environment_what_it_needs(monkeypatch):
    from matchtir.tools.sandbox import process

    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/python/lib")
    monkeypatch.setenv("PYTHONPATH", "/home")
    monkeypatch.delenv("PYTHONHOME", raising=False)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    expected = {"LD_LIBRARY_PATH": "/opt/python/lib", "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "0"}
    assert process._environment() == expected


@pytest.mark.parametrize(
    ("executable", "message"),
    [
        (None, "there is no Python interpreter to start a sandbox worker with"),
        ("/nowhere/python", "no sandbox worker can be started with /nowhere/python: .*No such file"),
    ],
)
def test_interpreter_that_is_missing_is_an_error(monkeypatch, executable, message):
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.raises(SandboxError, match=message):
        Sandbox(1)


def test_start_that_fails_says_why(monkeypatch):
    from matchtir.tools.sandbox import process

    monkeypatch.setattr(process, "_BOOTSTRAP", "raise SystemExit(3)")
    with pytest.raises(SandboxError, match=r"a sandbox worker died while it started .*exit code 3"):
        Sandbox(1)
