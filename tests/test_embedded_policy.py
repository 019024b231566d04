"""The embedded policy: its tokenizer and template, its demonstrations, its warm start, what ships."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import matchtir
from matchtir import Trajectory, parse_turn
from matchtir.errors import ConfigError, InputError, TrainingError
from matchtir.evals import measure
from matchtir.tasks.embedded import EmbeddedConfig, embedded_tasks, tokenize
from matchtir.tools import Sandbox, ToolRegistry, run_turns
from matchtir.types import Task, ToolCall, Turn

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from matchtir.cli.warmstart import add_command  # noqa: E402
from matchtir.train.embedded import (  # noqa: E402
    Stage,
    demonstration,
    embedded_tokenizer,
    load_embedded_policy,
    new_policy,
    warm_start,
)
from matchtir.train.embedded.demonstrations import call_text, run_embedded_tool  # noqa: E402
from matchtir.train.embedded.examples import examples, exchange_names, own_tokens, render  # noqa: E402

TOKENIZER = embedded_tokenizer()
TASKS = embedded_tasks(EmbeddedConfig(train_size=150))
FAILING = embedded_tasks(EmbeddedConfig(train_size=40, error_rate=1.0))
TALKS = [(task, demonstration(task, seed)) for seed, task in enumerate(TASKS + FAILING)]
SHIPPED = Path(matchtir.__file__).parent / "data" / "embedded"
TINY = (Stage("tiny", 8.0, 12, {"single_hop": 1.0}, tools=2, faultless=True, settles=True),)


def never(probability: float) -> bool:
    return False


def always(probability: float) -> bool:
    return True


def likely(probability: float) -> bool:
    return probability > 0.5


def calls_of(messages: Sequence[dict[str, Any]]) -> list[tuple[tuple[ToolCall, ...], list[str]]]:
    """The calls of each assistant turn and what the tool messages after it say."""
    turns: list[tuple[tuple[ToolCall, ...], list[str]]] = []
    for message in messages:
        if message["role"] == "assistant":
            turns.append((parse_turn(message["content"], "hermes").calls, []))
        elif message["role"] == "tool":
            turns[-1][1].append(message["content"])
    return turns


def trajectory(task: Task, messages: Sequence[dict[str, Any]]) -> Trajectory:
    turns = []
    for message in messages[len(task.messages) :]:
        if message["role"] == "assistant":
            turns.append(parse_turn(message["content"], "hermes"))
    for k, (calls, results) in enumerate(calls_of(messages)):
        told = tuple(replace(call, result=result) for call, result in zip(calls, results, strict=True))
        turns[k] = replace(turns[k], calls=told)
    return Trajectory(
        tuple(turns), task.gold_calls, task.gold_answer, task.id, None, task.sub_answers, task.kind
    )


def mean_f1(tasks: Sequence[Task], chance: Any) -> float:
    found = [measure(trajectory(task, demonstration(task, 0, chance))).solve_f1 for task in tasks]
    return sum(f1 for f1 in found if f1 is not None) / len(found)


# Tokenizer and template


def test_tokenizer_gives_every_text_back_in_known_pieces():
    for task, messages in TALKS:
        text = render(TOKENIZER, task, messages)
        ids = TOKENIZER(text).input_ids
        assert TOKENIZER.decode(ids) == text
        assert TOKENIZER.unk_token_id not in ids
        # One token a piece of the vocabulary, and one a marker.
        for message in messages:
            assert len(TOKENIZER(message["content"]).input_ids) == len(tokenize(message["content"]))


def test_tokenizer_marks_unknown_text_and_markers():
    ids = TOKENIZER("mayor of nowhere<|im_end|>").input_ids
    assert TOKENIZER.convert_ids_to_tokens(ids) == ["mayor", " of ", "<unk>", "<|im_end|>"]
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == "mayor of "
    assert (TOKENIZER.eos_token, TOKENIZER.pad_token) == ("<|im_end|>", "<|pad|>")


@pytest.mark.parametrize("index", range(0, len(TALKS), 11))
def test_template_of_a_conversation_begins_with_that_of_its_beginning(index):
    task, messages = TALKS[index]
    schemas = ToolRegistry(task.tools).schemas()

    def text(count: int, **options: Any) -> str:
        return str(TOKENIZER.apply_chat_template(messages[:count], tools=schemas, tokenize=False, **options))

    whole = text(len(messages))
    for count in range(1, len(messages) + 1):
        assert whole.startswith(text(count))
        following = messages[count]["role"] if count < len(messages) else None
        if following == "assistant":
            asked = text(count, add_generation_prompt=True)
            assert asked == text(count) + "<|assistant|>"
            assert text(count + 1) == asked + messages[count]["content"] + "<|im_end|>"
    assert whole.startswith("<|system|>" + json.dumps(schemas[0]) + "\n" + json.dumps(schemas[1]) + "\n")


def test_template_writes_calls_of_fields_as_text():
    call = ToolCall("mayor", {"town": "Baldor"})
    user = {"role": "user", "content": "Give the mayor of Baldor."}
    for arguments in (dict(call.arguments), json.dumps(dict(call.arguments))):
        entry = {"type": "function", "function": {"name": call.name, "arguments": arguments}}
        message = {"role": "assistant", "content": None, "tool_calls": [entry, entry]}
        text = TOKENIZER.apply_chat_template([user, message], tokenize=False)
        assert text == f"<|user|>{user['content']}<|assistant|>{2 * call_text(call)}<|im_end|>"


def test_template_refuses_an_unknown_role():
    with pytest.raises(Exception, match="role is critic; expected system, user"):
        TOKENIZER.apply_chat_template([{"role": "critic", "content": "no"}], tokenize=False)


def test_own_tokens_are_what_assistants_wrote():
    task, messages = next(x for x in TALKS if len(x[1]) > 5)
    ids = torch.tensor(
        [TOKENIZER(render(TOKENIZER, task, messages)).input_ids + 3 * [TOKENIZER.pad_token_id]]
    )
    own = own_tokens(ids, TOKENIZER)[0]
    written = TOKENIZER.decode(ids[0][own])
    assert written == "".join(m["content"] + "<|im_end|>" for m in messages if m["role"] == "assistant")
    others = TOKENIZER.decode(ids[0][~own])
    assert "<|im_end|>" not in others
    assert others.count("<|tool|>") == sum(m["role"] == "tool" for m in messages)


# Demonstrations


def test_demonstrations_hold_what_the_sandbox_answers():
    turns = [(ToolRegistry(task.tools), calls) for task, messages in TALKS for calls, _ in calls_of(messages)]
    said = [results for _, messages in TALKS for _, results in calls_of(messages)]
    with Sandbox(workers=1) as box:
        found = run_turns(turns, box)
    assert [[seen.text for seen in turn] for turn in found] == said
    assert sum(map(len, said)) > 300
    assert any('{"error"' in text for turn in said for text in turn)


def test_demonstrations_without_mistakes_solve_every_task():
    for task in TASKS + FAILING:
        messages = demonstration(task, 0, never)
        rollout = trajectory(task, messages)
        assert rollout.turns[-1].answer == task.gold_answer
        found = measure(rollout)
        assert found.solve_r == 1
        # All calls of one depth stand in one turn; a failed attempt costs one more.
        failed = found.calls - len(task.gold_calls)
        assert failed in (0, 1)
        assert found.turns <= 6


def test_demonstrations_fail_in_a_pattern():
    test = embedded_tasks(split="test")
    assert 0.25 <= mean_f1(test, likely) <= 0.40
    assert mean_f1(test, likely) < mean_f1(test, None) - 0.05 < mean_f1(test, never)
    assert mean_f1(test, always) == pytest.approx(mean_f1(test, likely))


def test_demonstrations_depend_on_the_seed_alone():
    task = TASKS[0]
    assert demonstration(task, 5) == demonstration(task, 5)
    assert len({json.dumps(demonstration(task, seed)) for seed in range(20)}) > 1


def test_demonstrations_end_with_an_answer_within_the_turns():
    for chance in (never, always, None):
        for task in FAILING:
            turns = calls_of(demonstration(task, 1, chance))
            assert 1 < len(turns) <= 6
            assert all(calls for calls, _ in turns[:-1])
            assert not turns[-1][0]


def test_tool_runs_as_in_the_sandbox():
    (tool,) = [tool for tool in TASKS[0].tools if tool.name == TASKS[0].gold_calls[0].name]
    call = TASKS[0].gold_calls[0]
    wrong = replace(call, arguments={next(iter(call.arguments)): "Baldorx"})
    with Sandbox(workers=1) as box:
        seen = ToolRegistry([tool]).run([call, wrong], box)
    assert [run_embedded_tool(tool, c.arguments) for c in (call, wrong)] == [x.text for x in seen]


# Training


def test_exchanged_names_keep_a_conversation_whole():
    task, messages = next(x for x in TALKS if x[0].kind == "multi_hop" and len(x[1]) > 5)
    text = render(TOKENIZER, task, messages)
    ids = torch.tensor(TOKENIZER(text).input_ids)
    changed = TOKENIZER.decode(exchange_names(ids, TOKENIZER, torch.Generator().manual_seed(1)))
    name = re.compile(r"\b[A-Z][a-z]{5}\b")
    old, new = name.findall(text), name.findall(changed)
    assert name.sub("@", changed) == name.sub("@", text)
    assert old != new
    assert [x[:3] for x in old] == [x[:3] for x in new]
    # The same name stays the same, and different names stay different.
    assert len(set(zip(old, new, strict=True))) == len(set(old)) == len(set(new))


def test_examples_come_from_the_seed():
    config = EmbeddedConfig(mix="easy")
    first, again, other = (next(examples(TOKENIZER, config, seed, 4)) for seed in (3, 3, 4))
    assert torch.equal(first.ids, again.ids)
    assert torch.equal(first.own, again.own)
    assert first.ids.shape != other.ids.shape or not torch.equal(first.ids, other.ids)


def test_new_policy_depends_on_the_seed_and_leaves_torch_alone():
    state = torch.get_rng_state()
    weights = [new_policy(seed).model.embed_tokens.weight for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert sum(p.numel() for p in new_policy(0).parameters()) < 300_000


def test_warm_start_is_deterministic_and_lowers_the_loss(tmp_path, monkeypatch):
    monkeypatch.setattr("matchtir.train.embedded.warmstart.BATCH", 8)
    lines: list[str] = []
    longer = (replace(TINY[0], most_steps=25),)
    record = warm_start(7, tmp_path / "a", lines.append, stages=longer)
    assert warm_start(7, tmp_path / "b", lines.append, stages=longer) == record
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    assert lines[0] == lines[1]
    assert lines[0].startswith("tiny: step 25, loss ")
    assert json.loads((tmp_path / "a/warmstart.json").read_text()) == record
    assert record["attempt"] == 1

    trained, _ = load_embedded_policy(tmp_path / "a")
    batch = next(examples(TOKENIZER, EmbeddedConfig(mix={"single_hop": 1.0}, tools=2), 99, 16))

    def loss(model: Any) -> float:
        with torch.no_grad():
            logits = model(batch.ids[:, :-1]).logits[batch.own[:, 1:]]
        return float(torch.nn.functional.cross_entropy(logits, batch.ids[:, 1:][batch.own[:, 1:]]))

    assert loss(trained) < 0.5 * loss(new_policy(7))


def test_warm_start_that_does_not_learn_tries_other_weights_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("matchtir.train.embedded.warmstart.BATCH", 8)
    lines: list[str] = []
    hopeless = (replace(TINY[0], most_steps=2, threshold=0),)
    with pytest.raises(TrainingError, match=r"not learnt 'tiny' in 2 steps: loss .*, expected below 0"):
        warm_start(0, tmp_path / "out", lines.append, stages=hopeless)
    assert list(tmp_path.iterdir()) == []
    assert len(set(lines)) == 2
    assert all(line.endswith("starting again with other weights") for line in lines)


def test_warm_start_refuses_a_used_folder_and_an_unknown_mix(tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used/file").touch()
    with pytest.raises(InputError, match="is there already; expected a new or an empty folder"):
        warm_start(0, tmp_path / "used", stages=TINY)
    with pytest.raises(InputError, match="there is no folder"):
        warm_start(0, tmp_path / "none/out", stages=TINY)
    with pytest.raises(ConfigError, match="mix is 'hard'"):
        warm_start(0, tmp_path / "out", mix="hard", stages=TINY)


def test_command_makes_a_policy(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "matchtir.train.embedded.warm_start.__kwdefaults__", {"mix": "sparse", "stages": TINY}
    )
    parser = argparse.ArgumentParser()
    add_command(parser.add_subparsers())
    args = parser.parse_args(["warmstart", "-o", str(tmp_path / "out"), "--seed", "3", "--mix", "easy"])
    assert args.run(args) == 0
    record = json.loads((tmp_path / "out/warmstart.json").read_text())
    assert (record["seed"], record["mix"], record["stages"][0]["steps"]) == (3, "easy", 12)
    assert "12 steps, final loss" in capsys.readouterr().err


# What ships


def test_shipped_policy_is_small_and_imitates_the_script():
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 1_000_000
    model, tokenizer = load_embedded_policy()
    assert model.dtype == torch.float32
    assert tokenizer.get_vocab() == TOKENIZER.get_vocab()
    assert tokenizer.chat_template == TOKENIZER.chat_template
    batch = next(examples(tokenizer, EmbeddedConfig(), 123456, 16))
    with torch.no_grad():
        logits = model(batch.ids[:, :-1]).logits
    assert torch.isfinite(logits).all()
    chosen = batch.own[:, 1:]
    loss = torch.nn.functional.cross_entropy(logits[chosen], batch.ids[:, 1:][chosen])
    assert loss < 0.2


def test_shipped_policy_copies_names_of_the_other_split():
    model, tokenizer = load_embedded_policy()
    right = asked = 0
    for task in embedded_tasks(EmbeddedConfig(mix={"multi_hop": 1.0}, test_size=40, error_rate=0), "test"):
        messages = demonstration(task, 0, never)
        ids = torch.tensor([tokenizer(render(tokenizer, task, messages[:4])).input_ids])
        name = messages[2]["content"]
        pieces = tokenizer(name).input_ids
        with torch.no_grad():
            likeliest = model(ids).logits[0].argmax(-1)[:-1]
        own = own_tokens(ids, tokenizer)[0]
        second_turn = [
            t for t in range(ids.shape[1]) if own[t] and t > int((ids[0] == pieces[0]).nonzero()[0])
        ]
        places = [t for t in second_turn if ids[0, t] in pieces]
        right += all(likeliest[t - 1] == ids[0, t] for t in places)
        asked += 1
    assert asked == 40
    assert right / asked > 0.8


@pytest.mark.parametrize(
    ("name", "words"), [("missing", "is no folder; expected one that"), ("", "without config.json")]
)
def test_wrong_folder_is_named(tmp_path, name, words):
    with pytest.raises(ConfigError, match=words):
        load_embedded_policy(tmp_path / name)


def test_trained_text_parses_as_turns():
    for _, messages in TALKS[:30]:
        for message in messages:
            if message["role"] == "assistant":
                turn = parse_turn(message["content"], "hermes")
                assert isinstance(turn, Turn)
                assert turn.calls or turn.answer is not None
                assert all(call.malformed is None for call in turn.calls)
