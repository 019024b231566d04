"""The engine: one decode loop over a transformers model, its cache kept from turn to turn.

Each pass moves every live row on by one token, which was sampled, or is forced from the environment's reply.
Rows of one prompt share its prefill; a long reply is prefilled beside the loop; a row that ends makes room
for one that waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError
from .cache import RowCache, Window
from .engine import Ended, Reply, Request, Respond
from .sampling import Streams, choose

_PREFILL_TOKENS = 16384
"""Tokens of prompts or replies, padding included, in one pass."""
_PREFILL_KEYS = 2**18
"""Keys that one pass reads, rows times the longest: attention with a mask may copy them for each head."""
_FORCED_AT_MOST = 12
"""A longer reply is prefilled in a pass of its own; a shorter one goes along with the others' sampling."""


@dataclass(slots=True)
class _Row:
    """A rollout in the loop: which request it is, tokens to feed, tokens in the cache, its turn so far."""

    index: int
    budget: int
    feed: list[int]
    length: int = 0
    over: bool = False
    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)


class DecodeEngine:
    """Samples with `model` as it is now, on its device; see :class:`matchtir.rollout.engine.Engine`.

    The order of work depends on nothing but the tokens, so on one thread the same model samples the same
    tokens, bit for bit.

    Parameters
    ----------
    model : transformers causal language model
        Full attention in all layers, positions by `position_ids`.
    stop_ids : collection of int
        Tokens that end a turn.
    batch_size : int, optional
        Rollouts that are decoded at a time; all if None.

    Raises
    ------
    ConfigError
        If the model's layers have another kind of cache.
    """

    def __init__(self, model: Any, stop_ids: Sequence[int] | frozenset[int], batch_size: int | None = None):
        self._model = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._stop_ids, self._batch_size = frozenset(stop_ids), batch_size
        config = self._model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
        if kinds != {"full_attention"} or windowed:
            raise ConfigError(
                f"{type(self._model).__name__} has layers of {', '.join(sorted(kinds))} (sliding_window "
                f"{getattr(config, 'sliding_window', None)}); the decode loop needs full attention in all: "
                "expected rollout.engine 'continuous'"
            )
        self._layers = int(config.num_hidden_layers)

    def run(
        self, requests: Sequence[Request], respond: Respond, *, temperature: float, greedy: bool = False
    ) -> None:
        """Sample all requests to their end."""
        size = self._batch_size or max(len(requests), 1)
        was_training = self._model.training
        self._model.eval()
        try:
            with torch.no_grad(), _masked_attention(self._model):
                _Loop(self, requests, size).run(respond, temperature, greedy)
        finally:
            self._model.train(was_training)

    def logits(self, cache: RowCache, tokens: Tensor, window: Window, last: Tensor) -> Tensor:
        """Logits after the token at `last` of each row, shape (b, V); tokens are (b, w)."""
        cache.window = window
        hidden = self._model.get_decoder()(
            input_ids=tokens,
            position_ids=window.positions,
            attention_mask=window.mask(),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        chosen = hidden[torch.arange(len(last), device=last.device), last]
        logits: Tensor = self._model.get_output_embeddings()(chosen)
        return logits

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self._model.get_input_embeddings().weight.device
        return device

    def new_cache(self, size: int, capacity: int) -> RowCache:
        """An empty cache for this model."""
        return RowCache(self._layers, size, capacity)

    def stops(self, token: int) -> bool:
        """Whether a token ends a turn."""
        return token in self._stop_ids


class _Loop:
    """The rows that are decoded together, at most `size`; row s has slot s of the cache."""

    def __init__(self, engine: DecodeEngine, requests: Sequence[Request], size: int) -> None:
        self._engine = engine
        self._prompts = [list(map(int, request.prompt)) for request in requests]
        self._streams = Streams([request.key for request in requests])
        rows = [
            _Row(i, request.budget, prompt)
            for i, (request, prompt) in enumerate(zip(requests, self._prompts, strict=True))
        ]
        self._rows, self._waiting = rows[:size], deque(rows[size:])
        longest = max((len(row.feed) for row in self._rows), default=0)
        self._cache = engine.new_cache(len(self._rows), longest + 64)

    def run(self, respond: Respond, temperature: float, greedy: bool) -> None:
        """Decode until no row is left."""
        logits, ready = self._begin()
        while ready:
            ended = self._sample([self._rows[s] for s in ready], logits, temperature, greedy)
            if ended:
                self._reply(ended, respond([turn for _, turn in ended]))
            logits, ready = self._advance()

    def _reply(self, ended: list[tuple[_Row, Ended]], replies: Sequence[Reply | None]) -> None:
        """Give each row its reply, and the slots of those that are over to rows that wait.

        Where none waits, slots are dropped once a quarter is free.
        """
        for (row, _), reply in zip(ended, replies, strict=True):
            if reply is None:
                row.over = True
            else:
                row.feed += map(int, reply.tokens)
                row.budget, row.tokens, row.logps = reply.budget, [], []
        for s, row in enumerate(self._rows):
            if row.over and self._waiting:
                self._rows[s] = self._entering(self._waiting.popleft(), s)
        live = [s for s, row in enumerate(self._rows) if not row.over]
        if len(live) <= 0.75 * len(self._rows):
            self._cache.keep_rows(self._tensor(live))
            self._rows = [self._rows[s] for s in live]

    def _entering(self, row: _Row, slot: int) -> _Row:
        """A row that takes a slot; what a slot holds of its prompt, this one or another, is not fed again."""
        prompt = row.feed
        for s, other in enumerate(self._rows):
            if other.length >= len(prompt) - 1 and self._prompts[other.index] == prompt:
                row.length, row.feed = len(prompt) - 1, prompt[-1:]
                if s != slot:
                    self._cache.copy_rows(self._tensor([s]), self._tensor([slot]), row.length)
                break
        return row

    def _begin(self) -> tuple[Tensor, list[int]]:
        """Prefill each prompt once, for all its rows. Returns the logits after it of all rows."""
        first: dict[tuple[int, ...], int] = {}
        owner = [first.setdefault(tuple(row.feed), s) for s, row in enumerate(self._rows)]
        if not owner:
            return torch.empty(0), []
        found = self._prefill(list(first.values()))
        copies = [s for s, source in enumerate(owner) if source != s]
        if copies:
            sources = [owner[s] for s in copies]
            longest = max(self._rows[s].length for s in sources)
            self._cache.copy_rows(self._tensor(sources), self._tensor(copies), longest)
        for row, source in zip(self._rows, owner, strict=True):
            row.length, row.feed = self._rows[source].length, []
        return torch.stack([found[source] for source in owner]), list(range(len(owner)))

    def _prefill(self, chosen: Sequence[int]) -> dict[int, Tensor]:
        """Feed all that these rows have to feed; the logits after it, by row."""
        found: dict[int, Tensor] = {}
        feeds = [len(self._rows[s].feed) for s in chosen]
        for part in _parts(chosen, feeds, [self._rows[s].length for s in chosen]):
            width = max(len(self._rows[s].feed) for s in part)
            found |= zip(part, self._forward(part, width), strict=True)
        return found

    def _advance(self) -> tuple[Tensor, list[int]]:
        """Feed until some rows have fed all they had. Returns the logits after it, and their rows."""
        while live := [s for s, row in enumerate(self._rows) if not row.over]:
            found = self._prefill([s for s in live if len(self._rows[s].feed) > _FORCED_AT_MOST])
            others = [s for s in live if s not in found]
            if others:
                # All rows, those with nothing to feed too: a whole batch reads the cache in place.
                logits = self._forward(range(len(self._rows)), 1)
                found |= {s: logits[s] for s in others if not self._rows[s].feed}
            if found:
                ready = sorted(found)
                return torch.stack([found[s] for s in ready]), ready
        return torch.empty(0), []

    def _forward(self, chosen: Sequence[int], width: int) -> Tensor:
        """Feed up to `width` tokens of each chosen row; logits after the last of each, (b, V).

        Of a row with nothing to feed they mean nothing, and what is written behind its end is never read.
        """
        rows = [self._rows[s] for s in chosen]
        lengths = np.array([row.length for row in rows])
        fed = np.array([min(width, len(row.feed)) for row in rows])
        self._cache.reserve(int(lengths.max()) + width)
        tokens = np.zeros((len(rows), width), dtype=np.int64)
        for k, row in enumerate(rows):
            tokens[k, : fed[k]] = row.feed[: fed[k]]
            row.feed = row.feed[fed[k] :]
            row.length += int(fed[k])
        window = Window(
            self._tensor(chosen),
            self._tensor(lengths[:, None] + np.arange(width)),
            length=int((lengths + fed).max()),
            whole=list(chosen) == list(range(self._cache.size)),
        )
        last = self._tensor(np.maximum(fed, 1) - 1)
        return self._engine.logits(self._cache, self._tensor(tokens), window, last)

    def _sample(
        self, rows: list[_Row], logits: Tensor, temperature: float, greedy: bool
    ) -> list[tuple[_Row, Ended]]:
        """Sample a token for each row; the turns that ended with it."""
        uniforms = None if greedy else self._streams.draw([row.index for row in rows])
        tokens, logps = choose(logits, temperature, uniforms)
        ended = []
        for row, token, logp in zip(rows, tokens.tolist(), logps.tolist(), strict=True):
            row.tokens.append(token)
            row.logps.append(logp)
            row.feed = [token]
            stopped = self._engine.stops(token)
            if stopped or len(row.tokens) >= row.budget:
                ended.append((row, Ended(row.index, row.tokens, row.logps, stopped)))
        return ended

    def _tensor(self, values: Any) -> Tensor:
        """Integers on the model's device."""
        return torch.as_tensor(np.asarray(values, dtype=np.int64)).to(self._engine.device)


def _parts(slots: Sequence[int], feeds: Sequence[int], before: Sequence[int]) -> Iterator[list[int]]:
    """Slots in parts of like feeds, each within `_PREFILL_TOKENS` and `_PREFILL_KEYS`, or one slot."""
    part: list[int] = []
    width = keys = 0
    for feed, length, slot in sorted(zip(feeds, before, slots, strict=True), reverse=True):
        width, keys = max(width, feed), max(keys, length + feed)
        rows = len(part) + 1
        if part and (width * rows > _PREFILL_TOKENS or keys * rows > _PREFILL_KEYS):
            yield part
            part, width, keys = [], feed, length + feed
        part.append(slot)
    if part:
        yield part


@contextmanager
def _masked_attention(model: Any) -> Iterator[None]:
    """Attention that takes a mask of its own for each row, whatever the model trains with."""
    before = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
