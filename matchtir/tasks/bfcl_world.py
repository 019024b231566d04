"""The world of a multi-turn task of BFCL: the package's own classes act, and its own checker judges.

The text of this file is the source of the tasks' environments, so it stands alone. It runs in the sandbox,
which has imported `BFCL_MODULES` before.

The package takes calls as Python source and evaluates it. So a call becomes source only if its name is that
of a public method, its parameters have plain names, and its values are those of JSON, written as literals.
"""

import importlib
import inspect
import keyword
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bfcl_eval.constants.executable_backend_config import CLASS_FILE_PATH_MAPPING
from bfcl_eval.eval_checker.multi_turn_eval import multi_turn_utils
from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import (
    multi_turn_checker,
    multi_turn_irrelevance_checker,
)

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_MOST_BITS = 4_096  # of a whole number; Python writes down no very long ones
_DEEPEST = 64  # objects and arrays inside one another


class World:
    """One rollout's instances of the classes of a task. Its methods are theirs.

    Parameters
    ----------
    id : str
        Of the task.
    involved_classes : list of str
    initial_config : dict
        By class.
    ground_truth : list of list of str
        The package's calls, by user turn.
    irrelevance : bool
        Whether calls in a user turn that needs none are wrong, in the categories that are about this.
    """

    def __init__(
        self,
        id: str,
        involved_classes: Sequence[str],
        initial_config: Mapping[str, Any],
        ground_truth: Sequence[Sequence[str]],
        irrelevance: bool = False,
    ) -> None:
        self._entry = {"id": id, "involved_classes": involved_classes, "initial_config": initial_config}
        self._category = id.rpartition("_")[0]
        self._ground_truth = ground_truth
        self._irrelevance = irrelevance and self._category.endswith(("miss_func", "miss_param"))
        self._names = {name for one in involved_classes for name in _methods(one)}
        # The package keeps instances under names that begin with the model's, and takes up those it finds.
        self._model = f"w{os.urandom(8).hex()}"
        # By user turn; each call is a step of its own, on which no verdict depends.
        self._steps: list[list[list[str]]] = [[]]
        self._execute([])

    def __getattr__(self, name: str) -> Callable[..., str]:
        if name.startswith("_") or name not in self._names:
            raise AttributeError(f"the classes of this task have no method {name!r:.80}")

        def call(**arguments: Any) -> str:
            text = written(name, arguments)
            self._steps[-1].append([text])
            return self._execute([text])[0]

        return call

    def judge(self, answer: str | None = None) -> float:
        """Whether all user turns so far are right, 1.0 or 0.0; the next one begins."""
        count = len(self._steps)
        model, truth = f"{self._model}_judge{count}", self._ground_truth[:count]
        try:
            found = multi_turn_checker(self._steps, truth, self._entry, self._category, model)
        finally:
            for key in [key for key in vars(multi_turn_utils) if key.startswith(f"{model}_")]:
                del vars(multi_turn_utils)[key]
        if found["valid"] and self._irrelevance:
            found = multi_turn_irrelevance_checker(self._steps, truth)
        self._steps.append([])
        return float(found["valid"])

    def _execute(self, texts: list[str]) -> list[str]:
        """What the calls return, as text."""
        results: list[str] = multi_turn_utils.execute_multi_turn_func_call(
            texts,
            self._entry["initial_config"],
            self._entry["involved_classes"],
            self._model,
            self._entry["id"],
            long_context="long_context" in self._category,
        )[0]
        return results


def _methods(class_name: str) -> list[str]:
    """Names of the public methods of a class of the package."""
    module = importlib.import_module(CLASS_FILE_PATH_MAPPING[class_name])
    found = inspect.getmembers(getattr(module, class_name), inspect.isfunction)
    return [name for name, _ in found if not name.startswith("_")]


def written(name: str, arguments: Mapping[str, Any]) -> str:
    """A call as Python source; raises ValueError where it cannot be written safely."""
    for key in (name, *arguments):
        if not _NAME.fullmatch(key) or keyword.iskeyword(key):
            raise ValueError(f"{key!r:.80} is no plain name")
    pairs = [f"{key}={literal(value)}" for key, value in arguments.items()]
    return f"{name}({', '.join(pairs)})"


def literal(value: Any, depth: int = 0) -> str:
    """A JSON value as a Python literal."""
    if depth > _DEEPEST:
        raise ValueError(f"an argument is nested deeper than {_DEEPEST}")
    kind = type(value)
    if kind is list:
        return f"[{', '.join([literal(one, depth + 1) for one in value])}]"
    if kind is dict and all(type(key) is str for key in value):
        pairs = [f"{key!r}: {literal(one, depth + 1)}" for key, one in value.items()]
        return f"{{{', '.join(pairs)}}}"
    if kind is int and value.bit_length() > _MOST_BITS:
        raise ValueError(f"a whole number has more than {_MOST_BITS} bits")
    if kind in (str, int, bool, type(None)) or (kind is float and math.isfinite(value)):
        return repr(value)
    raise ValueError(f"an argument holds {value!r:.80}, which is no JSON")
