"""A model behind an OpenAI-compatible endpoint. The package `openai` is imported when one is made."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from ..errors import InputError
from ..types import Task
from .chat import Chat, ChatError, EndpointError, RequestError, UnavailableError

API_KEY = "OPENAI_API_KEY"
"""Environment variable of the key, unless another is named."""

_NO_KEY = "none"
_REQUEST_CODES = (400, 413, 422)
_LATER_CODES = (408, 409, 429)


@dataclass(frozen=True)
class Endpoint:
    """A model that is asked over HTTP.

    What may pass is tried again: dropped connections, time-outs, and the answers 408, 409, 429 and 5xx,
    after half a second, one, two, four, at most eight, each shortened at random by up to a quarter, or after
    as long as the answer's ``Retry-After`` says, if that is two minutes at most.

    Parameters
    ----------
    url : str
        Base URL, ``http://127.0.0.1:8000/v1`` say.
    model : str
        The model's name at the endpoint.
    api_key_variable : str
        Environment variable that holds the key. Without one a placeholder is sent, because most local
        servers need none.
    timeout : float
        Seconds that a request may take.
    retries : int
        How often a request is tried again.
    temperature, max_tokens, seed : float, int, int, optional
        Sent with each request; None leaves the server's default. Sample k of a task is asked with
        `seed` + k.
    extra : mapping
        Further fields of the request.

    Raises
    ------
    InputError
        If `url` is no URL.
    ImportError
        If `openai` is not installed.
    """

    url: str
    model: str
    api_key_variable: str = API_KEY
    timeout: float = 600.0
    retries: int = 5
    temperature: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    _openai: Any = field(init=False, repr=False, compare=False)
    _client: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise InputError(f"endpoint is {self.url!r}; expected a URL such as http://127.0.0.1:8000/v1")
        try:
            openai = importlib.import_module("openai")
        except ImportError as error:
            raise ImportError('an endpoint needs the package openai: pip install "matchtir[eval]"') from error
        client = openai.OpenAI(
            base_url=self.url,
            api_key=os.environ.get(self.api_key_variable) or _NO_KEY,
            timeout=self.timeout,
            max_retries=self.retries,
        )
        object.__setattr__(self, "_openai", openai)
        object.__setattr__(self, "_client", client)

    @property
    def settings(self) -> dict[str, Any]:
        """What its answers depend on. The address is not among it: a server may move."""
        names = ("model", "temperature", "max_tokens", "seed", "extra")
        return {name: getattr(self, name) for name in names}

    def policy(self, task: Task, sample: int) -> Chat:
        """The model, for one sample of a task."""
        return partial(self._ask, None if self.seed is None else self.seed + sample)

    def _ask(
        self, seed: int | None, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
    ) -> Mapping[str, Any]:
        """One request; whatever goes wrong becomes a ChatError."""
        fields = {"temperature": self.temperature, "max_tokens": self.max_tokens, "seed": seed}
        given: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
        if tools:
            given["tools"] = list(tools)
        try:
            answer = self._client.chat.completions.with_raw_response.create(
                model=self.model, messages=list(messages), extra_body=dict(self.extra) or None, **given
            )
        except self._openai.APIStatusError as error:
            raise self._refusal(error) from error
        except self._openai.APIError as error:
            cause = f" ({error.__cause__})" if error.__cause__ else ""
            raise UnavailableError(f"{self.url}: {error}{cause}") from error
        except UnicodeError as error:
            raise RequestError(f"the messages cannot be sent: {error}") from error
        return self._message(answer.http_response.text)

    def _refusal(self, error: Any) -> ChatError:
        """What an answer with an error code means."""
        code = error.status_code
        text = f"{self.url} answered {code}: {_reason(error)}"
        if code in _REQUEST_CODES:
            return RequestError(text)
        if code >= 500 or code in _LATER_CODES:
            return UnavailableError(text)
        if code in (401, 403):
            return EndpointError(f"{text} (the key is read from {self.api_key_variable})")
        if code == 404:
            hint = "expected a base URL, which often ends in /v1, and a model it has"
            return EndpointError(f"{text} ({hint})")
        return EndpointError(text)

    def _message(self, body: str) -> Mapping[str, Any]:
        """The assistant message of an answer."""
        try:
            # Some servers write NaN, which is no JSON and could not be written to a file.
            message = json.loads(body, parse_constant=str)["choices"][0]["message"]
        except (ValueError, LookupError, TypeError, RecursionError):
            raise UnavailableError(f"{self.url} answered with no chat completion: {body[:200]!r}") from None
        if not isinstance(message, Mapping):
            raise UnavailableError(f"{self.url} answered with no message: {message!r:.200}")
        return message


def _reason(error: Any) -> str:
    """What the server says is wrong, in one line."""
    body = error.body
    if isinstance(body, Mapping):
        body = body.get("message") or body.get("detail") or body.get("error") or body
    return " ".join(str(body or error.message).split())[:500]
