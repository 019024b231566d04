"""Where rewards of turns come from: the agent loop, the reward manager, and reward functions of the user."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest

pytest.importorskip("verl.trainer", reason='verl needs pip install "matchtir[verl]"')

import verl
import verl_runs as runs
from verl.experimental.agent_loop.agent_loop import DictConfigWrap, ToolListWrap
from verl.experimental.agent_loop.tool_agent_loop import ToolAgentLoop
from verl.tools.function_tool import FunctionTool
from verl.trainer.ppo.reward import load_reward_manager
from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn

import matchtir as mt
from matchtir.errors import ConfigError, InputError
from matchtir.integrations import verl as adapter
from matchtir.integrations import verl_agent_loop, verl_data
from matchtir.integrations.settings import credit_config
from matchtir.integrations.verl_rewards import unpack
from matchtir.integrations.verl_scoring import TURNS
from matchtir.tasks import write_tasks

TASK = runs.tasks(1)[0]
SCRIPTS = runs.scripts(TASK)
MULTI = "actor_rollout_ref.rollout.multi_turn"


def rollout(
    texts, *overrides, kind=adapter.TurnToolAgentLoop, tools=(), model_type=None, task=TASK, extra=()
):
    """The output of a real agent loop, of a server that answers with these turns."""
    config = runs.settings(*overrides)

    def loop():
        return kind(
            trainer_config=DictConfigWrap(config),
            server_manager=runs.Server(texts),
            tokenizer=runs.TOKENIZER,
            processor=None,
            dataset_cls=RLHFDataset,
            data_config=DictConfigWrap(config.data),
            hf_model_type=model_type,
            tools=ToolListWrap(list(tools)),
        )

    return runs.run(loop, task, dict(extra))


def managed(output, *overrides, task=TASK, truth=None):
    """What a reward manager of verl says of a rollout."""
    config = runs.settings("reward.reward_manager.name=matchtir", *overrides)
    manager = load_reward_manager(config, runs.TOKENIZER)
    item = runs.item_of(task, output)
    if truth is not None:
        item.non_tensor_batch["reward_model"][0] = {"ground_truth": truth}
    return manager.loop.run_until_complete(manager.run_single(item))


def row_of(output, found):
    """The row of rewards, as the agent loop's worker has it written."""
    output.reward_score = found["reward_score"]
    output.extra_fields["reward_extra_info"] = found["reward_extra_info"]
    return output.as_dict()["rm_scores"].numpy()


def own_turns(output):
    """Turns of a rollout, from the texts between the tokens of others."""
    spans = mt.spans_from_mask([output.response_mask])[0]
    return spans, [runs.TOKENIZER.decode(output.response_ids[a:b]) for a, b in spans]


@pytest.mark.parametrize("model_type", [None, "qwen3"])
@pytest.mark.parametrize("script", range(len(SCRIPTS)))
def test_loop_and_manager_give_the_rewards_of_matchtir(script, model_type):
    output = rollout(SCRIPTS[script], "actor_rollout_ref.rollout.response_length=100", model_type=model_type)
    spans, texts = own_turns(output)
    record = output.extra_fields[TURNS]
    assert record["spans"] == spans.tolist()
    assert [text.removesuffix(runs.END) for text in texts] == record["texts"]
    whole = len(texts) - (script == 4)  # the last turn of this one is cut off
    assert record["texts"][:whole] == [runs.spoken(text) for text in SCRIPTS[script]][:whole]
    expected = mt.assign_rewards([runs.trajectory(record, TASK)])
    found = managed(output)
    assert found["reward_score"] == expected.returns[0]
    rewards, ends, other = unpack(row_of(output, found))
    assert ends == (spans[:, 1] - 1).tolist()
    np.testing.assert_allclose(rewards, expected.turn_rewards[0], rtol=1e-12)
    assert other == 0.0


def test_rewards_of_the_scripts_are_what_they_should_be():
    found = [json.loads(managed(rollout(one))["reward_extra_info"]["turn_rewards"]) for one in SCRIPTS]
    assert found[0] == [1.0, 1.0, 1.0]
    assert found[1][1:] == [1.0, 0.0]
    assert found[2] == [0.0]
    assert found[3][0] == 0.0
    assert found[3][1:] == [1.0, 1.0]


def test_calls_run_in_the_sandbox_and_malformed_ones_are_answered():
    outputs = rollout(SCRIPTS[0]).extra_fields[TURNS]["outputs"]
    assert outputs == [[call.result] for call in TASK.gold_calls]
    malformed = rollout(SCRIPTS[3]).extra_fields[TURNS]["outputs"]
    assert "malformed call" in malformed[0][0]
    cut = rollout(SCRIPTS[3], f"{MULTI}.max_tool_response_length=20").extra_fields[TURNS]["outputs"]
    assert cut[0][0] == malformed[0][0][:10] + "...(truncated)..." + malformed[0][0][-10:]


def test_response_that_is_cut_off_keeps_its_turns():
    output = rollout(SCRIPTS[4], "actor_rollout_ref.rollout.response_length=65")
    assert len(output.response_ids) == 65
    assert output.response_mask[-1] == 1
    spans, _ = own_turns(output)
    assert len(spans) > 2
    found = managed(output)
    assert unpack(row_of(output, found))[1] == (spans[:, 1] - 1).tolist()


def test_tools_of_verl_work_too():
    def ferry(town: str) -> str:
        return f"boat of {town}"

    schema = {"type": "function", "function": {"name": "ferry", "description": "A ferry."}}
    tool = FunctionTool("ferry", ferry, runs.function_schema(schema))
    bare = mt.types.Task(TASK.id, TASK.messages, (), (), TASK.gold_answer)
    output = rollout([runs.call("ferry", town="Jartor"), SCRIPTS[2][0]], tools=[tool], task=bare)
    assert output.extra_fields[TURNS]["outputs"] == [["boat of Jartor"]]


@pytest.mark.parametrize("method", ["matchtir-km", "matchtir-ot", "grpo", "toolrl"])
def test_custom_reward_function_gives_the_same(method):
    output = rollout(SCRIPTS[1])
    credit = credit_config(method)
    expected = mt.assign_rewards([runs.trajectory(output.extra_fields[TURNS], TASK)], credit)
    found = managed(
        output,
        "reward.reward_manager.name=naive",
        "reward.custom_reward_function.path=pkg://matchtir.integrations.verl",
        f"+reward.custom_reward_function.reward_kwargs.method={method}",
    )
    ours = managed(output, f"+algorithm.matchtir.method={method}")
    assert found["reward_score"] == ours["reward_score"] == expected.returns[0]
    assert found["reward_extra_info"]["turn_rewards"] == ours["reward_extra_info"]["turn_rewards"]
    turns = json.loads(found["reward_extra_info"]["turn_rewards"])
    if credit.reward == "matchtir":
        assert turns == expected.turn_rewards[0].tolist()
    else:
        assert turns == [0.0] * (len(turns) - 1) + [expected.returns[0]]


def test_users_functions_add_for_the_whole_rollout_or_give_turns_themselves(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "def bonus(data_source, solution_str, ground_truth, extra_info, **_):\n"
        "    return {'score': 0.25, 'length': len(solution_str), 'calls': 77}\n"
        "async def turns(data_source, solution_str, ground_truth, extra_info, **_):\n"
        "    return {'score': 2.0, 'turn_rewards': [0.5, 0.0, 1.0]}\n"
    )
    mine = f"reward.custom_reward_function.path={path}"
    output = rollout(SCRIPTS[0])
    plain = managed(output)
    found = managed(output, mine, "reward.custom_reward_function.name=bonus")
    assert found["reward_score"] == plain["reward_score"] + 0.25
    assert found["reward_extra_info"]["length"] > 10
    assert found["reward_extra_info"]["calls"] == plain["reward_extra_info"]["calls"] != 77
    assert found["reward_extra_info"]["custom_calls"] == 77
    assert unpack(row_of(output, found)) == ([1.0, 1.0, 1.0], unpack(row_of(output, plain))[1], 0.25)

    theirs = (mine, "reward.custom_reward_function.name=turns")
    found = managed(output, "reward.reward_manager.name=naive", *theirs)
    assert unpack(row_of(output, found))[::2] == ([0.5, 0.0, 1.0], 0.5)
    with pytest.raises(ConfigError, match="returns turn_rewards, and so does"):
        managed(output, *theirs)


def test_missing_turns_and_golds_are_errors():
    stock = rollout(SCRIPTS[0], kind=ToolAgentLoop, tools=[])
    with pytest.raises(InputError, match="came without its turns"):
        managed(stock)
    output = rollout(SCRIPTS[0])
    item = runs.item_of(TASK, output)
    item.non_tensor_batch["reward_model"][0] = {"ground_truth": '{"gold_answer": "7"}'}
    config = runs.settings("reward.reward_manager.name=matchtir")
    manager = load_reward_manager(config, runs.TOKENIZER)
    said = (
        r"^row \(index 0, id .*\) of data source 'embedded': .* with 'gold_calls', which the method judges by"
    )
    with pytest.raises(InputError, match=said):
        manager.loop.run_until_complete(manager.run_single(item))
    with pytest.raises(ConfigError, match=r"reward_model\.enable=False"):
        type(manager).assemble_rm_scores(item, [1.0])
    with pytest.raises(InputError, match=r"several outputs of a rollout .* and these are 2"):
        manager.loop.run_until_complete(manager.run_single(verl.DataProto.concat([item, item])))
    with pytest.raises(InputError, match=r"several outputs of a rollout .* and these are 3"):
        adapter.with_turns([stock] * 3, runs.TOKENIZER)
    output.reward_score = 1.0
    with pytest.raises(InputError, match=r"came without 'turn_rewards'"):
        output.as_dict()
    with pytest.raises(InputError, match="2 rewards came for 3 turns"):
        adapter.with_turn_rewards(output, [1.0, 1.0]).as_dict()


def test_outputs_without_a_reward_are_those_of_verl():
    output = rollout(SCRIPTS[0])
    assert "rm_scores" not in output.as_dict()


def test_row_may_be_judged_by_a_method_of_its_own():
    output = rollout(SCRIPTS[0])
    record = output.extra_fields[TURNS]
    row = verl_data.verl_row(TASK, 0, "embedded", method="grpo")
    credit = credit_config("matchtir-km")
    found = adapter.rewarded(record, row["reward_model"]["ground_truth"], credit)
    assert (found["score"], found["turn_rewards"]) == (1.0, [0.0, 0.0, 1.0])
    with pytest.raises(ConfigError, match="did you mean"):
        verl_data.verl_row(TASK, 0, "embedded", method="grppo")
    bare = verl_data.verl_row(mt.types.Task("t", TASK.messages, TASK.tools), 0, "embedded")
    for truth in (bare["reward_model"]["ground_truth"], "42", "no JSON", None):
        with pytest.raises(InputError, match="which the method judges by"):
            adapter.rewarded(record, truth, credit)


def test_method_of_a_row_keeps_the_other_settings():
    nothing = [runs.call("none", a=1), SCRIPTS[2][0]]
    record = rollout(nothing).extra_fields[TURNS]
    changes = {"penalty": 0.5, "matching": "sinkhorn", "reward": "outcome", "integration": "mean"}
    row = verl_data.verl_row(TASK, 0, "embedded", method="matchtir-km")["reward_model"]["ground_truth"]
    found = adapter.rewarded(record, row, credit_config("grpo"), changes)
    expected = mt.assign_rewards(
        [runs.trajectory(record, TASK)], credit_config("matchtir-km", {"penalty": 0.5})
    )
    assert found["turn_rewards"] == expected.turn_rewards[0].tolist()
    assert found["turn_rewards"][0] == -0.5
    bare = json.dumps({**json.loads(row), "method": None})
    output = rollout(nothing)
    ours = managed(output, "+algorithm.matchtir.credit.penalty=0.5", truth=row)
    assert json.loads(ours["reward_extra_info"]["turn_rewards"])[0] == -0.5
    plain = managed(output, truth=bare)
    assert json.loads(plain["reward_extra_info"]["turn_rewards"])[0] == 0.0


def test_arguments_of_the_function_are_known():
    info = {TURNS: rollout(SCRIPTS[0]).extra_fields[TURNS]}
    truth = verl_data.verl_row(TASK, 0, "embedded")["reward_model"]["ground_truth"]
    given = ("embedded", "", truth, info)
    found = adapter.compute_score(*given, reward_router_address="x", reward_model_tokenizer=None)
    assert found["score"] == 3.0
    with pytest.raises(ConfigError, match="reward_kwargs has credits, metod; expected method, credit"):
        adapter.compute_score(*given, metod="grpo", credits={"gamma": 3})


def test_tools_of_a_row_are_text():
    task = mt.types.Task(TASK.id, TASK.messages, (), (), TASK.gold_answer)
    with pytest.raises(InputError, match=r"extra_info\.tools is of type list; expected JSON text"):
        rollout(SCRIPTS[2], task=task, extra={"tools": [{"name": "ferry"}]})


def test_formats_that_differ_are_warned_of():
    task = mt.types.Task(TASK.id, TASK.messages, (), (), TASK.gold_answer)
    verl_agent_loop._check_formats_once.cache_clear()
    with pytest.warns(UserWarning, match=r"multi_turn\.format is 'glm', .* read calls as 'hermes'"):
        rollout(SCRIPTS[2], f"{MULTI}.format=glm", task=task)
    verl_agent_loop._check_formats_once.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        rollout(SCRIPTS[2], task=task)
        rollout(SCRIPTS[2], f"{MULTI}.format=glm")  # calls of a row's own tools are read by ours


def test_data_is_what_verl_reads(tmp_path, capsys):
    source, target = tmp_path / "tasks.jsonl", tmp_path / "train.parquet"
    given = runs.tasks(3)
    write_tasks(source, given)
    assert (
        verl_data.main([str(source), "-o", str(target), "--data-source", "embedded", "--method", "grpo"]) == 0
    )
    assert capsys.readouterr().out == f"3 tasks in {target}\n"
    config = runs.settings(f"+data.cache_dir={tmp_path}", "data.filter_overlong_prompts=False").data
    data = RLHFDataset(str(target), runs.TOKENIZER, config)
    assert len(data) == 3
    batch = collate_fn([data[i] for i in range(3)])
    assert batch["raw_prompt"][1] == [dict(message) for message in given[1].messages]
    gold = json.loads(batch["reward_model"][2]["ground_truth"])
    assert [call["name"] for call in gold["gold_calls"]] == [call.name for call in given[2].gold_calls]
    assert gold["method"] == "grpo"
    assert dict(verl_agent_loop._registry(batch["extra_info"][0]["tools"])) == {
        x.name: x for x in given[0].tools
    }
    assert verl_data.main([str(tmp_path / "none"), "-o", str(target)]) == 1
    assert "none" in capsys.readouterr().err


ASKED = ({"role": "user", "content": "How many?"},)


def asked(name="t", **fields):
    """A task without tools."""
    return mt.types.Task(name, ASKED, **fields)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            asked(later=(mt.types.UserTurn(({"role": "user", "content": "And?"},)),)),
            "task 't' has later user",
        ),
        (asked(environment=mt.types.Environment("class A: pass", "A")), "task 't' has an environment"),
        (
            mt.types.Task("t", ({"role": "assistant", "content": "", "tool_calls": [{}]}, *ASKED)),
            "message 0 of task 't' has tool_calls; expected role and content",
        ),
        (
            mt.types.Task("t", ({"role": "tool", "content": "3", "tool_call_id": "a"},)),
            "has tool_call_id",
        ),
        (mt.types.Task("t", ({"role": "user", "content": [{"type": "text", "text": "a"}]},)), "type list"),
    ],
)
def test_tasks_that_verl_would_change_are_refused(task, message):
    with pytest.raises(InputError, match=message):
        verl_data.verl_row(task, 0, "embedded")


def test_tasks_that_cannot_be_judged_are_left_out(tmp_path, capsys):
    source, target = tmp_path / "tasks.jsonl", tmp_path / "train.parquet"
    write_tasks(source, [asked("bare"), asked("said", gold_answer="7"), *runs.tasks(1)])
    command = [str(source), "-o", str(target), "--method"]
    assert verl_data.main([*command, "matchtir-km"]) == 0
    out, err = capsys.readouterr()
    assert out == f"1 tasks in {target}, 2 left out\n"
    assert "task 'bare' has no gold_calls" in err
    assert "task 'said' has no gold_calls" in err
    target.unlink()
    assert verl_data.main([*command, "ftrl"]) == 0
    assert verl_data.main([*command, "grppo"]) == 1
    assert verl_data.main(command[:-1]) == 0
    out, err = capsys.readouterr()
    assert f"2 tasks in {target}, 1 left out\n" in out
    assert "1 of 2 tasks have no gold_calls" in err
    target.unlink()
    write_tasks(source, [asked("bare")])
    assert verl_data.main(command[:-1]) == 1
    assert "no task written: 1 left out" in capsys.readouterr().err
    assert not target.exists()
    with pytest.raises(InputError, match="has no gold_answer, which method grpo is judged by"):
        verl_data.write_verl(target, [asked()], method="grpo")
