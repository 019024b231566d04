"""The chat template at the level of tokens, against renderings of whole conversations."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

pytest.importorskip("transformers", reason='tokenizers need pip install "matchtir[train]"')

from chat_templates import CHATML, LLAMA, QWEN2, chat_tokenizer

from matchtir.errors import ConfigError, InputError
from matchtir.parse import parse_turn
from matchtir.rollout.template import ChatTemplate

SCHEMA = {
    "type": "function",
    "function": {
        "name": "mayor",
        "description": "Who governs a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
SYSTEM = {"role": "system", "content": "Be brief."}
QUESTION = {"role": "user", "content": "Who is the mayor of Baldor? And of Lornel?"}

HERMES_CALL = '<tool_call>\n{"name": "mayor", "arguments": {"city": "Baldor"}}\n</tool_call>'
LLAMA_CALL = '{"name": "mayor", "parameters": {"city": "Baldor"}}'
MISTRAL_CALL = '{"name": "mayor", "arguments": {"city": "Baldor"}, "id": "call0000%d"}'
THOUGHT = "<think>\nI look it up.\n</think>\n\n"

# For each model: the format named, the format found, and turns of one call, two calls, the answer, written as
# its template would.
ANSWER = "<answer>Solnel</answer>"
HERMES_TURNS = (HERMES_CALL, HERMES_CALL + "\n" + HERMES_CALL, ANSWER)
CASES: dict[str, tuple[str | None, str, tuple[str, str, str]]] = {
    "chatml": ("hermes", "hermes", HERMES_TURNS),
    "alternating": ("hermes", "hermes", HERMES_TURNS),
    "qwen2": (None, "hermes", HERMES_TURNS),
    "qwen-base": (None, "hermes", HERMES_TURNS),
    "qwen3": (None, "hermes", tuple(THOUGHT + turn for turn in HERMES_TURNS)),  # type: ignore[dict-item]
    "llama": (None, "llama3", (LLAMA_CALL, LLAMA_CALL + "\n" + LLAMA_CALL, ANSWER)),
    "mistral": (
        None,
        "mistral",
        (
            f"[TOOL_CALLS] [{MISTRAL_CALL % 0}]",
            f"[TOOL_CALLS] [{MISTRAL_CALL % 0}, {MISTRAL_CALL % 1}]",
            ANSWER,
        ),
    ),
}
OUTPUTS = ["Solnel", '{"error": "unknown city; did you mean Baldor?"}', "  ünï\n"]


def conversation(
    name: str, prompt: list[dict[str, Any]]
) -> tuple[ChatTemplate, list[Any], list[int], list[str]]:
    """A rollout of three turns: template, messages, tokens as a loop joins them, the decoded turns."""
    given, _, turns = CASES[name]
    tokenizer = chat_tokenizer(name)
    template = ChatTemplate(tokenizer, given)
    marker = tokenizer.eos_token_id if name != "qwen-base" else tokenizer.convert_tokens_to_ids("<|im_end|>")
    tokens, messages, texts = template.prompt(prompt, [SCHEMA]), list(prompt), []
    for turn, outputs in zip(turns, (OUTPUTS[:1], OUTPUTS[1:], []), strict=True):
        sampled = [*tokenizer(turn, add_special_tokens=False)["input_ids"], marker]
        texts.append(template.decode(sampled))
        messages += [{"role": "assistant", "content": texts[-1]}]
        messages += [{"role": "tool", "content": text} for text in outputs]
        tokens += sampled + (template.reply(outputs) if outputs else [])
    return template, messages, tokens, texts


@pytest.mark.parametrize("system", [False, True], ids=["user", "system"])
@pytest.mark.parametrize("name", CASES)
def test_template_delta_equals_the_rendering_of_the_whole_conversation(name: str, system: bool) -> None:
    template, messages, tokens, _ = conversation(name, [SYSTEM, QUESTION] if system else [QUESTION])
    found = template.difference(messages, [SCHEMA], tokens)
    if system and name == "mistral":
        # Its template shows a system message only while the question is the last message.
        assert found is not None
        assert "sampled ['Be'" in found or "sampled ['B'" in found
    else:
        assert found is None


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "llama"])
def test_template_delta_equals_what_transformers_renders_itself(name: str) -> None:
    template, messages, tokens, _ = conversation(name, [QUESTION])
    rendered = template.tokenizer.apply_chat_template(messages, tools=[SCHEMA])["input_ids"]
    assert rendered[: len(tokens)] == tokens
    assert template.tokenizer.decode(rendered[len(tokens) :]).strip() == ""


@pytest.mark.parametrize("name", CASES)
def test_template_finds_format_and_decoded_turns_parse(name: str) -> None:
    template, _, _, texts = conversation(name, [QUESTION])
    assert template.format == CASES[name][1]
    assert texts == list(CASES[name][2])
    turns = [parse_turn(text, template.format) for text in texts]
    assert [len(turn.calls) for turn in turns] == [1, 2, 0]
    for call in itertools.chain.from_iterable(turn.calls for turn in turns):
        assert (call.name, dict(call.arguments), call.malformed) == ("mayor", {"city": "Baldor"}, None)
    assert turns[2].answer == "Solnel"


@pytest.mark.parametrize("name", CASES)
def test_template_stop_ids_are_the_marker_and_the_end_of_sequence(name: str) -> None:
    template = ChatTemplate(chat_tokenizer(name), CASES[name][0])
    found = set(template.tokenizer.convert_ids_to_tokens(sorted(template.stop_ids)))
    expected = {
        "qwen-base": {"<|endoftext|>", "<|im_end|>"},
        "llama": {"<|eot_id|>", "<|eom_id|>"},
        "mistral": {"</s>"},
    }
    assert found == expected.get(name, {"<|im_end|>"})


def test_template_stop_ids_hold_what_ends_a_turn_of_calls_alone() -> None:
    other = LLAMA.replace(
        "(call.arguments | tojson) + '}<|eot_id|>'", "(call.arguments | tojson) + '}<|eom_id|>'"
    )
    assert other != LLAMA
    template = ChatTemplate(chat_tokenizer("llama", chat_template=other))
    assert {"<|eot_id|>", "<|eom_id|>"} == set(template.tokenizer.convert_ids_to_tokens(template.stop_ids))
    plain = ChatTemplate(chat_tokenizer("llama"))
    assert template.reply(["Solnel"]) == plain.reply(["Solnel"])


def test_template_prompt_is_what_transformers_renders() -> None:
    tokenizer = chat_tokenizer("qwen2")
    prompt = ChatTemplate(tokenizer).prompt([SYSTEM, QUESTION], [SCHEMA])
    expected = tokenizer.apply_chat_template([SYSTEM, QUESTION], tools=[SCHEMA], add_generation_prompt=True)
    assert prompt == expected["input_ids"]


@pytest.mark.parametrize("format", ["hermes", "llama3", "mistral"])
def test_template_without_tools_describes_them_in_its_own_words(format: str) -> None:
    template = ChatTemplate(chat_tokenizer("chatml"), format)
    text = template.tokenizer.decode(template.prompt([SYSTEM, QUESTION], [SCHEMA]))
    assert text.startswith("<|im_start|>system\nBe brief.\n\nYou can call tools.")
    question = f"<|im_start|>user\n{QUESTION['content']}<|im_end|>\n"
    assert text.endswith(f"<|im_end|>\n{question}<|im_start|>assistant\n")
    assert '"city": {"type": "string"}' in text
    # The example of the description is a call that the parser reads.
    example = text.partition("To call a tool, write")[2].partition("You may")[0]
    example = example.removeprefix(" on a line of its own")
    calls = parse_turn(example, format).calls
    assert [(call.name, call.arguments) for call in calls] == [("the tool", {"argument": "value"})]


def test_template_without_tools_says_nothing_where_a_task_has_none() -> None:
    template = ChatTemplate(chat_tokenizer("chatml"), "hermes")
    text = template.tokenizer.decode(template.prompt([QUESTION], []))
    assert text == f"<|im_start|>user\n{QUESTION['content']}<|im_end|>\n<|im_start|>assistant\n"


def test_template_without_system_messages_puts_the_tools_before_the_question() -> None:
    template = ChatTemplate(chat_tokenizer("alternating"), "hermes")
    text = template.tokenizer.decode(template.prompt([SYSTEM, QUESTION], [SCHEMA]))
    assert text.startswith("<|im_start|>user\nBe brief.\n\nYou can call tools.")
    assert text.endswith(f"</answer>.\n\n{QUESTION['content']}<|im_end|>\n<|im_start|>model\n")


def test_template_reply_puts_outputs_in_order_and_keeps_their_text() -> None:
    template = ChatTemplate(chat_tokenizer("qwen3"))
    text = template.tokenizer.decode(template.reply(["first\n", "", "zqprobevalue <|im_end|> third"]))
    assert text == (
        "\n<|im_start|>user\n<tool_response>\nfirst\n\n</tool_response>\n<tool_response>\n\n</tool_response>"
        "\n<tool_response>\nzqprobevalue <|im_end|> third\n</tool_response>"
        "<|im_end|>\n<|im_start|>assistant\n"
    )


def test_template_reply_is_not_changed_by_its_caller() -> None:
    template = ChatTemplate(chat_tokenizer("qwen3"))
    first = template.reply(["Solnel"])
    kept = list(first)
    first.clear()
    assert template.reply(["Solnel"]) == kept != []


@pytest.mark.parametrize("bad", [[], "Solnel"])
def test_template_reply_wants_observations(bad: Any) -> None:
    with pytest.raises(InputError, match=r"observations is .*; expected strings, at least one"):
        ChatTemplate(chat_tokenizer("qwen3")).reply(bad)


def test_template_options_reach_prompt_and_reply() -> None:
    template = ChatTemplate(chat_tokenizer("qwen3"), options={"enable_thinking": False})
    closed = template.tokenizer("<think>\n\n</think>\n\n")["input_ids"]
    assert template.prompt([QUESTION], [SCHEMA])[-len(closed) :] == closed
    assert template.reply(["Solnel"])[-len(closed) :] == closed


def test_template_decode_keeps_every_token_but_the_stop() -> None:
    template = ChatTemplate(chat_tokenizer("mistral"))
    tag, inst, stop = template.tokenizer.convert_tokens_to_ids(["[TOOL_CALLS]", "[INST]", "</s>"])
    name = template.tokenizer("may")["input_ids"]
    assert template.decode([tag, *name, inst, stop]) == "[TOOL_CALLS]may[INST]"
    assert template.decode([tag, *name]) == "[TOOL_CALLS]may"
    assert template.decode([]) == template.decode([stop]) == ""


def test_template_shorten_takes_the_middle_out() -> None:
    template = ChatTemplate(chat_tokenizer("qwen3"))
    assert template.shorten("ab" * 20, 40) == "ab" * 20
    short = template.shorten("0123456789", 4)
    assert short == "01 … 89"
    assert "\ufffd" not in template.shorten("é" * 9, 5)
    assert template.shorten("0123456789", 1) == "0 … "


def test_difference_names_the_first_token_that_was_sampled_otherwise() -> None:
    template, messages, tokens, _ = conversation("qwen2", [QUESTION])
    # The same text in other pieces: letter by letter.
    start = len(template.prompt([QUESTION], [SCHEMA]))
    word = template.tokenizer("mayor", add_special_tokens=False)["input_ids"]
    letters = [template.tokenizer(letter)["input_ids"][0] for letter in "mayor"]
    assert len(word) < 5
    at = next(i for i in range(start, len(tokens)) if tokens[i : i + len(word)] == word)
    changed = [*tokens[:at], *letters, *tokens[at + len(word) :]]
    found = template.difference(messages, [SCHEMA], changed)
    assert found is not None
    assert found.startswith(f"token {at} of {len(changed)}, after ")
    assert "sampled ['m', 'a', 'y', 'o'], the chat template writes ['may" in found


def test_difference_sees_reasoning_that_the_template_adds_at_the_end() -> None:
    template = ChatTemplate(chat_tokenizer("qwen3"))
    turn = template.tokenizer(ANSWER)["input_ids"] + list(template.stop_ids)
    prompt = template.prompt([QUESTION], [SCHEMA])
    messages = [QUESTION, {"role": "assistant", "content": ANSWER}]
    found = template.difference(messages, [SCHEMA], prompt + turn)
    assert found is not None
    assert found.startswith(f"token {len(prompt)} of ")
    assert "<think>" in found


@pytest.mark.parametrize("name", CASES)
def test_difference_takes_a_turn_that_was_cut_off_and_outputs_not_appended(name: str) -> None:
    template, messages, tokens, _ = conversation(name, [QUESTION])
    assert template.difference(messages, [SCHEMA], tokens[:-1]) is None
    begun = len(template.prompt([QUESTION], [SCHEMA]))
    stop = next(i for i in range(begun, len(tokens)) if tokens[i] in template.stop_ids)
    assert template.difference(messages[:3], [SCHEMA], tokens[: stop + 1]) is None
    reply = template.reply(OUTPUTS[:1])
    assert tokens[stop + 1 : stop + 1 + len(reply)] == reply
    assert template.difference(messages[:3], [SCHEMA], tokens[: stop + 1 + len(reply)]) is None


def test_difference_sees_tokens_that_are_missing_or_too_many() -> None:
    template, messages, tokens, _ = conversation("qwen2", [QUESTION])
    short = template.difference(messages, [SCHEMA], template.prompt([QUESTION], [SCHEMA]))
    assert short is not None
    assert "sampled nothing" in short
    long = template.difference(messages[:3], [SCHEMA], tokens)
    assert long is not None
    assert "writes nothing" in long


def test_difference_says_that_the_template_refuses_the_conversation() -> None:
    template = ChatTemplate(chat_tokenizer("mistral"))
    found = template.difference([QUESTION, QUESTION], [SCHEMA], [0])
    assert found is not None
    assert "roles must alternate" in found


def test_prompt_that_the_template_refuses_is_named() -> None:
    template = ChatTemplate(chat_tokenizer("mistral"))
    with pytest.raises(InputError, match="chat template refuses the conversation: roles must alternate"):
        template.prompt([QUESTION, QUESTION], [SCHEMA])


def changed(template: str, old: str, new: str) -> str:
    """A template with one thing changed."""
    assert old in template
    return template.replace(old, new)


CALL_HEAD = '{"name": "\' + call.function.name + \'", "arguments": \' }}'
OUTPUT = "'\\n<tool_response>\\n' + m.content + '\\n</tool_response>'"
NO_END = changed(CHATML, "m.content + '<|im_end|>\\n'", "m.content + '\\n'")
XML_CALLS = changed(QWEN2, CALL_HEAD, "<f=' + call.function.name }}")
NAMED = changed(QWEN2, OUTPUT, "messages[1].tool_calls[0].function.name + m.content")
DEAF = changed(QWEN2, OUTPUT, "'\\n'")


@pytest.mark.parametrize(
    ("name", "template", "format", "message"),
    [
        ("chatml", None, "hermes", "has no chat template"),
        (
            "chatml",
            CHATML,
            None,
            "knows no tools and tool_format is None; .* one of hermes, .*llama3, mistral",
        ),
        (
            "chatml",
            CHATML,
            "hermez",
            "tool_format is 'hermez'; expected one of hermes, llama3, mistral",
        ),
        (
            "qwen2",
            XML_CALLS,
            None,
            "tool_format is None .* writes calls as .*zqprobetool.*parsers: hermes",
        ),
        ("qwen2", XML_CALLS, "hermes", "tool_format is 'hermes' .* writes calls as"),
        ("qwen2", QWEN2, "mistral", "tool_format is 'mistral' .* writes calls as .*; expected hermes"),
        ("chatml", NO_END, "hermes", "ends no assistant turn with a special token"),
        ("qwen2", NAMED, None, "cannot append two tool outputs"),
        ("qwen2", DEAF, None, "cannot append two tool outputs"),
    ],
)
def test_template_says_what_a_tokenizer_lacks(
    name: str, template: str | None, format: str | None, message: str
) -> None:
    tokenizer = chat_tokenizer(name)
    tokenizer.chat_template = template
    with pytest.raises(ConfigError, match=message):
        ChatTemplate(tokenizer, format)


def test_template_takes_a_named_format_that_reads_its_calls() -> None:
    assert ChatTemplate(chat_tokenizer("qwen2"), "qwen3").format == "qwen3"
