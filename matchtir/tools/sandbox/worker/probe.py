"""Tries what must be impossible, so that a layer of the sandbox is reported only if it was seen to hold."""

from __future__ import annotations

import _socket  # `socket` would make every fork slower
import ctypes
import errno
import mmap
import os
import resource
import signal
from collections.abc import Callable

_SLACK = 64 << 20


def refused(act: Callable[[], object], *numbers: int) -> bool:
    """Whether an act fails with one of these error numbers, or, if none is given, at all."""
    try:
        act()
    except OSError as error:
        return not numbers or error.errno in numbers
    return False


def open_root() -> None:
    """Open the root directory, which any user may."""
    os.close(os.open("/", os.O_RDONLY))


def connect_tcp() -> None:
    """Connect to a port of this machine on which nothing listens."""
    connection = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
    try:
        connection.connect(("127.0.0.1", 9))
    finally:
        connection.close()


def landlock_holds(version: int) -> bool:
    """Under Landlock, and not yet seccomp: whether files and, from version 4 on, TCP are refused."""
    if not refused(open_root, errno.EACCES):
        return False
    # Where there is no network at all the error is another one; what counts is that nothing connects.
    return version < 4 or not _succeeds_or(errno.ECONNREFUSED)


def _succeeds_or(number: int) -> bool:
    """Whether a connection is made, or comes far enough to be turned down by nobody listening."""
    try:
        connect_tcp()
    except OSError as error:
        return error.errno == number
    return True


def child_acts() -> dict[str, Callable[[], object]]:
    """What a child must not be able to do: name in words, and the act."""
    libc = ctypes.CDLL(None, use_errno=True)

    def checked(result: int) -> None:
        if result == -1:
            raise OSError(ctypes.get_errno(), "refused")

    limit = (ctypes.c_ulong * 2)(16, 16)

    def map_executable() -> None:
        mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_EXEC).close()

    return {
        "open a file": open_root,
        "look at a file": lambda: os.stat("/"),
        "open a socket": lambda: _socket.socket().close(),
        "start a process": _fork,
        "run a program": lambda: os.execv("/bin/true", ["true"]),
        "signal its parent": lambda: os.kill(os.getppid(), 0),
        "trace a process": lambda: checked(libc.ptrace(0, 0, 0, 0)),
        "map memory to execute": map_executable,
        "change a limit": lambda: checked(libc.setrlimit(resource.RLIMIT_NOFILE, limit)),
        "control a device": lambda: os.get_terminal_size(0),
        "gain rights": lambda: os.setuid(0),
    }


def _fork() -> None:
    """Fork; the child, if there is one, leaves at once."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.kill(pid, signal.SIGKILL)


def child_failures() -> list[str]:
    """In a confined child: which of the acts are not refused by the filter (EPERM)."""
    return [name for name, act in child_acts().items() if not refused(act, errno.EPERM)]


def memory_holds(limit: int) -> bool:
    """In a limited child: whether more memory than the limit, and what the worker freed since, is refused."""
    try:
        bytes(limit + _SLACK)
    except MemoryError:
        return True
    return False
