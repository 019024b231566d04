"""The report page served on this machine, written anew when its run has gone on."""

from __future__ import annotations

import ipaddress
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ...errors import InputError

_FRESH_SECONDS = 2.0
_PATIENCE_SECONDS = 60.0
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_PORT = re.compile(r":\d*$")


class PageServer(ThreadingHTTPServer):
    """Serves one page and its version, and nothing else.

    Parameters
    ----------
    host, port : str, int
        Where to listen; port 0 is a free one.
    version : callable
        A text that changes when the page would.
    page : callable
        The page.

    Raises
    ------
    InputError
        If it cannot listen there.

    Notes
    -----
    On a loopback address only requests that name this machine in their ``Host`` are answered, so that no page
    of the internet can read it through a name that leads here.
    """

    daemon_threads = True

    def __init__(self, host: str, port: int, version: Callable[[], str], page: Callable[[], str]) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"host {host!r}, port {port}: {reason}") from error
        self.names = (*_LOOPBACK, f"[{host}]" if ":" in host else host.lower())
        # By the address, for any name may lead to this machine.
        address = ipaddress.ip_address(str(self.server_address[0]).partition("%")[0])
        self.loopback = (getattr(address, "ipv4_mapped", None) or address).is_loopback
        self._version, self._page = version, page
        self._lock = threading.Lock()
        self._looked, self._named, self._text = float("-inf"), "", b""

    @property
    def url(self) -> str:
        """Address of the page."""
        host, port = self.server_address[:2]
        name = host if isinstance(host, str) else host.decode()
        return f"http://{f'[{name}]' if ':' in name else name}:{port}/"

    def content(self, version_only: bool) -> bytes:
        """The page, or its version; looked at anew after two seconds."""
        with self._lock:
            if time.monotonic() - self._looked >= _FRESH_SECONDS:
                named = self._version()
                if named != self._named:
                    self._text, self._named = self._page().encode(), named
                self._looked = time.monotonic()
            return self._named.encode() if version_only else self._text

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that leaves in the middle of an answer, or does not take it, is no fault."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    timeout = _PATIENCE_SECONDS  # of who connects and asks nothing: each connection has a thread

    def do_GET(self) -> None:
        name = _PORT.sub("", self.headers.get("Host") or "").lower()
        if self.server.loopback and name not in self.server.names:
            self._answer(403, b"this address is not served under that name\n")
        elif self.path not in ("/", "/version"):
            self._answer(404, b"there is only / and /version\n")
        else:
            kind = "text/html" if self.path == "/" else "text/plain"
            try:
                content = self.server.content(self.path == "/version")
            except (InputError, OSError) as error:  # of the run's files; they may be whole again later
                self._answer(500, f"{error}\n".encode("utf-8", "replace"))
            else:
                self._answer(200, content, f"{kind}; charset=utf-8")

    def _answer(self, status: int, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            ("X-Frame-Options", "DENY"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not printed."""
