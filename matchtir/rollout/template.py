"""A tokenizer's chat template at the level of tokens: the prompt, and what is appended turn by turn.

Sampled ids are never tokenised again. What follows a turn is the template's own delta: what it writes after
the end of an assistant turn in a small conversation that ends with the same tool outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from ..errors import InputError
from ..parse import parse_turn
from .own_tools import with_own_tools
from .template_probe import (
    Message,
    Renderer,
    call_entry,
    probe,
    tail_after_answer,
    tail_after_turn,
    with_call_ids,
)

_CACHED_REPLIES = 1024


class ChatTemplate:
    """Token ids of prompts and of what follows a turn, and the text of what was sampled.

    Parameters
    ----------
    tokenizer : tokenizer of transformers
        With a chat template.
    tool_format : str, optional
        Parser of the calls, one of :func:`matchtir.parse.formats`. None: the one that reads the call which
        the template writes. A template that knows no tools needs "hermes", "llama3" or "mistral": the tools
        are then described in a system message, and what they return comes in user messages.
    options : mapping, optional
        Handed to the template with each rendering, ``{"enable_thinking": False}`` for Qwen3 say.

    Attributes
    ----------
    tokenizer : tokenizer of transformers
        As it was given.
    format : str
        Name of the parser.
    stop_ids : frozenset of int
        Ids that end a turn: the tokenizer's end of sequence, and what ends an assistant turn in the template.

    Raises
    ------
    ConfigError
        If there is no chat template; it knows no tools, or writes calls that no parser reads, and
        `tool_format` is None; `tool_format` has no parser, or one that does not read the template's calls; no
        special token ends an assistant turn; or what tools return cannot be appended to one.

    Examples
    --------
    >>> from matchtir.train.embedded import embedded_tokenizer
    >>> template = ChatTemplate(embedded_tokenizer())
    >>> template.format, template.tokenizer.decode(template.reply(["Baldor"]))
    ('hermes', '<|tool|>Baldor<|assistant|>')
    """

    def __init__(
        self, tokenizer: Any, tool_format: str | None = None, *, options: Mapping[str, Any] | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self._renderer = Renderer(tokenizer, dict(options or {}))
        self._facts = probe(self._renderer, tool_format)
        self.format = self._facts.format
        self.stop_ids = self._facts.stop_ids
        self._cached_reply = lru_cache(_CACHED_REPLIES)(self._reply)

    def prompt(self, messages: Sequence[Message], schemas: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """Ids of a prompt, up to where the model begins to write.

        Parameters
        ----------
        messages : sequence of mapping
            In OpenAI's form.
        schemas : sequence of mapping
            The tools, as :meth:`matchtir.tools.ToolRegistry.schemas` gives them.

        Raises
        ------
        InputError
            If the template refuses the messages.
        """
        return self._renderer.encode(self._conversation(messages, schemas, generate=True))

    def reply(self, observations: Sequence[str]) -> list[int]:
        """Ids of what follows a turn that ended with a stop id, up to where the model writes again.

        Parameters
        ----------
        observations : sequence of str, at least one
            What the turn's calls returned, in order.

        Returns
        -------
        list of int
            What the template writes after the end of a turn, the tool outputs, the start of the next turn.

        Raises
        ------
        InputError
            If there is no observation, or the template refuses them.
        """
        if isinstance(observations, str) or not observations:
            raise InputError(f"observations is {observations!r:.60}; expected strings, at least one")
        return list(self._cached_reply(tuple(observations)))

    def user_turn(self, messages: Sequence[Message]) -> list[int]:
        """Ids of what follows a turn without calls when the user speaks again, up to where the model writes.

        Parameters
        ----------
        messages : sequence of mapping, at least one
            Of the user, or the system.

        Raises
        ------
        InputError
            If there is no message, or the template refuses them after an assistant's.
        """
        tail = tail_after_answer(self._renderer, self._facts, messages) if messages else ""
        if not tail:
            raise InputError(
                f"the chat template cannot append {len(messages)} messages to an answer "
                f"({self._renderer.refusal})"
            )
        return self._after_marker(tail)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a sampled turn, without the stop id at its end.

        All other special tokens stay in it: parsers need some of them, and a name with a marker inside is not
        that name.
        """
        kept = [int(i) for i in ids]
        if kept and kept[-1] in self.stop_ids:
            kept.pop()
        return self._text(kept)

    def shorten(self, text: str, limit: int) -> str:
        """The text without its middle if it has more than `limit` tokens, with `" … "` where that was.

        Parameters
        ----------
        text : str
            What a tool returned.
        limit : int
            Tokens that are kept, half from the start and half from the end; the mark comes on top.
        """
        ids = self._renderer.encode(text)
        if len(ids) <= limit:
            return text
        # A character of several tokens may be cut in two.
        start = self._text(ids[: limit - limit // 2]).rstrip("\ufffd")
        end = self._text(ids[len(ids) - limit // 2 :]).lstrip("\ufffd")
        return f"{start} … {end}"

    def difference(
        self, messages: Sequence[Message], schemas: Sequence[Mapping[str, Any]], tokens: Sequence[int]
    ) -> str | None:
        """Say where the rendering of a whole conversation differs from the ids that were sampled.

        Parameters
        ----------
        messages : sequence of mapping
            The prompt, assistant messages with their text as `content`, tool messages. A template that
            refuses calls in the text is given them as `tool_calls`.
        schemas : sequence of mapping
            The tools.
        tokens : sequence of int
            Ids of the rollout. They may end before the end of a last turn that was cut off, and before or
            after what the calls of the last turn returned.

        Returns
        -------
        str or None
            None if the ids are equal.
        """
        sampled = [int(i) for i in tokens]
        try:
            rendered = self._renderer.encode(self._whole(messages, schemas))
        except InputError as error:
            return str(error)
        last = max((i for i, message in enumerate(messages) if message.get("role") == "assistant"), default=0)
        after = self.reply(
            [str(m.get("content")) for m in messages[last + 1 :] if m.get("role") == "tool"] or [""]
        )
        at = next((i for i, (s, r) in enumerate(zip(sampled, rendered, strict=False)) if s != r), None)
        beyond = sampled[len(rendered) :]
        if at is None and beyond and after[-len(beyond) :] != beyond:
            at = len(rendered)
        # One id ends a turn that was cut off.
        if at is None and len(rendered) - len(sampled) > len(after) + 1:
            at = len(sampled)
        if at is None:
            return None
        return (
            f"token {at} of {len(sampled)}, after {self._text(sampled[max(0, at - 8) : at])!r}: sampled "
            f"{self._pieces(sampled[at:])}, the chat template writes {self._pieces(rendered[at:])} for the "
            "whole conversation"
        )

    def _reply(self, observations: tuple[str, ...]) -> tuple[int, ...]:
        """The ids of `reply`, tokenised after the end of a turn as in a whole conversation."""
        tail = tail_after_turn(self._renderer, self._facts, observations)
        if not tail:
            raise InputError(
                f"the chat template cannot append {len(observations)} observations ({self._renderer.refusal})"
            )
        return tuple(self._after_marker(tail))

    def _after_marker(self, tail: str) -> list[int]:
        """Ids of what follows the end of a turn, tokenised behind it."""
        return self._renderer.encode(self.tokenizer.convert_ids_to_tokens(self._facts.marker) + tail)[1:]

    def _whole(self, messages: Sequence[Message], schemas: Sequence[Mapping[str, Any]]) -> str:
        """A whole conversation as the template writes it, calls as text or, if it refuses that, as calls."""
        try:
            return self._conversation(messages, schemas, generate=False)
        except InputError:
            return self._conversation(self._with_calls(messages), schemas, generate=False)

    def _conversation(
        self, messages: Sequence[Message], schemas: Sequence[Mapping[str, Any]], *, generate: bool
    ) -> str:
        """A conversation as the template writes it, tools in its own way or in ours."""
        if self._facts.own:
            messages = with_own_tools(messages, schemas, self.format, merged=self._facts.merged)
        else:
            messages = with_call_ids(messages)
        try:
            return self._renderer.render(messages, [] if self._facts.own else schemas, generate=generate)
        except Exception as error:
            raise InputError(f"the chat template refuses the conversation: {error}") from error

    def _with_calls(self, messages: Sequence[Message]) -> list[Message]:
        """The conversation with the calls of assistant texts as `tool_calls`."""
        changed: list[Message] = []
        for message in messages:
            turn = parse_turn(str(message.get("content") or ""), self.format)
            if message.get("role") == "assistant" and turn.calls:
                calls = [call_entry(k, call.name, call.arguments) for k, call in enumerate(turn.calls)]
                message = {"role": "assistant", "content": "", "tool_calls": calls}
            changed.append(message)
        return changed

    def _text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _pieces(self, ids: list[int]) -> str:
        """The texts of the first few tokens, for a message."""
        return repr([self._text([i]) for i in ids[:4]]) if ids else "nothing"
