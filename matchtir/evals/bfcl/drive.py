"""Starts the driver in the environment of bfcl-eval, listens to it, and ends it when a task hangs."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ...errors import InputError
from .serving import hub_cache

VERSIONS = ("2026.3.23",)
"""Versions of bfcl-eval that this was tested with."""

PYTHON, PYTHON_VARIABLE = ".venv-bfcl/bin/python", "MATCHTIR_BFCL_PYTHON"
WEB_KEY = "SERPAPI_API_KEY"
NO_KEY = "none"
"""What is sent where no key is given, since most local servers need none."""

_START = Path(__file__).parent / "driver" / "start.py"
_PACKAGE = Path(__file__).parents[2]
_WEB_PORTS = (80, 443)
_LONGEST_EVENT = 64 << 20  # bytes; what was confined may be anything by now
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
# What the driver gets of this process's environment; keys and tokens are given one by one.
_PASSED = (
    *("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "SSL_CERT_FILE", "SSL_CERT_DIR", "LD_LIBRARY_PATH"),
    *_PROXIES,
    *(name.lower() for name in _PROXIES),
)

Event = Mapping[str, Any]
HowToSay = Callable[[str], None]


class DriverError(InputError):
    """The driver ended before its job was done, or could not be started."""


class DownError(DriverError):
    """The endpoint cannot be used."""


@dataclass
class HungError(Exception):
    """Work on a task's text took too long, or ended the driver."""

    task: str
    reason: str


@dataclass(frozen=True, slots=True)
class Network:
    """What the driver may reach.

    Parameters
    ----------
    endpoint : str, optional
        Base URL of the model; without one nothing is reached.
    key : str
        Sent to the endpoint.
    web_key : str, optional
        Key of the web searches; with one, any web server can be reached.
    """

    endpoint: str | None = None
    key: str = NO_KEY
    web_key: str | None = None

    def ports(self) -> list[int]:
        """TCP ports that must be reached."""
        if self.endpoint is None:
            return []
        urls = [self.endpoint]
        urls += [os.environ.get(form, "") for name in _PROXIES[:3] for form in (name, name.lower())]
        found = set(_WEB_PORTS if self.web_key else ())
        for url in filter(None, urls):
            parts = urlsplit(url)
            found.add(parts.port or (443 if parts.scheme == "https" else 80))
        return sorted(found)


@dataclass(frozen=True)
class Driver:
    """The official code in an environment of its own.

    Parameters
    ----------
    python : str
        Python of the environment that bfcl-eval is installed in.
    folder : Path
        Where results, scores and logs are; all that the driver may write to.
    timeout : float
        Seconds that work on what a model wrote may take, calls of tools above all.
    allow_unsafe : bool
        Go on where the system cannot confine the driver.
    say : callable
        Takes warnings, one line each.

    Raises
    ------
    InputError
        If there is no such Python.
    """

    python: str
    folder: Path
    timeout: float
    allow_unsafe: bool = False
    say: HowToSay = print
    _warned: set[str] = field(default_factory=set, repr=False)

    def __post_init__(self) -> None:
        if not os.access(self.python, os.X_OK) or os.path.isdir(self.python):
            raise InputError(
                f"there is no {self.python}, the Python of an environment with bfcl-eval; "
                f"`make setup-bfcl` makes one, --bfcl-python or {PYTHON_VARIABLE} names another"
            )

    def run(
        self,
        action: str,
        log: str | None,
        network: Network | None = None,
        read: Sequence[str] = (),
        **job: Any,
    ) -> Iterator[Event]:
        """Do a job and yield what the driver says.

        Parameters
        ----------
        action : str
            ``plan``, ``generate`` or ``evaluate``.
        log : str, optional
            Name of the file in the folder's `logs` that what others print goes to; None keeps nothing.
        network : Network, optional
            What it may reach; by default nothing.
        read : sequence of str
            Folders and files that it may read besides.
        **job
            As the action takes it.

        Yields
        ------
        mapping
            An event.

        Raises
        ------
        HungError
            If work on a task took longer than `timeout`, or ended the process.
        DownError
            If the endpoint cannot be used.
        DriverError
            If the job ended otherwise before it was done.
        InputError
            If the driver refuses the job, or cannot be confined.
        """
        network = network or Network()
        scratch = self.folder / "tmp"
        job |= {
            "action": action,
            "parent": os.getpid(),
            "versions": VERSIONS,
            "allow_unsafe": self.allow_unsafe,
            "read": [str(_PACKAGE), str(hub_cache()), *read],
            "write": [str(self.folder)],
            "connect": network.ports(),
        }
        scratch.mkdir(exist_ok=True)
        (self.folder / "logs").mkdir(exist_ok=True)
        where = os.devnull if log is None else str(self.folder / "logs" / log)
        with open(where, "ab") as stream:
            process = subprocess.Popen(
                [self.python, "-I", "-B", str(_START)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                env=self._environment(network, scratch),
                cwd=scratch,
                start_new_session=True,  # Ctrl-C is for us, who then end it
            )
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            with suppress(BrokenPipeError):  # it has ended, which is seen below
                process.stdin.write(json.dumps(job).encode("ascii") + b"\n")
                process.stdin.close()
            yield from self._listen(process, where)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(BrokenPipeError):
                        pipe.close()

    def _environment(self, network: Network, scratch: Path) -> dict[str, str]:
        """The driver's environment: nothing secret but the keys it needs."""
        found = {name: os.environ[name] for name in _PASSED if name in os.environ}
        found |= {
            "BFCL_PROJECT_ROOT": str(self.folder),
            "HOME": str(scratch),
            "TMPDIR": str(scratch),
            "HF_HUB_CACHE": str(hub_cache()),
            "HF_HUB_OFFLINE": "1",
            "OPENAI_API_KEY": network.key,
            "REMOTE_OPENAI_API_KEY": network.key,
        }
        if network.endpoint is not None:
            found |= {"OPENAI_BASE_URL": network.endpoint, "REMOTE_OPENAI_BASE_URL": network.endpoint}
        if network.web_key is not None:
            found[WEB_KEY] = network.web_key
        return found

    def _listen(self, process: subprocess.Popen[bytes], log: str) -> Iterator[Event]:
        """The driver's events until it says that it is done."""
        working: list[tuple[str, float]] = []  # the task that is worked on, if any, and until when
        for event in _events(process, working):
            if event is None:
                raise HungError(working[0][0], f"execution took longer than {self.timeout:g} s")
            if "begin" in event:
                working[:] = [(event["begin"], time.monotonic() + self.timeout)]
            elif "end" in event:
                working.clear()
            elif "done" in event:
                return
            else:
                self._heed(event)
                yield event
        code = process.wait()
        if working:
            raise HungError(working[0][0], f"execution ended the process (exit code {code})")
        raise DriverError(f"bfcl-eval ended with exit code {code}; {_see(log)}")

    def _heed(self, event: Event) -> None:
        """Warn of, or stop for, what the driver says of itself."""
        if "refused" in event:
            raise InputError(f"{self.python}: {event['refused']}")
        if "unsafe" in event:
            raise InputError(
                f"bfcl-eval evaluates text that the model wrote, and cannot be confined here: "
                f"{'; '.join(event['unsafe'])}; --allow-unsafe runs it all the same"
            )
        if "down" in event:
            raise DownError(event["down"])
        if "broken" in event:
            raise DriverError(f"bfcl-eval failed: {event['broken']}; {_see(str(self.folder / 'logs'))}")
        for text in event.get("confined", ()):
            self._warn(f"bfcl-eval is not confined: {text}")
        if "note" in event:
            self._warn(event["note"])

    def _warn(self, text: str) -> None:
        """Say something once."""
        if text not in self._warned:
            self._warned.add(text)
            self.say(f"warning: {text}")


def _see(log: str) -> str:
    """Where more is found."""
    return f"see {log}" if log != os.devnull else "try again with another --output"


def _events(process: subprocess.Popen[bytes], working: list[tuple[str, float]]) -> Iterator[Event | None]:
    """What the driver writes, line by line; None once the time limit is over."""
    assert process.stdout is not None
    rest = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            until = working[0][1] if working else None
            ready = selector.select(None if until is None else max(0.0, until - time.monotonic()))
            if not ready:
                yield None
                return
            read = os.read(process.stdout.fileno(), 1 << 16)
            if not read:
                return
            rest += read
            *lines, rest = rest.split(b"\n") if b"\n" in read else [rest]
            if len(rest) > _LONGEST_EVENT:
                raise DriverError("bfcl-eval's process says more than it may")
            for line in lines:
                yield _event(bytes(line))


def _event(line: bytes) -> Event:
    """An event from its line. Raises DriverError."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        event = None
    if not isinstance(event, dict):
        raise DriverError(f"bfcl-eval's process says what is no event: {line[:80]!r}")
    return event
