"""One worker process, from the pool's side: start it, exchange a request, replace it when it dies."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

from ...errors import SandboxError
from .records import STATUSES, Result, Status
from .worker import wire

_START_SECONDS = 60.0
_GRACE_SECONDS = 5.0
_TIMEVAL = struct.Struct("@ll")
_SURROGATE_ESCAPES = (b"\\ud", b"\\uD")
_BOOTSTRAP = """
import sys
sys.path[0] = sys.argv[1]
from worker.main import main
del sys.path[0]
main(int(sys.argv[2]))
"""


class WorkerDiedError(SandboxError):
    """A worker ended before it had confined itself."""


class WorkerProcess:
    """A worker that starts; :meth:`confirm` waits for it, so that several can start at once.

    Parameters
    ----------
    settings : dict
        What :class:`~matchtir.tools.sandbox.worker.main.Worker` takes.

    Attributes
    ----------
    pid : int
    report : dict
        What the worker says of its layers.

    """

    def __init__(self, settings: dict[str, Any]) -> None:
        ours, theirs = socket.socketpair()
        fd = theirs.fileno()
        self._socket = ours
        self._timeout = 0.0
        with theirs:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-s",
                    "-S",
                    "-B",
                    "-X",
                    "utf8",
                    "-c",
                    _BOOTSTRAP,
                    str(Path(__file__).parent),
                    str(fd),
                ],
                env=_environment(),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[fd],
                start_new_session=True,  # Ctrl-C in the terminal is for the trainer, which closes the pool
            )
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

    def _wait_at_most(self, seconds: float) -> None:
        """Limit how long the socket waits for one piece, in the kernel: poll would wake us at each."""
        if seconds != self._timeout:
            whole = int(seconds)
            value = _TIMEVAL.pack(whole, int((seconds - whole) * 1e6))
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                self._socket.setsockopt(socket.SOL_SOCKET, option, value)
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
        self._process.kill()

    def _stop(self) -> int:
        """Kill it and clear up; returns its exit code."""
        self._socket.close()
        self._process.kill()
        return self._process.wait()

    def close(self) -> None:
        """End it; does nothing a second time."""
        if self._socket.fileno() != -1:
            self._stop()


def _environment() -> dict[str, str]:
    """Nothing of ours but the time zone. Hashes are the same in every worker, so sets have the same order."""
    # With TZ set the C library does not look for the file again at each call, which it could not open.
    return {"PYTHONHASHSEED": "0", "TZ": os.environ.get("TZ", ":/etc/localtime")}


def _result(status: int, seconds: float, payload: bytes) -> Result:
    """A result from what a worker passed on; what a child wrote may be anything."""
    name: Status = STATUSES[status]
    try:
        value = json.loads(payload)
        if any(escape in payload for escape in _SURROGATE_ESCAPES):
            # Half of a pair is no text: no tokenizer and no file would take it.
            value = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return Result("crash", error="answered what is no JSON, or is nested too deep", seconds=seconds)
    if name == "ok":
        return Result("ok", value, seconds=seconds)
    return Result(name, error=str(value), seconds=seconds)
