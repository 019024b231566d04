"""How rollouts are sampled, and how long they may get."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real

from ..config import Number, check_fields
from ..errors import ConfigError

_NUMBERS = {
    "max_turns": Number(Integral, "a whole number, 1 or more", lambda x: x >= 1),
    "max_prompt_tokens": Number(Integral, "a whole number, 1 or more", lambda x: x >= 1),
    "max_response_tokens": Number(Integral, "a whole number, 1 or more", lambda x: x >= 1),
    "max_turn_tokens": Number(Integral, "None or a whole number, 1 or more", lambda x: x >= 1, optional=True),
    "max_observation_tokens": Number(
        Integral, "None or a whole number, 1 or more", lambda x: x >= 1, optional=True
    ),
    "temperature": Number(Real, "a number above 0", lambda x: 0 < x < math.inf),
    "batch_size": Number(Integral, "None or a whole number, 1 or more", lambda x: x >= 1, optional=True),
    "tool_workers": Number(Integral, "a whole number, 1 or more", lambda x: x >= 1),
    "tool_timeout": Number(Real, "a number of seconds above 0", lambda x: 0 < x < math.inf),
}
_CHOICES = {"engine": ("auto", "decode", "continuous")}


@dataclass(frozen=True, slots=True)
class RolloutConfig:
    """How rollouts are sampled. The defaults are the paper's; every value is checked on construction.

    Parameters
    ----------
    max_turns : int
        Assistant turns that each user turn may have. 1 is single-turn: calls of the only turn are run and
        rewarded.
    max_prompt_tokens : int
        A task with a longer prompt is dropped and counted.
    max_response_tokens : int
        Tokens after the prompt, those of tool outputs included.
    max_turn_tokens : int, optional
        Tokens that one turn may have; only the response's limit if None.
    max_observation_tokens : int, optional
        A longer tool output loses its middle; never if None.
    temperature : float
        Divides the logits.
    batch_size : int, optional
        Rollouts that are decoded at a time; all of a step if None.
    engine : {"auto", "decode", "continuous"}
        One decode loop over the whole batch, or transformers' continuous batching (CUDA). "auto" is "decode".
    tool_workers : int
        Processes of the sandbox.
    tool_timeout : float
        Seconds that a call may take.
    tool_modules : tuple of str
        Modules that sources of tools and environments may import besides the usual ones.
    allow_unsafe_tools : bool
        Run tools where the system cannot confine them.

    Raises
    ------
    ConfigError
        If a value is impossible; the message names the field.
    """

    max_turns: int = 10
    max_prompt_tokens: int = 7000
    max_response_tokens: int = 23000
    max_turn_tokens: int | None = None
    max_observation_tokens: int | None = None
    temperature: float = 1.0
    batch_size: int | None = None
    engine: str = "auto"
    tool_workers: int = 2
    tool_timeout: float = 10.0
    tool_modules: tuple[str, ...] = ()
    allow_unsafe_tools: bool = False

    def __post_init__(self) -> None:
        check_fields(self, _CHOICES, _NUMBERS)
        modules = self.tool_modules
        if isinstance(modules, str) or not all(isinstance(name, str) for name in modules):
            raise ConfigError(f"tool_modules is {modules!r:.80}; expected names of modules")
        object.__setattr__(self, "tool_modules", tuple(modules))
