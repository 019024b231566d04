"""A small OpenAI-compatible server for tests: a function answers each request, or misbehaves on purpose."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

Request = dict[str, Any]


@dataclass
class Reply:
    """An answer: an assistant message, or a raw body; with a status, headers, and a delay in seconds."""

    message: dict[str, Any] | None = None
    status: int = 200
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    drop: bool = False
    """Close the connection without an answer."""


def calls(*pairs: tuple[str, Any]) -> Reply:
    """A message that calls tools; arguments are text as it is, or an object."""
    entries = [
        {
            "id": f"c{k}",
            "type": "function",
            "function": {"name": name, "arguments": a if isinstance(a, str) else json.dumps(a)},
        }
        for k, (name, a) in enumerate(pairs)
    ]
    return Reply({"role": "assistant", "content": None, "tool_calls": entries})


def says(text: str | None) -> Reply:
    """A message of text."""
    return Reply({"role": "assistant", "content": text})


def fails(status: int, message: str, **more: Any) -> Reply:
    """An error as OpenAI words it."""
    return Reply(status=status, body=json.dumps({"error": {"message": message}}).encode(), **more)


class OpenAIServer:
    """Serves `answer` on a free port of this machine, and keeps every request.

    Attributes
    ----------
    url : str
        Base URL, ends in ``/v1``.
    requests : list of dict
        Bodies in the order they came; `seen` has their headers, `times` when they came.
    most : int
        Most requests that were being answered at a time.
    """

    def __init__(self, answer: Callable[[Request], Reply], *, key: str | None = None) -> None:
        self.answer, self.key = answer, key
        self.requests: list[Request] = []
        self.seen: list[dict[str, str]] = []
        self.times: list[float] = []
        self.most = self._now = 0
        self._lock = threading.Lock()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                owner._serve(self)

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        request = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            self.requests.append(request)
            self.seen.append({name.lower(): value for name, value in handler.headers.items()})
            self.times.append(time.monotonic())
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            self._send(handler, self._reply(handler, request))
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client was killed
        finally:
            with self._lock:
                self._now -= 1

    def _reply(self, handler: BaseHTTPRequestHandler, request: Request) -> Reply:
        if handler.path != "/v1/chat/completions":
            return fails(404, f"no such path {handler.path}")
        if self.key is not None and handler.headers["Authorization"] != f"Bearer {self.key}":
            return fails(401, "Incorrect API key provided")
        return self.answer(request)

    @staticmethod
    def _send(handler: BaseHTTPRequestHandler, reply: Reply) -> None:
        time.sleep(reply.delay)
        if reply.drop:
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        choice = {"index": 0, "message": reply.message, "finish_reason": "stop"}
        body = reply.body
        if body is None:
            body = json.dumps({"id": "x", "object": "chat.completion", "choices": [choice]}).encode()
        handler.send_response(reply.status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **reply.headers,
        }.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    def __enter__(self) -> OpenAIServer:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


def scripted(replies: Sequence[Reply]) -> Callable[[Request], Reply]:
    """Replies one after the other, the last one for ever."""
    left = list(replies)
    lock = threading.Lock()

    def answer(request: Request) -> Reply:
        with lock:
            return left.pop(0) if len(left) > 1 else left[0]

    return answer
