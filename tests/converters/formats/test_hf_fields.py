"""Fields of config.json that change the arithmetic are refused by name; harmless ones are accepted."""

import pytest
from support.transformers_reference import TINY_CONFIG

import msrnn
from converters.formats.hf_config import config_from_hf

LLAMA = {**TINY_CONFIG, "model_type": "llama", "rms_norm_eps": 1e-5, "max_position_embeddings": 64}
MISTRAL = {**LLAMA, "model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 5}

CHANGED = {
    **{"attention_multiplier": 0.5, "residual_multiplier": 0.2, "embedding_multiplier": 12.0, "logits_scaling": 8.0},  # granite
    **{"logit_scale": 0.0625, "use_qk_norm": True, "clip_qkv": 8.0, "alibi": True, "norm_head": True},  # cohere, olmo, baichuan
    **{"scale_embeddings": True, "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256},  # minicpm
    **{"final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0, "query_pre_attn_scalar": 256},  # gemma 2
    **{"partial_rotary_factor": 0.5, "rotary_pct": 0.25, "rope_interleaved": True, "no_rope_layers": [1, 1, 1, 0]},
    **{"rope_local_base_freq": 10000.0, "rope_ratio": 4, "num_local_experts": 8, "n_routed_experts": 64, "moe_layer_freq": 1},
    **{"qkv_bias": True, "use_bias": True, "lm_head_bias": True, "use_parallel_residual": True, "parallel_attn": True},
    **{"causal": False, "is_causal": False, "use_bidirectional_attention": True, "position_embedding_type": "alibi"},
    **{"hidden_activation": "gelu_pytorch_tanh", "sliding_window_pattern": 6, "use_sliding_window": True, "attention_sink": 4},
    **{"layer_types": ["full_attention", "sliding_attention"], "is_encoder_decoder": True, "add_cross_attention": True},
    **{"per_layer_config": {"0": {"head_dim": 8}}, "use_mup": True, "attn_temperature_tuning": True, "norm_type": "layernorm"},
    **{"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu", "quantization": {"bits": 4, "group_size": 64}},
}
HARMLESS = {
    **{"attention_multiplier": 1.0, "logits_scaling": 1, "partial_rotary_factor": 1.0, "final_logit_softcapping": None},
    **{
        "rope_interleaved": False,
        "alibi": False,
        "qkv_bias": False,
        "num_local_experts": 0,
        "clip_qkv": None,
        "sliding_window": 7,
    },
    **{"pretraining_tp": 2, "use_cache": True, "attention_dropout": 0.1, "resid_pdrop": 0.1, "initializer_range": 0.02},
    **{
        "_name_or_path": "a/b",
        "transformers_version": "4.28.0",
        "torch_dtype": "float16",
        "dtype": "bfloat16",
        "pad_token_id": 0,
    },
    **{"max_window_layers": 28, "use_sliding_window": False, "layer_types": ["full_attention"] * 2, "causal": True},
    **{"unsloth_version": "2025.1", "is_llama_config": True, "max_sequence_length": 2048, "temperature": 0.7, "top_p": 0.9},
    **{
        "auto_map": {"AutoModelForCausalLM": "a.b"},
        "task_specific_params": None,
        "id2label": {"0": "a"},
        "use_scaled_init": True,
    },
    **{"hidden_act": "swish", "hidden_activation": "silu", "norm_eps": 1e-6, "loss_scale": 128.0, "max_grad_norm": 1.0},
    **{"transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}, "guidance_scale": 1.5, "vocab_padding": 64},
}


@pytest.mark.parametrize(("name", "value"), CHANGED.items())
def test_fields_that_change_the_arithmetic_are_refused_by_name(name, value):
    with pytest.raises(msrnn.Error, match=rf"config\.json: {name} is .*; expected"):
        config_from_hf(LLAMA | {name: value}, {})


@pytest.mark.parametrize(("name", "value"), HARMLESS.items())
def test_harmless_fields_are_accepted(name, value):
    assert config_from_hf(LLAMA | {name: value}, {}) == config_from_hf(LLAMA, {})


def test_all_fields_of_transformers_are_accepted():
    """The fields of config objects, with those that version 4 wrote."""
    from transformers import LlamaConfig, MistralConfig

    version_4 = {"cross_attention_hidden_size": None, "tie_encoder_decoder": False, "pruned_heads": {}, "torchscript": False}
    version_4 |= {
        "no_repeat_ngram_size": 0,
        "length_penalty": 1.0,
        "typical_p": 1.0,
        "is_decoder": False,
        "output_scores": False,
    }
    for config in (LlamaConfig(), MistralConfig()):
        assert config_from_hf(config.to_dict() | version_4, {}).width == 4096


def test_the_fields_of_a_window_must_agree():
    assert (
        config_from_hf(MISTRAL | {"use_sliding_window": True, "layer_types": ["sliding_attention"] * 2}, {}).sliding_window == 5
    )
    for fields, message in (
        ({"use_sliding_window": False}, "use_sliding_window is False, but transformers uses the window 5"),
        (
            {"layer_types": ["full_attention"] * 2},
            r"layer_types is .*sliding_window is 5; expected 'sliding_attention' everywhere",
        ),
        ({"sliding_window": None, "use_sliding_window": True}, "use_sliding_window is True, but transformers uses no window"),
    ):
        with pytest.raises(msrnn.Error, match=message):
            config_from_hf(MISTRAL | fields, {})


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "fp8", "compressed-tensors"])
def test_quantised_weights_are_refused_with_the_next_step(method):
    for name in ("quantization_config", "compression_config"):
        with pytest.raises(msrnn.Error, match=f"{name} is '{method}'.*take the original model .*or a GGUF file of it"):
            config_from_hf(LLAMA | {name: {"quant_method": method, "bits": 4}}, {})
