"""What is read of the installed package bfcl_eval: its files alone, since importing it may create folders."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..types import Tool

BFCL_VERSION = "2026.3.23"
"""The version of bfcl-eval that this was tested with."""

BFCL_CATEGORIES = (
    "multi_turn_base",
    "multi_turn_miss_func",
    "multi_turn_miss_param",
    "multi_turn_long_context",
)
"""The multi-turn categories, each with the same 200 scenarios."""

# Their other requirements, vendors' SDKs among them, are of no use here.
INSTALL = f"pip install mpmath && pip install --no-deps bfcl-eval=={BFCL_VERSION}"

# The package's names of types that JSON Schema names otherwise.
_TYPES = {"dict": "object", "float": "number"}


@lru_cache
def folder() -> Path:
    """Where the package is; raises ImportError with the way to install it."""
    found = find_spec("bfcl_eval")
    if found is None or not found.submodule_search_locations:
        raise ImportError(f"BFCL's tasks are in the package bfcl_eval: {INSTALL}")
    return Path(found.submodule_search_locations[0])


def entries(category: str) -> list[dict[str, Any]]:
    """The tasks of a category as the package has them, each with its `ground_truth`."""
    name = f"BFCL_v4_{category}.json"
    place = folder()
    found, truths = _rows(place, f"data/{name}"), _rows(place, f"data/possible_answer/{name}")
    truth = {row["id"]: row["ground_truth"] for row in truths}
    return [{**row, "ground_truth": truth.get(row["id"])} for row in found]


def tools_of(class_name: str) -> Sequence[Tool]:
    """The tools of a class, with the types of JSON Schema."""
    return _tools_of(folder(), class_name)


def message_of_added_tools() -> str:
    """What the user says in a user turn whose only news is that there are more tools."""
    return str(
        _constant(folder(), "constants/default_prompts.py", "DEFAULT_USER_PROMPT_FOR_ADDITIONAL_FUNCTION_FC")
    )


def hint() -> str:
    """What the package adds to the description of each Python tool."""
    return _hint(folder())


@lru_cache
def _tools_of(place: Path, class_name: str) -> Sequence[Tool]:
    files = _constant(place, "constants/executable_backend_config.py", "MULTI_TURN_FUNC_DOC_FILE_MAPPING")
    if class_name not in files:
        raise InputError(f"involved_classes holds {class_name!r}; expected one of {', '.join(files)}")
    rows = _rows(place, f"data/multi_turn_func_doc/{files[class_name]}")
    return [Tool(row["name"], row["description"], _schema(row["parameters"])) for row in rows]


def _schema(value: Mapping[str, Any]) -> dict[str, Any]:
    """A schema with JSON Schema's names of types, inside too."""
    found = dict(value)
    if "type" in found:
        found["type"] = _TYPES.get(found["type"], found["type"])
    if "properties" in found:
        found["properties"] = {name: _schema(part) for name, part in found["properties"].items()}
    if "items" in found:
        found["items"] = _schema(found["items"])
    return found


def _rows(place: Path, path: str) -> list[Any]:
    """The values of a file of JSON lines of the package."""
    return [json.loads(line) for line in _text(place, path).split("\n") if line.strip()]


def _text(place: Path, path: str) -> str:
    """A file of the package."""
    try:
        return (place / path).read_text("utf-8")
    except OSError as error:
        raise InputError(f"bfcl_eval has no file {path} ({error.strerror}); {_expected()}") from None


@lru_cache
def _constant(place: Path, path: str, name: str) -> Any:
    """The literal that a module of the package assigns to a name."""
    for node in ast.parse(_text(place, path)).body:
        if isinstance(node, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id == name for t in node.targets
        ):
            return ast.literal_eval(node.value)
    raise InputError(f"{path} of bfcl_eval defines no {name}; {_expected()}")


@lru_cache
def _hint(place: Path) -> str:
    """The one text about Python that the package's function of hints returns."""
    name = "_get_language_specific_hint"
    for node in ast.walk(ast.parse(_text(place, "utils.py"))):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            values = [one.value for one in ast.walk(node) if isinstance(one, ast.Return)]
            texts = [str(value.value) for value in values if isinstance(value, ast.Constant)]
            found = [text for text in texts if "Python" in text]
            if len(found) == 1:
                return found[0]
    raise InputError(f"utils.py of bfcl_eval says no hint for Python in {name}; {_expected()}")


def _expected() -> str:
    return f"expected bfcl-eval {BFCL_VERSION}"
