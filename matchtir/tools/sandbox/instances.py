"""Objects with state in the sandbox: each in a process of its own, alive from call to call."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Executor
from types import TracebackType
from typing import Any, TypeVar

from ...errors import SandboxError
from .process import WorkerProcess
from .records import Result, pack_method
from .worker import wire

_DROP_SECONDS = 5.0

Found = TypeVar("Found")


class Instance:
    """One object of a class whose source nobody vouches for, in a confined process of its own.

    Made by :meth:`matchtir.tools.Sandbox.open`. What becomes of it is data: an object that could not be made,
    or whose process was killed in a call, answers every further call with a result that says so.

    Attributes
    ----------
    start : Result
        What came of making it; `value` is None.
    """

    def __init__(
        self, host: Host, number: int, start: Result, limit: Callable[[float | None], float]
    ) -> None:
        self.host, self.number, self.start = host, number, start
        self._limit = limit

    @property
    def alive(self) -> bool:
        """Whether it was made, and no call since has ended its process."""
        return self.host.holds(self.number)

    def call(
        self, name: str, arguments: Mapping[str, Any] | None = None, *, timeout: float | None = None
    ) -> Result:
        """Call a method.

        Parameters
        ----------
        name : str
            Names that begin with "_" are no methods here.
        arguments : mapping of str to JSON value
            Its keyword arguments.
        timeout : float, optional
            Seconds, instead of the sandbox's. A call that takes longer ends the process.

        Returns
        -------
        Result
            Whatever the method does is a result. What it changed before it raised stays changed.

        Raises
        ------
        InputError
            If the name is no string, or the arguments are not JSON.
        SandboxError
            If the sandbox is closed, or belongs to another process.
        """
        request = pack_method(name, arguments or {}, "the call")
        return self.host.act(wire.CALL, self.number, request, self._limit(timeout))

    def copy(self, *, timeout: float | None = None) -> Instance:
        """A second object in the state of this one, in a process that is forked from this one's.

        It costs a fork, whatever the state is. The two share nothing from here on, and draw the same random
        numbers.

        Parameters
        ----------
        timeout : float, optional
            Seconds, instead of the sandbox's.

        Returns
        -------
        Instance
            Also where it could not be made: `start` says why. This one was opened with ``branching=True``.

        Raises
        ------
        SandboxError
            If the sandbox is closed, or belongs to another process.
        """
        number = self.host.new_number()
        start = self.host.act(
            wire.COPY, self.number, str(number).encode(), self._limit(timeout), makes=number
        )
        return Instance(self.host, number, start, self._limit)

    def close(self) -> None:
        """End its process. Does nothing a second time."""
        self.host.drop(self.number)

    def __enter__(self) -> Instance:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Host:
    """A worker that keeps objects, and the numbers of those that live. Threads take turns.

    Parameters
    ----------
    check : callable
        Raises SandboxError where the sandbox is closed.
    start : callable
        Starts the worker, which is done when it is needed, and again when it has died.
    forget : callable
        Ends it.
    """

    def __init__(
        self,
        check: Callable[[], None],
        start: Callable[[], WorkerProcess],
        forget: Callable[[WorkerProcess], None],
    ) -> None:
        self._check, self._start, self._forget = check, start, forget
        self._worker: WorkerProcess | None = None
        self._lock = threading.Lock()
        self._living: set[int] = set()
        self._last = 0

    def __len__(self) -> int:
        return len(self._living)

    def holds(self, number: int) -> bool:
        """Whether an object lives."""
        return number in self._living

    def new_number(self) -> int:
        """A number that no object of this host has had."""
        with self._lock:
            self._last += 1
            return self._last

    def act(
        self, what: int, number: int, payload: bytes, timeout: float, *, makes: int | None = None
    ) -> Result:
        """Do something with an object; `makes` is the number of one that comes to be by it."""
        with self._lock:
            self._check()
            if what in (wire.MAKE, wire.MAKE_BRANCHING):
                if self._worker is None:
                    self._worker = self._start()
            elif number not in self._living or self._worker is None:
                return Result("crash", error="its process has ended")
            worker = self._worker
            try:
                result, alive = worker.act(what, number, payload, timeout)
            except BaseException:  # Ctrl-C: what it would answer now belongs to nobody
                self._lose(worker)
                raise
            if not alive:
                self._lose(worker)
            elif makes is not None and result.status == "ok":
                self._living.add(makes)
            elif what == wire.DROP or result.status in ("timeout", "crash"):
                self._living.discard(number)
            return result

    def drop(self, number: int) -> None:
        """End an object, if it lives; with the sandbox all have ended."""
        if number in self._living:
            with contextlib.suppress(SandboxError):
                self.act(wire.DROP, number, b"", _DROP_SECONDS)

    def _lose(self, worker: WorkerProcess) -> None:
        """The worker has died, and with it all that it kept."""
        self._living.clear()
        self._worker = None
        self._forget(worker)


class Hosts:
    """As many hosts as the sandbox has workers; a new object goes where the fewest are."""

    def __init__(
        self,
        count: int,
        check: Callable[[], None],
        start: Callable[[], WorkerProcess],
        forget: Callable[[WorkerProcess], None],
        threads: Executor,
        limit: Callable[[float | None], float],
    ) -> None:
        self._hosts = [Host(check, start, forget) for _ in range(count)]
        self._threads, self._limit = threads, limit
        self._choice = threading.Lock()

    def open(self, requests: Sequence[bytes], branching: bool, timeout: float) -> list[Instance]:
        """Make objects, side by side."""
        with self._choice:
            places = []
            sizes = [len(host) for host in self._hosts]
            for _ in requests:
                k = sizes.index(min(sizes))
                sizes[k] += 1
                places.append(self._hosts[k])
        what = wire.MAKE_BRANCHING if branching else wire.MAKE

        def make(host: Host, request: bytes) -> Instance:
            number = host.new_number()
            start = host.act(what, number, request, timeout, makes=number)
            return Instance(host, number, start, self._limit)

        return self._by_host(places, make, list(zip(places, requests, strict=True)))

    def run(self, batch: Sequence[tuple[Instance, Sequence[bytes]]], timeout: float) -> list[list[Result]]:
        """Calls of many objects: those of one in order, those of different hosts side by side."""

        def calls(instance: Instance, requests: Sequence[bytes]) -> list[Result]:
            return [instance.host.act(wire.CALL, instance.number, one, timeout) for one in requests]

        return self._by_host([instance.host for instance, _ in batch], calls, batch)

    def _by_host(
        self, places: Sequence[Host], work: Callable[..., Found], jobs: Sequence[tuple[Any, Any]]
    ) -> list[Found]:
        """What `work` returns for the arguments of each job; one thread a host."""
        members: dict[int, list[int]] = {}
        for i, host in enumerate(places):
            members.setdefault(id(host), []).append(i)

        def share(part: list[int]) -> list[Found]:
            return [work(*jobs[i]) for i in part]

        done: dict[int, Found] = {}
        try:
            for part, found in zip(members.values(), self._threads.map(share, members.values()), strict=True):
                done.update(zip(part, found, strict=True))
        except CancelledError:  # it waited for its turn when the sandbox was closed
            raise SandboxError("the sandbox is closed") from None
        return [done[i] for i in range(len(jobs))]
