"""The reserve: a second confined process beside the worker, for calls that import what few tools need.

Every MiB that a process holds makes each of its forks slower (by about 95 µs on two cores of an AMD EPYC with
Linux 6.18), so the worker imports only what tools use often. The reserve is forked from it before it confines
itself, imports all else, confines itself likewise, and serves the worker as the worker serves the pool.
A child of the worker that imports one of those modules leaves, and its call starts anew in the reserve.
"""

from __future__ import annotations

import _socket
import json
import os
import select
import struct
from collections.abc import Callable, Collection, Sequence
from typing import Any

from . import child, confine, wire
from .channel import Pool, PoolGoneError

_MOST_SOURCES = 1024
_SEND_SECONDS = struct.pack("@ll", 1, 0)  # a struct timeval


class Reserve:
    """The reserve, seen from the worker.

    Parameters
    ----------
    live : callable
        What the forked process does: takes the :class:`~.channel.Pool` that it serves, and does not return.
    pool : Pool
        Whom the worker serves. No wait for the reserve outlasts it.
    """

    def __init__(self, live: Callable[[Pool], Any], pool: Pool) -> None:
        self._pool = pool
        ours, theirs = _socket.socketpair()
        ours.setsockopt(_socket.SOL_SOCKET, _socket.SO_SNDTIMEO, _SEND_SECONDS)
        self._channel = ours.detach()
        self._poll = select.poll()
        self._poll.register(self._channel, 0)  # tells only that the other end is closed
        worker = os.getpid()
        if os.fork() == 0:
            try:
                # Its channel takes the place of the pool's, which was opened first; the rest is closed.
                os.dup2(theirs.fileno(), pool.channel)
                os.closerange(pool.channel + 1, confine.DESCRIPTORS)
                live(Pool(pool.channel, worker))
            finally:
                os._exit(1)
        theirs.close()
        self._known: set[int] = set()

    def check(self) -> None:
        """Raise PoolGoneError if it has died: without it a worker is as good as dead itself."""
        if self._poll.poll(0):
            raise PoolGoneError

    def report(self) -> dict[str, Any]:
        """What it says of itself when it has confined itself, or why it could not. Raises PoolGoneError."""
        (length,) = wire.LENGTH.unpack(self._pool.receive_from(self._channel, wire.LENGTH.size))
        report: dict[str, Any] = json.loads(self._pool.receive_from(self._channel, length))
        return report

    def needed(self, calls: Sequence[child.Call | bytes]) -> bool:
        """Whether the source of one of the calls has turned to the reserve before."""
        return any(hash(call[0]) in self._known for call in calls if not isinstance(call, bytes))

    def remember(self, call: child.Call | bytes) -> None:
        """Send the source of a call here at once next time. Hashes do: a wrong hit costs time only."""
        if not isinstance(call, bytes):
            if len(self._known) >= _MOST_SOURCES:
                self._known.clear()
            self._known.add(hash(call[0]))

    def run(self, request: bytes, count: int, answer: Callable[[int, float, bytes], None]) -> None:
        """Have it run a request of `count` calls, and pass its answers on. Raises PoolGoneError, OSError."""
        self._pool.send_to(self._channel, request)
        self._pool.receive_from(self._channel, len(wire.STARTED))
        for _ in range(count):
            head = self._pool.receive_from(self._channel, wire.RESULT.size)
            status, seconds, length = wire.RESULT.unpack(head)
            answer(status, seconds, self._pool.receive_from(self._channel, length))


class Signpost:
    """Ends a child that imports what only the reserve has; the first entry of ``sys.meta_path``.

    The child leaves with a frame that says so and not with an exception, which a tool might catch. A tool
    that writes such a frame itself gets a second start, with what is left of its time.
    """

    def __init__(self, names: Collection[str], pipe: int) -> None:
        self._names, self._pipe, self._worker = frozenset(names), pipe, os.getpid()

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Called by the import system for a module that is not loaded."""
        if name in self._names and os.getpid() != self._worker:
            wire.write_all(self._pipe, wire.FRAME.pack(wire.ELSEWHERE, 0))
            os._exit(0)


def merged(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """One report of worker and reserve: what holds holds for both."""
    return {
        **theirs,
        **ours,
        "missing": theirs["missing"],
        "landlock": min(ours["landlock"], theirs["landlock"]),
        "seccomp": ours["seccomp"] and theirs["seccomp"],
        "possible": sorted({*ours["possible"], *theirs["possible"]}),
        "memory": ours["memory"] and theirs["memory"],
    }
