"""Which rollouts go together, and the tensors that they become."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("transformers", reason='the update needs pip install "matchtir[train]"')
pytest.importorskip("deepspeed", reason='the update needs pip install "matchtir[train]"')

from hypothesis import given
from hypothesis import strategies as st
from update_worker import made_up

from matchtir.errors import InputError
from matchtir.loss import LossConfig
from matchtir.train.batches import collate
from matchtir.train.minibatches import make_minibatches, plan, split_by_tokens
from matchtir.types import Ragged

MEAN = LossConfig()
LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=40)


def minibatches(rollouts, advantages, loss=MEAN, **changes):
    options = {"minibatches": 2, "micro_batch_tokens": 90, "skip_zero": True, **changes}
    return make_minibatches(rollouts, advantages, loss, **options)


def own_tokens(rollout):
    return np.concatenate([rollout.tokens[a:b] for a, b in rollout.spans])


def rows(batch):
    """The token rows of a padded batch, without the padding, as the spans need them."""
    found = []
    for b, spans in enumerate(batch.spans):
        if len(spans):
            found.append(tuple(batch.tokens[b, : int(spans[-1, 1])].tolist()))
    return found


def wanted(rollouts, chosen):
    return sorted(tuple(rollouts[i].tokens[: rollouts[i].spans[-1, 1]].tolist()) for i in chosen)


# Shares


@given(LENGTHS, st.integers(1, 8))
def test_split_uses_each_once_and_balances_tokens(lengths, parts):
    found = split_by_tokens(lengths, parts)
    assert len(found) == parts
    assert sorted(i for part in found for i in part) == list(range(len(lengths)))
    tokens = [sum(lengths[i] for i in part) for part in found]
    assert max(tokens) - min(tokens) <= max(lengths)
    if len(lengths) >= parts:
        assert all(found)


def test_split_by_hand():
    assert split_by_tokens([5, 9, 4, 4, 2], 2) == [[1, 3], [0, 2, 4]]
    assert split_by_tokens([3, 3, 3], 3) == [[0], [1], [2]]
    assert split_by_tokens([5, 9, 4, 4, 2], 2, [0, 2, 3]) == [[0], [2, 3]]


@given(LENGTHS, st.integers(1, 5), st.integers(1, 100), st.booleans())
def test_plan_keeps_to_the_limit_and_gives_every_process_as_many(lengths, world, limit, packed):
    chosen = list(range(0, len(lengths), 2))
    ranks = plan(lengths, chosen, limit, world, packed)
    assert len(ranks) == world
    assert len({len(groups) for groups in ranks}) == 1
    assert ranks[0]
    assert sorted(i for groups in ranks for group in groups for i in group) == chosen
    for group in (group for groups in ranks for group in groups if len(group) > 1):
        sizes = [lengths[i] for i in group]
        assert (sum(sizes) if packed else max(sizes) * len(sizes)) <= limit


def test_plan_puts_like_lengths_together():
    lengths = [10, 50, 11, 49, 12, 48]
    assert plan(lengths, range(6), 150, 1, False) == [[[1, 3, 5], [4, 2, 0]]]


def test_plan_of_nothing_has_an_empty_batch_everywhere():
    assert plan([4, 4], [], 100, 3, False) == [[[]], [[]], [[]]]
    assert plan([4, 4], [1], 100, 2, False) == [[[1]], [[]]]


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("packed", [False, True])
def test_minibatches_do_not_depend_on_the_number_of_processes(world, packed):
    rollouts, advantages = made_up(count=23)
    alone = minibatches(rollouts, advantages, minibatches=3, packed=packed)
    shares = [
        minibatches(rollouts, advantages, minibatches=3, packed=packed, rank=rank, world=world)
        for rank in range(world)
    ]
    for k, whole in enumerate(alone):
        together = [share[k] for share in shares]
        assert {x.normalizer for x in together} == {whole.normalizer}
        assert {x.used for x in together} == {whole.used}
        assert len({len(x.batches) for x in together}) == 1
        places = [b.tokens.flatten()[b.places].tolist() for x in together for b in x.batches]
        assert sorted(t for found in places for t in found) == sorted(
            t for b in whole.batches for t in b.tokens.flatten()[b.places].tolist()
        )


# What is left out


@pytest.mark.parametrize(
    ("loss", "total"),
    [
        (MEAN, lambda rollouts: len(rollouts)),
        (LossConfig(aggregation="sequence_mean_token_sum", max_tokens=50), len),
        (LossConfig(aggregation="token_mean"), lambda rollouts: sum(r.sampled_tokens for r in rollouts)),
    ],
)
def test_zero_advantages_are_left_out_and_counted(loss, total):
    rollouts, advantages = made_up(count=13, zeros=(2, 5))
    left = minibatches(rollouts, advantages, loss)
    kept = minibatches(rollouts, advantages, loss, skip_zero=False)
    assert sum(x.normalizer for x in left) == total(rollouts)
    assert [x.normalizer for x in left] == [x.normalizer for x in kept]
    assert sum(x.used for x in left) == 11
    assert sum(x.used for x in kept) == 13
    found = sorted(row for x in left for batch in x.batches for row in rows(batch))
    assert found == wanted(rollouts, [i for i in range(13) if i not in (2, 5)])


def test_rollouts_without_own_tokens_are_left_out_and_counted():
    rollouts, _ = made_up(count=4)
    rollouts[1] = replace(rollouts[1], spans=np.zeros((0, 2), dtype=np.int64))
    rollouts[2] = replace(rollouts[2], spans=np.array([[3, 3]]))
    advantages = Ragged.from_lists([[1.0] * len(r.spans) for r in rollouts])
    (only,) = minibatches(rollouts, advantages, minibatches=1, skip_zero=False)
    assert (only.rollouts, only.used, only.normalizer) == (4, 2, 4)
    assert sorted(row for batch in only.batches for row in rows(batch)) == wanted(rollouts, [0, 3])


def test_minibatch_of_zero_advantages_has_one_empty_batch():
    rollouts, advantages = made_up(count=3, zeros=(0, 1, 2))
    (only,) = minibatches(rollouts, advantages, minibatches=1)
    (batch,) = only.batches
    assert (only.used, only.normalizer, len(batch.places), batch.padding) == (0, 3, 0, 1)
    assert batch.tokens.shape == (1, 1)
    assert batch.advantages.lengths.tolist() == [0]


# Tensors


@pytest.mark.parametrize("packed", [False, True])
def test_batch_holds_what_the_rollouts_hold(packed):
    rollouts, advantages = made_up(count=6)
    group = [4, 0, 3]
    batch = collate(rollouts, advantages, np.arange(6.0), group, packed)
    members = [rollouts[i] for i in group]
    lengths = [int(r.spans[-1, 1]) for r in members]
    own = np.concatenate([own_tokens(r) for r in members])
    assert batch.tokens.flatten()[batch.places].tolist() == own.tolist()
    sampled = np.concatenate([r.logps[a:b] for r in members for a, b in r.spans])
    assert batch.sampled_logps.flatten()[batch.places].tolist() == sampled.tolist()
    assert batch.weights.tolist() == np.repeat(group, [r.sampled_tokens for r in members]).tolist()
    assert batch.spans.tolist() == [r.spans.tolist() for r in members]
    assert batch.advantages.tolist() == [advantages[i].tolist() for i in group]
    if packed:
        assert batch.tokens.tolist() == [
            np.concatenate([r.tokens[:n] for r, n in zip(members, lengths, strict=True)]).tolist()
        ]
        assert batch.attention["position_ids"].tolist() == [[t for n in lengths for t in range(n)]]
        assert batch.cu_seqlens.tolist() == [0, *np.cumsum(lengths).tolist()]
        assert batch.attention["max_length_q"] == max(lengths)
        assert batch.padding == 0
    else:
        assert batch.tokens.shape == (3, max(lengths))
        assert rows(batch) == [tuple(r.tokens[:n].tolist()) for r, n in zip(members, lengths, strict=True)]
        assert batch.padding == sum(max(lengths) - n for n in lengths)
        assert batch.cu_seqlens is None


@pytest.mark.parametrize("loss", [MEAN, LossConfig(aggregation="token_mean")])
def test_weights_of_a_minibatch_add_up_to_one(loss):
    rollouts, advantages = made_up(count=9)
    for part in minibatches(rollouts, advantages, loss, skip_zero=False):
        assert sum(float(batch.weights.sum()) for batch in part.batches) == pytest.approx(1, rel=1e-6)


def test_weights_of_a_sum_are_its_constant():
    rollouts, advantages = made_up(count=4)
    loss = LossConfig(aggregation="sequence_mean_token_sum", max_tokens=50)
    (part,) = minibatches(rollouts, advantages, loss, minibatches=1)
    assert {float(w) for batch in part.batches for w in batch.weights} == {np.float32(1 / 200)}


# What does not belong together


def test_more_minibatches_than_rollouts_are_refused():
    with pytest.raises(InputError, match="3 rollouts for 4 minibatches"):
        minibatches(*made_up(count=3, zeros=()), minibatches=4)


@pytest.mark.parametrize(
    ("spans", "turn"),
    [([[0, 4]], 0), ([[3, 6], [5, 9]], 1), ([[3, 6], [8, 7]], 1), ([[3, 6], [8, 900]], 1)],
)
def test_impossible_spans_are_refused(spans, turn):
    rollouts, _ = made_up(count=3)
    rollouts[1] = replace(rollouts[1], spans=np.array(spans))
    advantages = Ragged.from_lists([[1.0] * len(r.spans) for r in rollouts])
    with pytest.raises(InputError, match=f"rollout 1, turn {turn} has the span"):
        minibatches(rollouts, advantages)


def test_other_numbers_of_turns_are_refused():
    rollouts, advantages = made_up(count=3)
    rollouts[2] = replace(rollouts[2], spans=rollouts[2].spans[:0])
    with pytest.raises(InputError, match="rollout 2 has 0 spans"):
        minibatches(rollouts, advantages)


def test_other_numbers_of_logps_are_refused():
    rollouts, advantages = made_up(count=3)
    rollouts[2] = replace(rollouts[2], logps=rollouts[2].logps[:-1])
    with pytest.raises(InputError, match=r"rollout 2 has \d+ tokens but \d+ log-probabilities"):
        minibatches(rollouts, advantages)
