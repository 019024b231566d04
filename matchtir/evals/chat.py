"""What a model under evaluation looks like from here, and how it can fail."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from ..errors import MatchtirError
from ..types import Task


class Chat(Protocol):
    """A model: messages and tools in OpenAI's form go in, one assistant message comes out.

    It may raise a :class:`ChatError`. Anything else that it raises ends the evaluation.
    """

    def __call__(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], /
    ) -> Mapping[str, Any]: ...


Policy = Callable[[Task, int], Chat]
"""Gives the model that solves a task; the number tells apart the samples of one task, from 0."""


class ChatError(MatchtirError, RuntimeError):
    """Base of what may go wrong with a model that is asked."""


class RequestError(ChatError):
    """This conversation cannot be answered, it is too long say; another one can."""


class EndpointError(ChatError):
    """No request will ever be answered: the key, the address or the model's name is wrong."""


class UnavailableError(ChatError):
    """There was no usable answer, retries included; there may be one later."""
