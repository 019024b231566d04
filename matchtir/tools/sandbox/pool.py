"""The sandbox's face: a warm pool of workers, and the calls that are shared out to them."""

from __future__ import annotations

import os
import queue
import sys
import threading
import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from types import TracebackType
from typing import Any

from ...errors import ConfigError, InputError, SandboxError, SandboxWarning
from .instances import Hosts, Instance
from .process import WorkerDiedError, WorkerProcess
from .records import Call, Result, pack_call, pack_method

_MOST_DEATHS = 5
_LARGEST_CHUNK = 16
_LONGEST = 1_000_000  # seconds, eleven days; the system's calls do not take any number


class Sandbox:
    """Runs Python tools that nobody vouches for, with arguments that a model made up.

    A warm pool of worker processes. Each has been started by exec without the trainer's environment, has
    imported the modules that tools may use, has given up its rights for good, and forks a child for each call
    (or group of calls of one task, see :meth:`map`), which has fewer rights still and is killed after it.

    Covered, on Linux (x86-64, aarch64), as root or not, in containers too:

    - *Time.* A child is killed at the deadline, whatever it does.
    - *Memory.* A child's address space is limited; there are at most `workers` children at a time.
    - *Files, network, processes.* A child can open no file, make no socket, start no process or thread,
      signal, trace or read no other process, and get no executable memory: seccomp allows it what computing
      needs (memory, clocks, random bytes, its one pipe), and Landlock, where the kernel has it, refuses
      files, TCP and signals once more. Root becomes the user nobody or, in a container that does not let it,
      root without capabilities; `report` says which.
    - *The trainer's memory and output.* Calls and results are JSON, read with limits on their length. A child
      has no terminal; what a tool prints is dropped.
    - *The next call.* Whatever a tool does to modules or builtins dies with its child.
    - *Orphans.* Workers and children end when the process that made the sandbox dies, however it dies.

    Not covered:

    - Faults of the kernel, the processor (timing and other side channels) and of CPython's C code are faults
      of the sandbox. For hostile code that is worth a kernel exploit use a virtual machine.
    - A tool can use all of its time and memory: `workers` processors and `workers` × `memory_mb`. So can each
      open object its memory; between two of its calls it takes no processor.
    - Calls of one group can change each other's results; put calls of different tasks into different groups.
    - A child can find in its memory other calls that its worker was given, and results. It can read them and
      change none.
    - A tool can return anything, and say it slowly: a result is data and not to be trusted.
    - Where there is no seccomp (macOS, other processors) nothing but time, memory and the separate process
      is covered; this needs ``allow_unsafe=True``.

    Every layer is tried out when a worker starts; `report` and ``matchtir env`` show what held.

    Parameters
    ----------
    workers : int
        Worker processes, and so calls that run at the same time.
    timeout : float
        Seconds that a call may take, from the start of its process.
    memory_mb : int
        MiB that a call may take beyond what a worker starts with.
    max_output : int
        Bytes of JSON that a call may return.
    modules : sequence of str
        Modules that tools may import besides :data:`MODULES` and, if installed, dateutil and pytz. A tool can
        import nothing that was not imported before it was confined.
    allow_unsafe : bool
        Run even if seccomp does not hold here.

    Attributes
    ----------
    report : dict
        What was set up and seen to hold: ``seccomp`` (bool), ``landlock`` (version of its interface, 0 if it
        does not hold), ``memory`` (bool), ``privileges`` (str), and more.

    Raises
    ------
    ConfigError
        If an argument is impossible, or one of `modules` cannot be imported.
    SandboxError
        If no worker starts, or seccomp does not hold and `allow_unsafe` is false.

    Warns
    -----
    SandboxWarning
        If Landlock does not hold, or the sandbox is unsafe and was allowed to be.

    Notes
    -----
    Threads may share a sandbox. A process that was forked from its owner must make its own. Random numbers of
    a tool differ from call to call; hashes, and so the order of sets, do not.

    Examples
    --------
    >>> source = "def add(a, b):\\n    return a + b"
    >>> with Sandbox(workers=1) as box:
    ...     box.call(source, "add", {"a": 2, "b": 3}).value
    ...     box.call(source, "add", {"a": 2}).error
    5
    "add() missing 1 required positional argument: 'b'"
    """

    def __init__(
        self,
        workers: int = 2,
        timeout: float = 10.0,
        memory_mb: int = 512,
        *,
        max_output: int = 1 << 20,
        modules: Sequence[str] = (),
        allow_unsafe: bool = False,
    ) -> None:
        for name, number in (("workers", workers), ("memory_mb", memory_mb), ("max_output", max_output)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ConfigError(f"{name} is {number!r}; expected a positive integer")
        self.workers, self.timeout, self._allow_unsafe = workers, _seconds(timeout), allow_unsafe
        if isinstance(modules, str) or not all(isinstance(module, str) for module in modules):
            raise ConfigError(f"modules is {modules!r}; expected a sequence of module names")
        self._settings = {
            "modules": list(modules),
            "paths": [path for path in sys.path if os.path.isabs(path)],
            "memory": memory_mb << 20,
            "max_output": max_output,
        }
        self._owner, self._closed, self._lock = os.getpid(), False, threading.Lock()
        self._live: set[WorkerProcess] = set()
        # None stands for a worker that died and could not be replaced yet.
        self._idle: queue.LifoQueue[WorkerProcess | None] = queue.LifoQueue()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="matchtir-sandbox")
        self._hosts = Hosts(
            workers, self._check_open, self._start_host, self._forget, self._threads, self._limit
        )
        try:
            made = [self._make() for _ in range(workers)]
            for worker in made:
                self._confirm(worker)
                self._idle.put(worker)
        except BaseException:
            self.close()
            raise
        self.report = made[0].report
        if not self.safe:
            warnings.warn(
                f"the sandbox is not safe here: {_why_unsafe(self.report)}", SandboxWarning, stacklevel=2
            )
        elif not self.report["landlock"]:
            why = self.report.get("landlock_reason", "it was set up and refused nothing")
            warnings.warn(
                f"the sandbox runs without Landlock ({why}); seccomp holds", SandboxWarning, stacklevel=2
            )

    @property
    def safe(self) -> bool:
        """Whether seccomp and the limit on memory were seen to hold."""
        return bool(self.report["seccomp"] and self.report["memory"])

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the workers that live now; their children are not among them."""
        with self._lock:
            return tuple(worker.pid for worker in self._live)

    def call(
        self,
        source: str,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        timeout: float | None = None,
    ) -> Result:
        """Run one call in a process of its own.

        Parameters
        ----------
        source : str
            Python source of the tool.
        name : str
            Function of the source that is called.
        arguments : mapping of str to JSON value
            Its keyword arguments.
        timeout : float, optional
            Seconds, instead of the sandbox's.

        Returns
        -------
        Result
            Whatever the tool does is a result; nothing is raised for it.

        Raises
        ------
        InputError
            If source or name is no string, or the arguments are not JSON.
        SandboxError
            If the sandbox is closed, belongs to another process, or its workers die before they run the call.
        """
        packed = pack_call(source, name, arguments or {}, "the call")
        return self._run([packed], False, self._limit(timeout))[0]

    def map(
        self,
        calls: Iterable[Call | tuple[str, str, Mapping[str, Any]]],
        *,
        groups: Sequence[Hashable] | None = None,
        timeout: float | None = None,
    ) -> list[Result]:
        """Run many calls on all workers.

        Parameters
        ----------
        calls : iterable of Call
            Or of tuples (source, name, arguments).
        groups : sequence of hashable, optional
            One key a call. Calls with the same key run one after the other in one process, which is several
            times faster, and may affect each other. By default each call has its own process.
        timeout : float, optional
            Seconds that each call may take, instead of the sandbox's.

        Returns
        -------
        list of Result
            One per call, in the order of the calls.

        Raises
        ------
        InputError
            If a call is not as :meth:`call` takes it (the message names it), or `groups` has another length.
        SandboxError
            As :meth:`call`.
        """
        packed = [pack_call(*_parts(call, i), f"calls[{i}]") for i, call in enumerate(calls)]
        limit = self._limit(timeout)
        self._check_open()
        if groups is None:
            size = max(1, min(_LARGEST_CHUNK, len(packed) // (4 * self.workers)))
            parts = [list(range(i, min(i + size, len(packed)))) for i in range(0, len(packed), size)]
        else:
            if len(groups) != len(packed):
                raise InputError(
                    f"groups has {len(groups)} entries for {len(packed)} calls; expected one per call"
                )
            members: dict[Hashable, list[int]] = {}
            for i, key in enumerate(groups):
                members.setdefault(key, []).append(i)
            parts = list(members.values())

        def run(part: list[int]) -> list[Result]:
            return self._run([packed[i] for i in part], groups is not None, limit)

        results: list[Result | None] = [None] * len(packed)
        try:
            for part, found in zip(parts, self._threads.map(run, parts), strict=True):
                for i, result in zip(part, found, strict=True):
                    results[i] = result
        except CancelledError:  # it waited for its turn when the sandbox was closed
            raise SandboxError("the sandbox is closed") from None
        return [result for result in results if result is not None]

    def open(
        self,
        source: str,
        name: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        branching: bool = False,
        timeout: float | None = None,
    ) -> Instance:
        """Make an object whose methods are called one after the other, in a process of its own.

        Parameters
        ----------
        source : str
            Python source of its class.
        name : str
            The class, or a function of the source that returns the object.
        arguments : mapping of str to JSON value
            Its keyword arguments.
        branching : bool
            Let the object be copied, see :meth:`Instance.copy`. Its source can then start copies of its own
            process, which take processor and memory until the sandbox is closed.
        timeout : float, optional
            Seconds, instead of the sandbox's.

        Returns
        -------
        Instance
            Also where it could not be made: `start` says why.

        Raises
        ------
        InputError, SandboxError
            As :meth:`call`.
        ConfigError
            As the sandbox itself, where the first object is made.

        Examples
        --------
        >>> source = '''
        ... class Counter:
        ...     def __init__(self, count=0):
        ...         self.count = count
        ...     def add(self, number):
        ...         self.count += number
        ...         return self.count
        ... '''
        >>> with Sandbox(workers=1) as box, box.open(source, "Counter", {"count": 2}) as counter:
        ...     counter.call("add", {"number": 3}).value
        ...     counter.call("add", {"number": 4}).value
        5
        9
        """
        return self.open_all([(source, name, arguments or {})], branching=branching, timeout=timeout)[0]

    def open_all(
        self,
        calls: Iterable[Call | tuple[str, str, Mapping[str, Any]]],
        *,
        branching: bool = False,
        timeout: float | None = None,
    ) -> list[Instance]:
        """Make many objects, side by side.

        Parameters
        ----------
        calls : iterable of Call
            Or of tuples (source, name, arguments), as :meth:`open` takes them.
        branching : bool
            As for :meth:`open`.
        timeout : float, optional
            As for :meth:`open`.

        Returns
        -------
        list of Instance
            One per call, in order.

        Raises
        ------
        InputError, SandboxError, ConfigError
            As :meth:`open`.
        """
        packed = [pack_call(*_parts(call, i), f"calls[{i}]") for i, call in enumerate(calls)]
        self._check_open()
        return self._hosts.open(packed, branching, self._limit(timeout))

    def call_all(
        self,
        batch: Sequence[tuple[Instance, Sequence[tuple[str, Mapping[str, Any]]]]],
        *,
        timeout: float | None = None,
    ) -> list[list[Result]]:
        """Call methods of many objects.

        Parameters
        ----------
        batch : sequence of (Instance, sequence of (name, arguments))
            Calls of one object run in order; up to `workers` objects are at work at a time.
        timeout : float, optional
            Seconds that each call may take, instead of the sandbox's.

        Returns
        -------
        list of list of Result
            One list an entry of the batch, one result a call.

        Raises
        ------
        InputError, SandboxError
            As :meth:`Instance.call`.
        """
        packed = [
            (
                instance,
                [
                    pack_method(name, arguments, f"call {k} of batch[{i}]")
                    for k, (name, arguments) in enumerate(calls)
                ],
            )
            for i, (instance, calls) in enumerate(batch)
        ]
        self._check_open()
        return self._hosts.run(packed, self._limit(timeout))

    def _run(self, calls: list[bytes], shared: bool, timeout: float) -> list[Result]:
        """Results of all calls; those that a dying worker had not started go to another one."""
        results: list[Result] = []
        deaths = 0
        while len(results) < len(calls):
            if deaths == _MOST_DEATHS:
                raise SandboxError(f"{deaths} workers in a row died before they ran a call")
            worker = None
            try:
                worker = self._take()
                found, alive = worker.run(calls[len(results) :], shared, timeout)
            except WorkerDiedError:
                deaths += 1
                continue
            except BaseException:  # Ctrl-C: what it would answer now belongs to nobody
                if worker is not None:
                    self._discard(worker)
                raise
            results += found
            if alive:
                self._idle.put(worker)
                continue
            self._discard(worker)
            self._check_open()
            deaths = 0 if found else deaths + 1
        return results

    def _take(self) -> WorkerProcess:
        """An idle worker; waits for one, and replaces one that died."""
        self._check_open()
        worker = self._idle.get()
        try:
            self._check_open()
            if worker is None:
                worker = self._make()
                self._confirm(worker)
        except BaseException:
            self._idle.put(None)
            raise
        return worker

    def _check_open(self) -> None:
        if os.getpid() != self._owner:
            raise SandboxError(
                f"the sandbox belongs to process {self._owner}; a forked process must make its own"
            )
        if self._closed:
            raise SandboxError("the sandbox is closed")

    def _make(self) -> WorkerProcess:
        """A worker that is starting."""
        with self._lock:
            self._check_open()
            worker = WorkerProcess(self._settings)
            self._live.add(worker)
        return worker

    def _start_host(self) -> WorkerProcess:
        """A worker that keeps objects, confirmed."""
        with self._lock:
            self._check_open()
            worker = WorkerProcess(self._settings, "host")
            self._live.add(worker)
        self._confirm(worker)
        return worker

    def _confirm(self, worker: WorkerProcess) -> None:
        """Wait until a worker has started, and refuse one that does not hold."""
        try:
            worker.confirm()
            report = worker.report
            if missing := report["missing"]:
                raise ConfigError(
                    "modules cannot be imported: "
                    + "; ".join(f"{name} ({why})" for name, why in missing.items())
                )
            if not (report["seccomp"] and report["memory"]) and not self._allow_unsafe:
                raise SandboxError(
                    f"{_why_unsafe(report)}, so a tool could do harm; allow_unsafe=True runs it all the same"
                )
        except BaseException:
            self._forget(worker)
            raise

    def _discard(self, worker: WorkerProcess) -> None:
        """End a worker; the next one who needs it starts another."""
        try:
            self._forget(worker)
        finally:
            self._idle.put(None)

    def _forget(self, worker: WorkerProcess) -> None:
        worker.close()
        with self._lock:
            self._live.discard(worker)

    def close(self) -> None:
        """End the workers and what they run. Calls in progress raise SandboxError."""
        if os.getpid() != self._owner or self._closed:
            return
        with self._lock:
            self._closed = True
            live = list(self._live)
        for worker in live:
            worker.kill()
        self._idle.put(None)  # wakes who waits for a worker, and each wakes the next
        self._threads.shutdown(wait=True, cancel_futures=True)
        for worker in live:
            self._forget(worker)

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _limit(self, timeout: float | None) -> float:
        return self.timeout if timeout is None else _seconds(timeout)


def _seconds(timeout: float) -> float:
    """A timeout, checked."""
    if not isinstance(timeout, int | float) or isinstance(timeout, bool) or not 0 < timeout <= _LONGEST:
        raise ConfigError(
            f"timeout is {timeout!r:.40}; expected a positive number of seconds, at most {_LONGEST:,}"
        )
    return float(timeout)


def _parts(call: Any, i: int) -> tuple[Any, Any, Any]:
    """Source, name and arguments of one of many calls."""
    if not isinstance(call, tuple) or len(call) != 3:
        raise InputError(f"calls[{i}] is {call!r:.60}; expected (source, name, arguments)")
    return call


def _why_unsafe(report: Mapping[str, Any]) -> str:
    """Which layer does not hold, in words."""
    if reason := report.get("seccomp_reason"):
        return f"seccomp is not available ({reason})"
    if report["possible"]:
        return f"seccomp does not hold (possible: {', '.join(report['possible'])})"
    return "memory cannot be limited"
