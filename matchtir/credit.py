"""Credit assignment end to end: from rollouts to one advantage a turn. The first file to read.

    calls -similarity-> S -matching-> call rewards -rewards-> turn rewards -advantages-> turn advantages

Every arrow is a module of that name, pure, with ragged arrays in and out; this one only chooses and
composes. ``docs/advantages.md`` has the formulas and what each choice costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from . import advantages as adv
from .advantages import Baseline, Integration
from .baselines import ftrl_rewards, toolrl_rewards
from .config import Number, check_fields, from_dict
from .dialogues import by_round, join, split, turns_of_rounds
from .errors import ConfigError, InputError, MatchtirError
from .matching import Cost, Matching, match
from .parse import trajectory_from_row
from .rewards import outcome_rewards, trajectory_returns, turn_rewards
from .similarity import NameMatch, ValueMatch, similarity
from .types import LARGEST_REWARD, Advantages, Credit, FloatArray, Ragged, Rewards, ToolCall, Trajectory

IntegrationOrAuto = Literal["auto", Integration]
Reward = Literal["matchtir", "outcome", "toolrl", "ftrl"]
Horizon = Literal["dialogue", "user_turn"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "matching": get_args(Matching),
    "cost": get_args(Cost),
    "value_match": get_args(ValueMatch),
    "name_match": get_args(NameMatch),
    "integration": get_args(IntegrationOrAuto),
    "horizon": get_args(Horizon),
    "baseline": get_args(Baseline),
    "reward": get_args(Reward),
}
_NUMBERS = {
    "penalty": Number(Real, "a finite number, 0 or more (1e100 at most)", lambda x: 0 <= x <= LARGEST_REWARD),
    "reg": Number(Real, "a finite number above 0 (1e-290 or more)", lambda x: 1e-290 <= x < math.inf),
    "tol": Number(Real, "a finite number above 0", lambda x: 0 < x < math.inf),
    "max_iter": Number(Integral, "a whole number, 1 or more (2^62 at most)", lambda x: 1 <= x <= 2**62),
    "gamma": Number(Real, "a number in [0, 1]", lambda x: 0 <= x <= 1),
    "eps": Number(Real, "a finite number above 0", lambda x: 0 < x < math.inf),
    "num_threads": Number(Integral, "None or a whole number, 1 or more", lambda x: x >= 1, optional=True),
}
_PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "reference": {"matching": "greedy", "integration": "mean", "name_match": "casefold"},
}


@dataclass(frozen=True, slots=True)
class CreditConfig:
    """How credit is assigned. The defaults are the paper's; every value is checked on construction.

    Parameters
    ----------
    matching : {"hungarian", "greedy", "sinkhorn"}
        Maximum-weight matching (hard, eq. 5); pairs by descending score, as the published code does;
        or entropic optimal transport (soft, eq. 6-7).
    penalty : float
        λ >= 0: an unmatched call gets -λ. Hard matching only.
    cost : {"linear", "normalized", "exponential"}
        Cost of the transport: -S, 1 - S rescaled to [0, 1], or -exp(S). Soft matching only.
    reg : float
        Entropic regularisation of the transport; above 0. Soft matching only.
    tol : float
        Violation of the marginals, summed over the calls, at which the transport has converged. Soft only.
    max_iter : int
        Most iterations of the transport. Soft matching only.
    value_match : {"exact", "normalized"}
        When two values are equal: as JSON, or also ignoring case and surrounding space of strings.
    name_match : {"exact", "casefold"}
        When two tool names are equal.
    gamma : float
        Discount from turn to turn, in [0, 1].
    horizon : {"dialogue", "user_turn"}
        How far a turn's return reaches where the user speaks several times: to the end of the dialogue, or
        of the user turn that it belongs to.
    integration : {"auto", "sum", "mean", "weighted_product", "weighted_sum", "trajectory", "turn"}
        How the levels become one advantage, see :func:`matchtir.advantages.integrate`. "auto" is
        "sum", the paper's, for the reward "matchtir" and "trajectory" for any other.
    baseline : {"turn_index", "pooled", "leave_one_out"}
        What a turn is compared with, see :func:`matchtir.advantages.turn_level_advantages`.
    normalize_std : bool
        Divide by the standard deviation; False as in Dr. GRPO.
    eps : float
        Added to standard deviations; above 0.
    reward : {"matchtir", "outcome", "toolrl", "ftrl"}
        "matchtir" rewards each turn. The others reward the whole rollout, so they go with the
        integrations "auto" and "trajectory" only; names and values are then compared as their
        papers do, whatever `name_match` and `value_match` say.
    num_threads : int or None
        Threads of the native core; None for its default.

    Raises
    ------
    ConfigError
        If a value is impossible; the message names the field, what came and what is allowed.
    """

    matching: Matching = "hungarian"
    penalty: float = 0.0
    cost: Cost = "linear"
    reg: float = 0.1
    tol: float = 1e-9
    max_iter: int = 1000
    value_match: ValueMatch = "exact"
    name_match: NameMatch = "exact"
    gamma: float = 0.9
    horizon: Horizon = "dialogue"
    integration: IntegrationOrAuto = "auto"
    baseline: Baseline = "turn_index"
    normalize_std: bool = True
    eps: float = 1e-6
    reward: Reward = "matchtir"
    num_threads: int | None = None

    def __post_init__(self) -> None:
        check_fields(self, _CHOICES, _NUMBERS)
        if not isinstance(self.normalize_std, bool):
            raise ConfigError(f"normalize_std is {self.normalize_std!r}; expected True or False")
        if self.reward != "matchtir" and self.integration not in ("auto", "trajectory"):
            raise ConfigError(
                f"integration is {self.integration!r} and reward is {self.reward!r}, which gives one number "
                "for the whole rollout and none a turn; expected integration 'trajectory' (or 'auto')"
            )

    @property
    def resolved_integration(self) -> Integration:
        """The integration, with what "auto" stands for."""
        if self.integration != "auto":
            return self.integration
        return "sum" if self.reward == "matchtir" else "trajectory"

    @classmethod
    def preset(cls, name: str, **changes: Any) -> CreditConfig:
        """The configuration of the paper ("paper") or of its published code ("reference").

        The published code matches greedily, averages the two levels instead of adding them, and
        ignores the case of tool names. `changes` replace single fields; a whole-rollout `reward`
        also replaces the preset's integration, which is for rewards by turn. Raises ConfigError if
        there is no such preset, or a change is unknown or impossible.

        Examples
        --------
        >>> CreditConfig.preset("reference", gamma=0.95).matching
        'greedy'
        """
        if name not in _PRESETS:
            raise ConfigError(f"preset is {name!r}; expected one of {', '.join(_PRESETS)}")
        values = dict(_PRESETS[name])
        if changes.get("reward", "matchtir") != "matchtir":
            values.pop("integration", None)
        return cls.from_dict({**values, **changes})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CreditConfig:
        """Configuration from names and values, as a settings file has them.

        Raises ConfigError if a name is unknown (with the nearest one) or a value impossible.
        """
        return from_dict(cls, values)


def assign_credit(
    rollouts: Sequence[Trajectory | Mapping[str, Any]], config: CreditConfig | None = None
) -> Credit:
    """Give each turn of each rollout its advantage.

    Parameters
    ----------
    rollouts : sequence of Trajectory or mapping, length B
        Rollouts with what they are judged by; those with the same `group` are normalised together,
        wherever they stand. A mapping is a row as ``docs/formats.md`` describes it. In a dialogue of several
        user turns (`rounds`) calls are matched, and answers judged, inside each of them.
    config : CreditConfig, optional
        The paper's settings if None.

    Returns
    -------
    Credit
        Similarity, matches, rewards, returns and advantages. With a whole-rollout reward, `returns`
        holds that reward, and what is said of calls and turns is still MatchTIR's. Nothing in, an
        empty Credit out.

    Raises
    ------
    InputError
        If a rollout is neither, or cannot be read; the message names its index.
    ConfigError
        If `config` is no CreditConfig.

    References
    ----------
    MatchTIR, arXiv 2601.10712, §3.

    Examples
    --------
    >>> rollout = {"group": 0, "turns": ["<answer>stone</answer>"], "gold_calls": [], "gold_answer": "Stone"}
    >>> assign_credit([rollout, {**rollout, "turns": ["<answer>brick</answer>"]}]).returns.tolist()
    [1.0, 0.0]
    """
    trajectories = _trajectories(rollouts)
    rewards = assign_rewards(trajectories, config)
    ids = adv.group_ids([trajectory.group for trajectory in trajectories])
    rounds = turns_of_rounds(trajectories)
    advantages = assign_advantages(rewards.turn_rewards, rewards.returns, ids, config, rounds=rounds)
    return Credit(
        similarity=rewards.similarity,
        matches=rewards.matches,
        call_rewards=rewards.call_rewards,
        turn_rewards=rewards.turn_rewards,
        returns=rewards.returns,
        trajectory_advantages=advantages.trajectory,
        turn_level_advantages=advantages.turn_level,
        turn_advantages=advantages.turn,
        malformed=rewards.malformed,
        group_ids=ids,
    )


def assign_rewards(
    rollouts: Sequence[Trajectory | Mapping[str, Any]], config: CreditConfig | None = None
) -> Rewards:
    """The half of :func:`assign_credit` that looks at each rollout alone.

    Where a group's rollouts lie in several processes, each process rewards its own, and
    :func:`assign_advantages` then compares the rewards of all.

    Parameters
    ----------
    rollouts : sequence of Trajectory or mapping, length B
        As for :func:`assign_credit`; groups do not matter.
    config : CreditConfig, optional
        As for :func:`assign_credit`.

    Returns
    -------
    Rewards
        Of each call, turn and rollout. For a dialogue `returns` is the sum over all turns, as ever, where the
        reward is "matchtir". A reward of the whole rollout ("outcome", "toolrl", "ftrl") is the mean over its
        user turns, each taken as a rollout of its own; one that was not reached counts as a rollout without
        turns.

    Raises
    ------
    InputError, ConfigError
        As :func:`assign_credit`.

    Examples
    --------
    >>> rollout = {"group": 0, "turns": ["<answer>stone</answer>"], "gold_answer": "Stone"}
    >>> assign_rewards([rollout]).turn_rewards.tolist()
    [[1.0]]
    """
    config = _config(config)
    trajectories = _trajectories(rollouts)
    parts = split(trajectories)
    predicted = [[call for turn in x.turns for call in turn.calls] for x in parts]
    scores = similarity(
        predicted,
        [part.gold_calls for part in parts],
        value_match=config.value_match,
        name_match=config.name_match,
        num_threads=config.num_threads,
    )
    matches, call_rewards = match(
        scores,
        matching=config.matching,
        penalty=config.penalty,
        cost=config.cost,
        reg=config.reg,
        tol=config.tol,
        max_iter=config.max_iter,
        num_threads=config.num_threads,
    )
    counts = np.array([len(turn.calls) for x in parts for turn in x.turns], dtype=np.int64)
    calls_per_turn = Ragged.from_lengths(counts, [len(x.turns) for x in parts])
    outcomes = _of_rollouts(outcome_rewards, trajectories, parts)
    by_turn = turn_rewards(call_rewards, calls_per_turn, outcomes)
    if config.reward == "matchtir":
        returns = trajectory_returns(by_turn)
    elif config.reward == "outcome":
        returns = outcomes
    else:
        of_whole = toolrl_rewards if config.reward == "toolrl" else ftrl_rewards
        returns = _of_rollouts(of_whole, trajectories, parts)
    malformed = [sum([call.malformed is not None for call in calls]) for calls in predicted]
    found = Rewards(
        similarity=scores,
        matches=matches,
        call_rewards=call_rewards,
        turn_rewards=by_turn,
        returns=returns,
        malformed=np.asarray(malformed, dtype=np.int64),
    )
    if parts is trajectories:
        return found
    whole = join(found, trajectories)
    if config.reward != "matchtir":
        return whole
    return replace(whole, returns=trajectory_returns(whole.turn_rewards))


def assign_advantages(
    turn_rewards: Ragged,
    returns: npt.ArrayLike,
    group_ids: npt.ArrayLike,
    config: CreditConfig | None = None,
    *,
    rounds: Ragged | None = None,
) -> Advantages:
    """The half of :func:`assign_credit` that compares the rollouts of a group.

    Parameters
    ----------
    turn_rewards : Ragged of float, B rollouts
        One entry a turn.
    returns : array_like of float, shape (B,)
        R_i, what whole rollouts are compared by; rewards from elsewhere may be added to it.
    group_ids : array_like of int, shape (B,)
        Which rollouts belong together.
    config : CreditConfig, optional
        Its `gamma`, `horizon`, `baseline`, `normalize_std`, `eps` and integration; the paper's if None.
    rounds : Ragged of int, B rollouts, optional
        Of dialogues: how many turns each user turn has, also 0; they add up to the rollout's turns. A turn is
        then compared with turns of the same user turn only, and counted from where that begins. None: every
        rollout is one user turn.

    Returns
    -------
    Advantages
        Of each rollout and turn.

    Raises
    ------
    InputError
        If the arguments describe different rollouts, `rounds` do not add up, or a value is not finite.
    ConfigError
        If `config` is no CreditConfig.

    Examples
    --------
    >>> rewards = Ragged.from_lists([[1.0, 1.0], [0.0]])
    >>> assign_advantages(rewards, [2.0, 0.0], [0, 0], CreditConfig(integration="trajectory")).turn.lengths
    array([2, 1])
    """
    config = _config(config)
    by_std: dict[str, Any] = {"normalize_std": config.normalize_std, "eps": config.eps}
    whole = adv.trajectory_advantages(returns, group_ids, **by_std)
    compared, ids = turn_rewards, group_ids
    if rounds is not None:
        compared, ids = by_round(turn_rewards, rounds, group_ids)
    reach = compared if config.horizon == "user_turn" else turn_rewards
    later = Ragged(adv.turn_returns(reach, config.gamma).values, compared.offsets)
    level = adv.turn_level_advantages(later, ids, baseline=config.baseline, **by_std)
    level = Ragged(level.values, turn_rewards.offsets)
    integration = config.resolved_integration
    integrated = adv.integrate(whole, level, turn_rewards, integration=integration, eps=config.eps)
    return Advantages(trajectory=whole, turn_level=level, turn=integrated)


def _of_rollouts(
    reward: Callable[[Sequence[Trajectory]], FloatArray],
    trajectories: Sequence[Trajectory],
    parts: Sequence[Trajectory],
) -> FloatArray:
    """A reward of each part; what it refuses is named by the rollout's index, which the parts have not."""
    if parts is not trajectories:
        reward(trajectories)
    return reward(parts)


def _config(config: CreditConfig | None) -> CreditConfig:
    """The configuration, the paper's if there is none."""
    config = CreditConfig() if config is None else config
    if not isinstance(config, CreditConfig):
        raise ConfigError(f"config is a {type(config).__name__}; expected a CreditConfig (see from_dict)")
    return config


def _trajectories(rollouts: Sequence[Trajectory | Mapping[str, Any]]) -> list[Trajectory]:
    """Rollouts as Trajectory objects, length B."""
    if isinstance(rollouts, (Trajectory, Mapping, str, bytes)):
        raise InputError(f"rollouts is one {type(rollouts).__name__}; expected a sequence of rollouts")
    trajectories = []
    golds: dict[str, tuple[ToolCall, ...]] = {}
    for b, rollout in enumerate(rollouts):
        if not isinstance(rollout, (Trajectory, Mapping)):
            raise InputError(f"rollouts[{b}] is a {type(rollout).__name__}; expected a Trajectory or mapping")
        if isinstance(rollout, Mapping):
            try:
                rollout = trajectory_from_row(rollout, golds=golds)
            except MatchtirError as error:
                raise InputError(f"rollouts[{b}]: {error}") from error
        trajectories.append(rollout)
    return trajectories
