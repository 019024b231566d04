"""From what another trainer holds, token ids and a loss mask, to a trajectory. Nothing is tokenised again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..parse import formats, trajectory_from_row
from ..rollout.template_probe import Renderer, call_format
from ..scatter import spans_from_mask
from ..types import IntArray, Trajectory


class TurnReader:
    """Reads the turns of rollouts: the runs of tokens that the model wrote.

    Parameters
    ----------
    tokenizer : tokenizer of transformers
        Of the policy.
    tool_format : str, optional
        Parser of the calls, one of :func:`matchtir.parse.formats`. None: the one that reads the calls which
        the tokenizer's chat template writes.
    stop_ids : iterable of int
        Ids that end a turn, besides the tokenizer's end of sequence and padding.

    Attributes
    ----------
    format : str
        Name of the parser.

    Raises
    ------
    ConfigError
        If there is no such parser, or none is named and none found.
    """

    def __init__(
        self, tokenizer: Any, tool_format: str | None = None, *, stop_ids: Iterable[int] = ()
    ) -> None:
        self._tokenizer = tokenizer
        if tool_format is None:
            tool_format = call_format(Renderer(tokenizer, {}), None)[0]
        elif tool_format not in formats():
            raise ConfigError(f"tool_format is {tool_format!r}; expected one of {', '.join(formats())}")
        self.format = tool_format
        own = (tokenizer.eos_token_id, tokenizer.pad_token_id)
        self._stop_ids = {*stop_ids, *(i for i in own if i is not None)}

    def read(
        self,
        ids: Sequence[int],
        mask: Sequence[int] | None,
        judged_by: Mapping[str, Any],
        outputs: Sequence[Sequence[str]] = (),
    ) -> tuple[Trajectory, IntArray]:
        """One rollout.

        Parameters
        ----------
        ids : sequence of int, length T
            The response: what the model wrote, and what the environment wrote between.
        mask : sequence of int, length T, or None
            Not 0 where the model wrote the token. None: everywhere.
        judged_by : mapping
            The other fields of a rollout's row, see :func:`matchtir.trajectory_from_row`: `group`,
            `gold_calls`, `gold_answer`, which may be a number here. What a table makes of gold calls is
            undone, see :func:`gold_calls`.
        outputs : sequence of sequence of str
            What the tools returned after each turn, where a reward needs it; passed over unless there is one
            entry a turn, or one less.

        Returns
        -------
        Trajectory
            Its turns are the runs of the mask.
        ndarray of int64, shape (N, 2)
            Where each turn lies in `ids`, half-open.

        Raises
        ------
        InputError
            If what it is judged by is not as a row has it.
        """
        own = [1] * len(ids) if mask is None else list(mask)
        spans = spans_from_mask([own])[0] if own else np.empty((0, 2), dtype=np.int64)
        known = list(outputs) if 0 <= len(spans) - len(outputs) <= 1 else []
        messages = []
        for t, (start, end) in enumerate(spans):
            messages.append({"role": "assistant", "content": self._text(ids[start:end])})
            messages += [{"role": "tool", "content": text} for text in (known[t] if t < len(known) else ())]
        row = {**judged_by, "messages": messages, "gold_calls": gold_calls(judged_by.get("gold_calls"))}
        answer = row.get("gold_answer")
        if isinstance(answer, (int, float)) and not isinstance(answer, bool):
            row["gold_answer"] = str(answer)
        return trajectory_from_row(row, format=self.format), spans

    def _text(self, ids: Sequence[int]) -> str:
        """A turn as text, without the id that ended it. Parsers need the other special tokens."""
        kept = [int(i) for i in ids]
        if kept and kept[-1] in self._stop_ids:
            kept.pop()
        decode = self._tokenizer.decode
        return str(decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def gold_calls(value: Any) -> Any:
    """Gold calls as they were before a table held them.

    Parameters
    ----------
    value : list or array of mapping, str, or None
        Arrow tables give the arguments of all calls the same names, and null where a call has no such
        argument; pandas makes arrays of lists.

    Returns
    -------
    list of mapping, str, or None
        Lists for arrays, and without the arguments that are null. Text is left alone, so JSON text keeps
        arguments that are really null.
    """
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        return value
    return [_call(call) for call in value]


def _call(call: Any) -> Any:
    """One gold call, or what stands where one should."""
    if not isinstance(call, Mapping):
        return call
    found = {}
    for key, value in call.items():
        if isinstance(value, Mapping):  # its arguments, or OpenAI's `function`
            value = _call(value)
        if value is not None:
            found[key] = value.tolist() if isinstance(value, np.ndarray) else value
    return found
