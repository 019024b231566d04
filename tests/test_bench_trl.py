"""The comparison with TRL's trainer: what both sides are given, and when it stops."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason='the comparison needs pip install "matchtir[train]"')
pytest.importorskip("transformers", reason='the comparison needs pip install "matchtir[train]"')

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

from cases import trl_side, trl_step
from checks import WrongAnswerError
from transformers.utils import get_json_schema

from matchtir.tasks import embedded_tasks
from matchtir.tools import ToolRegistry
from matchtir.train.embedded import load_embedded_policy


def seen(tokens: float = 30.0, turns: float = 2.5, answered: float = 0.1, rollouts: int = 4) -> trl_side.Seen:
    return trl_side.Seen([rollouts], [tokens], [turns], [answered])


def test_environment_has_the_tools_of_its_task() -> None:
    for task in embedded_tasks()[:20]:
        environment = trl_side.environment_of(task)()
        assert environment.reset(prompt="", environment=task.id) is None
        for schema in ToolRegistry(task.tools).schemas():
            found = get_json_schema(getattr(environment, schema["function"]["name"]))
            for described in found["function"]["parameters"]["properties"].values():
                assert described.pop("description") == "-"
            assert found == schema


def test_environment_answers_gold_calls_and_wrong_ones_as_the_registry_does() -> None:
    for task in embedded_tasks()[:20]:
        environment = trl_side.environment_of(task)()
        for call in task.gold_calls:
            assert getattr(environment, call.name)(**call.arguments) == call.result
            assert "error" in json.loads(getattr(environment, call.name)(nobody="x"))


def test_prompts_are_the_same_tokens_and_a_described_argument_is_found_out() -> None:
    tasks = [trl_side.sorted_tools(task) for task in embedded_tasks()[:4]]
    environments = {task.id: trl_side.environment_of(task) for task in tasks}
    tokenizer = trl_side.trl_tokenizer()
    trl_side.same_prompts(tasks, environments, tokenizer)
    with pytest.raises(WrongAnswerError, match=tasks[0].id):
        trl_side.same_prompts(tasks, environments, load_embedded_policy()[1])


def test_calls_are_read_from_what_the_policy_writes() -> None:
    text = '<tool_call>{"name": "port", "arguments": {"ship": "Felade"}}</tool_call>'
    parsed = trl_side.trl_tokenizer().parse_response(2 * text + "<|im_end|>", prefix="<|assistant|>")
    calls = [call["function"] for call in parsed["tool_calls"]]
    assert calls == 2 * [{"name": "port", "arguments": {"ship": "Felade"}}]


@pytest.mark.parametrize(
    ("theirs", "words"),
    [
        (seen(tokens=36.0), "sampled tokens"),
        (seen(turns=3.0), "turns"),
        (seen(answered=0.16), "F1"),
        (seen(rollouts=3), "rollouts"),
    ],
)
def test_comparison_stops_where_the_work_differs(theirs: trl_side.Seen, words: str) -> None:
    with pytest.raises(WrongAnswerError, match=words):
        trl_step.comparable("case", seen(), theirs, 4, judged=True)


def test_comparison_shows_both_sides_where_the_work_is_alike() -> None:
    rows = trl_step.comparable("case", seen(), seen(tokens=33.0, answered=0.12), 4, judged=True)
    assert [row.value for row in rows] == [30.0, 33.0, 2.5, 2.5, 0.1, 0.12]


def test_without_trl_the_smoke_run_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert trl_step.step_vs_trl(True) == []
    assert "pip install 'trl==1.16.*'" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="pip install"):
        trl_step.step_vs_trl(False)
