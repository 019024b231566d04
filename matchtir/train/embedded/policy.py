"""The embedded policy: a Qwen3 of 290,000 parameters, and a tokenizer for the embedded tasks' pieces."""

from __future__ import annotations

import os
from importlib.resources import as_file, files
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from ...errors import ConfigError
from ...tasks.embedded import token_pattern, vocabulary
from ..config import PolicyConfig
from ..models import load_model

PAD, UNKNOWN, END = "<|pad|>", "<unk>", "<|im_end|>"
ROLES = ("system", "user", "assistant", "tool")
MAX_TOKENS = 1024
"""Tokens of the longest conversation; six turns of the hardest task have about 350."""

# Only assistant turns end with a marker: what else is said, nobody samples.
_CHAT_TEMPLATE = """\
{%- if tools %}
    {{- '<|system|>' }}
    {%- for tool in tools %}
        {{- (tool | tojson) + '\\n' }}
    {%- endfor %}
{%- endif %}
{%- for message in messages %}
    {%- if message.role not in ['system', 'user', 'assistant', 'tool'] %}
        {{- raise_exception('role is ' + message.role + '; expected system, user, assistant or tool') }}
    {%- endif %}
    {{- '<|' + message.role + '|>' + (message.content or '') }}
    {%- if message.role == 'assistant' %}
        {%- for call in message.tool_calls or [] %}
            {%- set function = call.function or call %}
            {%- set arguments = function.arguments %}
            {{- '<tool_call>{"name": ' + (function.name | tojson) + ', "arguments": ' }}
            {{- (arguments if arguments is string else arguments | tojson) + '}</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>' }}
{%- endif %}
"""

_INITIAL_STD = 0.08
_INITIAL_NORM = 1.5


def embedded_tokenizer(*, calendar: bool = False) -> PreTrainedTokenizerFast:
    """The tokenizer of the embedded policy: one token for each piece of the vocabulary, and seven more.

    Decoding gives back every text of an embedded task exactly. Text from elsewhere is ``<unk>``, one for each
    stretch between known pieces. The chat template writes the tools first, one per line, then each message
    after the marker of its role; an assistant's ends with ``<|im_end|>``, the end-of-sequence token. What it
    writes of a conversation begins with what it writes of the conversation's beginning.

    Parameters
    ----------
    calendar : bool
        With the pieces of calendar tasks. They come last: other pieces have the same ids without them.

    Returns
    -------
    PreTrainedTokenizerFast
        With a chat template, and end, padding and unknown tokens.

    Examples
    --------
    >>> tokenizer = embedded_tokenizer()
    >>> ids = tokenizer("Give the mayor of Baldor.").input_ids
    >>> tokenizer.convert_ids_to_tokens(ids)
    ['Give the ', 'mayor', ' of ', 'Bal', 'dor', '.']
    >>> tokenizer.decode(ids)
    'Give the mayor of Baldor.'
    """
    markers = [PAD, UNKNOWN, END, *(f"<|{role}|>" for role in ROLES)]
    ids = {piece: i for i, piece in enumerate([*markers, *vocabulary(calendar=calendar)])}
    core = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(token_pattern(calendar=calendar)), behavior="isolated")
    # Without a decoder the pieces would be joined by spaces.
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        additional_special_tokens=[f"<|{role}|>" for role in ROLES],
        chat_template=_CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_TOKENS,
        padding_side="right",
    )


def new_policy(seed: int, *, calendar: bool = False) -> Qwen3ForCausalLM:
    """The embedded policy before any training.

    Weights are larger than usual at the start (standard deviation 0.08, norms of queries and keys 1.5): a
    model this small does not learn to copy names otherwise.

    Parameters
    ----------
    seed : int
        The same seed gives the same weights. The state of torch's generator is left as it is.
    calendar : bool
        For the tokenizer with the pieces of calendar tasks.

    Returns
    -------
    Qwen3ForCausalLM
        float32, on the CPU, in evaluation mode; about 290,000 parameters.
    """
    tokenizer = embedded_tokenizer(calendar=calendar)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=64,
        tie_word_embeddings=True,
        initializer_range=_INITIAL_STD,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_norm.weight.fill_(_INITIAL_NORM)
            layer.self_attn.k_norm.weight.fill_(_INITIAL_NORM)
    return model.eval()


def load_embedded_policy(
    folder: str | os.PathLike[str] | None = None,
) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """A policy after its warm start, ready to be trained by reward.

    Parameters
    ----------
    folder : path, optional
        What :func:`warm_start` wrote. By default the one that comes with the library.

    Returns
    -------
    Qwen3ForCausalLM, PreTrainedTokenizerFast
        The model float32, on the CPU, in evaluation mode.

    Raises
    ------
    ConfigError
        If the folder is missing, or holds no model and tokenizer.
    """
    if folder is None:
        with as_file(files("matchtir") / "data" / "embedded") as shipped:
            return load_model(str(shipped), PolicyConfig(), seed=0)
    path = Path(folder).absolute()
    if not path.is_dir():
        raise ConfigError(
            f"policy {str(folder)!r} is no folder; expected one that `matchtir warmstart` wrote"
        )
    return load_model(str(path), PolicyConfig(), seed=0)
