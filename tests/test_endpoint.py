"""A model behind an endpoint: what is sent, and what becomes of an endpoint that misbehaves."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import pytest
from openai_server import OpenAIServer, Reply, fails, says, scripted

from matchtir.errors import InputError
from matchtir.evals.chat import EndpointError, RequestError, UnavailableError
from matchtir.evals.endpoint import Endpoint
from matchtir.types import Task

pytest.importorskip("openai")

TASK = Task("t", ({"role": "user", "content": "hi"},))


@pytest.fixture(autouse=True)
def _fast_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits between tries are the client's; a hundredth of them will do."""
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.005)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def ask(server: OpenAIServer, **options: Any) -> Mapping[str, Any]:
    endpoint = Endpoint(server.url, "m", **options)
    return endpoint.policy(TASK, 0)([{"role": "user", "content": "hi"}], [])


def test_endpoint_sends_what_it_was_told() -> None:
    with OpenAIServer(scripted([says("yes")])) as server:
        endpoint = Endpoint(
            server.url, "m", temperature=0.5, max_tokens=7, seed=3, extra={"top_k": 4, "think": {"on": False}}
        )
        schema = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
        answer = endpoint.policy(TASK, 2)([{"role": "user", "content": "hi"}], schema)
    assert answer["content"] == "yes"
    assert server.requests == [
        {
            "model": "m",
            "messages": [{"role": "user", "content": "hi"}],
            "tools": schema,
            "temperature": 0.5,
            "max_tokens": 7,
            "seed": 5,
            "top_k": 4,
            "think": {"on": False},
        }
    ]
    assert server.seen[0]["authorization"] == "Bearer none"
    with OpenAIServer(scripted([says("yes")])) as server:
        ask(server)
    assert set(server.requests[0]) == {"model", "messages"}


@pytest.mark.parametrize(
    "fault",
    [
        fails(500, "oops"),
        fails(503, "busy"),
        fails(429, "slow down"),
        fails(408, "late"),
        Reply(drop=True),
    ],
    ids=["500", "503", "429", "408", "drop"],
)
def test_endpoint_tries_again_what_may_pass(fault: Reply) -> None:
    with OpenAIServer(scripted([fault, fault, says("yes")])) as server:
        assert ask(server, retries=2)["content"] == "yes"
        assert len(server.requests) == 3
    with OpenAIServer(scripted([fault])) as server:
        with pytest.raises(UnavailableError):
            ask(server, retries=2)
        assert len(server.requests) == 3


def test_endpoint_waits_as_long_as_the_server_says() -> None:
    busy = fails(429, "slow down", headers={"Retry-After": "1"})
    with OpenAIServer(scripted([busy, says("yes")])) as server:
        assert ask(server)["content"] == "yes"
        assert server.times[1] - server.times[0] >= 0.99


def test_endpoint_a_slow_answer_is_a_failure_after_the_timeout() -> None:
    slow = says("late")
    slow.delay = 0.6
    with OpenAIServer(scripted([slow, says("yes")])) as server:
        assert ask(server, timeout=0.2)["content"] == "yes"
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        (fails(400, "context length is 8"), RequestError, "answered 400: context length is 8"),
        (fails(413, "too large"), RequestError, "413: too large"),
        (fails(422, "bad tools"), RequestError, "422: bad tools"),
        (fails(401, "bad key"), EndpointError, r"401: bad key \(the key is read from OPENAI_API_KEY\)"),
        (fails(403, "not yours"), EndpointError, "403: not yours"),
        (fails(404, "no model m"), EndpointError, "404: no model m .expected a base URL"),
        (fails(405, "no"), EndpointError, "405: no"),
    ],
    ids=lambda value: str(getattr(value, "status", "")),
)
def test_endpoint_does_not_try_again_what_cannot_pass(fault: Reply, error: Any, words: str) -> None:
    with OpenAIServer(scripted([fault, says("yes")])) as server:
        with pytest.raises(error, match=words):
            ask(server)
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>hello</html>",
        b"[]",
        b'{"choices": []}',
        b'{"choices": null}',
        b'{"choices": [{"message": 3}]}',
        b'{"error": "no"}',
        b"\xff",
        b"[" * 5000,
    ],
)
def test_endpoint_an_answer_that_is_none_is_a_failure(body: bytes) -> None:
    with (
        OpenAIServer(scripted([Reply(body=body)])) as server,
        pytest.raises(UnavailableError, match="answered"),
    ):
        ask(server)


def test_endpoint_a_closed_port_is_a_failure_that_names_the_address() -> None:
    with OpenAIServer(scripted([says("yes")])) as server:
        url = server.url
    with pytest.raises(UnavailableError, match=f"{url}: Connection error.*refused"):
        Endpoint(url, "m", retries=1).policy(TASK, 0)([], [])


def test_endpoint_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    with OpenAIServer(scripted([says("yes")]), key="secret") as server:
        assert ask(server, api_key_variable="MY_KEY")["content"] == "yes"
        with pytest.raises(EndpointError, match="Incorrect API key"):
            ask(server)


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://x/v1", "http://"])
def test_endpoint_refuses_what_is_no_url(url: str) -> None:
    with pytest.raises(InputError, match="expected a URL"):
        Endpoint(url, "m")


def test_endpoint_without_the_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ImportError, match=r'pip install "matchtir\[eval\]"'):
        Endpoint("http://x/v1", "m")
