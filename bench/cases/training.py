"""Parts of a training step on the CPU: rollouts beside `generate` anew each turn, memory of the update."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from checks import check
from timing import Row, interleave, speedup
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from cases.loss import close, memory_ratio
from cases.rows import rounds
from matchtir.loss import ModelOutputs, policy_loss
from matchtir.rollout.config import RolloutConfig
from matchtir.rollout.decode import DecodeEngine
from matchtir.rollout.engine import Ended, Engine, Request, Respond
from matchtir.rollout.loop import sample_rollouts
from matchtir.rollout.records import Rollout
from matchtir.rollout.template import ChatTemplate
from matchtir.tasks import embedded_tasks
from matchtir.tools import Sandbox
from matchtir.train.embedded.policy import load_embedded_policy
from matchtir.train.policy import TokenHead
from matchtir.types import Ragged


class GenerateEachTurn:
    """The usual engine: transformers' `generate` on the live rollouts, whole prompts anew each turn."""

    def __init__(self, model: nn.Module, stop_ids: frozenset[int], pad: int) -> None:
        self.model, self.stop_ids, self.pad = model, stop_ids, pad

    @torch.no_grad()
    def run(
        self, requests: Sequence[Request], respond: Respond, *, temperature: float, greedy: bool = False
    ) -> None:
        live = {i: (list(request.prompt), request.budget) for i, request in enumerate(requests)}
        while live:
            width = max(len(tokens) for tokens, _ in live.values())
            ids = torch.full((len(live), width), self.pad)
            mask = torch.zeros_like(ids)
            for row, (tokens, _) in enumerate(live.values()):
                ids[row, width - len(tokens) :] = torch.tensor(tokens)
                mask[row, width - len(tokens) :] = 1
            sampling = {"do_sample": False} if greedy else {"do_sample": True, "temperature": temperature}
            made = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=max(budget for _, budget in live.values()),
                eos_token_id=sorted(self.stop_ids),
                pad_token_id=self.pad,
                top_k=0,
                **sampling,
            )
            ended = [
                self.turn(i, made[row, width:].tolist(), budget)
                for row, (i, (_, budget)) in enumerate(live.items())
            ]
            before = {i: tokens for i, (tokens, _) in live.items()}
            live = {
                one.request: (before[one.request] + one.tokens + list(reply.tokens), reply.budget)
                for one, reply in zip(ended, respond(ended), strict=True)
                if reply is not None
            }

    def turn(self, index: int, tokens: list[int], budget: int) -> Ended:
        """One row of what was generated, up to its stop token."""
        stop = next((k for k, token in enumerate(tokens) if token in self.stop_ids), len(tokens))
        kept = tokens[: min(stop + 1, budget)]
        return Ended(index, kept, [0.0] * len(kept), stop < min(len(tokens), budget))


def rollouts(smoke: bool) -> list[Row]:
    """A step's rollouts of the embedded policy: 16 tasks × 8, real tools in the sandbox."""
    prompts, group = (2, 2) if smoke else (16, 8)
    case = f"rollouts, {prompts} tasks × {group}, embedded policy"
    model, tokenizer = load_embedded_policy()
    template = ChatTemplate(tokenizer)
    config = RolloutConfig(max_turns=6, max_response_tokens=320)
    tasks = embedded_tasks()[:prompts]
    keys = [(0, i) for i in range(prompts)]
    engines = {
        "ours": DecodeEngine(model, template.stop_ids),
        "generate": GenerateEachTurn(model, template.stop_ids, tokenizer.pad_token_id),
    }
    with Sandbox(workers=1) as box:

        def side(engine: Engine, greedy: bool = False) -> list[Rollout]:
            return sample_rollouts(
                tasks, engine, template, config, keys=keys, group_size=group, greedy=greedy, box=box
            )

        found = [[one.tokens.tolist() for one in side(engine, greedy=True)] for engine in engines.values()]
        same = sum(a == b for a, b in zip(*found, strict=True)) / len(found[0])
        check(same >= 0.98, f"greedy rollouts: only {same:.1%} are the same tokens")
        counts: dict[str, list[int]] = {name: [] for name in engines}

        def counted(name: str) -> Callable[[], object]:
            return lambda: counts[name].append(sum(one.sampled_tokens for one in side(engines[name])))

        times = interleave({name: counted(name) for name in engines}, **rounds(smoke))
    # Rounds of the second engine sample other tokens than the first: compare tokens per second.
    tokens = {name: sum(each) / len(each) for name, each in counts.items()}
    rate = {name: tokens[name] / times[name].median for name in engines}
    return [
        Row(
            *(
                case,
                "sampled tokens per second, of generate anew each turn",
                rate["ours"] / rate["generate"],
                2.0,
            ),
            ours=times["ours"].summary(),
            peer=times["generate"].summary(),
        ),
        *(Row(case, f"sampled tokens per second, {name}", round(x), unit="/s") for name, x in rate.items()),
    ]


def update_memory(smoke: bool) -> list[Row]:
    """Forward and backward of the loss for 1,024 tokens and Qwen3's vocabulary, beside full logits."""
    tokens, words, width = (64, 500, 16) if smoke else (1024, 151_936, 256)
    case = f"update of {tokens:,} tokens, {words:,} words, hidden {width}"
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=words,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=width // 4,
            tie_word_embeddings=True,
        )
    )
    head = TokenHead.from_linear(model.lm_head)
    ids = torch.randint(words, (1, tokens))
    spans = Ragged.from_lists([[(1, tokens)]], "int64")
    advantages = Ragged.from_lists([[0.7]])

    def run(logps: Callable[[Tensor], Tensor]) -> Tensor:
        model.zero_grad(set_to_none=True)
        hidden = model.model(ids, use_cache=False).last_hidden_state[0, :-1]
        values = torch.cat([torch.zeros(1), logps(hidden)])[None]
        loss = policy_loss(ModelOutputs(values, spans), advantages).loss
        loss.backward()
        return values.detach()

    def ours() -> Tensor:
        return run(lambda hidden: head(hidden, ids[0, 1:])[0])

    def full() -> Tensor:
        def logps(hidden: Tensor) -> Tensor:
            logits = model.lm_head(hidden)
            return torch.log_softmax(logits, -1).gather(1, ids[0, 1:, None])[:, 0]

        return run(logps)

    results = []
    for side in (ours, full):
        values = side()
        results.append((values, model.lm_head.weight.grad.clone()))
    for (a, b), name in zip(zip(*results, strict=True), ("log-probabilities", "gradients"), strict=True):
        close(a, b, 1e-4, name)
    del results
    times = interleave({"ours": ours, "full": full}, **rounds(smoke))
    # The gradient of the weight stays between runs: both sides need it whole.
    return [
        *memory_ratio(case, ours, full, 0.25),
        speedup(case, "full logits and log_softmax", times["full"], times["ours"]),
    ]
