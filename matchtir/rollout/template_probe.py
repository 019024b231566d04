"""What a chat template does with tools, calls and outputs, found out by rendering small conversations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from ..parse import formats, parse_turn
from .own_tools import OWN_FORMATS, with_own_tools

Message = Mapping[str, Any]

# What is looked for in renderings; no template holds these by chance.
_TOOL, _VALUE, _OUTPUTS = "zqprobetool", "zqprobevalue", ("zqprobefirst", "zqprobesecond")
_USER: Message = {"role": "user", "content": "zqprobeuser"}
_SCHEMA = {
    "type": "function",
    "function": {
        "name": _TOOL,
        "description": "",
        "parameters": {"type": "object", "properties": {"x": {"type": "string"}}},
    },
}
_MOST_CALLS = (10**9, 1, 0)


class Renderer:
    """A tokenizer and the options that its chat template gets each time."""

    def __init__(self, tokenizer: Any, options: Mapping[str, Any]) -> None:
        self.tokenizer = tokenizer
        self.options = options
        self.name = repr(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)
        self.refusal = ""

    def render(self, messages: Sequence[Message], schemas: Sequence[Any], *, generate: bool) -> str:
        """What the template writes. It is code, and may raise anything."""
        text = self.tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tools=[dict(schema) for schema in schemas] or None,
            add_generation_prompt=generate,
            tokenize=False,
            **self.options,
        )
        return str(text)

    def attempt(self, messages: Sequence[Message], *, tools: bool, generate: bool = False) -> str:
        """What the template writes, "" if it refuses; `refusal` says why."""
        try:
            return self.render(messages, [_SCHEMA] if tools else [], generate=generate)
        except Exception as error:
            self.refusal = f"{type(error).__name__}: {error}"
            return ""

    def encode(self, text: str) -> list[int]:
        """Ids of a rendered text."""
        return [int(i) for i in self.tokenizer(text, add_special_tokens=False)["input_ids"]]


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a template.

    Attributes
    ----------
    format : str
        Parser of the calls.
    own : bool
        It knows no tools, so they are described in our words.
    merged : bool
        It takes no system message.
    marker : int
        Id that ends an assistant turn.
    stop_ids : frozenset of int
        `marker`, and what else ends a turn.
    most_calls : int
        Calls that an assistant message may have.
    """

    format: str
    own: bool
    merged: bool
    marker: int
    stop_ids: frozenset[int]
    most_calls: int = 0


def probe(renderer: Renderer, tool_format: str | None) -> Facts:
    """Find out all that is needed, or say what is missing.

    Raises
    ------
    ConfigError
        As :class:`matchtir.rollout.template.ChatTemplate` does.
    """
    format, own = call_format(renderer, tool_format)
    merged = own and _VALUE not in renderer.attempt(
        [{"role": "system", "content": _VALUE}, _USER], tools=False
    )
    marker, stop_ids = _stops(renderer, format, own)
    facts = Facts(format, own, merged, marker, stop_ids)
    for most in _MOST_CALLS[-1:] if own else _MOST_CALLS:
        found = Facts(format, own, merged, marker, stop_ids, most)
        tail = tail_after_turn(renderer, found, _OUTPUTS)
        places = [tail.find(output) for output in _OUTPUTS]
        if 0 <= places[0] < places[1] and _TOOL not in tail:
            facts = found
            break
    else:
        raise ConfigError(
            f"the chat template of {renderer.name} cannot append two tool outputs to an assistant turn "
            f"({renderer.refusal or 'it leaves them out, or names the tools in them'})"
        )
    return facts


def call_format(renderer: Renderer, tool_format: str | None) -> tuple[str, bool]:
    """Parser of the calls that a model with this template writes, and whether the template knows no tools.

    Raises
    ------
    ConfigError
        If there is no chat template, or no parser is named or found that reads its calls.
    """
    if not getattr(renderer.tokenizer, "chat_template", None):
        raise ConfigError(f"the tokenizer {renderer.name} has no chat template; expected a chat model's")
    if tool_format is not None and tool_format not in formats():
        raise ConfigError(f"tool_format is {tool_format!r}; expected one of {', '.join(formats())}")
    own = not knows_tools(renderer)
    return (_own_format if own else _template_format)(renderer, tool_format), own


def knows_tools(renderer: Renderer) -> bool:
    """Whether there is a chat template that describes tools."""
    template = getattr(renderer.tokenizer, "chat_template", None)
    return bool(template) and _TOOL in renderer.attempt([_USER], tools=True)


def tail_after_turn(renderer: Renderer, facts: Facts, outputs: Sequence[str]) -> str:
    """What follows the end of an assistant turn whose calls returned `outputs`; "" if it is refused."""
    calls = min(facts.most_calls, len(outputs))
    return _tail(renderer, facts, [{"role": "tool", "content": output} for output in outputs], calls)


def tail_after_answer(renderer: Renderer, facts: Facts, messages: Sequence[Message]) -> str:
    """What follows the end of a turn without calls if `messages` are next; "" if that is refused."""
    return _tail(renderer, facts, messages, 0)


def _tail(renderer: Renderer, facts: Facts, following: Sequence[Message], calls: int) -> str:
    """What follows the end of an assistant turn with so many calls."""
    assistant: dict[str, Any] = {"role": "assistant", "content": "" if calls else _VALUE}
    if calls:
        assistant["tool_calls"] = [call_entry(k, _TOOL, {"x": _VALUE}) for k in range(calls)]
    messages = with_call_ids([_USER, assistant, *following])
    if facts.own:
        messages = with_own_tools(messages, [], facts.format, merged=facts.merged)
    text = renderer.attempt(messages, tools=not facts.own, generate=True)
    turn = text.partition(_USER["content"])[2].partition(_VALUE)[2]
    ends = [renderer.tokenizer.convert_ids_to_tokens(i) for i in facts.stop_ids]
    at, end = min(((turn.find(end), end) for end in ends if end in turn), default=(-1, ""))
    return turn[at + len(end) :] if at >= 0 else ""


def call_entry(k: int, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of `tool_calls` as templates take it, with arguments that are an object."""
    return {"id": _call_id(k), "type": "function", "function": {"name": name, "arguments": dict(arguments)}}


def with_call_ids(messages: Sequence[Message]) -> list[Message]:
    """The conversation with ids of calls that depend on nothing but a call's place in its turn."""
    changed: list[Message] = []
    k = 0
    for message in messages:
        tool = message.get("role") == "tool"
        changed.append({**message, "tool_call_id": _call_id(k)} if tool else message)
        k = k + 1 if tool else 0
    return changed


def _call_id(k: int) -> str:
    """Nine letters and digits, which is what Mistral's templates insist on."""
    return f"call{k:05d}"


def _own_format(renderer: Renderer, wanted: str | None) -> str:
    """The format in which tools are described to a template that knows none."""
    if wanted in OWN_FORMATS:
        return str(wanted)
    raise ConfigError(
        f"the chat template of {renderer.name} knows no tools and tool_format is {wanted!r}; expected "
        f"the form in which tools are described and calls are read, one of {', '.join(OWN_FORMATS)}"
    )


def _template_format(renderer: Renderer, wanted: str | None) -> str:
    """The format whose parser reads the call which the template writes."""
    assistant = {"role": "assistant", "content": "", "tool_calls": [call_entry(0, _TOOL, {"x": _VALUE})]}
    text = renderer.attempt([_USER, assistant], tools=True)
    written = text.partition(_USER["content"])[2] if _VALUE in text else ""
    if wanted is not None and (not written or _reads(wanted, written)):
        return wanted
    # Llama's form has no marker, so its parser also reads calls that have another format's around them.
    found = next((f for f in ("hermes", "mistral", "llama3", *formats()) if _reads(f, written)), None)
    if wanted is None and found is not None:
        return found
    shown = f"writes calls as {written[-160:]!r}" if written else "writes no calls"
    expected = found or "the name of the parser that reads what the model writes"
    raise ConfigError(
        f"tool_format is {wanted!r} and the chat template of {renderer.name} {shown}; "
        f"expected {expected} (parsers: {', '.join(formats())})"
    )


def _reads(format: str, text: str) -> bool:
    """Whether a parser finds the call of the probe in a text."""
    calls = parse_turn(text, format).calls
    return any(c.malformed is None and c.name == _TOOL and c.arguments == {"x": _VALUE} for c in calls)


def _stops(renderer: Renderer, format: str, own: bool) -> tuple[int, frozenset[int]]:
    """The id that ends an assistant turn in the template, and all ids that may end one."""
    tokenizer = renderer.tokenizer
    added = tokenizer.added_tokens_decoder
    special = {*tokenizer.all_special_ids, *added}
    text = renderer.attempt([_USER, {"role": "assistant", "content": _VALUE}], tools=not own)
    tail = renderer.encode(text.rpartition(_VALUE)[2]) if _VALUE in text else []
    marker = next((i for i in tail if i in special), None)
    if marker is None:
        raise ConfigError(
            f"the chat template of {renderer.name} ends no assistant turn with a special token "
            f"({renderer.refusal or repr(text[-80:])}); expected one, so that a sampled turn can stop"
        )
    stops = {marker} if tokenizer.eos_token_id is None else {marker, int(tokenizer.eos_token_id)}
    if not own:
        assistant = {"role": "assistant", "content": "", "tool_calls": [call_entry(0, _TOOL, {"x": _VALUE})]}
        text = renderer.attempt([_USER, assistant], tools=True)
        ends = (
            [i for i in renderer.encode(text.rpartition(_VALUE)[2]) if i in special] if _VALUE in text else []
        )
        if ends and marker not in ends:
            stops.add(ends[-1])
    if format == "llama3":
        # Llama ends a turn of built-in tools with this; no template writes it for others.
        stops |= {i for i, token in added.items() if str(token) == "<|eom_id|>"}
    return marker, frozenset(stops)
