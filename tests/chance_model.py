"""A tiny chat model that servers can serve: it calls a tool or answers, by chance, and learnt nothing."""

from __future__ import annotations

from pathlib import Path

CALL = '{"name": "tower", "arguments": {"city": "Bern"}}'
ANSWER = "It is 104 m."
SPECIAL = ("<|im_start|>", "<|im_end|>")
WORDS = ("<tool_call>", CALL, "</tool_call>", ANSWER)
TEMPLATE = """\
{%- if tools %}<|im_start|>system
{{ tools | tojson }}<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{% if message.tool_calls %}{% for call in message.tool_calls -%}
<tool_call>{{ call.function | tojson }}</tool_call>
{%- endfor %}{% else %}{{ message.content }}{% endif %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def save_chance_model(folder: Path) -> None:
    """Save a model that looks at the last token only: after the prompt it calls or answers, by chance."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_only = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    bytes_only.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_only.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytes_only, eos_token="<|im_end|>", pad_token="<|im_end|>", chat_template=TEMPLATE
    )
    tokenizer.add_tokens(list(SPECIAL), special_tokens=True)
    tokenizer.add_tokens(list(WORDS))
    line, end, opening, call, closing, answer = (
        tokenizer.encode(text)[0] for text in ("\n", "<|im_end|>", *WORDS)
    )

    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        eos_token_id=end,
        pad_token_id=end,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    network = Qwen3ForCausalLM(config)
    network.generation_config = GenerationConfig(do_sample=True, top_k=0, eos_token_id=end, pad_token_id=end)
    follows = [
        (line, [opening, answer]),
        (opening, [call]),
        (call, [closing]),
        (closing, [end]),
        (answer, [end]),
    ]
    with torch.no_grad():
        for layer in network.model.layers:  # nothing but the last token speaks
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        network.model.embed_tokens.weight.zero_()
        network.model.embed_tokens.weight[:, len(follows)] = 1.0
        network.lm_head.weight.zero_()
        network.lm_head.weight[end, len(follows)] = 5.0
        for k, (token, nexts) in enumerate(follows):
            network.model.embed_tokens.weight[token] = torch.eye(32)[k]
            network.lm_head.weight[nexts, k] = 5.0
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
