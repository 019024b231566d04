"""TRL's `GRPOTrainer` with credit by turn: import it from here, and change nothing else.

    rollouts of TRL -_calculate_rewards-> turn rewards -all processes-> turn advantages
        -_generate_and_score_completions-> advantages of tokens, shape (B, T) -TRL's loss-> step

What TRL does is left to TRL: three of its methods are called and what they return is read or changed.
"""

from __future__ import annotations

import inspect
import json
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..advantages import integrate
from ..credit import CreditConfig, assign_advantages, assign_rewards
from ..errors import ConfigError, InputError
from ..scatter import scatter
from ..types import Advantages, FloatArray, IntArray, Ragged, Rewards, ToolCall
from .settings import NEEDS, credit_config
from .turns import MESSAGES, TurnReader, check_format

try:
    import trl
    from accelerate.utils import gather_object
except ImportError as error:
    raise ImportError('this needs TRL: pip install "matchtir[trl]"') from error

__all__ = ["TESTED", "GRPOConfig", "GRPOTrainer"]

TESTED = ("1.16",)
"""Versions of TRL with which the tests pass."""

_HOOKS = {
    "_generate": ["self", "prompts"],
    "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    "_generate_and_score_completions": ["self", "inputs"],
}
_LOGGED_TURNS = 10


def check_host(version: str, host: type) -> None:
    """Refuse a TRL whose trainer has not the methods that are changed here, and warn of an untested one.

    Raises
    ------
    ImportError
        The message names the method and the tested versions.
    """
    for name, expected in _HOOKS.items():
        method = getattr(host, name, None)
        found = None if method is None else list(inspect.signature(method).parameters)
        if found != expected:
            came = "is not there" if found is None else f"takes ({', '.join(found)})"
            raise ImportError(
                f"GRPOTrainer.{name} of TRL {version} {came}; expected ({', '.join(expected)}), as in the "
                f"tested versions: {', '.join(TESTED)}"
            )
    if ".".join(version.split(".")[:2]) not in TESTED:
        warnings.warn(
            f"matchtir is tested with TRL {', '.join(TESTED)}, and this is {version}",
            UserWarning,
            stacklevel=3,
        )


check_host(trl.__version__, trl.GRPOTrainer)


@dataclass
class GRPOConfig(trl.GRPOConfig):  # type: ignore[misc]
    """TRL's settings and those of the credit. TRL's own `GRPOConfig` does as well, with these defaults.

    Parameters
    ----------
    credit_method : str
        One of :data:`matchtir.methods.METHODS`, without those that also set the loss or the turns.
    credit_fields : dict or JSON text, optional
        Fields of :class:`matchtir.CreditConfig` that differ from the method's.
    gold_calls_column : str
        Column of the gold calls. A row without a value is rewarded by the other reward functions alone.
    gold_answer_column : str
        Column of the gold answer.
    sub_answers_column : str
        Column of the sub-answers by tool, which the reward "ftrl" needs.
    tool_format : str, optional
        Parser of the calls, or "messages" for the calls that TRL read. None: the parser that reads what the
        chat template writes, or "messages" where there is none.
    """

    credit_method: str = field(default="matchtir-km", metadata={"help": "How credit is assigned."})
    credit_fields: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Fields of CreditConfig that differ from the method's, as JSON."}
    )
    gold_calls_column: str = field(default="ground_truth", metadata={"help": "Column of the gold calls."})
    gold_answer_column: str = field(default="answer", metadata={"help": "Column of the gold answer."})
    sub_answers_column: str = field(
        default="sub_answers", metadata={"help": "Column of the sub-answers by tool, for the FTRL reward."}
    )
    tool_format: str | None = field(
        default=None, metadata={"help": "Parser of the calls; found from the chat template if not given."}
    )


_DEFAULTS = {one.name: one.default for one in fields(GRPOConfig) if one.name in GRPOConfig.__annotations__}


@dataclass(frozen=True, slots=True)
class _Settings:
    """What is ours of the arguments."""

    credit: CreditConfig
    columns: Mapping[str, str]
    tool_format: str | None

    @classmethod
    def of(cls, args: Any) -> _Settings:
        """Read from TRL's arguments, where they may be missing."""
        ours: Any = {name: getattr(args, name, default) for name, default in _DEFAULTS.items()}
        changes = ours["credit_fields"] or {}
        if isinstance(changes, str):
            try:
                changes = json.loads(changes)
            except ValueError as error:
                raise ConfigError(f"credit_fields is {changes!r:.80}, which is no JSON: {error}") from error
        if not isinstance(changes, Mapping):
            raise ConfigError(f"credit_fields is {changes!r:.80}; expected names and values")
        if getattr(args, "scale_rewards", None) == "none":
            changes = {"normalize_std": False, **changes}
        columns = {name: ours[f"{name}_column"] for name in ("gold_calls", "gold_answer", "sub_answers")}
        check_format(ours["tool_format"])
        return cls(credit_config(ours["credit_method"], changes), columns, ours["tool_format"])

    @property
    def needed(self) -> str:
        """The column without which nothing can be judged."""
        return self.columns[NEEDS[self.credit.reward]]

    def check(self, found: Sequence[str]) -> None:
        """Refuse a data set that lacks a column which is needed or named; say what will not be rewarded."""
        named = [column for name, column in self.columns.items() if column != _DEFAULTS[f"{name}_column"]]
        missing = next((column for column in [self.needed, *named] if column not in found), None)
        if missing is not None:
            raise ConfigError(
                f"the data set has no column {missing!r}, which rollouts are to be judged by; it has "
                f"{', '.join(map(str, found))} (gold_calls_column, gold_answer_column and sub_answers_column "
                "of matchtir.integrations.trl.GRPOConfig name other columns)"
            )
        answer = self.columns["gold_answer"]
        if answer not in found and self.credit.reward == "matchtir":
            warnings.warn(f"no column {answer!r}: answers are not rewarded", UserWarning, stacklevel=4)


@dataclass(frozen=True, slots=True)
class _Own:
    """Rollouts of this process."""

    spans: Ragged
    rewards: Rewards
    judged: list[bool]
    rows: list[int]
    """A number that is equal for rows that are judged by the same."""


@dataclass(frozen=True, slots=True)
class _All:
    """Rollouts of all processes, in the order in which TRL gathers them."""

    turn_rewards: Ragged
    advantages: Advantages
    tokens: IntArray
    """Own tokens of each turn."""
    group_ids: IntArray
    judged: npt.NDArray[np.bool_]
    calls: dict[str, int]


class GRPOTrainer(trl.GRPOTrainer):  # type: ignore[misc]
    """TRL's trainer, whose advantages are those of MatchTIR: one per turn.

    The arguments are TRL's. `reward_funcs` may be left out; a reward "matchtir", the trajectory's return, is
    added to it, and the other reward functions, times their weights, add to the trajectory level. `args` may
    be a :class:`GRPOConfig` from here. Gold calls come from the data set, or among the extra fields of a
    `rollout_func`.

    Raises
    ------
    ConfigError
        If the settings of the credit are impossible, the parser that is named does not read the calls of the
        chat template, or the data set lacks a column that rollouts are judged by; if there is no data set; or
        if the method is "ftrl" and there is a `rollout_func`, which hands over no results of calls.
    """

    reward_funcs: list[Any]
    reward_func_names: list[str]
    reward_processing_classes: list[Any]
    reward_weights: torch.Tensor

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: Any = None,
        train_dataset: Any = None,
        *others: Any,
        **named: Any,
    ) -> None:
        self._credit = _Settings.of(args)
        self._own: _Own | None = None
        self._all: _All | None = None
        self._masks: list[Sequence[int]] | None = None
        self._gold: list[dict[str, Any]] = []
        self._mode = "train"
        self._checked: set[str] = set()
        given = inspect.signature(super().__init__).bind(
            model, reward_funcs, args, train_dataset, *others, **named
        )
        self._check_data(train_dataset, given.arguments.get("rollout_func"))

        def matchtir(**_: Any) -> list[float | None]:
            """The return of each rollout."""
            assert self._own is not None
            found = zip(self._own.rewards.returns.tolist(), self._own.judged, strict=True)
            return [value if judged else None for value, judged in found]

        # TRL refuses to have no reward at all; given weights are those of the given functions.
        alone = reward_funcs is None or reward_funcs == []
        super().__init__(model, [matchtir] if alone else reward_funcs, args, train_dataset, *others, **named)
        if not alone:
            self.reward_funcs = [*self.reward_funcs, matchtir]
            self.reward_func_names = [*self.reward_func_names, "matchtir"]
            self.reward_processing_classes = [*self.reward_processing_classes, None]
            self.reward_weights = torch.cat([self.reward_weights, torch.ones(1)])
        self._column = self.reward_funcs.index(matchtir)
        stop_ids = getattr(self, "eos_token_ids", ())
        try:
            self._reader = TurnReader(self._tokenizer, self._credit.tool_format, stop_ids=stop_ids)
        except ConfigError:
            if self._credit.tool_format is not None:
                raise
            # A model that TRL has a parser for, and we have none.
            self._reader = TurnReader(self._tokenizer, MESSAGES, stop_ids=stop_ids)

    def _check_data(self, dataset: Any, rollout_func: Any) -> None:
        """Refuse what cannot be judged, before a model is loaded."""
        if dataset is None:
            raise ConfigError("train_dataset is None; expected a data set with the gold calls of its prompts")
        if rollout_func is not None:
            if self._credit.credit.reward == "ftrl":
                raise ConfigError(
                    "the reward 'ftrl' reads what the tools returned, and a rollout_func hands over no such "
                    "thing; expected another method, or tools= or environment_factory="
                )
        elif isinstance(columns := getattr(dataset, "column_names", None), list):
            self._credit.check(columns)

    def _generate(self, prompts: list[Any]) -> Any:
        """TRL's; keeps the mask of what the environment wrote."""
        output = super()._generate(prompts)
        self._masks = output[2]
        return output

    def _calculate_rewards(
        self, inputs: list[Any], prompts: list[Any], completions: list[Any], completion_ids_list: list[Any]
    ) -> torch.Tensor:
        """TRL's; turns are rewarded before, and compared with those of all processes after."""
        self._own = self._reward(inputs, completions, completion_ids_list)
        rewards: torch.Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._all = self._compare(self._own, rewards)
        return rewards

    def _generate_and_score_completions(self, inputs: list[Any]) -> dict[str, Any]:
        """TRL's; advantages of rollouts are replaced by those of tokens, shape (B, T)."""
        # Before TRL changes either: extra fields of a rollout_func go into the rows, and generation may leave
        # the model in another mode.
        self._mode = "train" if self.model.training else "eval"
        names = self._credit.columns.items()
        self._gold = [{name: row[column] for name, column in names if column in row} for row in inputs]
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        own, found = self._own, self._all
        assert own is not None
        assert found is not None
        turns = found.advantages.turn
        if self.args.scale_rewards == "batch" or self.multi_objective_aggregation != "sum_then_normalize":
            # Trajectories as TRL compares them, which is not inside a group.
            whole = self.accelerator.gather(output["advantages"]).cpu().double().numpy()
            turns = integrate(
                whole,
                found.advantages.turn_level,
                found.turn_rewards,
                integration=self._credit.credit.resolved_integration,
                eps=self._credit.credit.eps,
            )
        first = self.accelerator.process_index * len(own.spans)
        mine = Ragged.from_lists([turns[b].tolist() for b in range(first, first + len(own.spans))])
        tokens = scatter(mine, own.spans, tuple(output["completion_ids"].shape))
        output["advantages"] = torch.from_numpy(tokens).to(output["advantages"])
        self._log_credit(found, turns)
        return output

    def _reward(self, inputs: list[Any], completions: list[Any], completion_ids: list[Sequence[int]]) -> _Own:
        """Turns of this process's rollouts and their rewards."""
        settings = self._credit
        if self._mode not in self._checked:
            self._checked.add(self._mode)
            if self._mode == "train":
                settings.check(list(inputs[0]))
            elif settings.needed not in inputs[0]:
                warnings.warn(f"no column {settings.needed!r} in evaluation", UserWarning, stacklevel=2)
        masks: Sequence[Sequence[int] | None] = self._masks or [None] * len(completion_ids)
        self._masks = None
        golds: dict[str, tuple[ToolCall, ...]] = {}
        read, judged = [], []
        for row, known, messages, ids, mask in zip(
            inputs, self._gold, completions, completion_ids, masks, strict=True
        ):
            gold = {name: known.get(name, row.get(column)) for name, column in settings.columns.items()}
            judged.append(gold[NEEDS[settings.credit.reward]] is not None)
            if gold["sub_answers"] is None:
                gold["sub_answers"] = {}
            try:
                read.append(self._reader.read(ids, mask, {**gold, "group": 0}, messages, golds))
            except InputError as error:
                raise InputError(f"the row with prompt {row.get('prompt')!r:.200}: {error}") from error
        rewards = assign_rewards([trajectory for trajectory, _ in read], settings.credit)
        if not all(judged):
            kept = np.repeat(judged, rewards.turn_rewards.lengths)
            turns = Ragged(np.where(kept, rewards.turn_rewards.values, 0.0), rewards.turn_rewards.offsets)
            rewards = replace(rewards, turn_rewards=turns, returns=np.where(judged, rewards.returns, 0.0))
        flat = np.concatenate([spans for _, spans in read])
        spans = Ragged.from_lengths(flat, [len(one) for _, one in read])
        rows = [_number(gold, row) for gold, row in zip(self._gold, inputs, strict=True)]
        return _Own(spans, rewards, judged, rows)

    def _compare(self, own: _Own, rewards: torch.Tensor) -> _All:
        """Advantages over whole groups, which may lie in several processes."""
        returns = own.rewards.returns.tolist()
        facts = gather_object(
            [
                (returns[b], own.judged[b], own.rows[b], turns.tolist(), (spans[:, 1] - spans[:, 0]).tolist())
                for b, (turns, spans) in enumerate(zip(own.rewards.turn_rewards, own.spans, strict=True))
            ]
        )
        # Rollouts that cannot be judged have rewards of 0, and are not counted.
        matches = [found for found, known in zip(own.rewards.matches, own.judged, strict=True) if known]
        calls = {
            "made": sum(len(found) for found in matches),
            "matched": sum(int((found >= 0).sum()) for found in matches),
            "malformed": int(own.rewards.malformed[own.judged].sum()),
        }
        counts = gather_object([calls])
        size = self.num_generations if self._mode == "train" else self.num_generations_eval
        _check_groups([row for _, _, row, *_ in facts], size)
        weighted = (rewards * self.reward_weights.to(rewards.device)).cpu().double().numpy()
        lost = np.isnan(weighted).all(axis=1)
        weighted = np.nan_to_num(weighted)
        weighted[:, self._column] = float(self.reward_weights[self._column]) * np.array([f[0] for f in facts])
        turn_rewards = Ragged.from_lists([turns for *_, turns, _ in facts])
        groups = np.arange(len(facts), dtype=np.int64) // size
        # One that no reward function judged is compared with nobody, and nobody with it, as in TRL.
        ids = np.where(lost, len(facts) + np.arange(len(facts)), groups)
        return _All(
            turn_rewards=turn_rewards,
            advantages=assign_advantages(turn_rewards, weighted.sum(axis=1), ids, self._credit.credit),
            tokens=np.array([n for *_, lengths in facts for n in lengths], dtype=np.int64),
            group_ids=groups,
            judged=np.array([known for _, known, *_ in facts], dtype=bool),
            calls={name: sum(one[name] for one in counts) for name in calls},
        )

    def _log_credit(self, found: _All, turns: Ragged) -> None:
        """Metrics, and the mean over own tokens where TRL shows a rollout's advantage."""
        metrics = self._metrics[self._mode]
        made = found.calls["made"] or np.nan
        judged = np.repeat(found.judged, found.turn_rewards.lengths)
        metrics["credit/turn_reward"].append(_mean(found.turn_rewards.values[judged]))
        metrics["credit/matched"].append(found.calls["matched"] / made)
        metrics["credit/malformed"].append(found.calls["malformed"] / made)
        rollout = turns.problem
        signal = np.zeros(len(turns), dtype=bool)
        signal[rollout[turns.values != 0.0]] = True
        groups = np.bincount(found.group_ids, weights=signal) > 0
        metrics["credit/groups_without_signal"].append(1.0 - _mean(groups))
        index = np.arange(len(turns.values)) - np.repeat(turns.offsets[:-1], turns.lengths)
        for t in range(min(_LOGGED_TURNS, int(index.max(initial=-1)) + 1)):
            metrics[f"credit/advantage_turn_{t + 1}"].append(_mean(turns.values[index == t]))

        shown = self._logs["advantages"]
        for _ in range(min(len(turns), len(shown))):
            shown.pop()
        total = np.bincount(rollout, weights=turns.values * found.tokens, minlength=len(turns))
        own = np.bincount(rollout, weights=found.tokens, minlength=len(turns))
        shown.extend((total / np.maximum(own, 1)).tolist())


def _check_groups(rows: Sequence[int], size: int) -> None:
    """Refuse rollouts that are not whole groups, one after the other."""
    if len(rows) % size:
        raise InputError(f"{len(rows)} rollouts are no whole groups of {size}")
    for first in range(0, len(rows), size):
        other = next((b for b in range(first, first + size) if rows[b] != rows[first]), None)
        if other is not None:
            raise InputError(
                f"rollouts {first} and {other} of the batch are judged by different gold; expected {size} of "
                "each prompt, one after the other: a group must not be split over batches"
            )


def _number(gold: Mapping[str, Any], row: Mapping[str, Any]) -> int:
    """The same number for rows that are judged by the same, in every process."""
    text = json.dumps([gold, row.get("environment")], default=lambda value: type(value).__name__)
    return zlib.crc32(text.encode())


def _mean(values: FloatArray | np.ndarray[Any, Any]) -> float:
    """Mean; not a number, which TRL passes over, if there is none."""
    return float(np.mean(values)) if len(values) else float("nan")
