"""One worker process, from the pool's side: start it, exchange a request, replace it when it dies."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import SandboxError
from .records import STATUSES, Result, Status
from .worker import wire

_START_SECONDS = 60.0
_GRACE_SECONDS = (
    8.0  # twice what a worker and its reserve wait where the system is short of processes, and more
)
_WORKER_LOOKS_UP_SECONDS = 1.0
_TIMEVAL = struct.Struct("@ll")
_SURROGATE_ESCAPES = (b"\\ud", b"\\uD")
_BOOTSTRAP = """
import sys
sys.path[0] = sys.argv[1]
from worker.main import main
del sys.path[0]
main(int(sys.argv[2]))
"""
_DEEPEST = 200
_LONGEST_NUMBER = 4300  # digits; Python's own limit, which a trainer may have lifted
_BRACKETS = bytes.maketrans(b"[{]}", b"\0\0\2\2")
_DIGITS = bytes.maketrans(b"123456789", b"0" * 9)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[{]}"))
# Where the loader and the interpreter find their libraries.
_NEEDED_TO_START = ("LD_LIBRARY_PATH", "PYTHONHOME")


class WorkerDiedError(SandboxError):
    """A worker ended before it had confined itself."""


class WorkerProcess:
    """A worker that starts; :meth:`confirm` waits for it, so that several can start at once.

    Parameters
    ----------
    settings : dict
        What :class:`~matchtir.tools.sandbox.worker.main.Worker` takes.
    module : {"main", "host"}
        Whether it runs calls, each alone, or keeps objects.

    Attributes
    ----------
    pid : int
    report : dict
        What the worker says of its layers.

    """

    def __init__(self, settings: dict[str, Any], module: str = "main") -> None:
        if not sys.executable or getattr(sys, "frozen", False):
            raise SandboxError("there is no Python interpreter to start a sandbox worker with")
        folder = str(Path(__file__).parent)
        bootstrap = _BOOTSTRAP.replace("worker.main", f"worker.{module}")
        options = ["-s", "-S", "-B", "-X", "utf8", "-c", bootstrap, folder, str(os.getpid())]
        try:
            ours, theirs = socket.socketpair()
            with theirs:
                for end in (ours, theirs):
                    end.setblocking(True)  # whatever socket.setdefaulttimeout was told
                _set_limits(theirs, _WORKER_LOOKS_UP_SECONDS)
                self._process = subprocess.Popen(
                    [sys.executable, *options],
                    env=_environment(),
                    cwd="/",
                    stdin=theirs.fileno(),  # a number that is the same whatever the trainer has open
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C in the terminal is for the trainer, who closes us
                )
        except OSError as error:
            raise SandboxError(f"no sandbox worker can be started with {sys.executable}: {error}") from None
        self._socket = ours
        self._timeout = 0.0
        self.pid = self._process.pid
        self.report: dict[str, Any] = {}
        text = json.dumps(settings).encode()
        with contextlib.suppress(OSError):  # a worker that is dead already is noticed by confirm
            ours.sendall(wire.LENGTH.pack(len(text)) + text)

    def confirm(self) -> None:
        """Wait until the worker has confined itself. Raises SandboxError if it does not start."""
        self._wait_at_most(_START_SECONDS)
        try:
            (length,) = wire.LENGTH.unpack(self._receive(wire.LENGTH.size))
            self.report = json.loads(self._receive(length))
        except (EOFError, OSError) as error:
            code = self._stop()
            raise WorkerDiedError(
                f"a sandbox worker died while it started ({sys.executable}, exit code {code}): {error!r}"
            ) from None
        if "failed" in self.report:
            self._stop()
            raise SandboxError(f"a sandbox worker could not start: {self.report['failed']}")

    def run(self, calls: list[bytes], shared: bool, timeout: float) -> tuple[list[Result], bool]:
        """Run calls, all in one process if `shared`.

        Returns the results of those that were started, in order, and whether this worker is still alive.
        """
        results: list[Result] = []
        started = False
        try:
            self._wait_at_most(timeout + _GRACE_SECONDS)
            self._socket.sendall(wire.pack_request(calls, shared, timeout))
            # In one piece with the first result, so that this thread is not woken twice.
            head = self._receive(len(wire.STARTED) + wire.RESULT.size)[len(wire.STARTED) :]
            started = True
            while True:
                status, seconds, length = wire.RESULT.unpack(head)
                results.append(_result(status, seconds, self._receive(length)))
                if len(results) == len(calls):
                    return results, True
                head = self._receive(wire.RESULT.size)
        except BlockingIOError:
            results.append(Result("timeout", error=f"gave no result within {timeout:g} s", seconds=timeout))
        except (EOFError, OSError) as error:
            if started or error.args[0] == wire.STARTED:
                results.append(Result("crash", error="the worker that ran it died"))
        self._stop()
        return results, False

    def act(self, what: int, number: int, payload: bytes, timeout: float) -> tuple[Result, bool]:
        """Have a host do something with an object: the result, and whether the host is still alive."""
        try:
            self._wait_at_most(timeout + _GRACE_SECONDS)
            self._socket.sendall(wire.ACT.pack(what, number, timeout, len(payload)) + payload)
            status, seconds, length = wire.RESULT.unpack(self._receive(wire.RESULT.size))
            return _result(status, seconds, self._receive(length)), True
        except BlockingIOError:
            result = Result("timeout", error=f"gave no result within {timeout:g} s", seconds=timeout)
        except (EOFError, OSError):
            result = Result("crash", error="the worker that ran it died")
        self._stop()
        return result, False

    def _wait_at_most(self, seconds: float) -> None:
        """Limit how long the socket waits for one piece, in the kernel: poll would wake us at each."""
        if seconds != self._timeout:
            _set_limits(self._socket, seconds)
            self._timeout = seconds

    def _receive(self, count: int) -> bytes:
        """Exactly `count` bytes.

        Raises EOFError with what came before the end, BlockingIOError at the time limit, OSError.
        """
        data = b""
        while len(data) < count:
            piece = self._socket.recv(count - len(data), socket.MSG_WAITALL)
            if not piece:
                raise EOFError(data)
            data += piece
        return data

    def kill(self) -> None:
        """Kill it, and with it its child. Who waits for its answer learns that it died."""
        with contextlib.suppress(OSError):  # it has ended
            self._socket.shutdown(socket.SHUT_RDWR)
        # Its group, which an object that copies itself cannot leave.
        with contextlib.suppress(PermissionError, ProcessLookupError):
            if self._process.returncode is None:  # else its number may be another's
                os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(PermissionError):  # root without CAP_KILL; the worker sees that we let go
            self._process.kill()

    def _stop(self) -> int:
        """Kill it and clear up; returns its exit code."""
        self.kill()
        self._socket.close()
        return self._process.wait()

    def close(self) -> None:
        """End it; does nothing a second time."""
        if self._socket.fileno() != -1:
            self._stop()


def _set_limits(end: socket.socket, seconds: float) -> None:
    """Let reads and writes of a socket, by whoever holds it, give up after some time."""
    whole = int(seconds)
    value = _TIMEVAL.pack(whole, int((seconds - whole) * 1e6))
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        end.setsockopt(socket.SOL_SOCKET, option, value)


def _environment() -> dict[str, str]:
    """Nothing of ours but the time zone and what a start may need; with the same hashes in every worker."""
    # With TZ set the C library does not look for the file again at each call, which it could not open.
    needed = {name: os.environ[name] for name in _NEEDED_TO_START if name in os.environ}
    return {"PYTHONHASHSEED": "0", "TZ": os.environ.get("TZ", ":/etc/localtime"), **needed}


def _result(status: int, seconds: float, payload: bytes) -> Result:
    """A result from what a worker passed on; what a child wrote may be anything."""
    name: Status = STATUSES[status]
    try:
        if not _is_harmless(payload):
            raise ValueError
        # A child of ours sends ASCII; bytes may be UTF-16 to `loads`, and hold halves of surrogate pairs.
        value = json.loads(payload.decode("ascii"))
        if any(escape in payload for escape in _SURROGATE_ESCAPES):
            # Half of a pair is no text: no tokenizer and no file would take it.
            value = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        words = f"nested deeper than {_DEEPEST}, or has a number of more than {_LONGEST_NUMBER} digits"
        return Result("crash", error=f"answered what is no JSON, or is {words}", seconds=seconds)
    if name == "ok":
        return Result("ok", value, seconds=seconds)
    return Result(name, error=str(value), seconds=seconds)


def _is_harmless(payload: bytes) -> bool:
    """Whether JSON is neither nested too deep, which can overflow the stack of its reader, nor slow to read.

    Python takes seconds for a number of a million digits, and lets no other thread run meanwhile.
    """
    deep = payload.count(b"[") + payload.count(b"{") > _DEEPEST
    if not deep and len(payload) <= _LONGEST_NUMBER:
        return True
    outside = b"".join(payload.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')[::2])
    if b"0" * (_LONGEST_NUMBER + 1) in outside.translate(_DIGITS):
        return False
    brackets = outside.translate(_BRACKETS, _NO_BRACKETS)
    depths = np.cumsum(1 - np.frombuffer(brackets, np.int8))
    return int(depths.max(initial=0)) <= _DEEPEST
