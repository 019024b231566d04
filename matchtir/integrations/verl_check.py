"""A check of verl's configuration and data before anything heavy is loaded.

``python -m matchtir.integrations.verl_check`` takes the arguments of ``python -m verl.trainer.main_ppo``.
Without it most of this comes up inside workers of verl, which catches every error of a rollout: training
goes on without the rollout, or waits for others for ever.
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, InputError, MatchtirError
from ..rows import pyarrow_modules
from .settings import NEEDS, credit_config
from .verl_settings import Settings, row_credit

LOOP = "matchtir_tool_agent"

_STOCK_LOOPS = ("single_turn_agent", "tool_agent")
_OWN_FUNCTION = "matchtir.integrations.verl"
_FORMATS = {
    "hermes": ("hermes", "qwen3"),
    **dict.fromkeys(
        ("gpt-oss", "qwen3_coder", "glm", "seed", "minimax", "kimi", "gemma4", "deepseek_v4"), ()
    ),
}
"""verl's own parsers of calls, and ours that read the same."""


def check_config(config: Any) -> Settings:
    """Refuse a configuration of verl with which no rollout can be rewarded by turn.

    Parameters
    ----------
    config : DictConfig
        verl's whole configuration.

    Returns
    -------
    Settings

    Raises
    ------
    ConfigError
        The message names the setting and what was expected.

    Warns
    -----
    UserWarning
        If the agent loop is not known here.
    """
    settings = Settings.of(_at(config, "algorithm"))
    manager = _at(config, "reward.reward_manager.name")
    function = _at(config, "reward.custom_reward_function.path")
    ours = str(function or "").removeprefix("pkg://") == _OWN_FUNCTION
    if manager == "matchtir":
        if _at(config, "reward.reward_model.enable") and not (
            function and _at(config, "reward.reward_model.enable_resource_pool")
        ):
            raise ConfigError(
                "reward.reward_model.enable is True: a reward model gives one number a rollout and none a "
                "turn; expected False, or a pool of its own (enable_resource_pool) and a "
                "reward.custom_reward_function that asks it"
            )
        if ours:
            raise ConfigError(
                "reward.custom_reward_function.path is that of matchtir, and reward manager matchtir gives "
                "the same rewards; expected one of them"
            )
    if ours:
        check_function_settings(_at(config, "reward.custom_reward_function.reward_kwargs") or {})
    if _at(config, "algorithm.adv_estimator") == "matchtir":
        if _at(config, "algorithm.use_kl_in_reward"):
            raise ConfigError(KL_MESSAGE)
        if _at(config, "trainer.use_v1") is False:
            raise ConfigError("trainer.use_v1 is False; expected verl's V1 trainer: trainer.use_v1=True")
        _check_loop(config, manager, function)
    return settings


KL_MESSAGE = (
    "algorithm.use_kl_in_reward is True, which changes the reward of every token, and rewards here are of "
    "turns; use the KL loss: actor_rollout_ref.actor.use_kl_loss=True"
)


def check_function_settings(given: Mapping[str, Any]) -> None:
    """Raise ConfigError for what `compute_score` does not take from ``reward_kwargs``."""
    unknown = sorted(str(name) for name in set(given) - {"method", "credit"})
    if unknown:
        raise ConfigError(
            f"reward.custom_reward_function.reward_kwargs has {', '.join(unknown)}; expected method, credit "
            "(fields of CreditConfig go under credit)"
        )
    credit_config(given.get("method", "matchtir-km"), given.get("credit"))


def _check_loop(config: Any, manager: Any, function: Any) -> None:
    """Refuse an agent loop of verl's own for all rows, and warn of one that is not known."""
    setting = "actor_rollout_ref.rollout.agent.default_agent_loop"
    loop = _at(config, setting)
    if loop == LOOP:
        if manager in ("naive", "dapo", "remote", "gdpo") and not function:
            raise ConfigError(
                f"reward.reward_manager.name is {manager!r} and there is no reward.custom_reward_function; "
                "expected reward.reward_manager.name=matchtir, or a function that returns turn_rewards"
            )
        return
    named = _rows_name_loop(config)
    if named:
        return
    said = (
        f"{setting} is {loop!r}; expected {LOOP}, or a loop that returns "
        "matchtir.integrations.verl.with_turns(...)"
    )
    if loop in _STOCK_LOOPS and named is False:
        raise ConfigError(f"{said}. verl's own gives no rewards by turn, and the rows name no agent_name")
    warnings.warn(f"{said}, or rows with such an agent_name; every other rollout fails", stacklevel=3)


def _rows_name_loop(config: Any) -> bool | None:
    """Whether all training files have the column agent_name; None where they cannot be read from here."""
    files = list(_files(config, "data.train_files"))
    if not files or not all(file.suffix == ".parquet" and file.is_file() for file in files):
        return None
    parquet = pyarrow_modules()[1]
    return all("agent_name" in parquet.read_schema(file).names for file in files)


def check_formats(verls: str, ours: str) -> None:
    """Warn where verl runs calls of one format and the rewards read another; both must be known."""
    if ours not in _FORMATS.get(verls, (ours,)):
        warnings.warn(
            f"actor_rollout_ref.rollout.multi_turn.format is {verls!r}, by which verl finds calls to run, "
            f"and rewards read calls as {ours!r}; expected the same (algorithm.matchtir.tool_format)",
            UserWarning,
            stacklevel=3,
        )


def check_files(config: Any, settings: Settings) -> list[str]:
    """Look for rows without what they are judged by, in the files that lie here as parquet.

    Returns
    -------
    list of str
        Files that could not be looked into.

    Raises
    ------
    InputError
        If a row lacks it; the message names the file, how many, and the first.
    """
    unread = []
    if _at(config, "reward.reward_manager.name") != "matchtir":
        return []
    for file in (*_files(config, "data.train_files"), *_files(config, "data.val_files")):
        if file.suffix != ".parquet" or not file.is_file():
            unread.append(str(file))
            continue
        wrong, count = [], 0
        for count, row in enumerate(_rows(file), 1):
            lacking = _lacking(row, settings)
            if lacking:
                wrong.append(f"row {count - 1} {lacking}")
        if wrong:
            raise InputError(
                f"{file}: {len(wrong)} of {count} rows cannot be judged, and verl would leave them out: "
                f"{'; '.join(wrong[:3])}{'; …' if len(wrong) > 3 else ''}"
            )
    return unread


def _lacking(row: Mapping[str, Any], settings: Settings) -> str:
    """What a row has not and its method needs; "" where it has it."""
    text = (row.get("reward_model") or {}).get("ground_truth")
    try:
        gold = json.loads(text) if isinstance(text, str) else text
    except ValueError:
        gold = None
    if not isinstance(gold, Mapping):
        return f"has the ground_truth {text!r:.60}, which is no object"
    method = gold.get("method")
    try:
        credit = settings.credit if method is None else row_credit(method, settings.changes)
    except ConfigError as error:
        return f"has {error}"
    needed = NEEDS[credit.reward]
    return "" if gold.get(needed) is not None else f"has no {needed}"


def _rows(file: Path) -> Iterator[Mapping[str, Any]]:
    """The column of what judges, row by row."""
    source = pyarrow_modules()[1].ParquetFile(file)
    if "reward_model" not in source.schema_arrow.names:
        raise InputError(f"{file} has no column reward_model; expected it, with a ground_truth")
    for batch in source.iter_batches(columns=["reward_model"]):
        yield from batch.to_pylist()


def _files(config: Any, name: str) -> Iterator[Path]:
    """Files of verl's data sets: one or several."""
    given = _at(config, name) or ()
    for file in (given,) if isinstance(given, str) else given:
        yield Path(file).expanduser()


def _at(config: Any, name: str) -> Any:
    """A setting by its dotted name; None where it is not there."""
    for part in name.split("."):
        config = None if config is None else config.get(part)
    return config


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    from .verl_scoring import configuration  # needs verl

    given = sys.argv[1:] if arguments is None else list(arguments)
    if not given or given[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if given else 2
    composed = subprocess.run(
        [sys.executable, "-m", "verl.trainer.main_ppo", *given, "--cfg", "job"],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if composed.returncode:
        return composed.returncode
    try:
        config = configuration(composed.stdout)
        settings = check_config(config)
        unread = check_files(config, settings)
    except MatchtirError as error:
        print(error, file=sys.stderr)
        return 1
    for file in unread:
        print(f"not looked into, since it is no parquet file here: {file}", file=sys.stderr)
    print(f"matchtir can credit this configuration: {settings.credit}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
