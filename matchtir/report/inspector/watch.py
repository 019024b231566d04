"""The report page served on this machine, written anew when its run has gone on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_FRESH_SECONDS = 2.0
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


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

    Notes
    -----
    On a loopback address only requests that name this machine in their ``Host`` are answered, so that no page
    of the internet can read it through a name that leads here.
    """

    daemon_threads = True

    def __init__(self, host: str, port: int, version: Callable[[], str], page: Callable[[], str]) -> None:
        super().__init__((host, port), _Handler)
        self.loopback = host.startswith("127.") or host in ("localhost", "::1")
        self._version, self._page = version, page
        self._lock = threading.Lock()
        self._looked, self._named, self._text = float("-inf"), "", b""

    @property
    def url(self) -> str:
        """Address of the page."""
        host, port = self.server_address[:2]
        return f"http://{host if isinstance(host, str) else host.decode()}:{port}/"

    def content(self, version_only: bool) -> bytes:
        """The page, or its version; looked at anew after two seconds."""
        with self._lock:
            if time.monotonic() - self._looked >= _FRESH_SECONDS:
                named = self._version()
                if named != self._named:
                    self._text, self._named = self._page().encode(), named
                self._looked = time.monotonic()
            return self._named.encode() if version_only else self._text


class _Handler(BaseHTTPRequestHandler):
    server: PageServer

    def do_GET(self) -> None:
        name, _, _ = (self.headers.get("Host") or "").rpartition(":")
        if self.server.loopback and name not in _LOOPBACK:
            self._answer(403, b"this address is not served under that name\n")
        elif self.path == "/version":
            self._answer(200, self.server.content(True))
        elif self.path == "/":
            self._answer(200, self.server.content(False), "text/html; charset=utf-8")
        else:
            self._answer(404, b"there is only / and /version\n")

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
