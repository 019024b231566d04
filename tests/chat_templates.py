"""Small chat models' tokenizers: byte-level BPE, and templates built like those of well-known models."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

# Plain ChatML: any role, no tools.
CHATML = """\
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# Roles alternate, no system message, no tools.
ALTERNATING = """\
{%- for m in messages %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {{- '<|im_start|>' + ('model' if m.role == 'assistant' else m.role) + '\\n' + (m.content | trim) }}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>model\\n' }}{% endif %}"""

_QWEN_TOOLS = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {{- messages[0].content + '\\n\\n' if messages[0].role == 'system' else default }}
    {{- 'Tools:\\n<tools>' }}
    {%- for tool in tools %}{{ '\\n' + (tool | tojson) }}{% endfor %}
    {{- '\\n</tools>\\n<tool_call>\\n{"name": NAME, "arguments": OBJECT}\\n</tool_call><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}"""

_QWEN_CALLS = """\
{%- for call in m.tool_calls or [] %}
    {%- if content or not loop.first %}{{ '\\n' }}{% endif %}
    {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
    {{- (call.function.arguments | tojson) + '}\\n</tool_call>' }}
{%- endfor %}"""

_QWEN_OUTPUT = """\
{%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif %}
{{- '\\n<tool_response>\\n' + m.content + '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}"""

QWEN2 = f"""\
{{%- set default = 'You are helpful.\\n\\n' %}}{_QWEN_TOOLS}
{{%- for m in messages %}}
    {{%- set content = m.content or '' %}}
    {{%- if m.role == 'user' or (m.role == 'system' and not loop.first) or m.role == 'assistant' %}}
        {{{{- '<|im_start|>' + m.role + '\\n' + content }}}}{_QWEN_CALLS}{{{{ '<|im_end|>\\n' }}}}
    {{%- elif m.role == 'tool' %}}{_QWEN_OUTPUT}
    {{%- endif %}}
{{%- endfor %}}
{{%- if add_generation_prompt %}}{{{{ '<|im_start|>assistant\\n' }}}}{{% endif %}}"""

# Reasoning before the last question is left out; an assistant at the end gets an empty block.
QWEN3 = f"""\
{{%- set default = '' %}}{_QWEN_TOOLS}
{{%- set ns = namespace(asked=-1) %}}
{{%- for m in messages %}}
    {{%- if m.role == 'user' %}}{{% set ns.asked = loop.index0 %}}{{% endif %}}
{{%- endfor %}}
{{%- for m in messages %}}
    {{%- set content = m.content or '' %}}
    {{%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}}
        {{{{- '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>\\n' }}}}
    {{%- elif m.role == 'assistant' %}}
        {{%- set thought = '' %}}
        {{%- if '</think>' in content %}}
            {{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}}
            {{%- set content = content.split('</think>')[-1].lstrip('\\n') %}}
        {{%- endif %}}
        {{{{- '<|im_start|>assistant\\n' }}}}
        {{%- if loop.index0 > ns.asked and (loop.last or thought) %}}
            {{{{- '<think>\\n' + thought + '\\n</think>\\n\\n' }}}}
        {{%- endif %}}
        {{{{- content }}}}{_QWEN_CALLS}{{{{ '<|im_end|>\\n' }}}}
    {{%- elif m.role == 'tool' %}}{_QWEN_OUTPUT}
    {{%- endif %}}
{{%- endfor %}}
{{%- if add_generation_prompt %}}
    {{{{- '<|im_start|>assistant\\n' }}}}
    {{{{- '<think>\\n\\n</think>\\n\\n' if enable_thinking is defined and not enable_thinking else '' }}}}
{{%- endif %}}"""

# Tools in the first user message, one call a message, content trimmed, outputs from "ipython".
LLAMA = """\
{{- bos_token }}
{%- set system = '' %}
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content | trim %}{% set messages = messages[1:] %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
{%- if tools %}{{ 'Environment: ipython\\n' }}{% endif %}
{{- 'Today: 26 Jul 2024\\n\\n' + system + '<|eot_id|>' }}
{%- if tools %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\nCall a function with JSON.\\n\\n' }}
    {%- for tool in tools %}{{ (tool | tojson(indent=4)) + '\\n\\n' }}{% endfor %}
    {{- (messages[0].content | trim) + '<|eot_id|>' }}{% set messages = messages[1:] %}
{%- endif %}
{%- for m in messages %}
    {%- if m.role in ['tool', 'ipython'] %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' }}
        {{- ({'output': m.content} | tojson) + '<|eot_id|>' }}
    {%- elif 'tool_calls' in m %}
        {%- if m.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}
        {%- set call = m.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
        {{- '{"name": "' + call.name + '", "parameters": ' }}
        {{- (call.arguments | tojson) + '}<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + (m.content | trim) + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

# Tools before the last user message, ids of nine characters, no text where a call should be.
MISTRAL = """\
{%- set loop_messages = messages[1:] if messages[0].role == 'system' else messages %}
{%- set users = loop_messages | selectattr('role', 'equalto', 'user') | list %}
{%- for m in loop_messages | rejectattr('role', 'equalto', 'tool') | selectattr('tool_calls', 'undefined') %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for m in loop_messages %}
    {%- if m.role == 'user' %}
        {%- if tools and m == users[-1] %}
            {{- '[AVAILABLE_TOOLS] ' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}
        {%- endif %}
        {%- if loop.last and messages[0].role == 'system' %}
            {{- '[INST] ' + messages[0].content + '\\n\\n' + m.content + '[/INST]' }}
        {%- else %}{{ '[INST] ' + m.content + '[/INST]' }}{% endif %}
    {%- elif m.tool_calls is defined %}
        {{- '[TOOL_CALLS] [' }}
        {%- for call in m.tool_calls %}
            {%- if call.id | length != 9 %}{{ raise_exception('ids have nine characters') }}{% endif %}
            {{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' + (']' if loop.last else ', ') }}
        {%- endfor %}
        {{- eos_token }}
    {%- elif m.role == 'assistant' %}{{ m.content + eos_token }}
    {%- elif m.role == 'tool' %}
        {%- if m.tool_call_id | length != 9 %}{{ raise_exception('ids have nine characters') }}{% endif %}
        {{- '[TOOL_RESULTS] {"content": ' + m.content }}
        {{- ', "call_id": "' + m.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}{{ raise_exception('role ' + m.role) }}
    {%- endif %}
{%- endfor %}"""

_CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_QWEN_TOKENS = (*_CHATML_TOKENS, "<tool_call>", "</tool_call>", "<think>", "</think>")
_LLAMA_TOKENS = (
    "<|begin_of_text|>",
    *(
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|python_tag|>",
    ),
)
_MISTRAL_TOKENS = (
    *("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
    *("[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
)

# Template, special tokens, the names of those that have one.
MODELS: dict[str, tuple[str, tuple[str, ...], dict[str, str]]] = {
    "chatml": (CHATML, _CHATML_TOKENS, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}),
    "alternating": (ALTERNATING, _CHATML_TOKENS, {"eos_token": "<|im_end|>"}),
    "qwen2": (QWEN2, _QWEN_TOKENS, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}),
    "qwen3": (QWEN3, _QWEN_TOKENS, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}),
    "qwen-base": (QWEN2, _QWEN_TOKENS, {"eos_token": "<|endoftext|>"}),
    "llama": (LLAMA, _LLAMA_TOKENS, {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}),
    "mistral": (MISTRAL, _MISTRAL_TOKENS, {"bos_token": "<s>", "eos_token": "</s>"}),
}

_TEXT = [
    "You are helpful. Call a function with JSON. Tools: the mayor of Baldor, the founder of Lornel",
    '{"name": "mayor", "arguments": {"city": "Baldor"}}\n{"name": "mayor", "parameters": {"city": "Baldor"}}',
    "<answer>Solnel</answer>\n\n<tool_response>\nSolnel\n</tool_response>",
    '{"type": "function", "function": {"name": "x", "description": "y", "parameters": {"type": "object"}}}',
]


@lru_cache
def _core(special: tuple[str, ...], unmarked: tuple[str, ...]) -> Tokenizer:
    """Byte-level BPE of about 400 pieces; `unmarked` are added tokens that are not special."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(_TEXT * 4, trainer)
    core.add_tokens(list(unmarked))
    return core


def chat_tokenizer(model: str, **changes: Any) -> PreTrainedTokenizerFast:
    """A tokenizer of one of MODELS; `changes` are handed to its constructor."""
    template, tokens, names = MODELS[model]
    unmarked = tuple(t for t in tokens if t.startswith(("<tool", "</tool", "<think", "</think")))
    special = tuple(t for t in tokens if t not in unmarked)
    extra = [t for t in special if t not in names.values()]
    settings: dict[str, Any] = {
        "chat_template": template,
        "additional_special_tokens": extra,
        **names,
    } | changes
    core = Tokenizer.from_str(_core(special, unmarked).to_str())
    return PreTrainedTokenizerFast(tokenizer_object=core, clean_up_tokenization_spaces=False, **settings)
