"""Similarity: equations 1-4 by hand, against plain Python over the JSON values, native against reference."""

from __future__ import annotations

import random
import sys
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from matchtir import ConfigError, InputError, RaggedMatrix, ToolCall, ops, similarity
from matchtir import _core as core

BACKENDS = ["native", "reference"]


@pytest.fixture(params=BACKENDS, autouse=True)
def backend(request, monkeypatch):
    """Every test runs on both backends."""
    monkeypatch.setenv("MATCHTIR_BACKEND", request.param)
    assert ops.backends()["similarity"]["active"] == request.param


def one(predicted: list[ToolCall], gold: list[ToolCall], **options: str) -> list[list[float]]:
    return similarity([predicted], [gold], **options)[0].tolist()


def score(predicted: object, gold: object, **options: str) -> bool:
    """Whether two values count as equal: with one parameter S is 1 if so, else 2/3."""
    found = one([ToolCall("f", {"x": predicted})], [ToolCall("f", {"x": gold})], **options)[0][0]
    assert found in (1.0, 2 / 3)
    return found == 1.0


# An oracle that shares nothing with the library: equality by recursion, not by interning.


def same(p: object, g: object, fold: bool) -> bool:
    if isinstance(p, bool) or isinstance(g, bool):
        return isinstance(p, bool) and isinstance(g, bool) and p == g
    if isinstance(p, (int, float)) and isinstance(g, (int, float)):
        return p == g
    if isinstance(p, str) and isinstance(g, str):
        return p.strip().casefold() == g.strip().casefold() if fold else p == g
    if isinstance(p, list) and isinstance(g, list):
        return len(p) == len(g) and all(same(x, y, fold) for x, y in zip(p, g, strict=True))
    if isinstance(p, dict) and isinstance(g, dict):
        return p.keys() == g.keys() and all(same(p[k], g[k], fold) for k in p)
    return p is None and g is None


def oracle(p: ToolCall, g: ToolCall, fold_values: bool, fold_names: bool) -> float:
    if p.malformed is not None or g.malformed is not None:
        return 0.0
    if p.name != g.name and not (fold_names and p.name.casefold() == g.name.casefold()):
        return 0.0
    keys_p, keys_g = set(p.arguments), set(g.arguments)
    jaccard = len(keys_p & keys_g) / len(keys_p | keys_g) if keys_p | keys_g else 1.0
    equal = len([k for k in keys_p & keys_g if same(p.arguments[k], g.arguments[k], fold_values)])
    return (1 + jaccard + equal) / (2 + len(keys_g))


# Few leaves, and those the ones that languages confuse.
leaves = st.sampled_from(
    [
        None,
        True,
        False,
        0,
        1,
        1.0,
        -0.0,
        0.5,
        2**60,
        float(2**60),
        "a",
        "A",
        " a ",
        "",
        "1",
        "true",
        "ß",
        "SS",
    ]
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=5,
)
calls = st.builds(
    ToolCall,
    st.sampled_from(["f", "F", "g", ""]),
    st.dictionaries(st.sampled_from(["x", "y", "X", ""]), values, max_size=3),
    st.sampled_from([None, None, None, "no JSON"]),
)
traces = st.lists(calls, max_size=4)


# Worked by hand


def test_similarity_by_hand():
    gold = [ToolCall("add", {"a": 1, "b": 2})]
    for arguments, expected in (
        ({"a": 1, "b": 2}, 1.0),
        ({"a": 1, "b": 3}, (1 + 1 + 1) / 4),
        ({"a": 5, "b": 6}, (1 + 1 + 0) / 4),
        ({"a": 1}, (1 + 1 / 2 + 1) / 4),
        ({"a": 1, "c": 2}, (1 + 1 / 3 + 1) / 4),
        ({"a": 1, "b": 2, "c": 3, "d": 4}, (1 + 2 / 4 + 2) / 4),
        ({"c": 1}, (1 + 0 + 0) / 4),
        ({}, (1 + 0 + 0) / 4),
    ):
        assert one([ToolCall("add", arguments)], gold) == [[expected]], arguments
    assert one([ToolCall("sub", {"a": 1, "b": 2})], gold) == [[0.0]]


def test_similarity_without_parameters_by_hand():
    # Two empty sets have Jaccard 1, so the score is 2/2; an extra parameter makes it 1/2.
    assert one([ToolCall("f")], [ToolCall("f")]) == [[1.0]]
    assert one([ToolCall("f", {"x": 1})], [ToolCall("f")]) == [[0.5]]
    assert one([ToolCall("f")], [ToolCall("f", {"x": 1})]) == [[1 / 3]]


def test_similarity_is_not_symmetric():
    left, right = ToolCall("f", {"x": 1, "y": 2}), ToolCall("f", {"x": 1})
    assert one([left], [right]) == [[(1 + 1 / 2 + 1) / 3]]
    assert one([right], [left]) == [[(1 + 1 / 2 + 1) / 4]]


def test_similarity_block_has_predicted_rows_and_gold_columns():
    found = one(
        [ToolCall("f", {"x": 1}), ToolCall("g"), ToolCall("f", {"x": 2})],
        [ToolCall("g"), ToolCall("f", {"x": 1})],
    )
    assert found == [[0.0, 1.0], [1.0, 0.0], [0.0, 2 / 3]]


@pytest.mark.parametrize(
    ("predicted", "gold", "equal"),
    [
        (1, 1.0, True),
        (True, 1, False),
        (False, 0, False),
        (False, 0.0, False),
        (True, "true", False),
        (None, False, False),
        (None, "null", False),
        (None, None, True),
        (0.0, -0.0, True),
        (2**53 + 1, float(2**53), False),
        (10**30, 10**30, True),
        (1e300, 1e300, True),
        ("1", 1, False),
        ("", None, False),
        ([], {}, False),
        ([], None, False),
        ([1, 2], [1.0, 2.0], True),
        ([1, 2], [2, 1], False),
        ([1], [True], False),
        ([1], [1, 1], False),
        ([[1], 2], [[1, 2]], False),
        ((1, 2), [1, 2], True),
        ({"a": 1, "b": [True]}, {"b": [True], "a": 1.0}, True),
        ({"a": 1, "b": [True]}, {"b": [1], "a": 1}, False),
        ({"a": 1}, {"a": 1, "b": None}, False),
        ({"a": {"b": 1}}, {"b": {"a": 1}}, False),
        ({"a": 1}, [["a", 1]], False),
        (["object"], {"object": 0}, False),
        (["true"], True, False),
        (["true"], ["true"], True),
        ([0, 1], [1, 0], False),
        ("é", "e\u0301", False),
        ("\ud800", "\ud800", True),
    ],
)
def test_similarity_equality_is_that_of_json(predicted, gold, equal):
    assert score(predicted, gold) is equal
    assert score(gold, predicted) is equal
    assert score([predicted], [gold]) is equal
    assert score({"k": predicted}, {"k": gold}) is equal


@pytest.mark.parametrize(
    ("predicted", "gold", "equal"),
    [
        ("Hearst Castle", "hearst castle", True),
        ("  a\n", "A", True),
        ("STRASSE", "straße", True),
        ("a b", "ab", False),
        ("1", 1, False),
        ("true", True, False),
        (["A", {"k": " b"}], ["a", {"k": "B"}], True),
        ({"K": "a"}, {"k": "a"}, False),  # names of parameters keep their case
    ],
)
def test_similarity_normalized_ignores_case_and_space_of_strings(predicted, gold, equal):
    assert score(predicted, gold, value_match="normalized") is equal
    assert score(predicted, gold) is (equal and predicted == gold)


def test_similarity_normalized_leaves_parameter_and_tool_names_alone():
    gold = [ToolCall("f", {"x": "a"})]
    assert one([ToolCall("f", {"X": "a"})], gold, value_match="normalized") == [[1 / 3]]
    assert one([ToolCall("F", {"x": "a"})], gold, value_match="normalized") == [[0.0]]


def test_similarity_casefold_names():
    gold = [ToolCall("Find", {"x": "a"})]
    predicted = [ToolCall("FIND", {"x": "a"}), ToolCall("find", {"x": "A"}), ToolCall("find ", {"x": "a"})]
    assert one(predicted, gold, name_match="casefold") == [[1.0], [2 / 3], [0.0]]
    assert one(predicted, gold) == [[0.0]] * 3


def test_similarity_malformed_calls_are_like_nothing():
    bad, good = ToolCall("f", {"x": 1}, malformed="no JSON"), ToolCall("f", {"x": 1})
    assert one([bad, good, bad], [good, bad]) == [[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]
    assert one([ToolCall("", malformed="")], [ToolCall("")]) == [[0.0]]
    assert one([bad], [bad]) == [[0.0]]


def test_similarity_nan_equals_nothing():
    nan = float("nan")
    assert not score(nan, nan)
    assert not score([nan], [nan])
    assert not score({"a": nan}, {"a": nan})
    shared = [nan]
    assert not score(shared, shared)
    assert not score(np.float64("nan"), nan)
    assert score(float("inf"), float("inf"))


@pytest.mark.parametrize("alien", [{1, 2}, b"a", 1j, object(), [{3}], {"a": [b""]}, {1: 2}, np.int64(1)])
def test_similarity_predicted_value_that_is_no_json_equals_nothing(alien):
    # It stays a parameter, though: name and Jaccard count.
    for gold in (1, "a", None):
        assert not score(alien, gold)
    found = one([ToolCall("f", {"x": alien}), ToolCall("f", {"x": 1})], [ToolCall("f", {"x": 1})])
    assert found == [[2 / 3], [1.0]]


@pytest.mark.parametrize(("alien", "kind"), [({1, 2}, "set"), ([b"a"], "bytes"), ({"k": 1j}, "complex")])
def test_similarity_refuses_gold_values_that_are_no_json(alien, kind):
    gold = [[ToolCall("g")], [ToolCall("g"), ToolCall("find", {"y": 1, "where": alien})]]
    with pytest.raises(
        InputError, match=rf"'where'.*'find'.*{kind} .* is no JSON value|'find'.*'where'.*{kind}"
    ):
        similarity([[], []], gold)
    with pytest.raises(InputError, match=r"gold trace 1\b"):
        similarity([[], []], gold)


def test_similarity_deep_nesting_is_an_input_error_at_most():
    deep: object = 1
    for _ in range(100_000):
        deep = [deep]
    assert not score(deep, 1)
    with pytest.raises(InputError, match="'x'"):
        score(1, deep)
    shallow: object = 1
    for _ in range(50):
        shallow = [shallow]
    assert score(shallow, shallow)


def test_similarity_takes_any_mapping_as_arguments():
    call = ToolCall("f", MappingProxyType({"x": 1}))
    assert one([call], [ToolCall("f", {"x": 1.0})]) == [[1.0]]


# Against the oracle


@pytest.mark.parametrize("value_match", ["exact", "normalized"])
@pytest.mark.parametrize("name_match", ["exact", "casefold"])
@given(batch=st.lists(st.tuples(traces, traces), max_size=4), threads=st.integers(1, 3))
def test_similarity_equals_oracle(value_match, name_match, batch, threads):
    predicted, gold = [p for p, _ in batch], [g for _, g in batch]
    found = similarity(predicted, gold, value_match=value_match, name_match=name_match, num_threads=threads)
    assert len(found) == len(batch)
    for block, (ps, gs) in zip(found, batch, strict=True):
        expected = [
            [oracle(p, g, value_match == "normalized", name_match == "casefold") for g in gs] for p in ps
        ]
        np.testing.assert_array_equal(block, np.array(expected, dtype=float).reshape(len(ps), len(gs)))


@given(traces, traces, st.integers(0, 2**32))
def test_similarity_follows_permutation(predicted, gold, seed):
    shuffler = random.Random(seed)
    rows, cols = list(range(len(predicted))), list(range(len(gold)))
    shuffler.shuffle(rows)
    shuffler.shuffle(cols)

    def reordered(call: ToolCall) -> ToolCall:
        items = list(call.arguments.items())
        shuffler.shuffle(items)
        return ToolCall(call.name, dict(items), call.malformed)

    expected = similarity([predicted], [gold])[0][rows][:, cols]
    found = similarity([[reordered(predicted[i]) for i in rows]], [[reordered(gold[j]) for j in cols]])[0]
    np.testing.assert_array_equal(found, expected)


def test_similarity_large_batch_is_the_same_on_any_number_of_threads():
    rng = random.Random(3)
    pool = [
        ToolCall(rng.choice("fgh"), {k: rng.choice([1, "a", None, [1]]) for k in "xyz" if rng.random() < 0.6})
        for _ in range(30)
    ]
    predicted = [rng.choices(pool, k=rng.randrange(6)) for _ in range(500)]
    gold = [rng.choices(pool, k=rng.randrange(6)) for _ in range(500)]
    one_thread = similarity(predicted, gold, num_threads=1)
    for threads in (2, 5):
        np.testing.assert_array_equal(
            similarity(predicted, gold, num_threads=threads).values, one_thread.values
        )
    k = next(k for k in range(400, 500) if predicted[k] and gold[k])
    expected = [[oracle(p, g, False, False) for g in gold[k]] for p in predicted[k]]
    np.testing.assert_array_equal(one_thread[k], expected)


# Sizes and sharing


def test_similarity_empty_traces():
    call = ToolCall("f")
    found = similarity([[], [call], [], [call]], [[call], [], [], [call]])
    assert [x.shape for x in found] == [(0, 1), (1, 0), (0, 0), (1, 1)]
    assert found.values.tolist() == [1.0]
    assert found.values.dtype == np.float64
    assert len(similarity([], [])) == 0


def test_similarity_shares_one_interned_gold(monkeypatch):
    seen = []
    module = sys.modules["matchtir.similarity"]

    def spy(*arguments, **options):
        seen.append(arguments)
        return ops.similarity(*arguments, **options)

    monkeypatch.setattr(module, "_similarity", spy)
    gold = (ToolCall("f", {"x": 1}), ToolCall("g"))
    other = [ToolCall("h")]
    predicted = [[ToolCall("f", {"x": k})] for k in range(4)]
    found = similarity(predicted, [gold, other, gold, gold])
    assert [x.tolist() for x in found] == [[[2 / 3, 0]], [[0]], [[2 / 3, 0]], [[2 / 3, 0]]]
    _, _, interned, begins, counts = seen[0]
    assert len(interned.names) == 3
    assert begins.tolist() == [0, 2, 0, 0]
    assert counts.tolist() == [2, 1, 2, 2]
    # Equal but not the same object: the same scores.
    copies = similarity(predicted, [tuple(gold), other, list(gold), list(gold)])
    np.testing.assert_array_equal(copies.values, found.values)


def test_similarity_shared_gold_keeps_each_rollout_its_own():
    gold = (ToolCall("f", {"x": 1}),)
    predicted = [[ToolCall("f", {"x": 1})], [], [ToolCall("f", {"x": 2}), ToolCall("g")]]
    assert [x.tolist() for x in similarity(predicted, [gold] * 3)] == [[[1.0]], [], [[2 / 3], [0.0]]]


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"value_match": "fuzzy"}, "value_match is 'fuzzy'; expected 'exact' or 'normalized'"),
        ({"value_match": None}, "value_match is None; expected"),
        ({"name_match": "lower"}, "name_match is 'lower'; expected 'exact' or 'casefold'"),
        ({"num_threads": 0}, "num_threads is 0; expected a positive integer"),
    ],
)
def test_similarity_refuses_unknown_settings(options, message):
    with pytest.raises(ConfigError, match=message):
        similarity([[]], [[]], **options)


def test_similarity_refuses_batches_of_different_length():
    with pytest.raises(InputError, match="2 rollouts of predicted calls but 1 of gold calls"):
        similarity([[], []], [[]])


def interned(names, starts, keys, values) -> ops.InternedCalls:
    return ops.InternedCalls(*[np.array(x, dtype=np.int64) for x in (names, starts, keys, values)])


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


def test_ops_similarity_by_hand():
    # Keys in any order; call 1 of the predicted is malformed.
    predicted = interned([7, -1, 7], [0, 2, 2, 4], [5, 3, 3, 4], [1, 2, 2, 9])
    gold = interned([8, 7], [0, 0, 3], [3, 4, 5], [2, 9, 1])
    found = ops.similarity(predicted, ints(0, 3, 3), gold, ints(0, 1), ints(2, 1))
    assert found[0].tolist() == [[0.0, (1 + 2 / 3 + 2) / 5], [0.0, 0.0], [0.0, (1 + 2 / 3 + 2) / 5]]
    assert found[1].shape == (0, 1)


def test_ops_similarity_refuses_offsets_that_do_not_fit(monkeypatch):
    calls_ = interned([1], [0, 1], [1], [1])
    with pytest.raises(InputError, match="begins has 1 entries; expected 2"):
        ops.similarity(calls_, ints(0), calls_, ints(0), ints(1))
    monkeypatch.setenv("MATCHTIR_BACKEND", "native")
    for predicted, begins, gold, gold_begins, counts, message in (
        (calls_, ints(0, 1), calls_, ints(0), ints(2), "problem 0 reaches beyond the 1 gold calls"),
        (calls_, ints(0, 1), calls_, ints(-1), ints(1), "problem 0 reaches beyond the 1 gold calls"),
        (calls_, ints(0, 0), calls_, ints(0), ints(1), "begins must be 2 offsets that rise from 0 to 1"),
        (
            interned([1], [0, 2], [1], [1]),
            ints(0, 1),
            calls_,
            ints(0),
            ints(1),
            "arguments must be 2 offsets",
        ),
        (calls_, ints(0, 1), interned([1], [1, 1], [1], [1]), ints(0), ints(1), "gold_arguments must be 2"),
        (interned([1], [0, 1], [1], [1, 2]), ints(0, 1), calls_, ints(0), ints(1), "values must be as long"),
    ):
        with pytest.raises(InputError, match=message):
            ops.similarity(predicted, begins, gold, gold_begins, counts)


def test_core_similarity_refuses_blocks_of_other_sizes():
    x = ints(1), ints(0, 1), ints(1), ints(1)
    out = np.zeros(2)
    with pytest.raises(InputError, match="problem 0 has 2 cells; expected 1 x 1"):
        core.similarity(*x, ints(0, 1), *x, ints(0), ints(1), ints(0, 2), 1, out)
    assert RaggedMatrix(out, ints(1), ints(2)).values.tolist() == [0.0, 0.0]


def test_core_refuses_gold_calls_out_of_range_without_wrapping_around():
    zero, far = np.zeros(1, dtype=np.int64), np.array([2**62])
    none = np.zeros(0, dtype=np.int64)
    with pytest.raises(InputError, match="problem 0 reaches beyond the 1 gold calls"):
        core.similarity(
            zero, np.zeros(2, np.int64), none, none, np.array([0, 1]),
            zero, np.zeros(2, np.int64), none, none, far, far, np.array([0, 0]), 1, np.zeros(0),
        )  # fmt: skip


def test_similarity_shows_an_error_of_a_key(backend):
    with pytest.raises(TypeError, match="unhashable"):
        similarity([[ToolCall(["no", "name"])]], [[ToolCall("f")]])
