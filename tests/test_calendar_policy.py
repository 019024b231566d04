"""The embedded policy for the calendar: demonstrations of dialogues, tokenizer, warm start."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from matchtir import parse_turn
from matchtir.tasks.embedded import CALENDAR, EmbeddedConfig, embedded_tasks
from matchtir.tasks.embedded.phrases import read_request
from matchtir.tools import ToolRegistry
from matchtir.types import Task, ToolCall

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from matchtir.train.embedded import (  # noqa: E402
    Stage,
    demonstration,
    embedded_tokenizer,
    load_embedded_policy,
    warm_start,
)
from matchtir.train.embedded.calls import MAX_TURNS, open_environment, run_embedded_tool  # noqa: E402
from matchtir.train.embedded.examples import examples, own_tokens, render  # noqa: E402

TOKENIZER = embedded_tokenizer(calendar=True)
TASKS = embedded_tasks(EmbeddedConfig(mix=CALENDAR, test_size=300), "test")
FAILING = embedded_tasks(EmbeddedConfig(mix=CALENDAR, train_size=100, error_rate=1.0))
TINY = (Stage("tiny", 9.0, 3, faultless=True, settles=True, user_turns=(1, 1)),)
Messages = list[dict[str, Any]]


def never(probability: float) -> bool:
    return False


def likely(probability: float) -> bool:
    return probability > 0.5


def replayed(task: Task, messages: Messages) -> tuple[list[list[ToolCall]], list[float]]:
    """The calls of each user turn, and what the judge says; checks what the tools answer on the way."""
    assert task.environment is not None
    week, tools = open_environment(task.environment), {tool.name: tool for tool in task.tools}
    calls: list[list[ToolCall]] = []
    outcomes, results = [], []
    for message in messages:
        if message["role"] == "user":
            calls.append([])
        elif message["role"] == "tool":
            assert message["content"] == results.pop(0)
        else:
            turn = parse_turn(message["content"], "hermes")
            calls[-1] += turn.calls
            results += [run_embedded_tool(tools[c.name], c.arguments, week) for c in turn.calls]
            if not turn.calls:
                outcomes.append(week.judge(answer=turn.answer))
    assert not results
    return calls, outcomes


def success(tasks: list[Task], chance: Any) -> float:
    return sum(all(replayed(t, demonstration(t, 0, chance))[1]) for t in tasks) / len(tasks)


# Demonstrations


def test_demonstrations_without_mistakes_make_the_gold_calls() -> None:
    assert success(TASKS + FAILING, never) == 1.0
    for task in TASKS + FAILING:
        calls, _ = replayed(task, demonstration(task, 0, never))
        gold = [task.gold_calls, *(turn.gold_calls for turn in task.later)]
        failed = 0
        for made, wanted in zip(calls, gold, strict=True):
            pairs = [(call.name, dict(call.arguments)) for call in made]
            assert [pair for pair in pairs if pair in [(c.name, dict(c.arguments)) for c in wanted]] == [
                (c.name, dict(c.arguments)) for c in wanted
            ]
            failed += len(made) - len(wanted)
        assert failed in (0, 1)


def test_demonstrations_fail_in_a_pattern() -> None:
    assert 0.4 <= success(TASKS, likely) <= 0.6
    assert success(TASKS, likely) < success(TASKS, None) - 0.05 < success(TASKS, never)


def test_each_mistake_is_made_where_it_can_be() -> None:
    found = dict.fromkeys(("sibling", "half", "check", "verb", "stale", "ignore"), 0)
    for task in TASKS + FAILING:
        messages = demonstration(task, 0, likely)
        calls, _ = replayed(task, messages)
        requests = [read_request(m["content"]) for m in messages if m["role"] == "user"]
        for k, ((opening, parts), made) in enumerate(zip(requests, calls, strict=True)):
            names = [call.name for call in made]
            places = [part.place for part in parts]
            found["sibling"] += "starter" in places and "closer" in names and "opener" not in names
            found["half"] += k > 0 and len(parts) == 2 and opening == "Now " and len(names) <= parts[0].calls
            found["check"] += opening == "Please " and names[-1] == "find" and not parts[-1].asks
            found["verb"] += parts[0].verb == "shift" and "book" in names and len(parts) == 1
            found["stale"] += parts[0].like is not None and names[:2] == ["find", "book"]
        text = json.dumps(messages)
        found["ignore"] += text.count("occupied; use") > 0
    assert min(found.values()) > 5, found


def test_demonstrations_stay_within_the_turns_and_depend_on_the_seed() -> None:
    for task in FAILING:
        messages = demonstration(task, 1)
        assert messages == demonstration(task, 1)
        users = [i for i, message in enumerate(messages) if message["role"] == "user"]
        assert len(users) == 1 + len(task.later)
        for begin, end in zip(users, [*users[1:], len(messages)], strict=True):
            roles = [message["role"] for message in messages[begin:end]]
            assert roles.count("assistant") <= MAX_TURNS
            assert messages[end - 1]["content"].startswith("<answer>")


def test_sandbox_answers_as_the_demonstrations_say() -> None:
    from matchtir.tools import Sandbox

    with Sandbox(workers=1) as box:
        for task in [*TASKS[:8], *FAILING[:4]]:
            assert task.environment is not None
            environment = task.environment
            registry = ToolRegistry(task.tools)
            with box.open(environment.source, environment.name, environment.arguments) as week:
                seen, results, outcomes = [], [], []
                messages = demonstration(task, 3)
                for message in messages:
                    if message["role"] == "tool":
                        results.append(message["content"])
                    elif message["role"] == "assistant":
                        turn = parse_turn(message["content"], "hermes")
                        seen += [x.text for x in registry.run(turn.calls, box, week)]
                        if not turn.calls:
                            outcomes.append(week.call("judge", {"answer": turn.answer}).value)
            assert seen == results
            assert outcomes == replayed(task, messages)[1]


# Tokenizer and template


def test_tokenizer_of_the_calendar_has_the_old_ids_and_gives_every_text_back() -> None:
    old, new = embedded_tokenizer().get_vocab(), TOKENIZER.get_vocab()
    assert old.items() <= new.items()
    assert TOKENIZER.chat_template == embedded_tokenizer().chat_template
    for k, task in enumerate(TASKS[:60] + FAILING[:60]):
        text = render(TOKENIZER, task, demonstration(task, k))
        ids = TOKENIZER(text).input_ids
        assert TOKENIZER.unk_token_id not in ids
        assert TOKENIZER.decode(ids) == text


def test_prompts_and_dialogues_fit_the_embedded_default() -> None:
    for k, task in enumerate(TASKS):
        messages = demonstration(task, k)
        schemas = ToolRegistry(task.tools).schemas()
        prompt = TOKENIZER.apply_chat_template(messages[:1], tools=schemas, add_generation_prompt=True)
        assert len(prompt["input_ids"] if isinstance(prompt, dict) else prompt) <= 200
        assert len(TOKENIZER(render(TOKENIZER, task, messages)).input_ids) <= 400


def test_own_tokens_are_those_of_assistants_in_all_user_turns() -> None:
    task = next(task for task in TASKS if len(task.later) == 2)
    messages = demonstration(task, 0)
    ids = torch.tensor([TOKENIZER(render(TOKENIZER, task, messages)).input_ids])
    written = TOKENIZER.decode(ids[0][own_tokens(ids, TOKENIZER)[0]])
    assert written == "".join(m["content"] + "<|im_end|>" for m in messages if m["role"] == "assistant")
    text = render(TOKENIZER, task, messages)
    assert f"</answer><|im_end|><|user|>{task.later[0].messages[0]['content']}<|assistant|>" in text


# Training


def test_exchanged_names_keep_a_dialogue_in_known_pieces() -> None:
    batch = next(examples(TOKENIZER, EmbeddedConfig(mix=CALENDAR), 3, 4))
    text = TOKENIZER.batch_decode(batch.ids)
    assert TOKENIZER.unk_token_id not in batch.ids
    assert all("<|user|>" in one and "<answer>" in one for one in text)


def test_warm_start_of_the_calendar_is_a_policy_with_its_vocabulary(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("matchtir.train.embedded.warmstart.BATCH", 4)
    record = warm_start(1, tmp_path / "a", lambda line: None, mix=CALENDAR, stages=TINY)
    assert (record["mix"], record["stages"][0]["steps"]) == (CALENDAR, 3)
    model, tokenizer = load_embedded_policy(tmp_path / "a")
    assert tokenizer.get_vocab() == TOKENIZER.get_vocab()
    assert model.config.vocab_size == len(TOKENIZER) == 218
    again = replace(TINY[0], most_steps=3)
    assert warm_start(1, tmp_path / "b", lambda line: None, mix=CALENDAR, stages=(again,)) == record
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
