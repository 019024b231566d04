"""The decode loop: tokens and log-probabilities against whole forward passes of the same model."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from matchtir.errors import ConfigError  # noqa: E402
from matchtir.rollout import decode as decode_module  # noqa: E402
from matchtir.rollout.decode import DecodeEngine  # noqa: E402
from matchtir.rollout.engine import Reply, Request  # noqa: E402
from matchtir.rollout.sampling import Streams, choose  # noqa: E402

STOP = 1
VOCABULARY = 40


def tiny_model(family="Qwen3", **changes):
    """A random model of two layers in float32, whose next tokens are far from certain."""
    torch.manual_seed(0)
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": STOP,
        "pad_token_id": 0,
    } | ({"head_dim": 8} if family == "Qwen3" else {})
    config = getattr(transformers, f"{family}Config")(**settings | changes)
    return getattr(transformers, f"{family}ForCausalLM")(config).eval()


def prompts(count, seed=0, longest=30):
    random = np.random.default_rng(seed)
    return [random.integers(2, VOCABULARY, random.integers(1, longest)).tolist() for _ in range(count)]


class Script:
    """An environment: replies of these lengths turn after turn, and a record of all that was said."""

    def __init__(self, starts, lengths, budget=9):
        self.tokens = [list(start) for start in starts]
        self.logps = [[0.0] * len(start) for start in starts]
        self.spans = [[] for _ in starts]
        self.stopped = [[] for _ in starts]
        self.lengths, self.budget = lengths, budget

    def __call__(self, ended):
        return [self.reply(one) for one in ended]

    def reply(self, one):
        i = one.request
        self.spans[i].append((len(self.tokens[i]), len(self.tokens[i]) + len(one.tokens)))
        self.tokens[i] += one.tokens
        self.logps[i] += one.logps
        self.stopped[i].append(one.stopped)
        turn = len(self.spans[i]) - 1
        if turn >= len(self.lengths):
            return None
        length = self.lengths[turn] + i % 3
        words = [(7 * i + 3 * turn + k) % (VOCABULARY - 2) + 2 for k in range(length)]
        self.tokens[i] += words
        self.logps[i] += [0.0] * length
        return Reply(words, self.budget)


def sample(model, starts, lengths, *, budget=9, greedy=False, temperature=1.0, batch_size=None, seed=5):
    script = Script(starts, lengths, budget)
    engine = DecodeEngine(model, {STOP}, batch_size)
    requests = [Request(start, budget, (seed, i)) for i, start in enumerate(starts)]
    engine.run(requests, script, temperature=temperature, greedy=greedy)
    return script


def whole_logps(model, tokens, temperature=1.0):
    """Log-probabilities of all next tokens, each predicted by one pass over everything before it."""
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0] / temperature
    return torch.log_softmax(logits.float(), -1)


def check_logps(model, script, temperature=1.0):
    for tokens, logps, spans in zip(script.tokens, script.logps, script.spans, strict=True):
        expected = whole_logps(model, tokens, temperature)
        for start, stop in spans:
            for t in range(start, stop):
                assert logps[t] == pytest.approx(expected[t - 1, tokens[t]].item(), abs=2e-5)


@pytest.mark.parametrize("family", ["Qwen3", "Llama", "Qwen2"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logps_are_those_of_whole_passes(family, attention):
    model = tiny_model(family)
    model.set_attn_implementation(attention)
    # Replies of which some go along with the loop and some are prefilled beside it.
    starts = prompts(11) + prompts(3)
    script = sample(model, starts, [1, 2 * decode_module._FORCED_AT_MOST, 5], temperature=0.7)
    assert all(len(spans) == 4 for spans in script.spans)
    assert {True, False} == {one for stopped in script.stopped for one in stopped}
    check_logps(model, script, temperature=0.7)


def test_greedy_tokens_are_the_likeliest():
    model = tiny_model()
    script = sample(model, prompts(6), [3, 20], greedy=True)
    for tokens, spans in zip(script.tokens, script.spans, strict=True):
        expected = whole_logps(model, tokens).argmax(-1)
        for start, stop in spans:
            assert tokens[start:stop] == expected[start - 1 : stop - 1].tolist()


def test_greedy_equals_generate():
    model = tiny_model()
    for start, tokens in zip(prompts(5), sample(model, prompts(5), [], greedy=True).tokens, strict=True):
        generated = model.generate(torch.tensor([start]), max_new_tokens=9, do_sample=False)
        assert tokens == generated[0].tolist()


def test_turns_end_at_stop_token_or_budget():
    script = sample(tiny_model(), prompts(20), [2, 2], budget=6)
    for tokens, spans, stopped in zip(script.tokens, script.spans, script.stopped, strict=True):
        for (start, stop), by_token in zip(spans, stopped, strict=True):
            turn = tokens[start:stop]
            assert STOP not in turn[:-1]
            assert by_token == (turn[-1] == STOP)
            assert by_token or len(turn) == 6


def test_draws_depend_on_the_key_alone():
    model = tiny_model()
    starts = prompts(10)
    together = sample(model, starts, [3, 30])
    in_waves = sample(model, starts, [3, 30], batch_size=3)
    assert together.tokens == in_waves.tokens
    alone = Script(starts, [3, 30])
    engine = DecodeEngine(model, {STOP})

    def respond(ended):
        return [alone.reply(one._replace(request=7)) for one in ended]

    engine.run([Request(starts[7], 9, (5, 7))], respond, temperature=1.0)
    assert alone.tokens[7] == together.tokens[7]
    assert sample(model, starts, [3, 30], seed=6).tokens != together.tokens


def test_same_run_is_the_same_bits():
    model = tiny_model()
    first, second = (sample(model, prompts(9), [4, 15]) for _ in range(2))
    assert first.logps == second.logps


def passes_of(model, monkeypatch):
    """Shapes of what the model is fed from now on."""
    fed = []
    decoder = model.get_decoder()
    monkeypatch.setattr(
        decoder,
        "forward",
        lambda *a, _f=decoder.forward, **k: fed.append(tuple(k["input_ids"].shape)) or _f(*a, **k),
    )
    return fed


@pytest.mark.parametrize("size", [1, 2, 5])
def test_rows_that_end_make_room_for_those_that_wait(size, monkeypatch):
    model = tiny_model()
    fed = passes_of(model, monkeypatch)
    # Groups of three, so that prompts are found in the own slot, in another, and nowhere.
    starts = [start for start in prompts(5) for _ in range(3)]
    script = sample(model, starts, [1, 20, 5], batch_size=size)
    assert max(rows for rows, _ in fed) == size
    monkeypatch.undo()
    check_logps(model, script)
    assert script.tokens == sample(model, starts, [1, 20, 5]).tokens


def test_short_turns_do_not_wait_for_long_ones(monkeypatch):
    model = tiny_model()
    fed = passes_of(model, monkeypatch)
    monkeypatch.setattr(DecodeEngine, "stops", lambda self, token: False)
    starts = [start for start in prompts(40) if len(start) > 12][:12]
    budgets = [40, 2, 2, 2] * 3
    requests = [
        Request(start, budget, (i,)) for i, (start, budget) in enumerate(zip(starts, budgets, strict=True))
    ]
    DecodeEngine(model, {STOP}, 4).run(requests, lambda ended: [None] * len(ended), temperature=1.0)
    # Three waves of four would take three times 39 passes.
    assert sum(width == 1 for _, width in fed) < 50


def test_prompt_of_a_group_is_fed_once_though_its_rows_wait(monkeypatch):
    model = tiny_model()
    fed = passes_of(model, monkeypatch)
    start = prompts(1, seed=3, longest=30)[0]
    assert len(start) > 12
    sample(model, [start] * 6, [], budget=4, batch_size=2)
    assert [shape for shape in fed if shape[1] > 1] == [(1, len(start))]


def test_equal_prompts_are_prefilled_once(monkeypatch):
    model = tiny_model()
    fed = passes_of(model, monkeypatch)
    start = prompts(1, longest=30)[0]
    script = sample(model, [start] * 8, [], budget=1)
    assert fed == [(1, len(start))]
    assert len({tuple(tokens) for tokens in script.tokens}) > 1


@pytest.mark.parametrize(("limit", "value"), [("_PREFILL_TOKENS", 40), ("_PREFILL_KEYS", 90)])
def test_rows_of_long_prompts_are_prefilled_in_parts(limit, value, monkeypatch):
    monkeypatch.setattr(decode_module, limit, value)
    model = tiny_model()
    check_logps(model, sample(model, prompts(7), [25, 3]))


def test_nothing_to_sample_is_nothing():
    DecodeEngine(tiny_model(), {STOP}).run([], lambda ended: pytest.fail("no turn"), temperature=1.0)


def test_training_mode_and_attention_are_put_back():
    model = tiny_model(attention_dropout=0.5).train()
    with pytest.raises(KeyError):
        DecodeEngine(model, {STOP}).run([Request([3], 1, (0,))], lambda ended: {}["broken"], temperature=1.0)
    assert model.training


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("Mistral", {"sliding_window": 16}),
        (
            "Qwen3",
            {"layer_types": ["sliding_attention"] * 2, "use_sliding_window": True, "sliding_window": 4},
        ),
    ],
)
def test_windowed_attention_is_refused(family, changes):
    with pytest.raises(ConfigError, match="continuous"):
        DecodeEngine(tiny_model(family, **changes), {STOP})


def test_choose_follows_the_distribution():
    logits = torch.tensor([[0.0, 1.0, -1.0, 2.0]]).expand(40_000, 4)
    streams = Streams([(3, i) for i in range(40_000)])
    tokens, logps = choose(logits, 2.0, streams.draw(range(40_000)))
    expected = torch.softmax(logits[0] / 2.0, -1)
    found = torch.bincount(tokens, minlength=4) / 40_000
    # Five standard deviations of a share.
    assert ((found - expected).abs() < 5 * (expected * (1 - expected) / 40_000).sqrt()).all()
    assert torch.allclose(logps.exp(), expected[tokens])


@pytest.mark.parametrize("uniform", [0.0, 0.25, 1 - 2**-53])
def test_choose_takes_no_impossible_token(uniform):
    logits = torch.full((3, 7), -torch.inf)
    logits[0, 2], logits[1, 6], logits[2, 0] = 0.3, 50.0, -40.0
    tokens, logps = choose(logits, 1.0, np.full(3, uniform))
    assert tokens.tolist() == [2, 6, 0]
    assert logps.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("greedy", [False, True])
def test_logits_that_are_nan_are_not_hidden(greedy):
    logits = torch.tensor([[0.0, torch.nan, 1.0], [0.0, 1.0, 2.0]])
    tokens, logps = choose(logits, 1.0, None if greedy else np.full(2, 0.9))
    assert 0 <= int(tokens[0]) < 3
    assert logps.isnan().tolist() == [True, False]


def test_streams_repeat_nothing():
    streams = Streams([(1, 2), (1, 3)])
    first = np.array([streams.draw([0, 1]) for _ in range(200)])
    assert len(np.unique(first)) == 400
    again = Streams([(1, 3)])
    assert [again.draw([0])[0] for _ in range(200)] == first[:, 1].tolist()
