"""Gives up what a process could do harm with. The order matters: a step may need what the next takes away."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

NOBODY = 65534

DESCRIPTORS = 1024
"""No descriptor of a worker has this number or a higher one, so that a child can close all but its own."""

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38
_CAPABILITIES_VERSION, _LAST_CAPABILITY = 0x20080522, 63
_SIGKILL = 9
_tolerance = contextlib.nullcontext() if sys.platform == "linux" else contextlib.suppress(OSError, ValueError)
# Nothing that a tool needs: core files, written files, locked memory, message queues, real-time and niceness.
_NONE = ("CORE", "FSIZE", "MEMLOCK", "MSGQUEUE", "RTPRIO", "NICE", "SIGPENDING")


# Looked up once: in a fresh child every page that is touched costs a copy.
_libc = ctypes.CDLL(None, use_errno=True)
_prctl: Any = None
if sys.platform == "linux":
    _prctl = _libc.prctl
    _prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]


def prctl(option: int, value: int = 0) -> int:
    """The system call; -1 where it fails or there is none (macOS)."""
    return int(_prctl(option, value, 0, 0, 0)) if _prctl else -1


def no_new_privileges() -> bool:
    """No exec can gain rights any more. Landlock and seccomp ask for it."""
    return prctl(_PR_SET_NO_NEW_PRIVS, 1) == 0


def drop_privileges() -> str:
    """Give up root and every capability; returns what this process is now, in words.

    Root becomes the user nobody, or, in a container that does not let it, root without a capability.
    """
    for capability in range(_LAST_CAPABILITY + 1):
        prctl(_PR_CAPBSET_DROP, capability)
    if os.geteuid() == 0:
        steps: tuple[Callable[[], object], ...] = (
            lambda: os.setgroups([]),
            lambda: os.setgid(NOBODY),
            lambda: os.setuid(NOBODY),
        )
        for step in steps:
            with contextlib.suppress(OSError):  # no such user in this container, or no right to change
                step()
    dropped = drop_capabilities()
    prctl(_PR_SET_DUMPABLE, 0)
    return f"user {os.geteuid()}, group {os.getegid()}" + (", capabilities dropped" if dropped else "")


def drop_capabilities(keep: int = 0) -> bool:
    """Empty the effective, permitted and inheritable sets; whether that was done.

    The capabilities of `keep`, bits below 32, stay effective where this process has them all.
    """
    if sys.platform != "linux":
        return False
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES_VERSION, 0)
    for kept in dict.fromkeys((keep, 0)):
        if int(_libc.capset(header, (ctypes.c_uint32 * 6)(kept, kept))) == 0:
            return True
    return False


def limit_descriptors() -> None:
    """Lower for good how many descriptors there can be, before anything is opened."""
    _lower({resource.RLIMIT_NOFILE: DESCRIPTORS})


def limit_resources() -> None:
    """Lower for good the limits of what no tool needs."""
    known = [getattr(resource, f"RLIMIT_{name}") for name in _NONE if hasattr(resource, f"RLIMIT_{name}")]
    _lower({**dict.fromkeys(known, 0), resource.RLIMIT_STACK: 8 << 20})


@contextlib.contextmanager
def memory_limit(size: int) -> Iterator[None]:
    """Let children that are forked inside inherit a limit of `size` bytes of address space.

    It is the soft limit only, which the child's filter keeps it from raising. To set it in the child would
    cost more: there every page that is touched is a copy.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    lowered = min(limit for limit in (size, soft, hard) if limit != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_AS, (lowered, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def limit_unfiltered_child(memory: int, cpu_seconds: int) -> None:
    """Limit a child without a filter, for good: bytes of memory, processor time, no process of its own."""
    _lower({resource.RLIMIT_AS: memory, resource.RLIMIT_CPU: cpu_seconds, resource.RLIMIT_NPROC: 0})


def _lower(limits: Mapping[int, int]) -> None:
    """Set limits, soft and hard, no higher than the hard ones are now."""
    for number, value in limits.items():
        hard = resource.getrlimit(number)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        # macOS refuses some limits that it cannot keep; there the sandbox is marked unsafe anyway.
        with _tolerance:
            resource.setrlimit(number, (value, value))


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this child when its worker dies; leave if that has happened already."""
    prctl(_PR_SET_PDEATHSIG, _SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
