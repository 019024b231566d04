"""What a hostile tool may try, and how each attempt must end.

Run as a program, it carries out all attacks in a sandbox of its own and prints the results as JSON; this is
how the tests do it as another user.
"""

from __future__ import annotations

import json
import os
import sys
from typing import NamedTuple

MODULES = (
    *(
        "_posixsubprocess",
        "attack_gadgets",
        "ctypes",
        "gc",
        "io",
        "mmap",
        "multiprocessing",
        "os",
        "resource",
    ),
    *("select", "signal", "socket", "subprocess", "sys", "tempfile", "threading"),
)
"""Imported beforehand, so that no attack fails only because its module is missing."""

TIMEOUT, MEMORY_MB = 1.0, 256
MARKER = "/tmp/matchtir-sandbox-attack"
SECRET = "MATCHTIR_TEST_SECRET"
REFUSED = "Operation not permitted"


class Attack(NamedTuple):
    """Source with a function `attack`, and how it must end."""

    source: str
    status: str  # several, with a bar between, where the machine's speed decides
    error: str = ""  # must be in the error's text
    value: object = None


def _body(*lines: str, value: object = None, status: str = "error", error: str = "") -> Attack:
    """An attack by the lines of a function's body."""
    body = "\n    ".join(line for text in lines for line in text.split("\n"))
    return Attack(f"def attack():\n    {body}\n", status, error, value)


def _syscall(name: str, numbers: str, arguments: str = "") -> Attack:
    """An attack by a bare system call; `numbers` on x86-64 and aarch64."""
    x86, arm = numbers.split()
    return _body(
        "import ctypes, os, platform",
        f"number = {{'x86_64': {x86}, 'aarch64': {arm}}}[platform.machine()]",
        "libc = ctypes.CDLL(None, use_errno=True)",
        f"if libc.syscall(number{arguments}) == -1:",
        f"    raise OSError(ctypes.get_errno(), '{name}: ' + os.strerror(ctypes.get_errno()))",
        f"return '{name} succeeded'",
        error=REFUSED,
    )


TIME = {
    "big_power": _body("return 10 ** 10 ** 8 % 7", status="timeout"),
    "busy_loop": _body("while True: pass", status="timeout"),
    "catastrophic_regex": _body(
        "import re", "return bool(re.match('(a+)+$', 'a' * 40 + 'b'))", status="timeout"
    ),
    "sleep": _body("import time", "time.sleep(1000)", status="timeout"),
    "swallows_everything": _body(
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass", status="timeout"
    ),
    "ignores_signals": _body(
        "import signal",
        "for n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n    except Exception: pass",
        "while True: pass",
        status="timeout",
    ),
    "top_level_loop": Attack("while True: pass\ndef attack(): pass", "timeout"),
    "looping_str": _body(
        "class Loop:\n    def __str__(self):\n        while True: pass", "return Loop()", status="timeout"
    ),
    "closes_the_pipe_and_loops": _body(
        "import os", "os.closerange(0, 100)", "while True: pass", status="crash"
    ),
    "dribbles": _body(
        "import os, struct, time",
        "os.write(3, struct.pack('<BI', 0, 1000))",
        "while True:\n    os.write(3, b'1')\n    time.sleep(0.05)",
        status="timeout",
    ),
}

MEMORY = {
    "huge_list": _body("return len([0] * 10 ** 10)", status="memory"),
    "growth": _body("kept = []", "while True: kept.append(bytearray(1 << 20))", status="memory"),
    "terabyte_string": _body("return len('x' * 10 ** 12)", status="memory"),
    "deep_json": _body(
        "value = []", "for _ in range(100000): value = [value]", "return value", error="recursion"
    ),
    "recursion": _body("def f(): return f()", "return f()", error="maximum recursion depth"),
    "memory_error_as_text": _body(
        "class Hog(Exception):\n    def __str__(self): return 'x' * 10 ** 12",
        "raise Hog()",
        error="takes more memory",
    ),
}

RAISED_LIMIT = _body(
    "import sys",
    "sys.setrecursionlimit(10 ** 9)",
    "def f(): return f()",
    "return f()",
    status="timeout|memory|crash|error",
)

OUTPUT = {
    "huge_return": _body("return 'x' * 2 * 10 ** 7", status="output"),
    "gigabyte_print": _body(
        "text = 'x' * 10 ** 6",
        "for _ in range(1000): print(text)",
        "return 'done'",
        status="ok",
        value="done",
    ),
    "raw_descriptor_1": _body(
        "import os", "return [os.write(fd, b'JUNK' * 1000) for fd in (1, 2)]", status="ok", value=[4000, 4000]
    ),
    "exception_text_bomb": _body("raise ValueError('x' * 2 * 10 ** 7)", status="output"),
    "surrogates": _body(
        "return ['\\ud800', {'\\udfff': '\\U0001f600'}]", status="ok", value=["?", {"?": "😀"}]
    ),
}

PROTOCOL = {
    "junk_to_every_descriptor": _body(
        "import os",
        "for fd in range(1024):\n    try: os.write(fd, b'\\xff' * 100)\n    except OSError: pass",
        status="crash",
    ),
    "oversized_frame": _body(
        "import os, struct", "os.write(3, struct.pack('<BI', 0, 2 ** 32 - 1))", status="crash"
    ),
    "claims_a_status_of_the_worker": _body(
        "import os, struct", "os.write(3, struct.pack('<BI', 2, 4) + b'null')", status="crash"
    ),
    "frame_that_is_no_json": _body(
        "import os, struct", "os.write(3, struct.pack('<BI', 0, 4) + b'junk')", status="crash"
    ),
    "frame_nested_too_deep": _body(
        "import os, struct",
        "os.write(3, struct.pack('<BI', 0, 200000) + b'[' * 100000 + b']' * 100000)",
        status="crash",
    ),
    "frame_with_half_a_character": _body(
        "import os, struct", "os.write(3, struct.pack('<BI', 0, 5) + b'\"\\xed\\xa0\\x80\"')", status="crash"
    ),
    "frame_in_another_encoding": _body(
        "import os, struct", "os.write(3, struct.pack('<BI', 0, 4) + '1'.encode('utf-16'))", status="crash"
    ),
    # It may say of itself what it likes, and nothing of any other call.
    "forged_frames": _body(
        "import os, struct",
        "os.write(3, (struct.pack('<BI', 0, 8) + b'\"forged\"') * 50)",
        "while True: pass",
        status="ok",
        value="forged",
    ),
    "alters_modules": _body(
        "import builtins, json, os, struct",
        "json.dumps = json.loads = lambda *a, **k: '\"altered\"'",
        "builtins.len = builtins.print = None",
        "os.write = lambda *a: 1 / 0",
        "return 1",
        status="crash",
    ),
    "lists_descriptors": _body(
        "import os",
        "found = []",
        "for fd in range(999):\n    try: os.write(fd, b'')\n    except OSError: continue\n    found += [fd]",
        "return found",
        status="ok",
        value=[0, 1, 2, 3],
    ),
}

CRASH = {
    "os_exit": _body("import os", "os._exit(0)", status="crash"),
    "system_exit": _body("raise SystemExit(3)", error="SystemExit: 3"),
    "keyboard_interrupt": _body("raise KeyboardInterrupt", error="KeyboardInterrupt"),
    "segmentation_fault": _body(
        "import ctypes", "return ctypes.string_at(0)", status="crash", error="SIGSEGV"
    ),
    "abort": _body("import os", "os.abort()", status="crash"),
    "syntax_error": Attack("def attack(:", "error", "invalid syntax"),
    "nested_parentheses": Attack(
        "x = " + "(" * 100000 + ")" * 100000 + "\ndef attack(): pass", "error", "parenthes"
    ),
    "null_byte": Attack("def attack(): pass\0", "error", "null byte"),
}

FILES = {
    "passwd": _body("return open('/etc/passwd').read()", error=REFUSED),
    "shadow": _body("return open('/etc/shadow').read()", error=REFUSED),
    "parent_environment": _body(
        "import os", "return open(f'/proc/{os.getppid()}/environ').read()", error=REFUSED
    ),
    "parent_memory": _body(
        "import os", "return open(f'/proc/{os.getppid()}/mem', 'rb').read(1)", error=REFUSED
    ),
    "listdir": _body("import os", "return os.listdir('/')", error=REFUSED),
    "stat": _body("import os", "return os.stat('/etc/passwd').st_size", error=REFUSED),
    "write": _body(f"open('{MARKER}', 'w').write('x')", error=REFUSED),
    "shared_memory": _body("open('/dev/shm/matchtir-attack', 'w').write('x')", error=REFUSED),
    "chmod": _body("import os", "os.chmod('/tmp', 0o777)", error=REFUSED),
    "unlink": _body("import os", "os.unlink('/etc/passwd')", error=REFUSED),
    "chdir": _body("import os", "os.chdir('/')", error=REFUSED),
    "memfd": _body("import os", "return os.memfd_create('x')", error=REFUSED),
    "openat2": _syscall("openat2", "437 437", ", -100, b'/etc/passwd', bytes(24), 24"),
    "name_to_handle_at": _syscall("name_to_handle_at", "303 264", ", -100, b'/', bytes(64), bytes(8), 0"),
}

NETWORK = {
    "tcp": _body("import socket", "socket.create_connection(('127.0.0.1', 9), 1)", error=REFUSED),
    "udp": _body(
        "import socket",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))",
        error=REFUSED,
    ),
    "abstract_unix_socket": _body(
        "import socket", "socket.socket(socket.AF_UNIX).connect('\\0matchtir')", error=REFUSED
    ),
    "socketpair": _body("import socket", "socket.socketpair()", error=REFUSED),
}

PROCESS = {
    "fork": _body("import os", "return os.fork()", error=REFUSED),
    "fork_bomb": _body("import os", "while True: os.fork()", error=REFUSED),
    "vfork": _syscall("vfork", "58 220"),
    "clone3": Attack(
        "import ctypes, os\n"
        "def attack():\n"
        "    libc = ctypes.CDLL(None, use_errno=True)\n"
        "    if libc.syscall(435, bytes(88), 88) == -1:\n"
        "        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))\n",
        "error",
        REFUSED,
    ),
    "subprocess": _body("import subprocess", f"subprocess.run(['/bin/touch', '{MARKER}'])", error=REFUSED),
    "os_system": _body("import os", f"return os.system('touch {MARKER}') == 0", status="ok", value=False),
    "exec": _body("import os", f"os.execv('/bin/touch', ['touch', '{MARKER}'])", error=REFUSED),
    "thread": _body(
        "import threading", "threading.Thread(target=print).start()", error="can't start new thread"
    ),
    "kill_parent": _body("import os, signal", "os.kill(os.getppid(), signal.SIGKILL)", error=REFUSED),
    "kill_everybody": _body("import os, signal", "os.kill(-1, signal.SIGKILL)", error=REFUSED),
    "kill_group": _body("import os, signal", "os.killpg(0, signal.SIGKILL)", error=REFUSED),
    "ptrace": _syscall("ptrace", "101 117", ", 16, os.getppid(), 0, 0"),
    "read_other_memory": _syscall("process_vm_readv", "310 270", ", os.getppid(), 0, 0, 0, 0, 0"),
    "raise_limits": _body(
        "import ctypes, os, resource",
        "libc = ctypes.CDLL(None, use_errno=True)",
        "limit = (ctypes.c_ulong * 2)(1 << 40, 1 << 40)",
        "if libc.setrlimit(resource.RLIMIT_AS, limit) == -1:",
        "    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))",
        error=REFUSED,
    ),
    "limits_of_the_parent": _syscall(
        "prlimit64", "302 261", ", os.getppid(), 0, (ctypes.c_ulong * 2)(1, 1), 0"
    ),
    "io_uring": _syscall("io_uring_setup", "425 425", ", 8, bytes(120)"),
    "system_v_memory": _syscall("shmget", "29 194", ", 0, 4096, 0o1600"),
    "bpf": _syscall("bpf", "321 280", ", 0, bytes(64), 64"),
    "user_namespace": _syscall("unshare", "272 97", ", 0x10000000"),
    "keyring": _syscall("add_key", "248 217", ", b'user', b'x', b'x', 1, -3"),
    "executable_memory": _body(
        "import mmap", "mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)", error=REFUSED
    ),
    "memory_made_executable": _body(
        "import ctypes, mmap, os",
        "page = mmap.mmap(-1, 4096)",
        "libc = ctypes.CDLL(None, use_errno=True)",
        "at = ctypes.addressof(ctypes.c_char.from_buffer(page))",
        "if libc.mprotect(ctypes.c_void_p(at), 4096, 7) == -1:",
        "    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))",
        error=REFUSED,
    ),
    "personality": _syscall("personality", "135 92", ", 0x0400000"),
    "alarm": _syscall("setitimer", "38 103", ", 0, bytes(32), 0"),
    # What a calculator that guards itself with {"__builtins__": {}} lets through.
    "eval_gadget": _body(
        "classes = '().__class__.__base__.__subclasses__()'",
        "wrapper = f\"[c for c in {classes} if c.__name__ == '_wrap_close'][0]\"",
        "builtins = \".__init__.__globals__['__builtins__']\"",
        "return eval(wrapper + builtins + \"['open']('/etc/passwd').read()\", {'__builtins__': {}}, {})",
        error=REFUSED,
    ),
}

FOREIGN_CALLS = {
    name: _body(
        "import attack_gadgets", f"return attack_gadgets.call('{name}')", status="crash", error="SIGSYS"
    )
    for name in ("int80", "x32")
}

ATTACKS = {**TIME, **MEMORY, **OUTPUT, **PROTOCOL, **CRASH, **FILES, **NETWORK, **PROCESS, **FOREIGN_CALLS}
ATTACKS["raised_recursion_limit"] = RAISED_LIMIT

OWN_ENVIRONMENT = "import os\ndef attack():\n    return dict(os.environ)\n"
PROBE = (
    "import json, sys\n"
    "def attack():\n"
    "    return [len('four'), json.dumps('intact'), sys.getrecursionlimit()]\n"
)


def main() -> None:
    """Run every attack, and after each a harmless call in the same worker; print results as JSON."""
    from matchtir.tools import Sandbox

    # Like a large trainer: so many files open that new ones get high numbers, and deep recursion allowed.
    for _ in range(100):
        os.open(os.devnull, os.O_RDONLY)
    sys.setrecursionlimit(10**6)
    found = {}
    with Sandbox(1, TIMEOUT, MEMORY_MB, modules=MODULES) as box:
        pids = box.pids
        expected = box.call(PROBE, "attack").value
        for name in json.loads(sys.stdin.read()) or ATTACKS:
            result = box.call(ATTACKS[name].source, "attack")
            after = box.call(PROBE, "attack")
            same_worker = box.pids == pids
            found[name] = {
                "status": result.status,
                "value": result.value,
                "error": result.error,
                "seconds": result.seconds,
                "unharmed": same_worker and after.status == "ok" and after.value == expected,
            }
        environment = box.call(OWN_ENVIRONMENT, "attack").value
        report = box.report
    print(json.dumps({"results": found, "environment": environment, "report": report, "user": os.getuid()}))


if __name__ == "__main__":
    main()
