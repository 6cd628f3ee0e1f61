"""Hugging Face folders: fields of config.json, and refusals of other models by field or tensor name."""

import json
import os
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.transformers_reference import TINY_CONFIG, save_folder, tiny_reference

import converters
import msrnn
from converters.formats.huggingface import config_from_hf, config_to_hf, tokenizer_config
from msrnn.models import Llama

CONFIG = {
    **{"model_type": "llama", "rms_norm_eps": 1e-5, "max_position_embeddings": 64, "num_key_value_heads": 2, "eos_token_id": 2},
    **TINY_CONFIG,
}
MISTRAL = {**CONFIG, "model_type": "mistral"}


def test_missing_fields_have_the_defaults_of_the_published_models():
    plain = config_from_hf({k: v for k, v in CONFIG.items() if k != "num_key_value_heads"}, {})
    assert (plain.n_kv_heads, plain.rope.theta, plain.tied, plain.sliding_window, plain.head_dim) == (
        4,
        10000.0,
        False,
        None,
        6,
    )
    assert config_from_hf(MISTRAL, {}).sliding_window == 4096  # v0.1's config.json may lack the default
    assert config_from_hf(MISTRAL | {"sliding_window": None}, {}).sliding_window is None


def test_all_eos_ids_are_read_from_generation_config():
    assert config_from_hf(CONFIG, {"eos_token_id": [3, 5, 7]}).eos_token_ids == (3, 5, 7)
    assert config_from_hf(CONFIG, {}).eos_token_ids == (2,)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "stablelm"}, "model_type is 'stablelm'; expected one of llama, mistral, yi, qwen2"),
        ({"model_type": None}, "model_type"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": 25}, "hidden_size 25"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_attention_heads": 3, "hidden_size": 24}, "n_heads is 3"),
        ({"head_dim": 5}, "head_dim"),
        ({"rms_norm_eps": None}, "rms_norm_eps"),
        ({"eos_token_id": 61}, "61"),
        ({"vocab_size": 61.5}, "vocab_size"),
    ],
)
def test_other_models_are_refused_by_field(fields, message):
    with pytest.raises(msrnn.Error, match=message):
        config_from_hf(CONFIG | fields, {})


def test_several_eos_ids_survive_the_round_trip(tmp_path):
    config = config_from_hf({**CONFIG, "vocab_size": 61}, {"eos_token_id": [3, 5, 7]})
    converters.convert(Llama(config), tmp_path / "hf", to="hf")
    assert json.loads((tmp_path / "hf" / "generation_config.json").read_text())["eos_token_id"] == [3, 5, 7]
    assert converters.config(tmp_path / "hf").eos_token_ids == (3, 5, 7)


def test_tokenizer_config_names_begin_and_end_tokens():
    config = config_from_hf(CONFIG | {"bos_token_id": 1, "eos_token_id": [2, 4]}, {})
    added = [{"id": 1, "content": "<s>"}, {"id": 2, "content": "</s>"}, {"id": 4, "content": "<|eot|>"}]
    fields = tokenizer_config(config, json.dumps({"added_tokens": added}).encode())
    assert (fields["bos_token"], fields["eos_token"]) == ("<s>", "</s>")
    assert "eos_token" not in tokenizer_config(config, json.dumps({"added_tokens": added[:1]}).encode())


@pytest.mark.parametrize("architecture", ["LLaMAForCausalLM", "LlamaForCausalLM", "LlamaModel", "MistralForCausalLM"])
def test_spellings_of_the_architecture(architecture):
    expected = config_from_hf(CONFIG, {})
    assert config_from_hf(CONFIG | {"architectures": [architecture]}, {}) == expected
    assert config_from_hf(CONFIG | {"architectures": architecture}, {}) == expected


@pytest.mark.parametrize("model_type", ["llama", "mistral", "Yi"])
def test_llama_mistral_and_yi_name_the_classes_of_each_other(model_type):
    """Published folders of Yi have ``LlamaForCausalLM``; other families have their own classes only."""
    config = CONFIG | {"model_type": model_type}
    for name in ("Llama", "Mistral", "Yi"):
        assert config_from_hf(config | {"architectures": [f"{name}ForCausalLM"]}, {}) == config_from_hf(config, {})
    with pytest.raises(
        msrnn.Error, match=r"architecture 'Qwen2ForCausalLM' is not supported; expected one of .*LlamaForCausalLM"
    ):
        config_from_hf(config | {"architectures": ["Qwen2ForCausalLM"]}, {})


def edited(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


Q = "model.layers.0.self_attn.q_proj.weight"
WRONG = {
    "missing": (lambda t: t.pop(Q), "layers.0.q.weight"),
    "extra": (
        lambda t: t.update({"model.layers.7.mlp.up_proj.weight": t["model.layers.0.mlp.up_proj.weight"].clone()}),
        "layers.7",
    ),
    "bias": (lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(24)}), "q_proj.bias"),
    "unknown": (lambda t: t.update({"model.layers.0.self_attn.rope.weight": torch.zeros(2)}), "self_attn.rope"),
    "misshapen": (lambda t: t.update({Q: t[Q][:-1].clone()}), "shape"),
    "integers": (lambda t: t.update({Q: t[Q].to(torch.int8)}), "int8"),
    "mixed": (lambda t: t.update({Q: t[Q].bfloat16()}), "several dtypes"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_wrong_tensors_are_refused_and_no_target_is_left(change, message, tmp_path):
    folder = edited(save_folder(tiny_reference(dtype=torch.float32), tmp_path / "source"), change)
    with pytest.raises(msrnn.Error, match=message):
        converters.convert(folder, tmp_path / "target")
    assert os.listdir(tmp_path) == ["source"]


def test_mixed_dtypes_are_loaded_with_an_explicit_dtype(tmp_path):
    folder = edited(save_folder(tiny_reference(dtype=torch.float32), tmp_path), WRONG["mixed"][0])
    assert converters.load(folder, dtype=torch.bfloat16).layers[0].q.weight.dtype == torch.bfloat16


def test_rotary_tables_and_an_equal_tied_head_are_skipped(tmp_path):
    def add(tensors):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(3)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    model = tiny_reference(dtype=torch.float32, tie_word_embeddings=True)
    assert not hasattr(converters.load(edited(save_folder(model, tmp_path), add)), "head")
    edited(tmp_path, lambda tensors: tensors["lm_head.weight"].mul_(2))
    with pytest.raises(msrnn.Error, match=r"lm_head\.weight"):
        converters.load(tmp_path)


def test_a_llama_with_a_window_is_written_as_a_mistral():
    """transformers ignores the window of a LLaMA; a GGUF file of Mistral is a LLaMA with a window."""
    fields = config_to_hf(replace(config_from_hf(CONFIG, {}), sliding_window=16), torch.float32)
    assert (fields["model_type"], fields["sliding_window"]) == ("mistral", 16)
    assert config_from_hf(fields, {}).sliding_window == 16
