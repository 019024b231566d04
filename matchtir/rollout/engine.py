"""What a sampling engine is: it continues token ids turn by turn, and knows nothing of chats or tools."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol


class Request(NamedTuple):
    """One rollout to sample.

    Attributes
    ----------
    prompt : sequence of int
        Token ids.
    budget : int
        Tokens that the first turn may have, at least 1.
    key : tuple of int
        Names the stream of random numbers. The same key draws the same numbers, whatever else is sampled
        beside it.
    """

    prompt: Sequence[int]
    budget: int
    key: tuple[int, ...]


class Ended(NamedTuple):
    """A turn that came to its end.

    Attributes
    ----------
    request : int
        Which of the requests, from 0.
    tokens : list of int
        As sampled, the stop token included.
    logps : list of float
        Log-probability of each, in nats, at the sampling's temperature.
    stopped : bool
        Whether a stop token ended it; else its budget did.
    """

    request: int
    tokens: list[int]
    logps: list[float]
    stopped: bool


class Reply(NamedTuple):
    """How a rollout goes on: tokens of the environment, and the tokens that the next turn may have."""

    tokens: Sequence[int]
    budget: int


Respond = Callable[[list[Ended]], list["Reply | None"]]
"""Gets the turns that ended together; says for each how its rollout goes on, None where it is over."""


class Engine(Protocol):
    """Samples many rollouts together."""

    def run(
        self, requests: Sequence[Request], respond: Respond, *, temperature: float, greedy: bool = False
    ) -> None:
        """Sample all requests to their end. Each turn goes through `respond`, once, in its own order.

        `temperature` divides the logits; `greedy` takes the likeliest token (the lowest id of equal ones),
        and log-probabilities are still those at the temperature.
        """
        ...
