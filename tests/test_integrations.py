"""What the adapters share: turns from token ids and a mask, gold calls from tables, settings by method."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers", reason='tokenizers need pip install "matchtir[train]"')

from chat_templates import chat_tokenizer

from matchtir import CreditConfig, assign_rewards
from matchtir.errors import ConfigError, InputError
from matchtir.integrations.settings import credit_config
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


def test_outputs_are_the_results_of_the_calls_before_them() -> None:
    tokenizer = chat_tokenizer("qwen2")
    ids, mask = encoded(tokenizer, [(CALLS["qwen2"] * 2, 1), ("Solnel", 0), ("<answer>Solnel</answer>", 1)])
    reader = TurnReader(tokenizer)
    for outputs in ([["Solnel", "Baldor"]], [["Solnel", "Baldor"], []]):
        found = reader.read(ids, mask, {"group": 0}, outputs)[0]
        assert [call.result for call in found.calls] == ["Solnel", "Baldor"]
    others = reader.read(ids, mask, {"group": 0}, [["Solnel"], [], []])[0]
    assert [call.result for call in others.calls] == [None, None]


def test_answer_of_a_data_set_may_be_a_number() -> None:
    tokenizer = chat_tokenizer("qwen2")
    ids, _ = encoded(tokenizer, [("<answer>4</answer>", 1)])
    trajectory, _ = TurnReader(tokenizer).read(ids, None, {"group": 0, "gold_answer": 4})
    assert assign_rewards([trajectory]).returns.tolist() == [1.0]
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
        {"name": "depth", "arguments": {"ship": "Norcil", "where": {"y": [1, 2]}}},
    ]
    stored = pyarrow.table({"gold": [calls]})
    (listed,) = stored["gold"].to_pylist()
    assert listed[0]["arguments"]["ship"] is None
    assert gold_calls(listed) == calls
    (frame,) = stored.to_pandas()["gold"]
    assert isinstance(frame, np.ndarray)
    assert gold_calls(frame)[0] == calls[0]
    assert gold_calls(np.array(calls, dtype=object)) == calls
    text = json.dumps([{"name": "f", "arguments": {"x": None}}])
    assert gold_calls(text) is text
    assert gold_calls(None) is None


def test_gold_calls_that_are_none_are_refused() -> None:
    reader = TurnReader(chat_tokenizer("qwen2"))
    with pytest.raises(InputError, match=r"gold_calls\[0\]"):
        reader.read([], None, {"group": 0, "gold_calls": ["mayor"]})


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
