"""Which text of a model may be evaluated: calls of known tools with literal arguments, and literal values.

bfcl_eval gives such text to Python's `eval`, so a model could write any program. Here it is parsed, and
refused if it is anything else. Errors are in Python's own words where the official code would fail too, for
models read them: ``name 'sort_all' is not defined``.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

LONGEST = 1_000_000
"""Characters; longer text is refused unread."""

_LARGEST, _HIGHEST_POWER = 1e18, 64
_ARITHMETIC: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}


class RefusedError(Exception):
    """Text that is not evaluated."""


def check_call(text: str, tools: Mapping[str, object]) -> None:
    """Refuse text that is not a call of a tool with literals, or such calls, as arguments.

    Parameters
    ----------
    text : str
        What a model wrote, ``mv(source='a', destination='b')`` say.
    tools : mapping
        Names of the tools that the task has.

    Raises
    ------
    NameError
        For a name that is none of the tools, in Python's words.
    RefusedError
        For anything else: attributes, operators, comprehensions, text without a call.
    SyntaxError, ValueError, RecursionError, MemoryError
        As Python's parser does.
    """
    body = _parsed(text)
    if not isinstance(body, ast.Call):
        _refuse_name(body)
        raise RefusedError("only a call of a tool is executed")
    _check_call(body, tools)


def _check_call(node: ast.Call, tools: Mapping[str, object]) -> None:
    """One call, and those inside it."""
    if not isinstance(node.func, ast.Name):
        _refuse_name(node.func)
        raise RefusedError("only a tool can be called, by its bare name")
    if node.func.id not in tools:
        raise NameError(f"name '{node.func.id}' is not defined")
    for argument in node.args:
        _check_argument(argument, tools)
    for keyword in node.keywords:
        if keyword.arg is None:
            raise RefusedError("arguments are given one by one, not unpacked")
        _check_argument(keyword.value, tools)


def _check_argument(node: ast.expr, tools: Mapping[str, object]) -> None:
    """A literal, or a call of a tool."""
    if isinstance(node, ast.Call):
        _check_call(node, tools)
    elif isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        for element in node.elts:
            _check_argument(element, tools)
    elif isinstance(node, ast.Dict):
        for part in (*node.keys, *node.values):
            if part is None:
                raise RefusedError("arguments are given one by one, not unpacked")
            _check_argument(part, tools)
    elif not (isinstance(node, ast.Constant) or _is_signed_number(node)):
        _refuse_name(node)
        raise RefusedError("arguments are literals or calls of tools")


def _is_signed_number(node: ast.expr) -> bool:
    """Whether it is a number with a sign."""
    return (
        isinstance(node, ast.UnaryOp)
        and isinstance(node.op, (ast.USub, ast.UAdd))
        and isinstance(node.operand, ast.Constant)
        and type(node.operand.value) in (int, float)
    )


def _refuse_name(node: ast.expr) -> None:
    """Say what Python says of the unknown name that a chain of attributes, calls or indices begins with."""
    while True:
        if isinstance(node, (ast.Attribute, ast.Subscript)):
            node = node.value
        elif isinstance(node, ast.Call):
            node = node.func
        else:
            break
    if isinstance(node, ast.Name):
        raise NameError(f"name '{node.id}' is not defined")


def value_of(text: str) -> Any:
    """The value of a literal, in which numbers may be added, multiplied and the like.

    It stands where handlers of bfcl_eval evaluate a model's text itself.

    Raises
    ------
    RefusedError, NameError, SyntaxError, ValueError, TypeError, ArithmeticError, RecursionError, MemoryError
        For anything else, and for numbers beyond 1e18.
    """
    return _value(_parsed(text))


def _value(node: ast.expr) -> Any:
    """The value of one node."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.List):
        return [_value(element) for element in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(_value(element) for element in node.elts)
    if isinstance(node, ast.Set):
        return {_value(element) for element in node.elts}
    if isinstance(node, ast.Dict) and None not in node.keys:
        keys = [_value(key) for key in node.keys if key is not None]
        return dict(zip(keys, map(_value, node.values), strict=True))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        operand = _number(node.operand)
        return -operand if isinstance(node.op, ast.USub) else +operand
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        left, right = _number(node.left), _number(node.right)
        if isinstance(node.op, ast.Pow) and (abs(right) > _HIGHEST_POWER or abs(left) > _LARGEST):
            raise RefusedError("a power is too large")
        return _bounded(_ARITHMETIC[type(node.op)](left, right))
    _refuse_name(node)
    raise RefusedError(f"no literal: {type(node).__name__}")


def _number(node: ast.expr) -> int | float:
    """The number that an operand is."""
    value = _value(node)
    if type(value) not in (int, float):
        raise RefusedError("only numbers are calculated with")
    return _bounded(value)


def _bounded(value: Any) -> int | float:
    """A number that is not too large to go on with."""
    if type(value) not in (int, float) or abs(value) > _LARGEST:
        raise RefusedError("a number is too large")
    return value  # type: ignore[no-any-return]


def _parsed(text: str) -> ast.expr:
    """The expression that a text is."""
    if not isinstance(text, str) or len(text) > LONGEST:
        raise RefusedError(f"no text of at most {LONGEST:,} characters")
    # Named as `eval` names it, for the same words in errors.
    tree = compile(text.lstrip(" \t"), "<string>", "eval", ast.PyCF_ONLY_AST)
    return tree.body  # type: ignore[attr-defined, no-any-return]
