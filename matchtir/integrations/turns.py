"""From what another trainer holds, token ids and a loss mask, to a trajectory. Nothing is tokenised again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import ConfigError, InputError
from ..parse import formats, trajectory_from_row
from ..parse.messages import content_text
from ..rollout.template_probe import Renderer, call_format, knows_tools
from ..scatter import spans_from_mask
from ..types import IntArray, ToolCall, Trajectory, Turn

MESSAGES = "messages"
"""In place of a parser's name: the calls are those of the host's own messages."""


class TurnReader:
    """Reads the turns of rollouts: the runs of tokens that the model wrote.

    Parameters
    ----------
    tokenizer : tokenizer of transformers
        Of the policy.
    tool_format : str, optional
        Parser of the calls, one of :func:`matchtir.parse.formats`, or "messages". None: the one that reads
        the calls which the tokenizer's chat template writes.
    stop_ids : iterable of int
        Ids that end a turn, besides the tokenizer's end of sequence and padding.

    Attributes
    ----------
    format : str
        Name of the parser, or "messages".

    Raises
    ------
    ConfigError
        If there is no such parser, none is named and none found, or the one named does not read the calls
        that the chat template writes.
    """

    def __init__(
        self, tokenizer: Any, tool_format: str | None = None, *, stop_ids: Iterable[int] = ()
    ) -> None:
        self._tokenizer = tokenizer
        check_format(tool_format)
        if tool_format is None or (tool_format != MESSAGES and knows_tools(Renderer(tokenizer, {}))):
            tool_format = call_format(Renderer(tokenizer, {}), tool_format)[0]
        self.format = tool_format
        own = (tokenizer.eos_token_id, tokenizer.pad_token_id)
        self._stop_ids = {*stop_ids, *(i for i in own if i is not None)}

    def read(
        self,
        ids: Sequence[int],
        mask: Sequence[int] | None,
        judged_by: Mapping[str, Any],
        messages: Any = None,
        golds: dict[str, tuple[ToolCall, ...]] | None = None,
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
        messages : list of mapping, or str, optional
            The response as messages, as far as the host has them: results of calls are taken from it where
            it has one assistant message a turn. With the format "messages" the calls are too.
        golds : dict, optional
            Shared by the rollouts of a batch, so that equal gold calls are read once.

        Returns
        -------
        Trajectory
            Its turns are the runs of the mask.
        ndarray of int64, shape (N, 2)
            Where each turn lies in `ids`, half-open.

        Raises
        ------
        InputError
            If the mask has another length than the ids; what it is judged by is not as a row has it; or the
            format is "messages" and there is not one assistant message a turn.
        """
        if mask is not None and len(mask) != len(ids):
            raise InputError(f"the mask has {len(mask)} entries for {len(ids)} tokens; expected as many")
        own = [1] * len(ids) if mask is None else mask
        spans = spans_from_mask([own])[0] if len(own) else np.empty((0, 2), dtype=np.int64)
        given = [{"role": "assistant", "content": messages}] if isinstance(messages, str) else messages or []
        outputs = _outputs(given)
        whole = len(outputs) == len(spans)
        if self.format == MESSAGES:
            if not whole:
                raise InputError(
                    f"the rollout has {len(spans)} turns by its mask and {len(outputs)} assistant messages; "
                    f"expected as many, or a parser of the calls (tool_format: {', '.join(formats())})"
                )
            read = given
        else:
            texts = self._texts([ids[start:end] for start, end in spans.tolist()])
            read = [{"role": "assistant", "content": text} for text in texts]
        row = {**judged_by, **_untabled(judged_by), "messages": read}
        format = None if self.format == MESSAGES else self.format
        trajectory = trajectory_from_row(row, format=format, golds=golds)
        if whole and outputs:
            turns = map(_with_results, trajectory.turns, outputs)
            trajectory = replace(trajectory, turns=tuple(turns))
        return trajectory, spans

    def _texts(self, turns: Sequence[Sequence[int]]) -> list[str]:
        """Turns as text, without the id that ended each. Parsers need the other special tokens."""
        kept = [list(ids[:-1] if len(ids) and ids[-1] in self._stop_ids else ids) for ids in turns]
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is not None:  # a third of the time that `decode` takes for each
            return [str(text) for text in backend.decode_batch(kept, skip_special_tokens=False)]
        decode = self._tokenizer.decode
        return [
            str(decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)) for ids in kept
        ]


def check_format(tool_format: str | None) -> None:
    """Raise ConfigError unless a parser is named, or "messages", or nothing."""
    if tool_format is not None and tool_format not in (*formats(), MESSAGES):
        raise ConfigError(
            f"tool_format is {tool_format!r}; expected one of {', '.join(formats())}, {MESSAGES}"
        )


def gold_calls(value: Any) -> Any:
    """Gold calls as they were before a table held them.

    Parameters
    ----------
    value : list or array of mapping, str, or None
        Arrow tables give all mappings of a column the same names, and null where one has no such entry;
        pandas makes arrays of lists.

    Returns
    -------
    list of mapping, str, or None
        Lists for arrays, and without the entries that are null. Text is left alone, so JSON text keeps
        arguments that are really null.
    """
    return _clean(value) if isinstance(value, (list, tuple, np.ndarray)) else value


def _clean(value: Any) -> Any:
    """A value of a table without the entries of mappings that are null, at all depths."""
    if isinstance(value, Mapping):
        return {key: _clean(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_clean(entry) for entry in value]
    return value


def _untabled(judged_by: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that a table may have changed, as a row has them."""
    answer, sub_answers = judged_by.get("gold_answer"), judged_by.get("sub_answers")
    if isinstance(answer, (float, np.floating)):
        whole = float(answer).is_integer()
        answer = None if answer != answer else str(int(answer)) if whole else str(answer)
    elif isinstance(answer, (int, np.integer)) and not isinstance(answer, bool):
        answer = str(answer)
    return {
        "gold_calls": gold_calls(judged_by.get("gold_calls")),
        "gold_answer": answer,
        "sub_answers": _clean(sub_answers) if isinstance(sub_answers, Mapping) else sub_answers,
    }


def _outputs(messages: Sequence[Mapping[str, Any]]) -> list[list[tuple[Any, str]]]:
    """Tool and text of what was returned after each assistant message."""
    found: list[list[tuple[Any, str]]] = []
    for message in messages:
        if message.get("role") == "assistant":
            found.append([])
        elif message.get("role") == "tool" and found:
            found[-1].append((message.get("name"), content_text(message.get("content"), "content")))
    return found


def _with_results(turn: Turn, outputs: list[tuple[Any, str]]) -> Turn:
    """The turn, its calls with their results: by the tool's name, in order; "" where a call was not run."""
    left = list(outputs)
    calls = []
    for call in turn.calls:
        at = next((k for k, (name, _) in enumerate(left) if name is None or name == call.name), None)
        calls.append(replace(call, result="" if at is None else left.pop(at)[1]))
    return replace(turn, calls=tuple(calls))
