"""A scripted policy for FTRL's tasks, and its own count of what it solved.

It calls the tools that the task's sub-answers name, with arguments found by search: values from the schema,
and constants of the tool's source where they meet a parameter. Sources are parsed here, and run in the
sandbox only.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice, product
from typing import Any

from matchtir.tools import Sandbox, ToolRegistry
from matchtir.types import Task, Tool, ToolCall

MOST_TRIALS = 96
BATCH = 32
DO_NOT_KNOW = "?"

Arguments = dict[str, Any]


class Oracle:
    """Solves one task as well as it can; a Chat.

    Attributes
    ----------
    plan : list of list of (str, Arguments)
        Calls, turn by turn; one turn a tool. A tool's first trial is among them where it solved nothing.
    asked, solved, calls : int
        Sub-questions of the task; those a planned call solves; planned calls.
    """

    def __init__(self, task: Task, box: Sandbox) -> None:
        self.answer = task.gold_answer or DO_NOT_KNOW
        self.plan: list[list[tuple[str, Arguments]]] = []
        self.asked = self.solved = 0
        registry = ToolRegistry(task.tools)
        for name, answers in (task.sub_answers or {}).items():
            first, found = _search(registry, registry[name], answers, box)
            self.asked += len(answers)
            self.solved += len(found)
            self.plan.append([(name, arguments) for arguments in [*first, *found]])
        self.calls = sum(map(len, self.plan))

    def __call__(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
    ) -> Mapping[str, Any]:
        turn = sum(message["role"] == "assistant" for message in messages)
        if turn == len(self.plan):
            answer = self.answer if self.solved == self.asked else DO_NOT_KNOW
            return {"role": "assistant", "content": answer}
        calls = [
            {"id": f"{turn}.{k}", "type": "function", "function": {"name": n, "arguments": json.dumps(a)}}
            for k, (n, a) in enumerate(self.plan[turn])
        ]
        return {"role": "assistant", "content": None, "tool_calls": calls}


def _search(
    registry: ToolRegistry, tool: Tool, answers: Sequence[str], box: Sandbox
) -> tuple[list[Arguments], list[Arguments]]:
    """The first trial, if it solves nothing, and for each answer that can be found the arguments."""
    found: dict[int, Arguments] = {}
    first: list[Arguments] = []
    trials = islice(_distinct(_candidates(tool)), MOST_TRIALS)
    while len(found) < len(answers) and (batch := list(islice(trials, BATCH))):
        seen = registry.run([ToolCall(tool.name, arguments) for arguments in batch], box)
        for arguments, observation in zip(batch, seen, strict=True):
            solves = [k for k, answer in enumerate(answers) if _holds(observation.text, answer)]
            for k in solves:
                found.setdefault(k, arguments)
            if arguments is batch[0] and not found and not first:
                first = [arguments]
    return first, [found[k] for k in sorted(found)]


def _holds(text: str, answer: str) -> bool:
    """Whether a tool's answer has all parts of the expected one, whatever their case and commas."""
    parts = [part.replace(",", "").strip().lower() for part in answer.split(", ")]
    plain = text.replace(",", "").lower()
    return any(parts) and all(part in plain for part in parts)


def _distinct(items: Iterator[Arguments]) -> Iterator[Arguments]:
    """Each item once."""
    seen: set[str] = set()
    for item in items:
        key = json.dumps(item, sort_keys=True, default=repr)
        if key not in seen:
            seen.add(key)
            yield item


def _candidates(tool: Tool) -> Iterator[Arguments]:
    """Arguments to try, the most promising first."""
    properties: dict[str, Any] = dict(tool.parameters.get("properties", {}))
    required = [name for name in tool.parameters.get("required", ()) if name in properties]
    base = {name: _example(properties[name]) for name in required}
    more = {name: True for name, schema in properties.items() if schema.get("type") == "boolean"}
    tree = ast.parse(tool.source or "")
    facts = [
        {name: value for name, value in fact.items() if name in properties}
        for fact in chain(_records(tree), _tests(tree))
    ]
    free = [name for name in required if _is_free(properties[name])]
    texts = _texts(tree)
    yield base
    yield from ({**base, **fact} for fact in facts if fact)
    # What remains free after a test is tried with the keys and texts of the source.
    for names in ([name] for name in free):
        yield from ({**base, names[0]: text} for text in texts)
    yield from ({**base, **more, **fact} for fact in facts)
    enums = {name: properties[name]["enum"] for name in required if properties[name].get("enum")}
    for values in product(*(enums[name][:6] for name in enums), texts[:12]):
        chosen = dict(zip(enums, values, strict=False))
        yield {**base, **chosen, **dict.fromkeys(free, values[-1])}
    for pair in product(texts[:16], repeat=2):
        yield {**base, **dict(zip(free, pair, strict=False))}


def _example(schema: Mapping[str, Any]) -> Any:
    """A value that the schema allows."""
    if schema.get("enum"):
        return schema["enum"][0]
    if "default" in schema:
        return schema["default"]
    kind = schema.get("type", "string")
    if kind == "array":
        return [_example(schema.get("items", {}))]
    if kind == "object":
        return {name: _example(value) for name, value in schema.get("properties", {}).items()}
    return {"integer": 1, "number": 1.0, "boolean": True}.get(kind, "a")


def _is_free(schema: Mapping[str, Any]) -> bool:
    """Whether a parameter takes any text."""
    return schema.get("type", "string") == "string" and not schema.get("enum")


def _texts(tree: ast.AST) -> list[str]:
    """String constants, those that are keys of dicts first; no docstrings and no parts of f-strings."""
    keys = [key for node in ast.walk(tree) if isinstance(node, ast.Dict) for key in node.keys if key]
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found = [
        node.value
        for node in chain(keys, ast.walk(tree))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts | docs
    ]
    return [text for text in dict.fromkeys(found) if 0 < len(text) <= 120]


def _records(tree: ast.AST) -> Iterator[Arguments]:
    """Dicts of constants: records whose fields may bear the parameters' names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            yield {
                key.value: value.value
                for key, value in pairs
                if isinstance(key, ast.Constant) and isinstance(value, ast.Constant)
            }


def _tests(tree: ast.AST) -> Iterator[Arguments]:
    """For each condition, with those around it, the values of names that may fulfil it."""

    def visit(node: ast.AST, around: Arguments) -> Iterator[Arguments]:
        if isinstance(node, ast.If):
            for fact in _facts(node.test):
                yield {**around, **fact}
                yield from chain.from_iterable(visit(child, {**around, **fact}) for child in node.body)
            yield from chain.from_iterable(visit(child, around) for child in node.orelse)
        else:
            yield from chain.from_iterable(visit(child, around) for child in ast.iter_child_nodes(node))

    return visit(tree, {})


def _facts(test: ast.expr) -> list[Arguments]:
    """Ways to fulfil a condition, as far as it compares names with constants; one that says nothing is {}."""
    if isinstance(test, ast.BoolOp):
        parts = [_facts(value) for value in test.values]
        if isinstance(test.op, ast.Or):
            return [fact for part in parts for fact in part][:8]
        return [{k: v for fact in facts for k, v in fact.items()} for facts in islice(product(*parts), 8)]
    if not (isinstance(test, ast.Compare) and len(test.ops) == 1):
        return [{}]
    left, right = test.left, test.comparators[0]
    if isinstance(test.ops[0], ast.Eq):
        pairs = [(left, right), (right, left)]
    elif isinstance(test.ops[0], ast.In) and isinstance(right, ast.List | ast.Tuple | ast.Set):
        pairs = [(left, element) for element in right.elts[:8]]
    elif isinstance(test.ops[0], ast.In):
        pairs = [(right, left)]
    else:
        return [{}]
    found = [{name: c.value} for e, c in pairs if isinstance(c, ast.Constant) and (name := _name(e))]
    return found or [{}]


def _name(node: ast.expr) -> str | None:
    """The name inside `name`, `name.lower()`, `name.strip().lower()`, and so on."""
    while isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        node = node.func.value
    return node.id if isinstance(node, ast.Name) else None
