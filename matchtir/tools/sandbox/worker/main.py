"""The worker: confines itself, says what was seen to hold, then serves requests one after the other."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

from . import child, confine, landlock, preload, probe, seccomp, wire
from .channel import Pool, PoolGoneError
from .children import PIPE, BrokenFrameError, Child, run_group
from .reserve import Reserve, Signpost, merged

_PROBE_SECONDS, _PROBE_BYTES = 10.0, 1 << 16
_IMPORT_SECONDS = 60
_SMALL_CALL = 1 << 16  # bytes; a call that is decoded here, where that costs half of what it costs a child


def main(parent: int) -> NoReturn:
    """Serve the process `parent` at the other end of descriptor 0 until it is gone."""
    pool = Pool(os.dup(0), parent)
    with contextlib.suppress(OSError, PoolGoneError):
        settings = receive_settings(pool)
        serve(pool, lambda: _worker_with_reserve(pool, **settings))
    os._exit(0)


def receive_settings(pool: Pool) -> dict[str, Any]:
    """What the pool says first: how the worker is made. Raises PoolGoneError, OSError."""
    (length,) = wire.LENGTH.unpack(pool.receive(wire.LENGTH.size))
    settings: dict[str, Any] = json.loads(pool.receive(length))
    return settings


def serve(pool: Pool, make: Callable[[], Worker]) -> None:
    """Make a worker, report on it, and have it serve; returns where it could not be made."""
    try:
        worker = make()
        report = worker.report
    except PoolGoneError:
        raise
    except Exception as error:  # whatever it is, the pool must hear of it
        report = {"failed": f"{type(error).__name__}: {error}"}
    text = json.dumps(report).encode()
    pool.send(wire.LENGTH.pack(len(text)) + text)
    if "failed" not in report:
        worker.serve()


def _worker_with_reserve(pool: Pool, *, modules: list[str], paths: list[str], **limits: int) -> Worker:
    """The worker, which has what tools use often, and its reserve, which has `modules` and all else."""
    close_streams()
    preload.preload_usual(modules)
    worker_pid = os.getpid()

    def make_reserve(channel: Pool) -> Worker:
        made = Worker(channel, missing=preload_rest_in_time(modules, paths), **limits)
        # After the change of user, which takes this back. Where Landlock keeps the signal from it, the end of
        # its channel tells the reserve that the worker is gone.
        confine.die_with_parent(worker_pid)
        return made

    def live(channel: Pool) -> None:
        serve(channel, lambda: make_reserve(channel))

    reserve = Reserve(live, pool)
    worker = Worker(pool, missing={}, **limits)
    worker.take(reserve)
    return worker


def close_streams() -> None:
    """Let nothing of the trainer's be open but the channel, and signals be as a worker needs them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # inherited as ignored, no child could be waited for
    confine.limit_descriptors()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


def preload_rest_in_time(modules: list[str], paths: list[str]) -> dict[str, str]:
    """Import all else; a module that never ends its import must not outlive the trainer."""
    signal.alarm(_IMPORT_SECONDS)
    missing = preload.preload_rest(modules, paths)
    signal.alarm(0)
    return missing


class Worker:
    """A process that has given up its rights, and makes children that have fewer still.

    Parameters
    ----------
    pool : Pool
        Whom it serves.
    missing : dict
        Why modules that were asked for could not be imported.
    memory, max_output : int
        Bytes that a child may take beyond what the worker has; bytes that it may answer.

    Attributes
    ----------
    report : dict
        What was set up and seen to hold, and which modules there are, are missing, and why.
    """

    def __init__(self, pool: Pool, *, missing: dict[str, str], memory: int, max_output: int) -> None:
        self._pool, self._max_output = pool, max_output
        self._lock: seccomp.Filter | None = None
        self._reserve: Reserve | None = None
        statm = _open_statm()
        self.report: dict[str, Any] = {"python": sys.version, "missing": missing, **self._confine()}
        self.report["modules"] = sorted(sys.modules)
        sys.path.clear()
        sys.path_importer_cache.clear()
        gc.collect()
        gc.freeze()  # so that a child's collections do not touch, and so copy, what it shares with us
        self._memory = memory + _address_space(statm)
        self.report |= self._probe(memory)

    def _confine(self) -> dict[str, Any]:
        """Give up rights for good; what came of it, layer by layer."""
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # when the machine runs out of memory this goes first, not the trainer
        found: dict[str, Any] = {
            "no_new_privileges": confine.no_new_privileges(),
            "privileges": confine.drop_privileges(),
        }
        confine.limit_resources()
        could_open = not probe.refused(probe.open_root)
        try:
            version = landlock.restrict()
            holds = could_open and probe.landlock_holds(version)
            found["landlock"] = version if holds else 0
        except OSError as error:
            found |= {"landlock": 0, "landlock_reason": str(error)}
        try:
            self._lock = seccomp.Filter(seccomp.CHILD)
            self._filter().install()
        except (OSError, seccomp.UnknownMachineError) as error:
            self._lock = None
            found["seccomp_reason"] = str(error)
        return found

    def _filter(self) -> seccomp.Filter:
        """The calls that this process may make from now on."""
        return seccomp.Filter(seccomp.WORKER)

    def _probe(self, memory: int) -> dict[str, Any]:
        """What a child could do of what it must not, and whether its memory has a limit."""

        def work(pipe: int) -> None:
            # Without a filter the acts would be carried out.
            possible = probe.child_failures() if self._lock else list(probe.child_acts())
            text = json.dumps([possible, probe.memory_holds(memory)]).encode()
            wire.write_all(pipe, wire.FRAME.pack(wire.OK, len(text)) + text)

        prober = self._child(work, _PROBE_SECONDS)
        try:
            deadline = time.monotonic() + _PROBE_SECONDS
            _, payload = prober.frame(self._pool, deadline, _PROBE_BYTES)
            possible, memory_holds = json.loads(payload)
        except BrokenFrameError:
            raise RuntimeError(f"the child that tries the sandbox out {prober.fate()[1]}") from None
        finally:
            prober.end()
        return {"seccomp": bool(self._lock) and not possible, "possible": possible, "memory": memory_holds}

    def take(self, reserve: Reserve) -> None:
        """Send calls there that import what only it has. Raises RuntimeError if it could not start."""
        found = reserve.report()
        if "failed" in found:
            raise RuntimeError(found["failed"])
        self._reserve = reserve
        sys.meta_path.insert(0, Signpost(set(found.pop("modules")) - sys.modules.keys(), PIPE))
        del self.report["modules"]
        self.report = merged(self.report, found)

    def serve(self) -> NoReturn:
        """Run requests one after the other; raises PoolGoneError or OSError when the pool is gone."""
        while True:
            count, shared, timeout, used = wire.HEADER.unpack(self._pool.receive(wire.HEADER.size))
            lengths = self._pool.receive(wire.LENGTH.size * count)
            calls = [self._pool.receive(n) for (n,) in wire.LENGTH.iter_unpack(lengths)]
            if self._reserve is not None:
                self._reserve.check()  # before anything starts, since the pool can send that elsewhere
            self._pool.send(wire.STARTED)
            while calls:
                held = sum(map(len, calls))
                answered = self._run(calls if shared else calls[:1], timeout, used, held)
                calls, used = calls[answered:], 0.0

    def _run(self, calls: list[bytes], timeout: float, used: float, held: int) -> int:
        """Run calls in one child, or in the reserve, and pass the answers on; returns how many were answered.

        The first has used some of its time. `held` bytes of calls are in memory, and so in the child's.
        """
        decoded = [_decoded(call) for call in calls]

        def work(pipe: int) -> None:
            child.run_calls(decoded, pipe, self._max_output)

        def make() -> Child:
            return self._child(work, timeout * len(calls), held + sum(map(len, calls)))

        group = make, self._pool, len(calls), timeout, self._max_output, self._answer
        if self._reserve is None:
            return run_group(*group, used=used)[0]
        answered, seconds = 0, 0.0
        if not self._reserve.needed(decoded):
            answered, left_after = run_group(*group, (*wire.FROM_CHILD, wire.ELSEWHERE))
            if left_after is None:
                return answered
            seconds = left_after
            self._reserve.remember(decoded[answered])
        request = wire.pack_request(calls[answered:], len(calls) > 1, timeout, seconds)
        self._reserve.run(request, len(calls) - answered, self._answer)
        return len(calls)

    def _answer(self, status: int, seconds: float, payload: bytes) -> None:
        """Send one call's result to the pool."""
        self._pool.send(wire.RESULT.pack(status, seconds, len(payload)) + payload)

    def _child(self, work: Callable[[int], None], seconds: float, extra_memory: int = 0) -> Child:
        """Fork a child that is confined before it works."""
        memory = self._memory + extra_memory

        def limit() -> None:
            confine.limit_unfiltered_child(memory, math.ceil(seconds) + 2)

        return Child(work, self._lock.install if self._lock else limit, memory)


def _decoded(call: bytes) -> child.Call | bytes:
    """A small call, decoded. One that cannot be is the child's, which says why, and harms no other call."""
    if len(call) < _SMALL_CALL:
        with contextlib.suppress(ValueError, RecursionError, MemoryError):
            return child.decode(call)
    return call


def _open_statm() -> int | None:
    """Descriptor of the file that tells this process's size; None where there is none. Read once confined."""
    with contextlib.suppress(OSError):
        return os.open("/proc/self/statm", os.O_RDONLY)
    return None


def _address_space(statm: int | None) -> int:
    """Bytes of address space that this process has; 0 where nobody tells. Closes the descriptor."""
    if statm is None:
        return 0
    pages = int(os.read(statm, 100).split()[0])
    os.close(statm)
    return pages * os.sysconf("SC_PAGE_SIZE")
