"""Tools: what they are to a model, and the sandbox that runs them."""

from .definitions import tool_from_mcp, tool_from_schema
from .function_schema import tool_from_function
from .observations import Observation, call_failed
from .registry import ToolRegistry, run_turns
from .sandbox import Call, Instance, Result, Sandbox

__all__ = [
    "Call",
    "Instance",
    "Observation",
    "Result",
    "Sandbox",
    "ToolRegistry",
    "call_failed",
    "run_turns",
    "tool_from_function",
    "tool_from_mcp",
    "tool_from_schema",
]
