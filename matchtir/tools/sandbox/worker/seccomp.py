"""Seccomp: which system calls a process may make, as a classic BPF program for the kernel.

All that is not named is refused with EPERM, so a tool sees a PermissionError. A call in a foreign convention
(32-bit on x86-64, x32) kills the process, since its numbers mean other calls.

References: Linux ``Documentation/userspace-api/seccomp_filter.rst``; McCanne and Jacobson, "The BSD Packet
Filter", USENIX Winter 1993 (the machine); ``include/uapi/linux/{seccomp,filter,audit}.h`` (the numbers).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from collections.abc import Iterable, Mapping
from typing import NamedTuple


class SystemCall(NamedTuple):
    """Its number on each machine, None where there is none; whether children, or only hosts, may make it."""

    x86_64: int | None
    aarch64: int | None
    for_children: bool = False
    for_hosts_only: bool = False


# Children compute: memory, clocks, random bytes, and the descriptors they have. Workers make, limit and kill
# children besides. Hosts are workers that hand their children channels.
SYSTEM_CALLS: Mapping[str, SystemCall] = {
    "brk": SystemCall(12, 214, for_children=True),
    "clock_getres": SystemCall(229, 114, for_children=True),
    "clock_gettime": SystemCall(228, 113, for_children=True),
    "clock_nanosleep": SystemCall(230, 115, for_children=True),
    "clone": SystemCall(56, 220),
    "clone3": SystemCall(435, 435),
    "close": SystemCall(3, 57, for_children=True),
    "close_range": SystemCall(436, 436),
    "dup2": SystemCall(33, None),
    "dup3": SystemCall(292, 24),
    "exit": SystemCall(60, 93, for_children=True),
    "exit_group": SystemCall(231, 94, for_children=True),
    "fork": SystemCall(57, None),
    "futex": SystemCall(202, 98, for_children=True),
    "getegid": SystemCall(108, 177, for_children=True),
    "geteuid": SystemCall(107, 175, for_children=True),
    "getgid": SystemCall(104, 176, for_children=True),
    "getpid": SystemCall(39, 172, for_children=True),
    "getppid": SystemCall(110, 173, for_children=True),
    "getrandom": SystemCall(318, 278, for_children=True),
    "gettid": SystemCall(186, 178, for_children=True),
    "gettimeofday": SystemCall(96, 169, for_children=True),
    "getuid": SystemCall(102, 174, for_children=True),
    "kill": SystemCall(62, 129),
    "lseek": SystemCall(8, 62, for_children=True),
    "madvise": SystemCall(28, 233, for_children=True),
    "mmap": SystemCall(9, 222, for_children=True),
    "mprotect": SystemCall(10, 226, for_children=True),
    "mremap": SystemCall(25, 216, for_children=True),
    "munmap": SystemCall(11, 215, for_children=True),
    "nanosleep": SystemCall(35, 101, for_children=True),
    "pipe2": SystemCall(293, 59),
    "poll": SystemCall(7, None, for_children=True),
    "ppoll": SystemCall(271, 73, for_children=True),
    "prctl": SystemCall(157, 167),
    "prlimit64": SystemCall(302, 261),
    "pselect6": SystemCall(270, 72, for_children=True),
    "read": SystemCall(0, 63, for_children=True),
    "recvmsg": SystemCall(47, 212, for_hosts_only=True),
    "restart_syscall": SystemCall(219, 128, for_children=True),
    "rt_sigaction": SystemCall(13, 134, for_children=True),
    "rt_sigprocmask": SystemCall(14, 135, for_children=True),
    "rt_sigreturn": SystemCall(15, 139, for_children=True),
    "sched_yield": SystemCall(24, 124, for_children=True),
    "select": SystemCall(23, None, for_children=True),
    "sendmsg": SystemCall(46, 211, for_hosts_only=True),
    "set_robust_list": SystemCall(273, 99),
    "setrlimit": SystemCall(160, 164),
    "sigaltstack": SystemCall(131, 132, for_children=True),
    "socketpair": SystemCall(53, 199, for_hosts_only=True),
    "time": SystemCall(201, None, for_children=True),
    "wait4": SystemCall(61, 260),
    "write": SystemCall(1, 64, for_children=True),
}
HOST = frozenset(SYSTEM_CALLS)
WORKER = frozenset(name for name, call in SYSTEM_CALLS.items() if not call.for_hosts_only)
CHILD = frozenset(name for name, call in SYSTEM_CALLS.items() if call.for_children)
BRANCHING = CHILD | {"clone", "clone3", "prctl", "recvmsg"}
"""A child that may copy itself: it forks, is given a channel for the copy, and ties it to the worker."""

# Machine: its AUDIT_ARCH value.
MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

_LD, _JEQ, _JGE, _JSET, _RET = 0x20, 0x15, 0x35, 0x45, 0x06  # 32-bit load, jumps to a constant, return
_NUMBER, _MACHINE, _ARGUMENTS = 0, 4, 16  # byte offsets in struct seccomp_data
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_X32_BIT = 0x40000000
_PROT_EXEC = 4
# CLONE_VM, VFORK, PARENT, THREAD, and all that makes a namespace: what fork() does not set.
_NO_FORK = 0x100 | 0x4000 | 0x8000 | 0x10000 | 0x80 | 0x20000 | 0x7E000000
_CLONE_PARENT = 0x8000
_SIGCHLD = 17
_AF_UNIX, _PR_SET_PDEATHSIG = 1, 1


class Condition(NamedTuple):
    """What an argument of a call must be: without these bits, or this number."""

    argument: int
    bits: int = 0
    number: int | None = None


_CONDITIONS = {
    "mmap": Condition(2, _PROT_EXEC),
    "mprotect": Condition(2, _PROT_EXEC),
    "clone": Condition(0, _NO_FORK),
    "socketpair": Condition(0, number=_AF_UNIX),
}
# A host's filter holds for its children too, and one that copies itself makes the copy the host's child.
HOST_CONDITIONS = {"clone": Condition(0, _NO_FORK & ~_CLONE_PARENT)}
# The copy's flags are all it may give: another signal at a copy's end could wake what the host has stopped.
BRANCHING_CONDITIONS = {
    "clone": Condition(0, number=_CLONE_PARENT | _SIGCHLD),
    "prctl": Condition(0, number=_PR_SET_PDEATHSIG),
}
"""In place of the usual ones, for :data:`HOST` and :data:`BRANCHING`."""

_PR_SET_SECCOMP, _FILTER_MODE = 22, 2
_instruction = struct.Struct("HBBI")

Line = tuple[int, int, int, int]  # operation, jump if true, jump if false, constant
Code = list[Line]
_REFUSED: tuple[Line, ...] = ((_RET, 0, 0, _ERRNO | errno.EPERM),)


class UnknownMachineError(Exception):
    """No numbers of system calls are known here for this machine, or it does not run Linux."""


class _Program(ctypes.Structure):
    """``struct sock_fprog``."""

    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def program(allowed: Iterable[str], machine: str, conditions: Mapping[str, Condition] | None = None) -> bytes:
    """The filter that allows the named calls on a machine, as ``struct sock_filter[]``.

    `conditions` go before the usual ones.
    """
    leaves = {0: _REFUSED}
    known = {**_CONDITIONS, **(conditions or {})}
    for name in allowed:
        number = getattr(SYSTEM_CALLS[name], machine)
        if number is not None:
            leaves[number] = _leaf(name, known.get(name))
            leaves.setdefault(number + 1, _REFUSED)
    code: Code = [
        (_LD, 0, 0, _MACHINE),
        (_JEQ, 1, 0, MACHINES[machine]),
        (_RET, 0, 0, _KILL_PROCESS),
        (_LD, 0, 0, _NUMBER),
    ]
    if machine == "x86_64":
        leaves[_X32_BIT] = ((_RET, 0, 0, _KILL_PROCESS),)
    bounds = sorted(leaves)
    # Neighbours with the same answer are one range.
    ranges = [(n, leaves[n]) for i, n in enumerate(bounds) if i == 0 or leaves[n] != leaves[bounds[i - 1]]]
    code += _search(ranges)
    return b"".join(_instruction.pack(*line) for line in code)


def _leaf(name: str, condition: Condition | None) -> tuple[Line, ...]:
    """What to do with an allowed call."""
    if name == "clone3":
        # Its flags stand in memory, which a filter cannot read. The C library falls back to clone.
        return ((_RET, 0, 0, _ERRNO | errno.ENOSYS),)
    if condition is None:
        return ((_RET, 0, 0, _ALLOW),)
    load = (_LD, 0, 0, _ARGUMENTS + 8 * condition.argument)
    if condition.number is not None:
        return (load, (_JEQ, 1, 0, condition.number), *_REFUSED, (_RET, 0, 0, _ALLOW))
    return (load, (_JSET, 0, 1, condition.bits), *_REFUSED, (_RET, 0, 0, _ALLOW))


def _search(ranges: list[tuple[int, tuple[Line, ...]]]) -> Code:
    """Binary search among ranges by their first numbers.

    The kernel tries a new filter on every number there is, once for each child: a search one by one made each
    child 25 to 50 µs slower (median of 30 × 30 children in a VM on a Xeon).
    """
    if len(ranges) == 1:
        return list(ranges[0][1])
    middle = len(ranges) // 2
    below, above = _search(ranges[:middle]), _search(ranges[middle:])
    return [(_JGE, len(below), 0, ranges[middle][0]), *below, *above]


class Filter:
    """A filter, ready to be installed in this process and, after a fork, in a child."""

    def __init__(
        self,
        allowed: Iterable[str],
        machine: str | None = None,
        conditions: Mapping[str, Condition] | None = None,
    ) -> None:
        machine = machine or os.uname().machine
        if sys.platform != "linux" or machine not in MACHINES:
            raise UnknownMachineError(
                f"no filter for {sys.platform} on {machine}; known: {', '.join(MACHINES)}"
            )
        code = program(allowed, machine, conditions)
        self._code = ctypes.create_string_buffer(code, len(code))
        self._program = _Program(len(code) // _instruction.size, ctypes.addressof(self._code))
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
        self._prctl = prctl

    def install(self) -> None:
        """Confine this process for good; it must have no-new-privileges set. Raises OSError."""
        if self._prctl(_PR_SET_SECCOMP, _FILTER_MODE, ctypes.addressof(self._program), 0, 0) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"seccomp: {os.strerror(number)}")
