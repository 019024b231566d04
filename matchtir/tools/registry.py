"""The tools of a task by name: their schemas for the model, a check of its calls, and their run.

What a model writes and what a tool does is data. A call that cannot run, and a tool that fails, become an
observation whose text says why.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, final

from ..errors import ConfigError, InputError
from ..types import Tool, ToolCall
from .arguments import cut, fault_of, plain_mapping, shortened, validator_of
from .observations import Observation, failure, from_result, run_function
from .sandbox import Call, Instance, Sandbox


@final
class ToolRegistry(Mapping[str, Tool]):
    """The tools of a task, by name, in the order given.

    Parameters
    ----------
    tools : iterable of Tool
        Their names differ. Schemas are compiled here, once for each distinct schema of the process.
    methods_checked : bool
        Arguments of tools with neither source nor function are checked like all others.

    Raises
    ------
    InputError
        If a tool has no name, two have the same, or its parameters are no JSON schema of type ``object``.
        A part of a schema that JSON Schema does not allow (a boolean `required` in a property, a type that
        does not exist, a `$ref` to another document, an anchor or nothing) is left out of the check; the
        model sees the schema as it came. Common names of types (``dict``, ``float``, ``int``, …) are
        understood.
    ImportError
        If `jsonschema` is not installed.

    Examples
    --------
    >>> from matchtir.types import Tool, ToolCall
    >>> double = Tool("double", "Twice x.", {
    ...     "type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"],
    ... }, function=lambda x: 2 * x)
    >>> registry = ToolRegistry([double])
    >>> registry.check(ToolCall("double", {"x": "two"}))
    "arguments of double: x: 'two' is not of type 'integer'"
    >>> [(o.text, o.failed) for o in registry.run([ToolCall("double", {"x": 2}), ToolCall("triple")])]
    [('4', False), ('{"error": "unknown tool \\'triple\\'; the tools are: double"}', True)]
    """

    def __init__(self, tools: Iterable[Tool] = (), *, methods_checked: bool = True) -> None:
        self._methods_checked = methods_checked
        self._tools: dict[str, Tool] = {}
        self._texts: dict[str, str] = {}
        self._validators: dict[str, Any] = {}
        for i, tool in enumerate(tools):
            if not isinstance(tool, Tool):
                raise InputError(f"tools[{i}] is {type(tool).__name__}; expected a Tool")
            if not isinstance(tool.name, str) or not tool.name:
                raise InputError(f"tools[{i}] has the name {tool.name!r:.80}; expected a string, not empty")
            if tool.name in self._tools:
                raise InputError(f"tools[{i}]: two tools are named {tool.name}; expected different names")
            try:
                text = json.dumps(tool.parameters, default=plain_mapping)
                self._validators[tool.name] = validator_of(text)
            except (InputError, TypeError, ValueError, RecursionError) as error:
                raise InputError(f"parameters of {tool.name}: {error}") from None
            self._texts[tool.name] = text
            self._tools[tool.name] = tool

    def __getitem__(self, name: str) -> Tool:
        return self._tools[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tools)

    def __len__(self) -> int:
        return len(self._tools)

    def schemas(self) -> list[dict[str, Any]]:
        """The tools as OpenAI's `tools`, for a chat template or an endpoint; copies, free to change."""
        return [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": json.loads(self._texts[tool.name]),
                },
            }
            for tool in self._tools.values()
        ]

    def check(self, call: ToolCall) -> str | None:
        """Say what is wrong with a call before it runs.

        Parameters
        ----------
        call : ToolCall
            As the model made it.

        Returns
        -------
        str or None
            None if the tool is known and the arguments fit its schema, JSON Schema draft 2020-12; else what
            the model did wrong, in at most `MAX_MESSAGE` characters, the same for the same call.
            `format` is not checked. An argument that the schema does not name is refused only where the
            schema says so (`additionalProperties`): sources may take more than their schema tells, and
            Python's own error about an unknown keyword is as clear. A `pattern` is checked only where no
            string can make it slow; so are `uniqueItems` up to 1,000 items; `patternProperties` never. Where
            the check takes too many steps, as schemas that refer to one another can, the call is refused.
        """
        if call.malformed is not None:
            named = f" of {shortened(call.name)}" if call.name else ""
            return cut(f"malformed call{named}: {call.malformed}")
        if call.name not in self._tools:
            return cut(self._unknown(call.name))
        tool = self._tools[call.name]
        if not self._methods_checked and tool.source is None and tool.function is None:
            return None
        fault = fault_of(self._validators[call.name], call.arguments)
        return None if fault is None else cut(f"arguments of {call.name}{fault}")

    def _unknown(self, name: str) -> str:
        """What to say of a tool that does not exist."""
        known = list(self._tools)
        close = difflib.get_close_matches(shortened(name), known)
        if close:
            return f"unknown tool {shortened(name)!r}; did you mean {' or '.join(close)}?"
        return f"unknown tool {shortened(name)!r}; the tools are: {', '.join(known) or 'none'}"

    def run(
        self, calls: Sequence[ToolCall], box: Sandbox | None = None, instance: Instance | None = None
    ) -> list[Observation]:
        """Check and run the calls of one turn.

        Parameters
        ----------
        calls : sequence of ToolCall
            They belong to one rollout: those of tools with a source share one process of the sandbox.
        box : Sandbox, optional
            Runs the tools that have a source. A tool with a function runs here, in this process; an
            exception of it is its answer (KeyboardInterrupt and SystemExit pass).
        instance : Instance, optional
            The rollout's environment: tools with neither source nor function are its methods.

        Returns
        -------
        list of Observation
            One per call, in order. Functions run first, in order, then the sources, then the methods.

        Raises
        ------
        ConfigError
            If a call needs the sandbox and there is none; nothing has run then.
        """
        return run_turns([(self, calls)], box, [instance])[0]


def run_turns(
    turns: Sequence[tuple[ToolRegistry, Sequence[ToolCall]]],
    box: Sandbox | None = None,
    instances: Sequence[Instance | None] | None = None,
) -> list[list[Observation]]:
    """Check and run the calls of one turn each of many rollouts, side by side.

    Parameters
    ----------
    turns : sequence of (ToolRegistry, sequence of ToolCall)
        The tools of a rollout, and the calls of its turn. Those of tools with a source share one process of
        the sandbox, with each other and no other rollout's.
    box : Sandbox, optional
        As for :meth:`ToolRegistry.run`.
    instances : sequence of Instance or None, optional
        The environment of each rollout that has one.

    Returns
    -------
    list of list of Observation
        One list a turn, one observation a call.

    Raises
    ------
    ConfigError
        If a call needs the sandbox and there is none; nothing has run then.
    """
    seen: list[list[Observation | None]] = []
    sent: list[Call] = []
    places: list[tuple[int, int]] = []
    functions: list[tuple[int, int, Tool]] = []
    methods: list[tuple[int, int, Instance]] = []
    for t, (registry, calls) in enumerate(turns):
        seen.append([None] * len(calls))
        instance = instances[t] if instances is not None else None
        for k, call in enumerate(calls):
            problem = registry.check(call)
            if problem is not None:
                seen[t][k] = failure(problem)
                continue
            tool = registry[call.name]
            if tool.function is None and tool.source is not None:
                sent.append(Call(tool.source, call.name, dict(call.arguments)))
                places.append((t, k))
            elif tool.function is None and instance is not None:
                methods.append((t, k, instance))
            else:
                functions.append((t, k, tool))
    if box is None and places:
        raise ConfigError(f"{sent[0].name} has a source, which runs in a Sandbox; box is None")
    if box is None and methods:
        t, k, _ = methods[0]
        raise ConfigError(f"{turns[t][1][k].name} is a method of an environment in a Sandbox; box is None")
    for t, k, tool in functions:
        seen[t][k] = run_function(tool, turns[t][1][k])
    if box is not None and sent:
        results = box.map(sent, groups=[t for t, _ in places])
        for (t, k), result in zip(places, results, strict=True):
            seen[t][k] = from_result(result)
    if box is not None and methods:
        asked = [turns[t][1][k] for t, k, _ in methods]
        batch = [(one[2], [(call.name, call.arguments)]) for one, call in zip(methods, asked, strict=True)]
        for (t, k, _), (result,) in zip(methods, box.call_all(batch), strict=True):
            seen[t][k] = from_result(result)
    return [[one for one in row if one is not None] for row in seen]
