"""Puts the checks of `calls.py` where bfcl_eval evaluates text, and tells when work on it begins and ends.

The process that started the driver ends it when such work takes too long. Python runs one thread at a time,
so it is done by one at a time: else a thread that waits would be taken for the one that hangs.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .calls import check_call, value_of
from .report import Report

_EXECUTE = "execute_multi_turn_func_call"
_WEB = "web_search"


class _Refused(str):
    """The text of a call that is not executed, and why."""

    error: Exception


class _Checked(str):
    """The text of a call that may be executed, and the names of the objects it needs."""

    objects: frozenset[str]


class Guard:
    """Watches the work on models' texts.

    Parameters
    ----------
    report : Report
        Is told when work on a task begins and ends.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._turn = threading.RLock()
        self._here = threading.local()

    @contextmanager
    def task(self, name: str) -> Iterator[None]:
        """What this thread does inside is done for a task."""
        self._here.task = name
        try:
            yield
        finally:
            self._here.task = None

    def watched(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, watched while it works on a task. Searches of the web, which wait, are not."""

        @functools.wraps(function)
        def work(*args: Any, **kwargs: Any) -> Any:
            task = getattr(self._here, "task", None)
            if task is None or _WEB in task:
                return function(*args, **kwargs)
            with self._turn:
                self._report.say(begin=task)
                try:
                    return function(*args, **kwargs)
                finally:
                    self._report.say(end=task)

        return work

    def install(self) -> None:
        """Replace what bfcl_eval's modules, all imported by now, evaluate and execute with."""
        utils: Any = sys.modules["bfcl_eval.eval_checker.multi_turn_eval.multi_turn_utils"]
        execute = self.watched(getattr(utils, _EXECUTE))
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] == "bfcl_eval":
                vars(module)["eval"] = value_of
                if _EXECUTE in vars(module):
                    vars(module)[_EXECUTE] = execute
        utils._process_method_calls = checking(utils._process_method_calls)
        utils.eval = evaluator(vars(utils))


def checking(process: Callable[[str, Mapping[str, str]], str]) -> Callable[[str, Mapping[str, str]], str]:
    """The function that puts objects' names before those of their methods, for allowed calls only."""

    def checked(text: str, tools: Mapping[str, str]) -> str:
        try:
            check_call(text, tools)
        except Exception as error:  # whatever is wrong with it is what the model is told
            refused = _Refused(text)
            refused.error = error
            return refused
        allowed = _Checked(process(text, tools))
        allowed.objects = frozenset(tools.values())
        return allowed

    return checked


def evaluator(objects: Mapping[str, Any]) -> Callable[[str], Any]:
    """What stands for `eval` where calls are executed: it takes calls that were checked, and no others."""

    def evaluate(text: str) -> Any:
        if isinstance(text, _Refused):
            raise text.error
        if not isinstance(text, _Checked):
            raise TypeError("the call was not checked")
        scope = {name: objects[name] for name in text.objects}
        return eval(str(text), {"__builtins__": {}, **scope})

    return evaluate
