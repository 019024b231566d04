"""The worker's side of the channel to the pool. No wait outlasts the process that the worker serves."""

from __future__ import annotations

import math
import os
import select
import time

_SLICE_SECONDS = 1.0


class PoolGoneError(Exception):
    """The process that this worker serves has died or has let go of it."""


class Pool:
    """The process that this worker serves, seen from the worker.

    It may have forked, and its children may hold the channel open; so its death shows in who our parent is.

    Parameters
    ----------
    channel : int
        Descriptor of a socket that gives up reading and writing after a while, so that we look again.
    parent : int
        Process id of the pool.
    """

    def __init__(self, channel: int, parent: int) -> None:
        self.channel, self._parent = channel, parent

    def check(self) -> None:
        """Raise PoolGoneError if it has died."""
        if os.getppid() not in (self._parent, 0):  # 0: it is outside of our namespace of processes
            raise PoolGoneError

    def wait(self, fd: int, deadline: float = math.inf) -> bool:
        """Wait until `fd` can be read or ends; False at the deadline. Raises PoolGoneError."""
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        if fd != self.channel:
            poll.register(self.channel, 0)  # tells only that the other end is closed
        while (left := deadline - time.monotonic()) > 0:
            for ready, _ in poll.poll(1000 * min(left, _SLICE_SECONDS)):
                if ready == fd:
                    return True
                raise PoolGoneError
            self.check()
        return False

    def receive(self, count: int) -> bytes:
        """Exactly `count` bytes. Raises PoolGoneError, OSError."""
        pieces = []
        while count:
            try:
                piece = os.read(self.channel, min(count, 1 << 20))
            except BlockingIOError:
                self.check()
                continue
            if not piece:
                raise PoolGoneError
            pieces.append(piece)
            count -= len(piece)
        return b"".join(pieces)

    def receive_from(self, fd: int, count: int) -> bytes:
        """Exactly `count` bytes from another descriptor. Raises PoolGoneError, also where that one ends."""
        pieces = []
        while count:
            self.wait(fd)
            try:
                piece = os.read(fd, min(count, 1 << 20))
            except ConnectionResetError:
                piece = b""
            if not piece:
                raise PoolGoneError
            pieces.append(piece)
            count -= len(piece)
        return b"".join(pieces)

    def send(self, data: bytes) -> None:
        """Send all of `data`. Raises PoolGoneError, OSError."""
        self.send_to(self.channel, data)

    def send_to(self, fd: int, data: bytes) -> None:
        """Send all of `data` to another socket that gives up after a while. Raises PoolGoneError, OSError."""
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(fd, view) :]
            except BlockingIOError:
                self.check()
