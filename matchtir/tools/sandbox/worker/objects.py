"""Keeps one object in a forked child: makes it, calls its methods, and copies the child when asked to."""

from __future__ import annotations

import _socket
import ctypes
import json
import os
import signal
import struct
from functools import partial
from typing import Any

from . import child, confine, wire

_CLONE_PARENT = 0x8000
_DESCRIPTOR = struct.Struct("i")
_syscall = ctypes.CDLL(None, use_errno=True).syscall  # looked up before the fork, like all that a child needs
_syscall.restype = ctypes.c_long
_syscall.argtypes = [ctypes.c_long] * 6


def channel_pair() -> tuple[int, int]:
    """Two descriptors, each the other's end."""
    ours, theirs = _socket.socketpair()
    return ours.detach(), theirs.detach()


class _EndedError(Exception):
    """The other end of the channel is closed."""


def keep(call: bytes, channel: int, max_output: int, clone: int | None) -> None:
    """Make the object that a call of a class gives, say so, and serve requests until the channel ends.

    Parameters
    ----------
    call : bytes
        ``[source, name, arguments]`` as JSON.
    channel : int
        This end of the socket to the host.
    max_output : int
        Bytes that an answer may have.
    clone : int, optional
        Number of the system call that copies this process; None where it may not be copied.
    """
    made: list[Any] = []

    def make() -> None:
        source, name, arguments = child.decode(call)
        code = compile(source, "<string>", "exec", dont_inherit=True)
        made.append(child.function_of(code, name)(**arguments))

    _say(channel, *child.answer(make, max_output))
    while made:
        try:
            request, other = _next(channel, clone is not None)
        except _EndedError:
            return
        if other is None or clone is None:
            _say(channel, *child.answer(partial(_call, made[0], request), max_output))
        else:
            channel = _copy(channel, other, clone)


def _call(kept: Any, request: bytes) -> Any:
    """What the method returns that a request names."""
    name, arguments = json.loads(request)
    method = None if name.startswith("_") else getattr(kept, name, None)
    if not callable(method):
        raise AttributeError(f"the environment has no method {name!r}")
    return method(**arguments)


def _copy(channel: int, other: int, clone: int) -> int:
    """Copy this process; returns the channel of whichever of the two this is."""
    worker = os.getppid()
    pid = _syscall(clone, _CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        confine.die_with_parent(worker)
        os.close(channel)
        _say(other, wire.OK, b"null")
        return other
    os.close(other)
    if pid > 0:
        _say(channel, wire.OK, str(pid).encode())
    else:
        words = os.strerror(ctypes.get_errno())
        _say(channel, wire.ERROR, json.dumps(f"no process can be made: {words}").encode())
    return channel


def _next(channel: int, branching: bool) -> tuple[bytes, int | None]:
    """The next request, and the channel of the copy that is wanted, if one is."""
    head, other = b"", None
    if branching:
        end = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, fileno=channel)
        head, sent, _, _ = end.recvmsg(wire.REQUEST.size, _socket.CMSG_SPACE(_DESCRIPTOR.size))
        end.detach()
        for _, _, data in sent:
            (other,) = _DESCRIPTOR.unpack(data)
    head += _read(channel, wire.REQUEST.size - len(head))
    (length,) = wire.REQUEST.unpack(head)
    return _read(channel, length), other


def _read(channel: int, count: int) -> bytes:
    """Exactly `count` bytes."""
    pieces = []
    while count:
        piece = os.read(channel, min(count, 1 << 16))
        if not piece:
            raise _EndedError
        pieces.append(piece)
        count -= len(piece)
    return b"".join(pieces)


def _say(channel: int, status: int, payload: bytes) -> None:
    """Write an answer."""
    wire.write_all(channel, wire.FRAME.pack(status, len(payload)) + payload)
