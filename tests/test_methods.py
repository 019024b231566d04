"""Methods by name, and how layers of settings become one configuration."""

from __future__ import annotations

import itertools
import re

import pytest

from matchtir import CreditConfig
from matchtir.errors import ConfigError
from matchtir.methods import METHOD_DEFAULTS, METHODS, method_settings
from matchtir.train.config import TrainConfig
from matchtir.train.run_folder import settings_of
from matchtir.train.settings import known_settings, resolve


def test_methods_set_known_settings_and_give_the_configuration_of_their_name():
    for name in METHODS:
        assert set(method_settings(name)) <= set(known_settings())
        assert resolve({"method": name}).method == name
    assert resolve({"method": "matchtir-km"}).credit == CreditConfig()
    assert resolve({"method": "matchtir-ot"}).credit.matching == "sinkhorn"
    reference = resolve({"method": "matchtir-km-reference"})
    assert reference.credit == CreditConfig.preset("reference")
    assert reference.loss.aggregation == "token_mean"
    rewards = {name: resolve({"method": name}).credit.reward for name in ("grpo", "toolrl", "ftrl")}
    assert rewards == {"grpo": "outcome", "toolrl": "toolrl", "ftrl": "ftrl"}
    for name in METHODS:
        turns = resolve({"method": name}).rollout.max_turns
        assert turns == (1 if name.endswith("-single") else TrainConfig().rollout.max_turns)


def test_ablations_are_the_integrations_of_their_names():
    found = {name: resolve({"method": name}).credit.integration for name in METHODS}
    for name, integration in {
        "matchtir-km-trajectory": "trajectory",
        "matchtir-km-turn": "turn",
        "matchtir-km-weighted-sum": "weighted_sum",
        "matchtir-km-weighted-product": "weighted_product",
        "matchtir-km": "auto",
        "grpo": "auto",
    }.items():
        assert found[name] == integration


def test_unknown_method_names_the_nearest():
    with pytest.raises(ConfigError, match=r"method is 'matchtir-kn'; did you mean 'matchtir-km'\?"):
        method_settings("matchtir-kn")
    with pytest.raises(ConfigError, match=r"known are matchtir-km, .*ftrl-single"):
        resolve({"method": "zzz"})


def test_method_of_a_later_layer_undoes_that_of_an_earlier_one():
    for old, new in itertools.permutations(METHODS, 2):
        # The file holds all that its method sets, as --print_config writes it.
        file = {"method": old, **method_settings(old)}
        left = set(METHODS[old].changes) - set(method_settings(new))
        if left:
            # Nothing says what these are to be now: not the new method, and the old value was the old one's.
            with pytest.raises(ConfigError, match=re.escape(f"from its method {old!r}")):
                resolve(file, {"method": new})
        told = {name: {"loss.aggregation": "token_mean", "rollout.max_turns": 3}[name] for name in left}
        credit = resolve(file, {"method": new, **told}).credit
        expected = resolve({"method": new}).credit
        for name in METHOD_DEFAULTS:
            field = name.partition(".")[2]
            assert getattr(credit, field) == getattr(expected, field), (old, new, name)


def test_later_layers_win_and_a_method_counts_where_it_is_named():
    file = {"method": "matchtir-ot", "credit": {"gamma": 0.5, "reg": 0.2}, "update": {"lr": 1e-4}}
    found = resolve(file, {"update": {"lr": 1e-5}})
    assert (found.credit.matching, found.credit.gamma, found.update.lr) == ("sinkhorn", 0.5, 1e-5)
    # In its own layer what is said besides wins over a method.
    assert resolve({"method": "grpo", "credit.reward": "ftrl"}).credit.reward == "ftrl"
    # Named later, it wins over the file; and what is said beside it wins over both.
    file = {"rollout": {"max_turns": 6}}
    assert resolve(file, {"method": "ftrl-single"}).rollout.max_turns == 1
    assert resolve(file, {"method": "ftrl-single", "rollout": {"max_turns": 2}}).rollout.max_turns == 2
    assert resolve(file, {"method": "ftrl"}).rollout.max_turns == 6


def test_overrides_of_deepspeed_are_merged_at_all_depths():
    file = {"deepspeed": {"overrides": {"zero": {"a": 1, "b": 2}, "c": 3}}}
    found = resolve(file, {"deepspeed": {"overrides": {"zero.b": 5, "zero.d.e": 6}}})
    assert found.deepspeed.overrides == {"zero": {"a": 1, "b": 5, "d": {"e": 6}}, "c": 3}


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ({"update": {"rl": 1}}, r"unknown setting 'update.rl'; did you mean 'update.lr'"),
        ({"rollout.gamma": 1}, r"unknown setting 'rollout.gamma'; did you mean 'credit.gamma'"),
        ({"qqqqqqq": 1}, r"unknown setting 'qqqqqqq'; `matchtir train --help` lists them"),
        ({"update": 3}, r"update is 3; expected settings by name"),
        ({"update": {"lr": -1.0}}, r"^update\.lr is -1\.0; expected a finite number above 0"),
        ({"credit": {"matching": "best"}}, r"^credit\.matching is 'best'; expected one of hungarian"),
        ({"deepspeed": {"offload_optimizer": True}}, r"^deepspeed\.offload_optimizer is true and stage 0"),
        (
            {"data.mix": "calendar"},
            r"data\.mix 'calendar', whose words .* expected a folder that `matchtir warm",
        ),
        ({"report_to": ("wandbb",)}, r"report_to is .*expected names of tensorboard"),
        ({"method": "grpo", "credit.integration": "turn"}, r"^credit\.integration is 'turn' and reward is"),
    ],
)
def test_wrong_settings_are_named(layer, message):
    with pytest.raises(ConfigError, match=message):
        resolve(layer)


def test_settings_of_a_configuration_give_it_back():
    config = resolve(
        {"method": "ftrl-single", "report_to": ["wandb"], "deepspeed.overrides": {"a": {"b": 1}}}
    )
    assert resolve(settings_of(config)) == config
    assert resolve() == TrainConfig()
