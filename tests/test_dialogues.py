"""Dialogues of several user turns: by hand, against rounds scored alone, and against plain Python."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from matchtir import cli
from matchtir.baselines import ftrl_reward, toolrl_reward
from matchtir.credit import CreditConfig, assign_advantages, assign_credit, assign_rewards
from matchtir.dialogues import by_round, join, split, turns_of_rounds
from matchtir.errors import ConfigError, InputError
from matchtir.types import Credit, Ragged, Round, ToolCall, Trajectory, Turn

EPS = 1e-6


def call(name: str, /, **arguments: Any) -> ToolCall:
    return ToolCall(name, arguments)


def dialogue(*parts: Trajectory, group: Any = 0) -> Trajectory:
    """Rollouts of one user turn each, one after the other."""
    return Trajectory(
        turns=tuple(turn for part in parts for turn in part.turns),
        gold_calls=tuple(gold for part in parts for gold in part.gold_calls),
        group=group,
        sub_answers=parts[0].sub_answers if parts else None,
        rounds=tuple(
            Round(len(part.turns), len(part.gold_calls), part.gold_answer, part.outcome) for part in parts
        ),
    )


# By hand. Two user turns: the first wants f(1), the second f(2) and g().
FIRST, SECOND = (call("f", x=1),), (call("f", x=2), call("g"))
GOOD = dialogue(
    Trajectory((Turn((call("f", x=1),)), Turn(answer="one")), FIRST, "one"),
    # f(1) is the first user turn's gold call: here it fits f(2) to (1 + 1 + 0) / 3.
    Trajectory((Turn((call("f", x=1), call("g"))), Turn(answer="two")), SECOND, outcome=0.25),
)
SHORT = dialogue(
    Trajectory((Turn((call("g"),)),), FIRST, "one"),
    Trajectory((), SECOND, outcome=0.0),
)


def test_rewards_of_a_dialogue_by_hand() -> None:
    rewards = assign_rewards([GOOD, SHORT])
    np.testing.assert_allclose(rewards.call_rewards.values, [1, 2 / 3, 1, 0], atol=1e-15)
    assert rewards.matches.tolist() == [[0, 1, 2], [-1]]
    # The g() of SHORT would match gold call 2, which is of the other user turn.
    np.testing.assert_allclose(rewards.similarity[0], [[1, 0, 0], [0, 2 / 3, 0], [0, 0, 1]], atol=1e-15)
    assert rewards.similarity[1].tolist() == [[0.0, 0.0, 0.0]]
    np.testing.assert_allclose(rewards.turn_rewards.values, [1, 1, 5 / 6, 0.25, 0], atol=1e-15)
    np.testing.assert_allclose(rewards.returns, [1 + 1 + 5 / 6 + 0.25, 0], atol=1e-15)
    assert rewards.malformed.tolist() == [0, 0]


def test_advantages_of_a_dialogue_by_hand() -> None:
    other = dialogue(
        Trajectory((Turn(answer="one"),), FIRST, "one"),
        Trajectory((Turn((call("g"),)), Turn(answer="no")), SECOND, outcome=0.5),
    )
    # Turn rewards: [1, 1 | 5/6, 1/4] and [1 | 1, 1/2].
    for horizon, returns in (
        (
            "dialogue",
            ([1 + 0.9 * (1 + 0.9 * (5 / 6 + 0.9 / 4)), 1 + 0.9 * (5 / 6 + 0.9 / 4)], [1 + 0.9 * 1.45]),
        ),
        ("user_turn", ([1.9, 1.0], [1.0])),
    ):
        config = CreditConfig(horizon=horizon, integration="turn", normalize_std=False)  # type: ignore[arg-type]
        credit = assign_credit([GOOD, other], config)
        (a, b), (c,) = returns
        d, e = 5 / 6 + 0.9 / 4, 1.45  # the same under both: the dialogue ends with the second user turn
        expected = [
            [(a - c) / 2, b, (d - e) / 2, (1 / 4 - 1 / 2) / 2],
            [(c - a) / 2, (e - d) / 2, (1 / 2 - 1 / 4) / 2],
        ]
        for found, row in zip(credit.turn_advantages, expected, strict=True):
            np.testing.assert_allclose(found, row, atol=1e-12)
    # Without the rounds the third turn of one would be compared with the third of the other.
    flat = assign_advantages(credit.turn_rewards, credit.returns, credit.group_ids, config)
    assert flat.turn.values[2] == pytest.approx((1 + 0.0 - 1 + d - 0.5) / 2)


def test_rewards_of_whole_rollouts_are_means_over_user_turns() -> None:
    asked = {"f": ("7",)}
    parts = [
        Trajectory((Turn((ToolCall("f", {"x": 1}, result="7"),)),), FIRST, "one", sub_answers=asked),
        Trajectory((Turn(answer="two"),), (), "two", sub_answers=asked),
        Trajectory((), SECOND, "never", sub_answers=asked),
    ]
    alone = dataclasses.replace(parts[1], group=1)
    for reward, values in (
        ("outcome", [0.0, 1.0, 0.0]),
        # The call fits: 3 + 1. Nothing is to be called, and it answers: 3 + 1. Nothing at all: -3.
        ("toolrl", [toolrl_reward(part) for part in parts]),
        ("ftrl", [1.0, 0.0, 0.0]),  # 2 q / (calls + 1)
    ):
        rewards = assign_rewards([dialogue(*parts), alone], CreditConfig(reward=reward))  # type: ignore[arg-type]
        assert rewards.returns.tolist() == pytest.approx([statistics.fmean(values), values[1]])
    assert [toolrl_reward(part) for part in parts] == [4.0, 4.0, -3.0]
    assert [ftrl_reward(part) for part in parts] == [1.0, 0.0, 0.0]


def test_soft_matching_stays_inside_a_user_turn() -> None:
    config = CreditConfig(matching="sinkhorn")
    rewards = assign_rewards([GOOD], config)
    # A plan of one call and one gold call pays S. In the second user turn S is diagonal: by symmetry the plan
    # has p on the diagonal and 1/2 - p beside it, with p / (1/2 - p) = exp((2/3 + 1) / (2 reg)).
    p = 0.5 / (1 + math.exp(-(2 / 3 + 1) / 0.2))
    np.testing.assert_allclose(rewards.call_rewards.values, [1, p * 2 / 3, p], atol=1e-7)
    assert rewards.matches.tolist() == [[0, 1, 2]]


def test_user_turns_without_turns_count() -> None:
    one = dialogue(Trajectory((Turn(answer="a"),), (), "a"), Trajectory((), (), "b"), Trajectory((), (), "c"))
    none = dialogue(Trajectory((), (), "a"), Trajectory((), (), "b"))
    assert assign_rewards([one, none], CreditConfig(reward="outcome")).returns.tolist() == [1 / 3, 0.0]
    rewards = assign_rewards([one, none])
    assert (rewards.returns.tolist(), rewards.turn_rewards.tolist()) == ([1.0, 0.0], [[1.0], []])
    config = CreditConfig(baseline="leave_one_out", normalize_std=False, integration="turn")
    # The other rollout counts with 0 in the first user turn, in which it has no turn.
    assert assign_credit([one, none], config).turn_advantages.tolist() == [[1.0], []]


def test_rollouts_without_rounds_are_one_user_turn_beside_dialogues() -> None:
    plain = Trajectory((Turn(answer="one"), Turn(answer="one")), FIRST, "one")
    rounds = turns_of_rounds([GOOD, plain, Trajectory(())])
    assert rounds is not None
    assert rounds.tolist() == [[2, 2], [2], [0]]
    assert turns_of_rounds([plain]) is None
    config = CreditConfig(integration="turn", normalize_std=False, gamma=0.0)
    credit = assign_credit([GOOD, plain], config)  # [1, 1 | 5/6, 1/4] and [0, 1]
    np.testing.assert_allclose(credit.turn_advantages[0], [0.5, 0, 5 / 6, 1 / 4], atol=1e-12)
    np.testing.assert_allclose(credit.turn_advantages[1], [-0.5, 0], atol=1e-12)


def test_nothing_is_copied_without_dialogues() -> None:
    plain = [Trajectory((Turn(answer="one"),), FIRST, "one")]
    assert split(plain) is plain
    rewards = assign_rewards(plain)
    assert join(rewards, plain) is rewards


def test_parts_share_gold_calls_as_the_rollouts_do() -> None:
    mate = dataclasses.replace(GOOD, turns=GOOD.turns[:2] * 2)
    parts = split([GOOD, mate, SHORT])
    assert parts[1].gold_calls is parts[3].gold_calls
    assert parts[1].gold_calls == parts[5].gold_calls == SECOND
    assert [part.rounds for part in parts] == [()] * 6


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"turns": GOOD.turns[:3]}, "rounds add up to 4 turns but the rollout has 3"),
        ({"gold_calls": ()}, "rounds add up to 3 gold_calls but the rollout has 0"),
        ({"gold_answer": "x"}, "gold_answer is 'x' beside rounds, which have their own; expected None"),
        ({"outcome": 0.0}, "outcome is 0.0 beside rounds"),
        (
            {"rounds": (Round(5, 3), Round(-1))},
            r"rounds\[1\].turns is -1; expected a whole number, 0 or more",
        ),
        ({"rounds": (Round(4, 4), Round(0, -1))}, r"rounds\[1\].gold_calls is -1"),
        ({"rounds": (Round(4.0, 3),)}, r"rounds\[0\].turns is 4.0"),
        ({"rounds": (Round(True, 3), Round(3))}, r"rounds\[0\].turns is True"),
        (
            {"rounds": (Round(4, 3, outcome=math.nan),)},
            r"rounds\[0\].outcome is nan; expected a finite number",
        ),
        ({"rounds": (Round(4, 3, outcome=10**400),)}, r"rounds\[0\].outcome is 1000"),
        ({"rounds": (Round(4, 3, outcome="1"),)}, r"rounds\[0\].outcome is '1'"),
    ],
)
def test_rounds_that_do_not_make_up_the_rollout_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=rf"^rollouts\[1\]: {message}"):
        assign_credit([GOOD, dataclasses.replace(GOOD, **changes)])


def test_rollouts_keep_their_index_in_messages_behind_dialogues() -> None:
    wrong = Trajectory((Turn(),), outcome=math.nan)
    with pytest.raises(InputError, match=r"^rollouts\[1\]: outcome is nan"):
        assign_credit([GOOD, wrong])
    with pytest.raises(InputError, match=r"^rollouts\[1\]: .*sub_answers"):
        assign_rewards(
            [dataclasses.replace(GOOD, sub_answers={}), Trajectory(())], CreditConfig(reward="ftrl")
        )


@pytest.mark.parametrize(
    ("rounds", "message"),
    [
        ([[1], [2]], "rounds is a list; expected a Ragged"),
        (Ragged.from_lists([[1]], dtype=np.int64), "turns are of 2 rollouts, rounds of 1 and group_ids of 2"),
        (
            Ragged.from_lists([[1], [1]], dtype=np.int64),
            r"rounds\[1\] is \[1\] and adds up to 1 turns but .* 2",
        ),
        (
            Ragged.from_lists([[2, -1], [2]], dtype=np.int64),
            r"rounds\[0\] is \[2, -1\]; expected no negative",
        ),
        (
            Ragged.from_lists([[1.0], [2.0]]),
            r"rounds have shape \(2,\) of float64; expected one whole number",
        ),
    ],
)
def test_counts_that_do_not_add_up_are_refused(rounds: Any, message: str) -> None:
    turns = Ragged.from_lists([[1.0], [1.0, 0.0]])
    with pytest.raises(InputError, match=message):
        assign_advantages(turns, [1.0, 1.0], [0, 0], rounds=rounds)


def test_a_rollout_of_no_rounds_is_refused() -> None:
    with pytest.raises(InputError, match=r"rounds\[1\] is \[\] .*expected one count or more"):
        by_round(Ragged.from_lists([[1.0], []]), Ragged.from_lists([[1], []], dtype=np.int64), [0, 0])


def test_horizon_is_checked() -> None:
    with pytest.raises(ConfigError, match="horizon is 'turn'; expected one of dialogue, user_turn"):
        CreditConfig(horizon="turn")  # type: ignore[arg-type]
    assert CreditConfig().horizon == "dialogue"


# Against rounds that are scored as rollouts of their own, and plain Python

calls = st.builds(
    ToolCall,
    st.sampled_from(["f", "g"]),
    st.dictionaries(st.sampled_from("xy"), st.integers(0, 1), max_size=2),
    malformed=st.sampled_from([None, None, None, "no JSON"]),
)
golds = st.lists(calls.filter(lambda c: c.malformed is None), max_size=3).map(tuple)
turn_lists = st.lists(
    st.one_of(
        st.builds(Turn, st.lists(calls, max_size=2).map(tuple)),
        st.builds(Turn, answer=st.sampled_from(["red stone", "stone", "brick"])),
    ),
    max_size=3,
).map(tuple)
single = st.builds(
    Trajectory, turn_lists, golds, st.sampled_from([None, "stone"]), outcome=st.sampled_from([None, 0.0, 0.5])
)
several = st.builds(
    lambda parts, group: dialogue(*parts, group=group),
    st.lists(single, min_size=1, max_size=3),
    st.integers(0, 1),
)
batches = st.lists(
    several | st.builds(lambda one, group: dataclasses.replace(one, group=group), single, st.integers(0, 1)),
    max_size=5,
)
configs = st.builds(
    CreditConfig,
    matching=st.sampled_from(["hungarian", "sinkhorn"]),
    penalty=st.sampled_from([0.0, 0.3]),
    gamma=st.sampled_from([0.0, 0.9, 1.0]),
    horizon=st.sampled_from(["dialogue", "user_turn"]),
    integration=st.sampled_from(["sum", "mean", "weighted_product", "weighted_sum", "trajectory", "turn"]),
    baseline=st.sampled_from(["turn_index", "pooled", "leave_one_out"]),
    normalize_std=st.booleans(),
    eps=st.sampled_from([1e-6, 0.5]),
)


def parts_of(one: Trajectory) -> list[Trajectory]:
    """The rounds of a rollout, sliced in plain Python."""
    if not one.rounds:
        return [one]
    parts, turn, gold = [], 0, 0
    for part in one.rounds:
        own = one.turns[turn : turn + part.turns], one.gold_calls[gold : gold + part.gold_calls]
        parts.append(Trajectory(*own, part.gold_answer, outcome=part.outcome, sub_answers=one.sub_answers))
        turn, gold = turn + part.turns, gold + part.gold_calls
    return parts


@given(batches, configs)
@settings(max_examples=80, deadline=None)
def test_rewards_are_those_of_a_loop_over_rounds(batch: list[Trajectory], config: CreditConfig) -> None:
    rewards = assign_rewards(batch, config)
    for b, one in enumerate(batch):
        row = gold = turn = 0
        block = np.zeros((len(one.calls), len(one.gold_calls)))
        for part in parts_of(one):
            alone = assign_rewards([part], config)
            here = slice(row, row + len(part.calls))
            assert rewards.call_rewards[b][here].tolist() == alone.call_rewards[0].tolist()
            own = [-1 if j < 0 else j + gold for j in alone.matches[0].tolist()]
            assert rewards.matches[b][here].tolist() == own
            end = turn + len(part.turns)
            assert rewards.turn_rewards[b][turn:end].tolist() == alone.turn_rewards[0].tolist()
            block[here, gold : gold + len(part.gold_calls)] = alone.similarity[0]
            row, gold, turn = here.stop, gold + len(part.gold_calls), end
        np.testing.assert_array_equal(rewards.similarity[b], block)
        assert rewards.returns[b] == pytest.approx(sum(rewards.turn_rewards[b].tolist()), abs=1e-12)
        assert rewards.malformed[b] == sum(c.malformed is not None for c in one.calls)


def turn_level(
    batch: list[Trajectory], rewards: list[list[float]], config: CreditConfig
) -> list[list[float]]:
    """Turn advantages from the definitions, for the baseline "turn_index"."""
    found: dict[tuple[int, int], tuple[Any, float]] = {}
    for b, one in enumerate(batch):
        counts = [part.turns for part in one.rounds] or [len(one.turns)]
        t = 0
        for k, count in enumerate(counts):
            end = t + count if config.horizon == "user_turn" else len(rewards[b])
            for place in range(count):
                later = rewards[b][t + place : end]
                value = sum(config.gamma**i * r for i, r in enumerate(later))
                found[b, t + place] = ((one.group, k, place), value)
            t += count
    level = [[0.0] * len(row) for row in rewards]
    for (b, t), (cell, value) in found.items():
        mates = [other for where, other in found.values() if where == cell]
        if len(mates) == 1:
            level[b][t] = value / (1 + config.eps) if config.normalize_std else value
            continue
        spread = statistics.stdev(mates) + config.eps if config.normalize_std else 1.0
        level[b][t] = (value - statistics.fmean(mates)) / spread
    return level


@given(batches, configs)
@settings(max_examples=80, deadline=None)
def test_turn_advantages_are_those_of_plain_python(batch: list[Trajectory], config: CreditConfig) -> None:
    # With eps = 0.5 returns that differ by rounding alone are no signal in either.
    config = dataclasses.replace(config, baseline="turn_index", eps=0.5)
    credit = assign_credit(batch, config)
    expected = turn_level(batch, credit.turn_rewards.tolist(), config)
    for found, row in zip(credit.turn_level_advantages, expected, strict=True):
        np.testing.assert_allclose(found, row, atol=1e-9)


def same(one: Credit, other: Credit) -> None:
    for field in dataclasses.fields(Credit):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if hasattr(a, "values"):
            np.testing.assert_array_equal(a.offsets, b.offsets)
            a, b = a.values, b.values
        np.testing.assert_array_equal(a, b)


@given(st.lists(st.tuples(single, st.integers(0, 2)), max_size=6), configs, st.data())
@settings(max_examples=60, deadline=None)
def test_a_dialogue_of_one_user_turn_is_a_rollout_without_rounds(
    batch: list[tuple[Trajectory, int]], config: CreditConfig, data: Any
) -> None:
    plain = [dataclasses.replace(one, group=group) for one, group in batch]
    some = [data.draw(st.booleans()) for _ in plain]
    wrapped = [dialogue(one, group=one.group) if wrap else one for one, wrap in zip(plain, some, strict=True)]
    same(assign_credit(wrapped, config), assign_credit(plain, config))
    other = dataclasses.replace(config, horizon="user_turn" if config.horizon == "dialogue" else "dialogue")
    same(assign_credit(plain, config), assign_credit(plain, other))


@given(batches, configs, st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_credit_of_dialogues_follows_a_permutation_and_needs_no_other_group(
    batch: list[Trajectory], config: CreditConfig, random: Any
) -> None:
    config = dataclasses.replace(config, eps=0.5)
    credit = assign_credit(batch, config)
    order = list(range(len(batch)))
    random.shuffle(order)
    moved = assign_credit([batch[i] for i in order], config)
    for to, b in enumerate(order):
        np.testing.assert_allclose(moved.turn_advantages[to], credit.turn_advantages[b], atol=1e-9)
        assert moved.matches[to].tolist() == credit.matches[b].tolist()
    mates = [b for b, one in enumerate(batch) if one.group == 0]
    alone = assign_credit([batch[b] for b in mates], config)
    for to, b in enumerate(mates):
        np.testing.assert_allclose(alone.turn_advantages[to], credit.turn_advantages[b], atol=1e-9)


# The commands


def dialogue_rows() -> list[dict[str, Any]]:
    """Two rollouts of one dialogue; the second stops in its first user turn."""
    book = {"name": "book", "arguments": {"name": "Ada", "day": "Mon"}}
    move = {"name": "move", "arguments": {"id": 1, "day": "Tue"}}
    rounds = [
        {"gold_calls": [book], "gold_answer": "booked"},
        {"gold_calls": [move], "gold_answer": "Tuesday", "outcome": 1},
    ]
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Book Ada for Monday."}]

    def calls_of(value: dict[str, Any]) -> dict[str, Any]:
        function = {"name": value["name"], "arguments": json.dumps(value["arguments"])}
        return {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "function": function}]}

    done = [
        calls_of(book),
        {"role": "tool", "tool_call_id": "c", "content": "1"},
        {"role": "assistant", "content": "booked"},
        {"role": "user", "content": "Tuesday, please."},
        calls_of(book),
        {"role": "tool", "tool_call_id": "c", "content": "Error: taken"},
        {"role": "assistant", "content": "no"},
    ]
    whole = {"group": "calendar", "messages": asked + done, "rounds": rounds}
    cut = [rounds[0], {**rounds[1], "outcome": 0}]
    return [whole, {"group": "calendar", "messages": asked + done[:2], "rounds": cut}]


def test_explain_and_score_show_dialogues(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in dialogue_rows()), encoding="utf-8")
    assert cli.main(["explain", str(path), "--row", "0"]) == cli.DONE
    text = capsys.readouterr().out
    assert "2 user turns, 2 with turns of the model" in text
    first, second = text.split("=== user turn ")[1:]
    assert first.startswith("0   2 turns, 1 gold call\n\nturn 0   reward 1.0000")
    assert "gold calls without a match: 0 of 1\nanswer       booked\ngold answer  booked" in first
    assert second.startswith("1   2 turns, 1 gold call\n\nturn 2   reward 0.0000")
    # The first user turn's gold call is no longer there to be matched.
    assert "unmatched   reward 0.0000   no gold call of this user turn has this name" in second
    assert '- gold 1  move {"id": 1, "day": "Tue"}' in second
    assert "answer       no\ngold answer  Tuesday\noutcome      1.0000, as the file says" in second
    assert cli.main(["explain", str(path), "--row", "1"]) == cli.DONE
    text = capsys.readouterr().out
    assert "2 user turns, 1 with turns of the model" in text
    assert "=== user turn 1   no turn, 1 gold call\n\ngold calls without a match: 1 of 1" in text
    out = tmp_path / "s.jsonl"
    assert cli.main(["score", str(path), "-o", str(out)]) == cli.DONE
    records = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [record["turn_rewards"] for record in records] == [[1.0, 1.0, 0.0, 1.0], [1.0]]
    assert [record["matches"] for record in records] == [[0, None], [0]]
