"""The filters of the sandbox on every machine they are for, run here by a small BPF machine of our own."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from matchtir.evals.bfcl.driver.confinement import denying_program
from matchtir.tools.sandbox.worker import seccomp

ALLOW, REFUSE, NONE, KILL = "allow", "EPERM", "ENOSYS", "kill"
ACTIONS = {0x7FFF0000: ALLOW, 0x50000 | errno.EPERM: REFUSE, 0x50000 | errno.ENOSYS: NONE, 0x80000000: KILL}
ACTIONS[0x50000] = "errno 0"
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7, "i386": 0x40000003, "arm": 0x40000028}
# A few numbers, looked up by hand in Linux's tables, of what must never be allowed.
DANGEROUS = {
    "x86_64": {
        "open": 2,
        "stat": 4,
        "ioctl": 16,
        "shmget": 29,
        "socket": 41,
        "sendto": 44,
        "socketpair": 53,
        "vfork": 58,
        "execve": 59,
        "fcntl": 72,
        "ptrace": 101,
        "setuid": 105,
        "prctl": 157,
        "tgkill": 234,
        "openat": 257,
        "unshare": 272,
        "process_vm_writev": 311,
        "seccomp": 317,
        "memfd_create": 319,
        "bpf": 321,
        "execveat": 322,
        "userfaultfd": 323,
        "pkey_mprotect": 329,
        "io_uring_setup": 425,
        "pidfd_open": 434,
        "openat2": 437,
    },
    "aarch64": {
        "fcntl": 25,
        "ioctl": 29,
        "openat": 56,
        "unshare": 97,
        "ptrace": 117,
        "tgkill": 131,
        "setuid": 146,
        "prctl": 167,
        "shmget": 194,
        "socket": 198,
        "socketpair": 199,
        "sendto": 206,
        "execve": 221,
        "process_vm_writev": 271,
        "seccomp": 277,
        "memfd_create": 279,
        "bpf": 280,
        "execveat": 281,
        "userfaultfd": 282,
        "pkey_mprotect": 288,
        "io_uring_setup": 425,
        "pidfd_open": 434,
        "openat2": 437,
    },
}
machines = pytest.mark.parametrize("machine", seccomp.MACHINES)


def run(code: bytes, number: int, audit: int, arguments: tuple[int, ...] = ()) -> str:
    """What the kernel would do: the classic BPF machine on ``struct seccomp_data``."""
    data = struct.pack("<iIQ6Q", number, audit, 0, *(*arguments, *[0] * 6)[:6])
    lines = list(struct.iter_unpack("<HBBI", code))
    accumulator, at = 0, 0
    while True:
        operation, if_true, if_false, constant = lines[at]
        at += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, constant)
        elif operation == 0x06:
            return ACTIONS[constant]
        else:
            test = {
                0x15: accumulator == constant,
                0x35: accumulator >= constant,
                0x45: bool(accumulator & constant),
            }[operation]
            at += if_true if test else if_false


def verdict(allowed, machine: str, name: str, *arguments: int, conditions=None) -> str:
    """What a filter does with a call by name."""
    number = getattr(seccomp.SYSTEM_CALLS[name], machine)
    return run(seccomp.program(allowed, machine, conditions), number, AUDIT[machine], arguments)


@machines
def test_filter_allows_what_is_named_and_nothing_else(machine):
    special = {"mmap", "mprotect", "clone", "clone3", "socketpair"}
    for allowed in (seccomp.CHILD, seccomp.WORKER, seccomp.HOST, seccomp.BRANCHING):
        code = seccomp.program(allowed, machine)
        named = {getattr(seccomp.SYSTEM_CALLS[name], machine) for name in allowed - special}
        refused = {getattr(seccomp.SYSTEM_CALLS[name], machine) for name in special - allowed}
        for number in range(700):
            if number in named:
                assert run(code, number, AUDIT[machine]) == ALLOW
            elif number in refused or number not in {
                getattr(seccomp.SYSTEM_CALLS[name], machine) for name in special
            }:
                assert run(code, number, AUDIT[machine]) == REFUSE


@machines
def test_dangerous_calls_are_refused_to_children(machine):
    code = seccomp.program(seccomp.CHILD, machine)
    verdicts = {name: run(code, number, AUDIT[machine]) for name, number in DANGEROUS[machine].items()}
    assert set(verdicts.values()) == {REFUSE}, verdicts
    for name in ("clone", "fork", "kill", "pipe2", "prlimit64", "setrlimit", "dup3"):
        number = getattr(seccomp.SYSTEM_CALLS[name], machine)
        assert number is None or run(code, number, AUDIT[machine]) == REFUSE


@machines
def test_workers_open_and_execute_nothing(machine):
    code = seccomp.program(seccomp.WORKER, machine)
    for name in ("openat", "execve", "execveat", "socket", "ptrace", "bpf", "io_uring_setup", "memfd_create"):
        assert run(code, DANGEROUS[machine][name], AUDIT[machine]) == REFUSE, name


@machines
@pytest.mark.parametrize("name", ["mmap", "mprotect"])
def test_memory_is_never_executable(machine, name):
    for protection in range(8):
        expected = REFUSE if protection & 4 else ALLOW
        assert verdict(seccomp.CHILD, machine, name, 0, 4096, protection) == expected
    # The kernel looks at more bits than these; what stands above them must not hide the one that counts.
    assert verdict(seccomp.CHILD, machine, name, 0, 4096, 0xFFFF_FFF4) == REFUSE


@machines
def test_worker_may_fork_and_make_no_thread_and_no_namespace(machine):
    sigchld, set_and_clear_id = 17, 0x01000000 | 0x00200000
    assert verdict(seccomp.WORKER, machine, "clone", sigchld | set_and_clear_id) == ALLOW
    namespaces = (0x80, 0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)
    for flag in (0x100, 0x4000, 0x8000, 0x10000, *namespaces):
        assert verdict(seccomp.WORKER, machine, "clone", sigchld | flag) == REFUSE, hex(flag)
    assert verdict(seccomp.WORKER, machine, "clone3") == NONE


@machines
def test_host_may_make_local_channels_and_no_other_socket(machine):
    local, internet = 1, 2
    assert verdict(seccomp.HOST, machine, "socketpair", local) == ALLOW
    assert verdict(seccomp.HOST, machine, "socketpair", internet) == REFUSE
    code = seccomp.program(seccomp.HOST, machine, seccomp.HOST_CONDITIONS)
    for name in ("openat", "execve", "execveat", "socket", "ptrace", "bpf", "io_uring_setup", "memfd_create"):
        assert run(code, DANGEROUS[machine][name], AUDIT[machine]) == REFUSE, name


@machines
def test_child_that_may_copy_itself_may_fork_and_no_more(machine):
    def by(name: str, *arguments: int) -> str:
        conditions = seccomp.BRANCHING_CONDITIONS
        return verdict(seccomp.BRANCHING, machine, name, *arguments, conditions=conditions)

    sigchld, parent = 17, 0x8000
    assert by("clone", sigchld | parent) == ALLOW
    for flag in (1 << k for k in range(32) if 1 << k not in (0x1, 0x10, parent)):
        assert by("clone", sigchld | parent | flag) == REFUSE, hex(flag)
    sigcont = 18
    assert by("clone", sigchld) == by("clone", sigcont) == by("clone", sigcont | parent) == REFUSE
    set_death_signal, set_name, set_dumpable = 1, 15, 4
    assert by("prctl", set_death_signal, 9) == ALLOW
    assert by("prctl", set_name) == by("prctl", set_dumpable) == REFUSE
    code = seccomp.program(seccomp.BRANCHING, machine, seccomp.BRANCHING_CONDITIONS)
    verdicts = {name: run(code, number, AUDIT[machine]) for name, number in DANGEROUS[machine].items()}
    assert {name for name, one in verdicts.items() if one != REFUSE} <= {"prctl"}
    assert verdicts.get("prctl", REFUSE) == REFUSE  # without an argument
    for name in ("kill", "sendmsg", "socketpair", "dup3", "prlimit64"):
        assert by(name) == REFUSE, name


@machines
def test_confined_benchmark_has_the_sockets_that_landlock_knows(machine):
    code = denying_program(machine)
    socket, send, limit, chmod, listen = {
        "x86_64": (41, 44, 302, 268, 50),
        "aarch64": (198, 206, 261, 53, 201),
    }[machine]

    def does(number: int, *arguments: int) -> str:
        return run(code, number, AUDIT[machine], arguments)

    unix, internet, internet6, vsock = 1, 2, 10, 40
    stream, tcp, udp, multipath, fast_open = 1, 6, 17, 262, 0x20000000
    for family in (internet, internet6):
        for protocol in (0, tcp, udp):
            assert does(socket, family, stream, protocol) == ALLOW
        assert does(socket, family, stream, multipath) == REFUSE
    assert does(socket, unix, stream) == does(socket, vsock, stream) == does(listen) == REFUSE
    assert does(send, 3, 0, 0, 0x4000) == ALLOW
    assert does(send, 3, 0, 0, 0x4000 | fast_open) == REFUSE
    assert does(limit, 0) == ALLOW
    assert does(limit, 1) == REFUSE
    assert does(chmod) == "errno 0"
    assert does(1) == ALLOW
    assert does(socket + 0x1000) == ALLOW


@machines
def test_other_conventions_kill(machine):
    code = seccomp.program(seccomp.CHILD, machine)
    for other in set(AUDIT) - {machine}:
        assert run(code, 1, AUDIT[other]) == KILL
    if machine == "x86_64":
        assert run(code, 0x40000000 | 39, AUDIT[machine]) == KILL
        assert run(code, -1 & 0x7FFFFFFF, AUDIT[machine]) == KILL


@machines
def test_jumps_stay_inside(machine):
    for allowed in (seccomp.CHILD, seccomp.WORKER, seccomp.HOST, seccomp.BRANCHING):
        lines = list(struct.iter_unpack("<HBBI", seccomp.program(allowed, machine)))
        for at, (operation, if_true, if_false, _) in enumerate(lines):
            if operation in (0x15, 0x35, 0x45):
                assert at + 1 + max(if_true, if_false) < len(lines)
        assert lines[-1][0] == 0x06


@pytest.mark.skipif(platform.machine() not in seccomp.MACHINES, reason="numbers are known for other machines")
def test_numbers_are_those_of_the_system_headers(tmp_path):
    header = tmp_path / "numbers.c"
    header.write_text("#include <sys/syscall.h>\n")
    done = subprocess.run(["gcc", "-E", "-dM", str(header)], capture_output=True, text=True, check=False)
    numbers = dict(re.findall(r"#define __NR_(\w+) (\d+)$", done.stdout, flags=re.MULTILINE))
    if not numbers:
        pytest.skip("no compiler with Linux headers here")
    for name, call in seccomp.SYSTEM_CALLS.items():
        number = getattr(call, platform.machine())
        assert numbers.get(name) == (None if number is None else str(number)), name


def test_generic_numbers_are_those_of_aarch64():
    # aarch64 has the generic table, which lies beside the machine's own where Linux's headers are installed.
    header = Path("/usr/include/asm-generic/unistd.h")
    if not header.exists():
        pytest.skip("Linux's headers are not installed")
    numbers = dict(re.findall(r"#define __NR(?:3264)?_(\w+) (\d+)$", header.read_text(), flags=re.MULTILINE))
    for name, call in seccomp.SYSTEM_CALLS.items():
        if call.aarch64 is not None:
            assert numbers[name] == str(call.aarch64), name


@pytest.mark.skipif(sys.platform != "linux", reason="seccomp is Linux's")
def test_unknown_machine_has_no_filter():
    with pytest.raises(seccomp.UnknownMachineError, match="riscv64"):
        seccomp.Filter(seccomp.CHILD, "riscv64")


@pytest.mark.skipif(platform.machine() != "x86_64" or sys.platform != "linux", reason="x86-64 machine code")
def test_kernel_kills_a_foreign_call_and_refuses_others():
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # getpid by int 0x80
    call = ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    ends = []
    for confined in (False, True):
        pid = os.fork()
        if pid == 0:
            if confined:
                ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
                seccomp.Filter(seccomp.CHILD).install()
            call()
            os._exit(5)
        ends.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    assert ends == [5, -signal.SIGSYS]
