"""Makes children, listens to them until their deadline, and ends them. Runs in the confined worker."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Collection
from typing import NoReturn, TypeVar

from . import confine, preload, wire
from .channel import Pool

_EXIT_SECONDS = 0.25
_FORK_PAUSES = (0.05, 0.2, 0.8, 2.0)  # seconds
_OWN_WORDS = 200  # bytes; what a child says instead of too long an answer may be longer than that is allowed
PIPE = 3
"""A child's end of its pipe; below are three descriptors of /dev/null."""

_OUT_OF_MEMORY_EXIT, _FAILED_EXIT = 86, 87


class BrokenFrameError(Exception):
    """What a child answered breaks off, or is no answer."""


class Child:
    """One forked child and the pipe that it answers over.

    Parameters
    ----------
    work : callable
        Runs in the child with the pipe's descriptor, then the child leaves.
    lock : callable
        Confines the child before `work`.
    memory : int
        Bytes of address space that it may have.
    ends : (int, int), optional
        Our end of its channel, and its own, instead of a new pipe.

    Raises
    ------
    OSError
        If no process can be made.
    """

    def __init__(
        self,
        work: Callable[[int], None],
        lock: Callable[[], None],
        memory: int,
        ends: tuple[int, int] | None = None,
    ) -> None:
        worker = os.getpid()
        self.pipe, far_end = ends or os.pipe()
        preload.seed_random()
        try:
            with confine.memory_limit(memory):
                self.pid = os.fork()
                if self.pid == 0:
                    _live(work, lock, far_end, worker)
        except OSError:
            os.close(self.pipe)
            os.close(far_end)
            raise
        os.close(far_end)
        self._buffer = b""

    def read(self, count: int, pool: Pool, deadline: float) -> bytes:
        """The next `count` bytes, fewer if the pipe ends; TimeoutError at the deadline, PoolGoneError."""
        pieces, have = [self._buffer], len(self._buffer)
        while have < count:
            if not pool.wait(self.pipe, deadline):
                raise TimeoutError
            try:
                piece = os.read(self.pipe, 1 << 16)
            except ConnectionResetError:  # of a socket whose other end had not read all
                break
            if not piece:
                break
            pieces.append(piece)
            have += len(piece)
        whole = b"".join(pieces)
        self._buffer = whole[count:]
        return whole[:count]

    def frame(
        self, pool: Pool, deadline: float, max_output: int, statuses: Collection[int] = wire.FROM_CHILD
    ) -> tuple[int, bytes]:
        """Status and payload of the next call. Raises BrokenFrameError, and what :meth:`read` raises."""
        head = self.read(wire.FRAME.size, pool, deadline)
        if len(head) < wire.FRAME.size:
            raise BrokenFrameError
        status, length = wire.FRAME.unpack(head)
        if status not in statuses or length > max(max_output, _OWN_WORDS):
            raise BrokenFrameError
        payload = self.read(length, pool, deadline)
        if len(payload) < length:
            raise BrokenFrameError
        return status, payload

    def fate(self) -> tuple[int, str]:
        """What became of a child whose answer broke off."""
        deadline = time.monotonic() + _EXIT_SECONDS
        while (code := self._exit_code()) is None and time.monotonic() < deadline:
            time.sleep(0.001)
        if code is None:
            return wire.CRASH, "broke off its answer, or gave one that is none"
        if code == _OUT_OF_MEMORY_EXIT:
            return wire.MEMORY, "asked for more memory than it may have"
        if code == -signal.SIGKILL:
            return wire.MEMORY, "was killed by the system, as it does with whom takes too much memory"
        if code < 0:
            return wire.CRASH, f"was killed by {_signal_name(-code)}"
        return wire.CRASH, f"left with exit code {code} before it answered"

    def _exit_code(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        if self.pid:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if not pid:
                return None
            self.pid, self._code = 0, os.waitstatus_to_exitcode(status)
        return self._code

    def end(self) -> None:
        """Kill it if it still runs, and clear up."""
        os.close(self.pipe)
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def _live(work: Callable[[int], None], lock: Callable[[], None], pipe: int, worker: int) -> NoReturn:
    """The life of a child."""
    try:
        os.dup2(pipe, PIPE)
        os.closerange(PIPE + 1, confine.DESCRIPTORS)
        confine.die_with_parent(worker)
        lock()
        work(PIPE)
        os._exit(0)
    except MemoryError:
        os._exit(_OUT_OF_MEMORY_EXIT)
    except BaseException:
        os._exit(_FAILED_EXIT)


def _signal_name(number: int) -> str:
    """SIGSEGV for 11."""
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


AnyChild = TypeVar("AnyChild", bound=Child)


def run_group(
    make: Callable[[], Child],
    pool: Pool,
    count: int,
    timeout: float,
    max_output: int,
    answer: Callable[[int, float, bytes], None],
    statuses: Collection[int] = wire.FROM_CHILD,
    used: float = 0.0,
) -> tuple[int, float | None]:
    """Have one child run up to `count` calls, and answer for each that was started.

    Of the first one's time `used` seconds are over already. Returns how many calls were answered for, and
    None, or the seconds after which the next one said ``ELSEWHERE``.
    """
    try:
        child = made_in_time(make)
    except OSError as error:
        answer(wire.CRASH, 0.0, _text(f"no process can be made: {error}"))
        return 1, None
    begin = time.monotonic() - used
    try:
        for started in range(1, count + 1):
            answered = True
            try:
                status, payload = child.frame(pool, begin + timeout, max_output, statuses)
            except TimeoutError:
                answered, status = False, wire.TIMEOUT
                payload = _text(f"gave no result within {timeout:g} s")
            except BrokenFrameError:
                answered = False
                status, words = child.fate()
                payload = _text(words)
            now = time.monotonic()
            if status == wire.ELSEWHERE:
                return started - 1, now - begin
            answer(status, now - begin, payload)
            if not answered:
                return started, None
            begin = now
        return count, None
    finally:
        child.end()


def made_in_time(make: Callable[[], AnyChild]) -> AnyChild:
    """A child. A system that is short of processes gets a few seconds, since the tool is not to blame."""
    for pause in _FORK_PAUSES:
        try:
            return make()
        except OSError:
            time.sleep(pause)
    return make()


def _text(words: str) -> bytes:
    """A payload that is an error's text."""
    return json.dumps(words).encode()
