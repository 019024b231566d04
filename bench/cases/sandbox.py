"""The sandbox: throughput, latency, hostile calls, and memory over many calls."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from checks import check
from timing import Row, Times, once

from matchtir.tools import Call, Sandbox

_TRIVIAL = "def add(a, b):\n    return a + b\n"
_GROUP = 16
_BAD = {
    "timeout": "def add(a, b):\n    while True: pass\n",
    "crash": "import os\ndef add(a, b):\n    os.abort()\n",
    "output": "def add(a, b):\n    for _ in range(100): print('x' * 10 ** 6)\n    return 'x' * 10 ** 7\n",
}


def throughput(smoke: bool) -> list[Row]:
    """Trivial calls a second, each in its own process and sixteen in one; the latency of one call."""
    alone, shared = (40, 320) if smoke else (3000, 24000)
    rare = _TRIVIAL.replace("return", "import decimal; return")  # what only the reserve has
    rows = []
    with Sandbox(workers=2) as box:
        for label, source, count, groups, target in (
            ("a process a call", _TRIVIAL, alone, None, 0.9),
            ("the same, in the reserve", rare, alone, None, None),
            (f"a process for {_GROUP}", _TRIVIAL, shared, [i // _GROUP for i in range(shared)], 5.0),
        ):
            calls = [Call(source, "add", {"a": i, "b": 1}) for i in range(count)]
            rates = []
            for _ in range(1 if smoke else 5):
                start = time.perf_counter()
                results = box.map(calls, groups=groups)
                rates.append(count / (time.perf_counter() - start) / 1000)
                check([r.value for r in results] == [i + 1 for i in range(count)], f"{label}: wrong results")
            low, high = (float(x) for x in np.quantile(rates, (0.2, 0.8)))
            name = f"thousand calls/s, {label}"
            rows.append(Row("sandbox", name, float(np.median(rates)), target, unit="", quantiles=(low, high)))
    return [*rows, _bare_forks(alone), *_latency(smoke)]


def _bare_forks(count: int) -> Row:
    """Forks a second of two empty interpreters, whose children leave at once: what no sandbox can exceed."""
    program = (
        "import os, sys\n"
        "for _ in range(int(sys.argv[1])):\n"
        "    if (pid := os.fork()) == 0: os._exit(0)\n"
        "    os.waitpid(pid, 0)\n"
    )
    command = [sys.executable, "-I", "-S", "-c", program]
    seconds = {}
    for each in (0, count // 2):  # the first pair only starts and ends
        start = time.perf_counter()
        pair = [subprocess.Popen([*command, str(each)]) for _ in range(2)]
        check([process.wait() for process in pair] == [0, 0], "bare forks fail")
        seconds[each] = time.perf_counter() - start
    rate = count / (seconds[count // 2] - seconds[0]) / 1000
    return Row("sandbox", "bare forks of an empty Python", rate, unit="")


def _latency(smoke: bool) -> list[Row]:
    """Milliseconds that the sandbox adds to one call, beside exec in this process and a new interpreter."""
    sides: dict[str, list[float]] = {"ours": [], "exec": [], "interpreter": []}
    arguments = {"a": 2, "b": 3}
    program = f"{_TRIVIAL}\nimport json, sys\nprint(json.dumps(add(**json.loads(sys.argv[1]))))"

    def in_process() -> int:
        namespace: dict[str, object] = {}
        exec(_TRIVIAL, namespace)
        return int(namespace["add"](**arguments))  # type: ignore[operator]

    def interpreter() -> int:
        command = [sys.executable, "-I", "-c", program, json.dumps(arguments)]
        return int(json.loads(subprocess.run(command, capture_output=True, check=True).stdout))

    with Sandbox(workers=1) as box:

        def ours() -> int:
            return int(box.call(_TRIVIAL, "add", arguments).value)

        calls = {"ours": ours, "exec": in_process, "interpreter": interpreter}
        for name, call in calls.items():
            check(call() == 5, f"latency: {name} does not add")
        for i in range(10 if smoke else 400):
            for name, call in calls.items():
                if name != "interpreter" or i % 10 == 0:
                    sides[name].append(once(call))
    times = {name: Times(tuple(runs)) for name, runs in sides.items()}
    added = 1e3 * (times["ours"].median - times["exec"].median)
    spread = times["ours"].quantiles
    quantiles = None if spread is None else (1e3 * spread[0], 1e3 * spread[1])
    ratio = times["interpreter"].median / times["ours"].median
    return [
        Row(
            *("sandbox", "added to one call, p50"),
            *(added, 2.5),
            unit="ms",
            better="lower",
            quantiles=quantiles,
            ours=times["ours"].summary(),
            peer=times["exec"].summary(),
            peer_name="exec here",
        ),
        Row(
            *("sandbox", "new interpreter a call"),
            ratio,
            ours=times["ours"].summary(),
            peer=times["interpreter"].summary(),
        ),
    ]


def hostile(smoke: bool) -> list[Row]:
    """10,000 calls of which 1 % hang, 1 % crash and 1 % flood: results that are lost or somebody else's."""
    count = 100 if smoke else 10_000
    kinds = ["ok"] * count
    for k, kind in enumerate(_BAD):
        for i in range(k, count, 100):
            kinds[i] = kind
    order = np.random.default_rng(5).permutation(count)
    kinds = [kinds[i] for i in order]
    calls = [Call(_BAD.get(kind, _TRIVIAL), "add", {"a": i, "b": 1}) for i, kind in enumerate(kinds)]
    rows = []
    with Sandbox(workers=2, timeout=0.5) as box:
        for label, groups in (
            ("a process a call", None),
            (f"a process for {_GROUP} calls", [i // _GROUP for i in range(count)]),
        ):
            start = time.perf_counter()
            results = box.map(calls, groups=groups)
            seconds = time.perf_counter() - start
            wrong = sum(
                (result.status, result.value) != (kind, i + 1 if kind == "ok" else None)
                for i, (kind, result) in enumerate(zip(kinds, results, strict=True))
            )
            check(len(results) == count, "results are lost")
            rows.append(
                Row("sandbox, hostile", f"wrong of {count:,}, {label}", wrong, 0, unit="", better="lower")
            )
            rows.append(Row("sandbox, hostile", f"time, {label}", seconds, unit="s", better="lower"))
    return rows


def memory(smoke: bool) -> list[Row]:
    """Growth of the resident memory of pool, workers and reserves from the 1,000th call to the 100,000th."""
    warm, alone, shared = (20, 20, 320) if smoke else (1000, 20_000, 79_000)
    calls = [Call(_TRIVIAL, "add", {"a": 1, "b": 1})]

    def resident(pids: list[int]) -> float:
        gc.collect()
        texts = (Path(f"/proc/{pid}/status").read_text().splitlines() for pid in ["self", *pids])
        lines = (next(line for line in text if line.startswith("VmRSS")) for text in texts)
        return sum(int(line.split()[1]) for line in lines) / 1024

    with Sandbox(workers=2) as box:
        pids = sorted(box.pids)
        box.map(calls * warm)
        time.sleep(0.1)  # the last children are gone then, and what is left are the reserves
        try:
            reserves = [
                int(pid) for w in pids for pid in Path(f"/proc/{w}/task/{w}/children").read_text().split()
            ]
            before = resident(pids + reserves)
        except OSError:
            return []
        for _ in range(10):
            box.map(calls * (alone // 10))
            part = shared // 10
            box.map(calls * part, groups=[i // _GROUP for i in range(part)])
        after = resident(pids + reserves)
        check(sorted(box.pids) == pids, "workers were replaced on the way")
    done = warm + alone + shared
    return [
        Row("sandbox, memory", f"resident after {warm:,} calls", round(before, 1), unit="MiB"),
        Row(
            "sandbox, memory",
            f"growth until {done:,} calls",
            round(after - before, 2),
            1.0,
            unit="MiB",
            better="lower",
        ),
    ]
