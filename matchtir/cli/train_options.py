"""The options of `matchtir train`: one for each setting, explained by the configuration's own docstrings."""

from __future__ import annotations

import inspect
import re
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from dataclasses import fields
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ..errors import ConfigError
from ..train.config import TrainConfig
from ..train.settings import known_settings, sections, unknown_setting

INSTALL = 'pip install "matchtir[train]"'

_USAGE = "matchtir train [--config FILE] [--method NAME] [--SETTING VALUE ...] [--fresh]"
_HELP = """\
Train a model to call tools. Without any option: the embedded policy on the embedded tasks, in minutes.

Settings come from, each winning over the one before: the defaults below; the method; the file; the command
line. A method that is named on the command line wins over the file too. Without --config the file is
`embedded`, or `pretrained` if another --model is named; see them with --print-config."""
_EXAMPLES = """\
examples:
  matchtir train
  matchtir train --method grpo --output runs/grpo --seed 1
  matchtir train --config my.yaml --update.lr 1e-6 --report_to tensorboard,wandb
  matchtir train --config qwen3-8b-ftrl --print-config > my.yaml
  torchrun --nproc_per_node 8 -m matchtir train --config my.yaml

The same command goes on with a run that was stopped. Exit codes: 0 done; 2 nothing could be done;
130 interrupted."""
_KINDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
_UNIONS = (Union, UnionType)
_LETTERS = {int: "N", float: "X", str: "TEXT", bool: "{true,false}"}


def train_parser() -> Any:
    """The parser. Raises ImportError if jsonargparse is not installed."""
    try:
        from jsonargparse import ArgumentParser, DefaultHelpFormatter
    except ImportError as error:
        raise ImportError(f"training needs jsonargparse: {INSTALL}") from error

    class Help(DefaultHelpFormatter):  # type: ignore[misc]
        """Help as it is written here, with its line breaks outside of the options."""

        def _get_help_string(self, action: Any) -> str:
            return action.help or ""

        def _fill_text(self, text: str, width: int, indent: str) -> str:
            return "".join(indent + line for line in text.splitlines(keepends=True))

    parser = ArgumentParser(
        prog="matchtir train",
        usage=_USAGE,
        description=_HELP,
        epilog=_EXAMPLES,
        formatter_class=Help,
        exit_on_error=False,
        allow_abbrev=False,
    )
    run = parser.add_argument_group("the command")
    run.add_argument("--config", metavar="FILE", help="YAML or JSON of settings, or the name of one of ours")
    run.add_argument("--fresh", action="store_true", help="start over, whatever run --output holds")
    run.add_argument("--print-config", action="store_true", help="show the settings and do nothing")
    run.add_argument("--list-methods", action="store_true", help="show the methods and do nothing")
    parts = sections()
    _add_settings(parser.add_argument_group("the run"), TrainConfig, "", skip=set(parts))
    for name, part in parts.items():
        title = (inspect.getdoc(part) or "").partition(". ")[0].partition("\n")[0].rstrip(".")
        _add_settings(parser.add_argument_group(f"{name}: {title[:1].lower()}{title[1:]}"), part, f"{name}.")
    return parser


def parse_options(parser: Any, arguments: Sequence[str]) -> dict[str, Any]:
    """What the command line says, nothing else. Raises ConfigError that names setting and expectation."""
    # jsonargparse has an option of its own by this name, and takes it out of the arguments.
    given = ["--print-config" if one == "--print_config" else one for one in arguments]
    return _parsed(lambda: parser.parse_args(given, defaults=False), "")


def parse_file(parser: Any, text: str, where: str) -> dict[str, Any]:
    """What a settings file says. Raises ConfigError that names file, setting and expectation."""
    if not any(line.strip() and not line.lstrip().startswith("#") for line in text.splitlines()):
        return {}
    found = _parsed(lambda: parser.parse_string(text, defaults=False), f"{where}: ")
    commands = [name for name in ("config", "fresh", "print_config", "list_methods") if name in found]
    if commands:
        raise ConfigError(f"{where}: {commands[0]} is an option of the command; expected settings only")
    return found


def names_of(value: Any) -> tuple[str, ...]:
    """Names from a list, or with commas between; "none" is none."""
    if isinstance(value, str):
        value = [name.strip() for name in value.strip("[]()").split(",")]
    return tuple(str(name).strip("'\" ") for name in value if name not in ("", "none"))


def _add_settings(group: Any, part: type[Any], prefix: str, skip: set[str] | None = None) -> None:
    """One option for each field of a configuration class."""
    hints, texts, made = get_type_hints(part), _texts(part), part()
    for field in fields(part):
        if field.name in (skip or ()):
            continue
        hint, default = hints[field.name], getattr(made, field.name)
        listed = get_origin(hint) is tuple
        group.add_argument(
            f"--{prefix}{field.name}",
            type=names_of if listed else hint,
            metavar="NAME,..." if listed else _letter(hint),
            help=f"{texts[field.name]} (default: {_shown(default)})",
        )


def _texts(part: type[Any]) -> dict[str, str]:
    """What the docstring of a configuration class says of each parameter, as one line without markup."""
    section = (inspect.getdoc(part) or "").partition("Parameters\n----------\n")[2]
    section = re.split(r"\n\n\w+\n-+\n", section)[0]
    texts: dict[str, str] = {}
    for entry in re.split(r"\n(?=\S)", section):
        head, _, body = entry.partition("\n")
        body = re.sub(r":\w+:`([^`]+)`", r"\1", " ".join(body.split()))
        texts |= dict.fromkeys(head.partition(" : ")[0].split(", "), body)
    return texts


def _choices(hint: Any) -> list[Any]:
    """The values that a hint allows, if it lists them."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [choice for one in get_args(hint) if get_origin(hint) in _UNIONS for choice in _choices(one)]


def _kind(hint: Any) -> Any:
    """The type that a hint allows besides None."""
    kinds = get_args(hint) if get_origin(hint) in _UNIONS else (hint,)
    return next(kind for kind in kinds if kind is not type(None))


def _letter(hint: Any) -> str:
    """What stands for a value in the help."""
    choices = _choices(hint)
    return "{" + ",".join(map(str, choices)) + "}" if choices else _LETTERS.get(_kind(hint), "{...}")


def _expected(name: str) -> str:
    """What the value of a setting has to be, in words."""
    part, dot, field = name.rpartition(".")
    owner = sections().get(part, TrainConfig)
    hint = get_type_hints(owner).get(field if dot else name, Any)
    choices = _choices(hint)
    words = _KINDS.get(_kind(hint), "settings by name, {...}")
    if choices:
        words = f"one of {', '.join(map(str, choices))}"
    return words + (" or null" if type(None) in get_args(hint) else "")


def _parsed(parse: Any, where: str) -> dict[str, Any]:
    """What a parser finds, as a dictionary; what it objects to in our words."""
    try:
        found: dict[str, Any] = parse().as_dict()
    except (ArgumentError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{where}{_in_words(str(error))}") from error
    return found


def _in_words(text: str) -> str:
    """An error of jsonargparse, in one line that names setting, value and expectation.

    Its errors have no fields to look at, only words; what is not recognised is passed on as it is.
    """
    if wrong := re.match(r'Parser key "([^"]+)":', text):
        value = re.findall(r"(?:Got|Given) value: (.*)", text)
        came = f"{value[-1]!r}" if value else "not that"
        return f"{wrong[1]} is {came}; expected {_expected(wrong[1])}"
    for pattern in (r"unrecognized arguments: --([^\s=]+)", r"Option '([^']+)' is not accepted"):
        if unknown := re.match(pattern, text):
            return str(unknown_setting(unknown[1]))
    if stray := re.match(r"unrecognized arguments: (.*)", text):
        return f"{stray[1].split()[0]!r} belongs to no option; expected --SETTING VALUE"
    if lone := re.match(r"argument --(\S+): expected one argument", text):
        known = lone[1] in known_settings()
        return f"{lone[1]} has no value; expected {_expected(lone[1]) if known else 'one'}"
    text = " ".join(text.replace('in "<unicode string>", ', "").split())
    return re.sub(r"^Unexpected config: .*", "it holds no settings by name, NAME: VALUE", text)


def _shown(value: Any) -> str:
    """A default as the command line takes it."""
    if isinstance(value, bool) or value is None:
        return str({True: "true", False: "false", None: "null"}[value])
    if isinstance(value, (tuple, Mapping)):
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
