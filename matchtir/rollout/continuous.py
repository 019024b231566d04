"""The engine for GPUs: transformers' continuous batching, one turn of all live rollouts at a time."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from transformers import GenerationConfig
from transformers.generation import ContinuousBatchingConfig

from ..errors import InputError
from .engine import Ended, Request, Respond


class ContinuousEngine:
    """Samples with `model` as it is now; see :class:`matchtir.rollout.engine.Engine`.

    Its cache is paged and not kept from turn to turn: what it gains is that no row waits for a longer one.
    Random numbers are torch's, so a request's `key` does not name its draws.

    Parameters
    ----------
    model : transformers causal language model
        Of a family that transformers' continuous batching knows.
    stop_ids : collection of int
        Tokens that end a turn.
    """

    def __init__(self, model: Any, stop_ids: Collection[int]) -> None:
        self._model = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._stop_ids = frozenset(stop_ids)

    def run(
        self, requests: Sequence[Request], respond: Respond, *, temperature: float, greedy: bool = False
    ) -> None:
        """Sample all requests to their end."""
        training = self._model.training
        attention = self._model.config._attn_implementation
        self._model.eval()
        try:
            live = {
                i: ([int(t) for t in request.prompt], request.budget) for i, request in enumerate(requests)
            }
            while live:
                ended = self._turns(live, temperature, greedy)
                before, live = live, {}
                for one, reply in zip(ended, respond(ended), strict=True):
                    if reply is not None:
                        tokens = before[one.request][0] + one.tokens + [int(t) for t in reply.tokens]
                        live[one.request] = (tokens, reply.budget)
        finally:
            # Continuous batching leaves the model with its own, paged attention.
            self._model.set_attn_implementation(attention)
            self._model.train(training)

    def _turns(self, live: dict[int, tuple[list[int], int]], temperature: float, greedy: bool) -> list[Ended]:
        """The next turn of each live rollout."""
        settings = GenerationConfig(
            max_new_tokens=max(budget for _, budget in live.values()),
            do_sample=not greedy,
            temperature=temperature,
            top_k=0,
            top_p=1.0,
            eos_token_id=sorted(self._stop_ids),
            pad_token_id=0,
        )
        made = self._model.generate_batch(
            inputs=[tokens for tokens, _ in live.values()],
            generation_config=settings,
            continuous_batching_config=ContinuousBatchingConfig(return_logprobs=True),
            progress_bar=False,
        )
        results = sorted(made.values(), key=lambda one: int(one.request_id.rpartition("_")[2]))
        failed = next((one.error for one in results if one.error is not None), None)
        if failed is not None or len(results) != len(live):
            raise InputError(f"continuous batching returned {len(results)} of {len(live)} turns: {failed}")
        return [
            self._turn(i, budget, one.generated_tokens, one.logprobs)
            for (i, (_, budget)), one in zip(live.items(), results, strict=True)
        ]

    def _turn(self, request: int, budget: int, tokens: list[int], logps: list[float]) -> Ended:
        """What was generated, up to the stop token or the budget."""
        end = next((k + 1 for k, token in enumerate(tokens) if token in self._stop_ids), len(tokens))
        kept = tokens[: min(end, budget)]
        return Ended(request, kept, logps[: len(kept)], kept[-1] in self._stop_ids)
