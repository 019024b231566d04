"""Confines the driver: what it may read, write and connect to, and which system calls it may not make.

Files by path and TCP are Landlock's, by rules; programs, debugging, and what would reach the network past
Landlock (other kinds of sockets, connecting by sending) are seccomp's. Not covered: UDP, and reading what the
rules let it read. References: as the sandbox's `landlock.py` and `seccomp.py`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import struct
import sys
from collections.abc import Mapping, Sequence

from ....tools.sandbox.worker import confine, landlock, seccomp

MEMORY = 32 << 30  # bytes of address space: hundreds of threads and a library for tensors reserve much of it
FILE_SIZE = 8 << 30

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_PATH_BENEATH, _NET_PORT = 1, 2
_FILES = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # bits of access to files, by version
_BIND, _CONNECT, _TCP_VERSION = 1, 2, 4
_SCOPES, _SCOPES_VERSION = 3, 6
_WRITE_FILE, _READ_FILE, _READ_FOLDER, _TRUNCATE, _IOCTL = 1 << 1, 1 << 2, 1 << 3, 1 << 14, 1 << 15
_READ = _READ_FILE | _READ_FOLDER
# Remove folders and files; make folders and files; rename across folders.
_WRITE = _READ | _WRITE_FILE | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 13 | _TRUNCATE
_OF_FILES = _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL | 1

_SYSTEM = (
    *(
        "/usr",
        "/lib",
        "/lib64",
        "/bin",
        "/sys/devices/system/cpu",
        "/proc/self",
        "/dev/urandom",
        "/dev/random",
    ),
    *(f"/proc/{name}" for name in ("cpuinfo", "meminfo", "stat", "filesystems")),
    *(f"/etc/{name}" for name in ("ssl", "pki", "ca-certificates", "ld.so.cache", "localtime", "mime.types")),
    *(
        f"/etc/{name}"
        for name in ("hosts", "resolv.conf", "nsswitch.conf", "host.conf", "gai.conf", "services")
    ),
)
_NULL = "/dev/null"

# Programs, other processes, the kernel, other views of the files. Numbers on x86-64 and aarch64.
_DENIED: Mapping[str, tuple[int | None, int | None]] = {
    "execve": (59, 221),
    "execveat": (322, 281),
    "fork": (57, None),
    "vfork": (58, None),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "open_by_handle_at": (304, 265),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "listen": (50, 201),
    "kill": (62, 129),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "setxattrat": (463, 463),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "removexattrat": (466, 466),
}
# Landlock has no word for a file's mode and times. These do nothing, and say that they did: what copies or
# locks files calls them, and none of it depends on them.
_IDLE: Mapping[str, tuple[int | None, int | None]] = {
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
}
# What arguments may be: an argument's number and its values. Other families and protocols reach the network
# past Landlock, MPTCP above all, and unix sockets whatever listens on this machine.
_UNSPECIFIED, _TCP, _UDP = 0, 6, 17
_INTERNET, _INTERNET6, _NETLINK = 2, 10, 16
_ONLY: Mapping[tuple[int, int], Sequence[tuple[int, tuple[int, ...]]]] = {
    (41, 198): [(0, (_INTERNET, _INTERNET6, _NETLINK)), (2, (_UNSPECIFIED, _TCP, _UDP))],  # socket
    (302, 261): [(0, (0,))],  # prlimit64: its own limits
}
# Sending with MSG_FASTOPEN connects, and Landlock is not asked: sendto, sendmsg and sendmmsg, and the number
# of the argument with flags.
_FAST_OPEN = 0x20000000
_SENDING: Mapping[tuple[int, int], int] = {(44, 206): 3, (46, 211): 2, (307, 269): 3}
_CLONE, _CLONE3 = {"x86_64": 56, "aarch64": 220}, 435
_CLONE_THREAD = 0x10000
_LOAD, _EQUAL, _AT_LEAST, _SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000
_NO_SUCH_CALL, _DONE = 0x00050000 | errno.ENOSYS, 0x00050000
_CAP_DAC_OVERRIDE = 1 << 1  # root in a container that writes to a folder of somebody else


def confine_process(
    parent: int, *, read: Sequence[str], write: Sequence[str], connect: Sequence[int] | None
) -> list[str]:
    """Confine this process for good; returns what does not hold, in words, which is nothing if all does.

    Parameters
    ----------
    parent : int
        The process with which this one ends.
    read, write : sequence of str
        Folders, besides what Python and the system's libraries need.
    connect : sequence of int
        TCP ports, of any machine; None leaves TCP alone.
    """
    missing = []
    confine.die_with_parent(parent)
    for limit, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, FILE_SIZE),
        (resource.RLIMIT_AS, MEMORY),
    ):
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        with (
            contextlib.nullcontext() if sys.platform == "linux" else contextlib.suppress(OSError, ValueError)
        ):
            resource.setrlimit(limit, (value, value))
    if not confine.no_new_privileges():
        missing.append("it could gain privileges")
    confine.drop_capabilities(_CAP_DAC_OVERRIDE)
    try:
        version = _restrict(read, write, connect)
        if version < _TCP_VERSION and connect is not None:
            missing.append(f"it can reach the network (Landlock {version} here, {_TCP_VERSION} is needed)")
    except OSError as error:
        missing.append(f"it can read and write all files and reach the network ({error.strerror})")
    try:
        _deny_calls()
    except (OSError, seccomp.UnknownMachineError) as error:
        missing.append(f"it can start programs ({error})")
    return missing


def _restrict(read: Sequence[str], write: Sequence[str], connect: Sequence[int] | None) -> int:
    """Landlock with rules; returns its version. Raises OSError."""
    version = landlock.version()
    if not version:
        raise OSError(errno.ENOSYS, "there is no Landlock here")
    files = (1 << _FILES.get(version, 16)) - 1
    tcp = _BIND | _CONNECT if version >= _TCP_VERSION and connect is not None else 0
    attributes = struct.pack("=QQQ", files, tcp, _SCOPES if version >= _SCOPES_VERSION else 0)
    ruleset = _system_call(_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
        for path in (*_SYSTEM, *sorted(prefixes), *read):
            _allow_path(ruleset, path, _READ & files)
        for path in write:
            _allow_path(ruleset, path, _WRITE & files)
        _allow_path(ruleset, _NULL, (_READ_FILE | _WRITE_FILE | _TRUNCATE | _IOCTL) & files)
        for port in connect or () if tcp else ():
            _system_call(_ADD_RULE, ruleset, _NET_PORT, struct.pack("=QQ", _CONNECT, port), 0)
        _system_call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return version


def _allow_path(ruleset: int, path: str, access: int) -> None:
    """Allow access below a folder, or to a file; one that is not there needs no rule."""
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not os.path.isdir(path):
            access &= _OF_FILES
        _system_call(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", access, opened), 0)
    finally:
        os.close(opened)


def _system_call(number: int, *arguments: object) -> int:
    """A system call that the C library has no function for. Raises OSError."""
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    result = int(
        call(ctypes.c_long(number), *(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    )
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def denying_program(machine: str) -> bytes:
    """The filter as ``struct sock_filter[]``: all calls but those above, and threads but no processes."""
    column = list(seccomp.MACHINES).index(machine)
    numbers = [number for calls in _DENIED.values() if (number := calls[column]) is not None]
    code: list[tuple[int, int, int, int]] = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, seccomp.MACHINES[machine]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),
    ]
    if machine == "x86_64":  # the 32-bit convention of the same machine has numbers of its own
        code += [(_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _KILL)]
    for number in numbers:
        code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _REFUSE)]
    for calls in _IDLE.values():
        if (idle := calls[column]) is not None:
            code += [(_EQUAL, 0, 1, idle), (_RETURN, 0, 0, _DONE)]
    for calls, conditions in _ONLY.items():
        block = [line for condition in conditions for line in _only(*condition)]
        code += [(_EQUAL, 0, len(block) + 1, calls[column]), *block, (_RETURN, 0, 0, _ALLOW)]
    for calls, argument in _SENDING.items():
        code += [
            (_EQUAL, 0, 4, calls[column]),
            (_LOAD, 0, 0, 16 + 8 * argument),
            (_SET, 0, 1, _FAST_OPEN),
            (_RETURN, 0, 0, _REFUSE),
            (_RETURN, 0, 0, _ALLOW),
        ]
    # The flags of clone3 stand in memory, which a filter cannot read; the C library falls back to clone.
    code += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _NO_SUCH_CALL)]
    code += [
        (_EQUAL, 0, 3, _CLONE[machine]),
        (_LOAD, 0, 0, 16),
        (_SET, 1, 0, _CLONE_THREAD),
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("HBBI", *line) for line in code)


def _only(argument: int, values: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """Lines that refuse a call unless an argument has one of these values."""
    tests = [(_EQUAL, len(values) - k, 0, value) for k, value in enumerate(values)]
    return [(_LOAD, 0, 0, 16 + 8 * argument), *tests, (_RETURN, 0, 0, _REFUSE)]


class _Program(ctypes.Structure):
    """``struct sock_fprog``."""

    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def _deny_calls() -> None:
    """Install the filter. Raises OSError, UnknownMachineError."""
    machine = os.uname().machine
    if sys.platform != "linux" or machine not in seccomp.MACHINES:
        raise seccomp.UnknownMachineError(f"no filter is known for {sys.platform} on {machine}")
    code = denying_program(machine)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.addressof(buffer))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    if prctl(22, 2, ctypes.addressof(program), 0, 0) != 0:  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        code_number = ctypes.get_errno()
        raise OSError(code_number, f"seccomp: {os.strerror(code_number)}")
