"""The host: a worker that keeps objects, each in a child that lives, and stands still, from call to call."""

from __future__ import annotations

import _socket
import contextlib
import json
import os
import select
import signal
import struct
import time
from typing import NoReturn

from . import confine, objects, preload, seccomp, wire
from .channel import Pool, PoolGoneError
from .children import BrokenFrameError, Child, made_in_time
from .main import Worker, close_streams, preload_rest_in_time, receive_settings, serve

_MOST = (confine.DESCRIPTORS - 24) // 2
"""Objects that a host keeps: each has a descriptor, and its copy is given one more while it is made."""

_FULL = f"no process can be made: this worker keeps {_MOST} environments already"
_SLICE_SECONDS = 1.0

Answer = tuple[int, bytes]


def main(parent: int) -> NoReturn:
    """Serve the process `parent` at the other end of descriptor 0 until it is gone."""
    pool = Pool(os.dup(0), parent)
    with contextlib.suppress(OSError, PoolGoneError):
        settings = receive_settings(pool)
        serve(pool, lambda: _host(pool, **settings))
    os.kill(0, signal.SIGKILL)  # the whole group: a copy that nobody was told of, too
    os._exit(0)


def _host(pool: Pool, *, modules: list[str], paths: list[str], **limits: int) -> Host:
    """The host, which has all modules: its children live long, so that the time of a fork counts for less."""
    close_streams()
    preload.preload_usual(modules)
    return Host(pool, missing=preload_rest_in_time(modules, paths), **limits)


class Kept(Child):
    """A child that keeps an object, from the host's side.

    Attributes
    ----------
    branching : bool
        Whether it can copy itself.
    """

    branching = False

    @classmethod
    def adopted(cls, pid: int, pipe: int) -> Kept:
        """A copy of such a child, which is a child of this process too."""
        kept = cls.__new__(cls)
        kept.pid, kept.pipe, kept._buffer, kept.branching = pid, pipe, b"", True
        return kept

    def halt(self) -> None:
        """Let it stand still: it takes no processor between two calls, whatever it would do."""
        if self.pid:
            os.kill(self.pid, signal.SIGSTOP)

    def ask(self, pool: Pool, request: bytes, deadline: float, channel: int | None = None) -> None:
        """Wake it and send it a request, or a copy's channel. Raises TimeoutError, BrokenFrameError."""
        if self.pid:
            os.kill(self.pid, signal.SIGCONT)
        rights = (
            [] if channel is None else [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack("i", channel))]
        )
        view = memoryview(wire.REQUEST.pack(len(request)) + request)
        end = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, fileno=self.pipe)
        try:
            while view:
                try:
                    view = view[end.sendmsg([view], rights, _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL) :]
                    rights = []
                except BlockingIOError:
                    _wait_to_write(self.pipe, pool, deadline)
                except (BrokenPipeError, ConnectionResetError):
                    raise BrokenFrameError from None
        finally:
            end.detach()


class Host(Worker):
    """Makes objects, calls their methods, copies and drops them, as the pool asks.

    Parameters
    ----------
    pool, missing, memory, max_output
        As for :class:`~.main.Worker`.
    """

    def __init__(self, pool: Pool, *, missing: dict[str, str], memory: int, max_output: int) -> None:
        self._kept: dict[int, Kept] = {}
        self._branching: seccomp.Filter | None = None
        self._clone: int | None = None
        with contextlib.suppress(seccomp.UnknownMachineError):
            # Before this process closes itself and can no longer ask what machine it is on.
            self._branching = seccomp.Filter(seccomp.BRANCHING, conditions=seccomp.BRANCHING_CONDITIONS)
            self._clone = getattr(seccomp.SYSTEM_CALLS["clone"], os.uname().machine)
        super().__init__(pool, missing=missing, memory=memory, max_output=max_output)

    def _filter(self) -> seccomp.Filter:
        """Those of a worker, and what channels and copies need."""
        return seccomp.Filter(seccomp.HOST, conditions=seccomp.HOST_CONDITIONS)

    def serve(self) -> NoReturn:
        """Do one request after the other; raises PoolGoneError or OSError when the pool is gone."""
        while True:
            what, number, timeout, length = wire.ACT.unpack(self._pool.receive(wire.ACT.size))
            payload = self._pool.receive(length)
            begin = time.monotonic()
            try:
                status, answer = self._act(what, number, payload, begin + timeout)
            except TimeoutError:
                self._drop(number)
                status, answer = wire.TIMEOUT, _text(f"gave no result within {timeout:g} s")
            except BrokenFrameError:
                status, words = self._kept[number].fate()
                self._drop(number)
                answer = _text(words)
            self._answer(status, time.monotonic() - begin, answer)

    def _act(self, what: int, number: int, payload: bytes, deadline: float) -> Answer:
        """Status and payload of what was asked for. Raises TimeoutError, BrokenFrameError."""
        if what in (wire.MAKE, wire.MAKE_BRANCHING):
            return self._make(number, payload, deadline, what == wire.MAKE_BRANCHING)
        if what == wire.DROP:
            self._drop(number)
            return wire.OK, b"null"
        kept = self._kept.get(number)
        if kept is None:
            return wire.CRASH, _text("its process has ended")
        if what == wire.COPY:
            return self._copy(kept, json.loads(payload), deadline)
        kept.ask(self._pool, payload, deadline)
        answer = kept.frame(self._pool, deadline, self._max_output)
        kept.halt()
        return answer

    def _make(self, number: int, call: bytes, deadline: float, branching: bool) -> Answer:
        """Make an object in a new child."""
        if len(self._kept) >= _MOST:
            return wire.CRASH, _text(_FULL)
        branching = branching and self._lock is not None
        lock, clone = (self._branching, self._clone) if branching else (self._lock, None)

        def work(channel: int) -> None:
            objects.keep(call, channel, self._max_output, clone)

        def limit() -> None:
            confine.limit_unfiltered_child(self._memory, 1 << 30)

        def make() -> Kept:
            return Kept(
                work, lock.install if lock else limit, self._memory + len(call), objects.channel_pair()
            )

        try:
            kept = self._kept[number] = made_in_time(make)
        except OSError as error:
            return wire.CRASH, _text(f"no process can be made: {error}")
        kept.branching = branching
        status, answer = kept.frame(self._pool, deadline, self._max_output)
        if status == wire.OK:
            kept.halt()
        else:
            self._drop(number)
        return status, answer

    def _copy(self, kept: Kept, number: int, deadline: float) -> Answer:
        """Have a child copy itself; the copy gets the new number."""
        if self._clone is None or not kept.branching:
            return wire.ERROR, _text("it was opened without branching=True")
        if len(self._kept) >= _MOST:
            return wire.ERROR, _text(_FULL)
        pid = None
        ours, theirs = objects.channel_pair()
        try:
            try:
                kept.ask(self._pool, b"", deadline, theirs)
            except TimeoutError:
                raise
            except OSError as error:  # objects that take no channel can make the system refuse to send more
                kept.halt()
                return wire.ERROR, _text(f"no process can be made: {error}")
            status, answer = kept.frame(self._pool, deadline, self._max_output)
            kept.halt()
            if status != wire.OK:
                return status, answer
            pid = self._own_child(answer)
        finally:
            os.close(theirs)
            if pid is None:
                os.close(ours)
        if pid is None:
            raise BrokenFrameError
        copy = self._kept[number] = Kept.adopted(pid, ours)
        try:
            answered = copy.frame(self._pool, deadline, self._max_output)
        except (TimeoutError, BrokenFrameError):
            self._drop(number)
            return wire.ERROR, _text("its copy did not start")
        copy.halt()
        return answered

    def _own_child(self, answer: bytes) -> int | None:
        """The process that a child says is its copy; None unless it is a child of ours that nobody knows."""
        try:
            pid = json.loads(answer)
            known = {kept.pid for kept in self._kept.values()}
            ours = (
                isinstance(pid, int)
                and pid > 1
                and pid not in known
                and os.waitpid(pid, os.WNOHANG) == (0, 0)
            )
        except (ValueError, RecursionError, OSError, OverflowError):
            return None
        return pid if ours else None

    def _drop(self, number: int) -> None:
        """End the child that keeps an object, if there is one."""
        kept = self._kept.pop(number, None)
        if kept is not None:
            kept.end()


def _wait_to_write(fd: int, pool: Pool, deadline: float) -> None:
    """Wait until a child reads on. Raises TimeoutError, and PoolGoneError."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    while not poll.poll(1000 * min(_SLICE_SECONDS, max(0.0, deadline - time.monotonic()))):
        pool.check()
        if time.monotonic() >= deadline:
            raise TimeoutError


def _text(words: str) -> bytes:
    """A payload that is an error's text."""
    return json.dumps(words).encode()
