"""What the adapters share: turns from token ids and a mask, gold calls from tables, settings by method."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

pytest.importorskip("transformers", reason='tokenizers need pip install "matchtir[train]"')

import torch
from chat_templates import chat_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from matchtir import CreditConfig, Ragged, assign_advantages, assign_credit, assign_rewards, scatter
from matchtir.advantages import group_ids
from matchtir.errors import ConfigError, InputError
from matchtir.integrations.settings import credit_config
from matchtir.integrations.token_rewards import at_turn_ends, token_advantages
from matchtir.integrations.turns import TurnReader, gold_calls
from matchtir.methods import METHODS

CALLS = {
    "qwen2": '<tool_call>\n{"name": "mayor", "arguments": {"city": "Baldor"}}\n</tool_call>',
    "llama": '{"name": "mayor", "parameters": {"city": "Baldor"}}',
    "mistral": '[TOOL_CALLS] [{"name": "mayor", "arguments": {"city": "Baldor"}, "id": "call00000"}]',
}
GOLD = [{"name": "mayor", "arguments": {"city": "Baldor"}}]


def encoded(tokenizer: Any, parts: list[tuple[str, int]]) -> tuple[list[int], list[int]]:
    """Ids and mask of texts, each with its mask."""
    ids: list[int] = []
    mask: list[int] = []
    for text, own in parts:
        found = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids += found
        mask += [own] * len(found)
    return ids, mask


@pytest.mark.parametrize("model", CALLS)
def test_turns_are_the_runs_of_the_mask_in_each_format(model: str) -> None:
    tokenizer = chat_tokenizer(model)
    reader = TurnReader(tokenizer)
    end = tokenizer.eos_token
    parts = [(CALLS[model] + end, 1), ("Solnel", 0), ("<answer>Solnel</answer>" + end, 1)]
    ids, mask = encoded(tokenizer, parts)
    judged_by = {"group": 0, "gold_calls": GOLD, "gold_answer": "Solnel"}
    trajectory, spans = reader.read(ids, mask, judged_by)
    assert [[call.name for call in turn.calls] for turn in trajectory.turns] == [["mayor"], []]
    assert (trajectory.turns[1].answer, trajectory.turns[1].text) == ("Solnel", "<answer>Solnel</answer>")
    bounds = np.cumsum([0, *(len(encoded(tokenizer, [part])[0]) for part in parts)])
    assert spans.tolist() == [[bounds[0], bounds[1]], [bounds[2], bounds[3]]]
    assert assign_rewards([trajectory]).turn_rewards.tolist() == [[1.0, 1.0]]


def test_marker_that_the_environment_writes_makes_no_turn() -> None:
    tokenizer = chat_tokenizer("qwen2")
    ids, mask = encoded(
        tokenizer, [(CALLS["qwen2"], 1), ("<|im_start|>assistant\n" + CALLS["qwen2"], 0), ("No.", 1)]
    )
    trajectory, spans = TurnReader(tokenizer).read(ids, mask, {"group": 0, "gold_calls": GOLD})
    assert len(spans) == len(trajectory.turns) == 2
    assert len(trajectory.calls) == 1


def test_without_a_mask_all_is_one_turn_and_nothing_is_none() -> None:
    tokenizer = chat_tokenizer("qwen2")
    reader = TurnReader(tokenizer, "hermes")
    ids, _ = encoded(tokenizer, [("<answer>4</answer>", 1)])
    trajectory, spans = reader.read(ids, None, {"group": 0})
    assert (len(trajectory.turns), spans.tolist()) == (1, [[0, len(ids)]])
    empty, none = reader.read([], [], {"group": 0})
    assert (empty.turns, none.shape) == ((), (0, 2))
    masked, none = reader.read(ids, [0] * len(ids), {"group": 0})
    assert (masked.turns, none.shape) == ((), (0, 2))


def test_results_are_found_by_the_name_of_the_tool() -> None:
    tokenizer = chat_tokenizer("qwen2")
    other = CALLS["qwen2"].replace("mayor", "age")
    ids, mask = encoded(
        tokenizer, [(CALLS["qwen2"] + other, 1), ("Solnel", 0), ("<answer>Solnel</answer>", 1)]
    )
    reader = TurnReader(tokenizer)
    assistant: dict[str, Any] = {"role": "assistant", "content": ""}
    # As a host that runs some of them beside the others: in another order.
    age = {"role": "tool", "name": "age", "content": [{"type": "text", "text": "50"}]}
    mayor = {"role": "tool", "name": "mayor", "content": "Solnel"}
    found = reader.read(ids, mask, {"group": 0}, [assistant, age, mayor, assistant])[0]
    assert [call.result for call in found.calls] == ["Solnel", "50"]
    found = reader.read(ids, mask, {"group": 0}, [assistant, age, assistant])[0]
    assert [call.result for call in found.calls] == ["", "50"]
    # One message for all turns tells nothing.
    found = reader.read(ids, mask, {"group": 0}, [assistant])[0]
    assert [call.result for call in found.calls] == [None, None]


def test_calls_of_the_hosts_messages_are_read_where_asked_for() -> None:
    tokenizer = chat_tokenizer("chatml")
    ids, mask = encoded(tokenizer, [("calls the mayor", 1), ("Solnel", 0), ("Solnel", 1)])
    call = {"type": "function", "function": {"name": "mayor", "arguments": {"city": "Baldor"}}}
    messages: list[dict[str, Any]] = [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "mayor", "content": "Solnel"},
        {"role": "assistant", "content": "<answer>Solnel</answer>"},
    ]
    reader = TurnReader(tokenizer, "messages")
    judged_by = {"group": 0, "gold_calls": GOLD, "gold_answer": "Solnel"}
    trajectory, spans = reader.read(ids, mask, judged_by, messages)
    assert len(spans) == 2
    assert assign_rewards([trajectory]).turn_rewards.tolist() == [[1.0, 1.0]]
    with pytest.raises(InputError, match="2 turns by its mask and 1 assistant messages"):
        reader.read(ids, mask, judged_by, messages[:1])


def test_named_format_that_does_not_read_the_templates_calls_is_refused() -> None:
    with pytest.raises(ConfigError, match="tool_format is 'mistral' and the chat template"):
        TurnReader(chat_tokenizer("qwen2"), "mistral")


def test_mask_of_another_length_is_refused() -> None:
    with pytest.raises(InputError, match="the mask has 5 entries for 3 tokens"):
        TurnReader(chat_tokenizer("qwen2")).read([5, 6, 7], [1] * 5, {"group": 0})


def test_answer_of_a_data_set_may_be_a_number() -> None:
    tokenizer = chat_tokenizer("qwen2")
    ids, _ = encoded(tokenizer, [("<answer>4</answer>", 1)])
    trajectory, _ = TurnReader(tokenizer).read(ids, None, {"group": 0, "gold_answer": 4})
    assert assign_rewards([trajectory]).returns.tolist() == [1.0]
    for number in (4.0, np.int64(4)):
        same, _ = TurnReader(tokenizer).read(ids, None, {"group": 0, "gold_answer": number})
        assert same.gold_answer == "4"
    nothing, _ = TurnReader(tokenizer).read(ids, None, {"group": 0, "gold_answer": float("nan")})
    assert nothing.gold_answer is None
    with pytest.raises(InputError, match="gold_answer is"):
        TurnReader(tokenizer).read(ids, None, {"group": 0, "gold_answer": True})


def test_only_one_stop_id_is_left_out_of_the_text() -> None:
    tokenizer = chat_tokenizer("qwen2")
    extra = tokenizer.convert_tokens_to_ids("<|im_start|>")
    ids, _ = encoded(tokenizer, [("<answer>4</answer><|im_start|>", 1)])
    assert TurnReader(tokenizer, stop_ids=[extra]).read(ids, None, {"group": 0})[0].turns[0].text == (
        "<answer>4</answer>"
    )
    assert TurnReader(tokenizer).read(ids, None, {"group": 0})[0].turns[0].text.endswith("<|im_start|>")


def test_format_that_cannot_be_found_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="knows no tools and tool_format is None"):
        TurnReader(chat_tokenizer("chatml"))
    assert TurnReader(chat_tokenizer("chatml"), "hermes").format == "hermes"
    with pytest.raises(ConfigError, match="tool_format is 'hermez'; expected one of hermes"):
        TurnReader(chat_tokenizer("chatml"), "hermez")


def test_what_tables_do_to_gold_calls_is_undone() -> None:
    pyarrow = pytest.importorskip("pyarrow")
    calls = [
        {"name": "ferry", "arguments": {"town": "Jartor", "where": {"x": 1}}},
        {"name": "depth", "arguments": {"ship": "Norcil", "where": {"y": [{"a": 1}, {"b": 2}]}}},
    ]
    stored = pyarrow.table({"gold": [calls]})
    (listed,) = stored["gold"].to_pylist()
    assert listed[0]["arguments"]["ship"] is None
    assert gold_calls(listed) == calls
    (frame,) = stored.to_pandas()["gold"]
    assert isinstance(frame, np.ndarray)
    assert gold_calls(frame) == calls
    assert gold_calls(np.array(calls, dtype=object)) == calls
    text = json.dumps([{"name": "f", "arguments": {"x": None}}])
    assert gold_calls(text) is text
    assert gold_calls(None) is None


def test_gold_calls_that_are_none_are_refused() -> None:
    reader = TurnReader(chat_tokenizer("qwen2"))
    with pytest.raises(InputError, match=r"gold_calls\[0\]"):
        reader.read([], None, {"group": 0, "gold_calls": ["mayor"]})


TURNS = st.tuples(st.integers(1, 3), st.integers(0, 2), st.sampled_from([0.0, 0.1, 0.7, 1.0]))


@given(
    st.lists(st.lists(TURNS, max_size=4), max_size=8),
    st.sampled_from(["sum", "trajectory", "turn", "weighted_product"]),
    st.data(),
)
@settings(max_examples=80, deadline=None)
def test_rewards_at_turn_ends_become_the_advantages_of_their_tokens(
    rollouts: list[list[tuple[int, int, float]]], integration: Any, data: st.DataObject
) -> None:
    groups = [data.draw(st.sampled_from("ab")) for _ in rollouts]
    width = max((sum(own + 1 + more for own, more, _ in turns) for turns in rollouts), default=0)
    mask = torch.zeros(len(rollouts), width)
    rewards = torch.full((len(rollouts), width), 0.0, dtype=torch.float64)
    spans: list[list[list[int]]] = []
    for b, turns in enumerate(rollouts):
        spans.append([])
        at = 0
        for own, more, _ in turns:
            spans[-1].append([at, at + own])
            mask[b, at : at + own] = 1
            at += own + 1 + more
        values = np.array([reward for *_, reward in turns])
        rewards[b] = torch.tensor(at_turn_ends(values, np.array(spans[-1]), width), dtype=rewards.dtype)
    config = CreditConfig(integration=integration)
    turns_of = Ragged.from_lists([[reward for *_, reward in turns] for turns in rollouts])
    returns = [sum(row) for row in turns_of.tolist()]
    want = assign_advantages(turns_of, returns, group_ids(groups), config).turn
    flat = np.array([span for row in spans for span in row], dtype=np.int64).reshape(-1, 2)
    dense = scatter(
        want, Ragged.from_lengths(flat, [len(row) for row in spans]), (len(rollouts), width), dtype=float
    )
    found = token_advantages(rewards, mask, groups, config)
    assert found.dtype == torch.float64
    np.testing.assert_array_equal(found.numpy(), dense)


def test_token_rewards_of_another_shape_are_refused() -> None:
    with pytest.raises(InputError, match=r"token_rewards has shape \(2, 3\), mask \(2, 4\), and there are 2"):
        token_advantages(torch.zeros(2, 3), torch.zeros(2, 4), ["a", "a"])


@pytest.mark.parametrize("method", METHODS)
def test_methods_give_their_credit_or_say_what_belongs_to_the_trainer(method: str) -> None:
    changes = METHODS[method].changes
    if all(name.startswith("credit.") for name in changes):
        found = credit_config(method)
        for name, value in changes.items():
            assert getattr(found, name.removeprefix("credit.")) == value
        assert credit_config(method, {"gamma": 0.5}).gamma == 0.5
    else:
        with pytest.raises(ConfigError, match="belongs to the trainer"):
            credit_config(method)
    assert credit_config() == CreditConfig()


def test_method_that_is_no_name_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"method is \['grpo'\]; expected a name, one of matchtir-km"):
        credit_config(["grpo"])  # type: ignore[arg-type]


# The recipes of docs/own-trainer.md, on stand-ins for the classes of the trainers that they change

CONVERSATIONS = [
    [(CALLS["qwen2"], 1), ("Solnel", 0), ("<answer>Solnel</answer>", 1)],
    [(CALLS["qwen2"].replace("city", "town"), 1), ("nothing", 0), ("<answer>Baldor</answer>", 1)],
    [("<answer>Solnel</answer>", 1)],
]


def recipe(monkeypatch: pytest.MonkeyPatch, package: str, **bases: str) -> dict[str, Any]:
    """The names of the page's block that imports the package, whose classes, by module, are bare ones."""
    for module, name in bases.items():
        dotted = module.replace("__", ".")
        for end in range(1, dotted.count(".") + 2):
            parent = ".".join(dotted.split(".")[:end])
            monkeypatch.setitem(sys.modules, parent, sys.modules.get(parent) or ModuleType(parent))
        unchanged = {"compute_advantages_and_returns": lambda self, data: data}
        setattr(sys.modules[dotted], name, type(name, (), unchanged))
    text = (Path(__file__).parents[1] / "docs" / "own-trainer.md").read_text(encoding="utf-8")
    (code,) = (
        block for block in re.findall(r"```python\n(.*?)```", text, re.S) if f"from {package}." in block
    )
    names: dict[str, Any] = {"__name__": "recipe"}
    exec(compile(code, "docs/own-trainer.md", "exec"), names)
    return names


def judged(tokenizer: Any) -> tuple[list[tuple[list[int], list[int]]], Any, list[Any]]:
    """Ids and masks of the conversations, their credit, and the spans of their turns."""
    pairs = [encoded(tokenizer, parts) for parts in CONVERSATIONS]
    by = {"group": 0, "gold_calls": GOLD, "gold_answer": "Solnel"}
    read = [TurnReader(tokenizer).read(ids, mask, by) for ids, mask in pairs]
    return pairs, assign_credit([trajectory for trajectory, _ in read]), [spans for _, spans in read]


def test_recipe_for_skyrl_gives_the_advantages_of_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    names = recipe(
        monkeypatch,
        "skyrl",
        skyrl__train__generators__skyrl_gym_generator="SkyRLGymGenerator",
        skyrl__train__trainer="RayPPOTrainer",
    )
    tokenizer = chat_tokenizer("qwen2")
    pairs, credit, spans = judged(tokenizer)
    generator = names["TurnCreditGenerator"]()
    generator.tokenizer = tokenizer
    width = max(len(ids) for ids, _ in pairs)
    rewards, masks = torch.zeros(3, width), torch.zeros(3, width, dtype=torch.long)
    for row, (ids, mask) in enumerate(pairs):
        output = SimpleNamespace(response_ids=ids, loss_mask=mask)
        given = {"ground_truth": GOLD, "answer": "Solnel"}
        reward = generator._post_process_agent_loop_output(output, given, None).reward
        rewards[row, : len(ids)] = torch.as_tensor(reward)
        masks[row, : len(ids)] = torch.as_tensor(mask)

    class Batch(dict[str, Any]):
        metadata: ClassVar = {"uids": ["q"] * 3}

    data = names["TurnCreditTrainer"]().compute_advantages_and_returns(
        Batch(rewards=rewards, loss_mask=masks)
    )
    expected = scatter(credit.turn_advantages, Ragged.from_lists(spans, dtype=int), (3, width))
    assert np.abs(expected).sum() > 0
    np.testing.assert_allclose(data["advantages"], expected, rtol=1e-5, atol=1e-6)


def test_recipe_for_openrlhf_gives_the_advantages_of_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    names = recipe(
        monkeypatch, "openrlhf", openrlhf__trainer__ppo_utils__experience_maker="RemoteExperienceMaker"
    )
    tokenizer = chat_tokenizer("qwen2")
    pairs, credit, spans = judged(tokenizer)
    maker = names["TurnCreditMaker"]()
    maker.tokenizer = tokenizer
    maker.strategy = SimpleNamespace(args=SimpleNamespace(rollout=SimpleNamespace(n_samples_per_prompt=3)))
    width = max(len(ids) for ids, _ in pairs)
    sequences, masks = torch.zeros(3, width + 1, dtype=torch.long), torch.zeros(3, width, dtype=torch.long)
    for row, (ids, mask) in enumerate(pairs):
        sequences[row, 1 : len(ids) + 1] = torch.as_tensor(ids)
        masks[row, : len(ids)] = torch.as_tensor(mask)
    label = json.dumps({"gold_calls": GOLD, "gold_answer": "Solnel"})
    experiences = [
        SimpleNamespace(
            sequences=sequences[rows],
            action_mask=masks[rows],
            labels=[label] * len(rows),
            index=rows,
            advantages=torch.zeros(len(rows), width),
        )
        for rows in ([0, 1], [2])
    ]
    found = maker.compute_advantages_and_returns(experiences)
    expected = scatter(credit.turn_advantages, Ragged.from_lists(spans, dtype=int), (3, width))
    np.testing.assert_allclose(torch.cat([one.advantages for one in found]), expected, rtol=1e-5, atol=1e-6)
