"""Landlock: takes from a process access to files by path, TCP, abstract sockets, and signals to outsiders.

No rule allows anything, so what the process holds open is all it has. References: Linux
``Documentation/userspace-api/landlock.rst`` and ``include/uapi/linux/landlock.h``.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

_CREATE_RULESET, _RESTRICT_SELF = 444, 446  # the same numbers on every machine
_VERSION = 1
# Bits of access to files that each version of the interface knows.
_FILES = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_TCP = 3  # bind, connect; from version 4
_SCOPES = 3  # abstract unix sockets, signals; from version 6


def version() -> int:
    """Version of Landlock's interface in this kernel, 0 if there is none or it is off."""
    if sys.platform != "linux":
        return 0
    return max(0, _syscall(_CREATE_RULESET, None, 0, _VERSION))


def restrict() -> int:
    """Confine this process, with no-new-privileges set, for good; returns the version. Raises OSError."""
    found = version()
    if not found:
        raise OSError(ctypes.get_errno(), "landlock: the kernel does not offer it")
    files = (1 << _FILES.get(found, 16)) - 1
    attributes = struct.pack("=QQQ", files, _TCP if found >= 4 else 0, _SCOPES if found >= 6 else 0)
    ruleset = _syscall(_CREATE_RULESET, attributes, len(attributes), 0)
    if ruleset < 0 or _syscall(_RESTRICT_SELF, ruleset, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"landlock: {os.strerror(number)}")
    os.close(ruleset)
    return found


def _syscall(number: int, *arguments: object) -> int:
    """A system call that the C library has no function for."""
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return int(call(ctypes.c_long(number), *wide))
