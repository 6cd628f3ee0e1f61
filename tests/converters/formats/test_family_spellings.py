"""Old and new spellings of the fields of families, as transformers reads them, and values that are refused by name."""

import pytest
from support.tiny_references import CASES, FULL, SLIDING
from support.transformers_reference import TINY_CONFIG, tiny_reference
from transformers import AutoConfig

import msrnn
from converters.formats.hf_config import config_from_hf
from msrnn.layers.rotary import LinearRope, Rope

BASE = {**TINY_CONFIG, "num_key_value_heads": 2, "head_dim": 8, "bos_token_id": 1, "eos_token_id": 2}
LINEAR = {"rope_type": "linear", "factor": 8.0}


def both(kind, **fields):
    """Return the config that is read from a file with these fields, and from the object of transformers for the file."""
    fields = {**BASE, "model_type": kind, **fields}
    return config_from_hf(fields, {}), config_from_hf(AutoConfig.for_model(**fields).to_dict(), {})


SPELLINGS = {
    "qwen2, window off": ("qwen2", {"sliding_window": 4, "max_window_layers": 1}, (None, None)),
    "qwen2, window": ("qwen2", {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 1}, (None, 4)),
    "qwen2, window without a size": ("qwen2", {"sliding_window": None, "use_sliding_window": True}, (None, None)),
    "qwen2, window of few layers": ("qwen2", {"use_sliding_window": True}, (None, None)),
    "qwen3, default window": ("qwen3", {"use_sliding_window": True, "max_window_layers": 0}, (4096, 4096)),
    "gemma2": ("gemma2", {}, (4096, None)),
    "gemma3, no fields": ("gemma3_text", {}, (4096, 4096)),
    "gemma3, pattern": ("gemma3_text", {"sliding_window_pattern": 2, "sliding_window": 5}, (5, None)),
    "gemma3, old names of kinds": ("gemma3_text", {"layer_types": ["attention", SLIDING], "sliding_window": 5}, (None, 5)),
    "smollm3, window": (
        "smollm3",
        {"use_sliding_window": True, "sliding_window": 3, "no_rope_layer_interval": 2},
        (None, 3),
    ),
    "smollm3, longer list": ("smollm3", {"no_rope_layers": [0, 1, 1]}, (None, None)),
    "ministral": ("ministral", {}, (4096, 4096)),
    "ministral, off": ("ministral", {"sliding_window": None}, (None, None)),
    "granite_swa": ("granite_swa", {}, (None, 128)),
    "granite_swa, thetas": ("granite_swa", {"layer_rope_theta": [0, 300]}, (None, 128)),
    "phi3": ("phi3", {"original_max_position_embeddings": 16}, (None, None)),
}


@pytest.mark.parametrize(("kind", "fields", "windows"), SPELLINGS.values(), ids=SPELLINGS)
def test_windows_are_read_as_transformers_reads_them(kind, fields, windows):
    found, expected = both(kind, **fields)
    assert found == expected
    assert found.windows == windows


ROPES = {
    "theta": ("qwen3", {"rope_theta": 7.0}, (Rope(7.0),) * 2),
    "smollm3, default": ("smollm3", {"no_rope_layers": [1, 0]}, (Rope(2e6), None)),
    "gemma3, defaults": ("gemma3_text", {"sliding_window_pattern": 2}, (Rope(1e4), Rope(1e6))),
    "gemma3, old names": (
        "gemma3_text",
        {"rope_theta": 7.0, "rope_local_base_freq": 3.0, "rope_scaling": LINEAR, "sliding_window_pattern": 2},
        (Rope(3.0), LinearRope(7.0, 8.0)),
    ),
    "gemma3, new names": (
        "gemma3_text",
        {"rope_parameters": {FULL: {**LINEAR, "rope_theta": 7.0}, SLIDING: None}, "sliding_window_pattern": 2},
        (Rope(1e4), LinearRope(7.0, 8.0)),
    ),
    "granite_swa": ("granite_swa", {"layer_rope_theta": [0, 300.0], "rope_scaling": LINEAR}, (None, LinearRope(300.0, 8.0))),
    "granite_swa, one theta": ("granite_swa", {"rope_theta": 9.0}, (Rope(9.0),) * 2),
}


@pytest.mark.parametrize(("kind", "fields", "ropes"), ROPES.values(), ids=ROPES)
def test_ropes_are_read_as_transformers_reads_them(kind, fields, ropes):
    found, expected = both(kind, **fields)
    assert found == expected
    assert found.ropes == ropes


@pytest.mark.parametrize("name", CASES)
def test_every_field_that_changes_the_reference_changes_the_config(name):
    """A field of a case that was not read would leave the config as it is without the field."""
    kind, fields = CASES[name]
    full = {**tiny_reference(kind, **fields).config.to_dict()}
    config = config_from_hf(full, {})
    for field in fields.keys() - {"num_hidden_layers", "max_window_layers", "no_rope_layer_interval"}:
        default = getattr(AutoConfig.for_model(kind), field, None)
        changed = full | {field: default}
        if field == "layer_types":
            changed[field] = full[field][::-1]
        if changed[field] == full[field]:
            continue
        try:
            assert config_from_hf(changed, {}) != config, field
        except msrnn.Error:  # the default does not fit the others, so it was read
            continue


REFUSED = {
    "qwen3 attention_bias": ("qwen3", {"attention_bias": True}, "attention_bias is True; expected False, .* Qwen3"),
    "qwen2 mlp_bias": ("qwen2", {"mlp_bias": True}, "mlp_bias is True; expected False"),
    "qwen2 hidden_act": ("qwen2", {"hidden_act": "gelu"}, "hidden_act is 'gelu'; expected 'silu'"),
    "qwen2 sliding layers": ("qwen2", {"layer_types": [SLIDING, FULL]}, "layer_types is .*; expected no 'sliding_attention'"),
    "gemma2 activation": ("gemma2", {"hidden_activation": "gelu"}, "hidden_activation is 'gelu'; expected 'gelu_pytorch_tanh'"),
    "gemma2 bias": ("gemma2", {"attention_bias": True}, "attention_bias is True"),
    "gemma2 window": ("gemma2", {"sliding_window": None}, "layer_types is missing; expected no 'sliding_attention'"),
    "gemma2 use_sliding_window": ("gemma2", {"use_sliding_window": False}, "use_sliding_window is False"),
    "gemma2 scalar": ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0"),
    "gemma3 bidirectional": ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
    "gemma3 softcap": ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0; expected None"),
    "gemma3 one rope": ("gemma3_text", {"rope_parameters": LINEAR}, "rope_parameters is .*; expected an object with"),
    "gemma3 two ropes": (
        "gemma3_text",
        {"rope_parameters": {FULL: {**LINEAR, "rope_theta": 1e6}}, "rope_scaling": {**LINEAR, "factor": 2.0}},
        "expected one rope",
    ),
    "gemma3 kind of layer": ("gemma3_text", {"layer_types": [FULL, "chunked_attention"]}, "layer_types is .*; expected 2 entr"),
    "gemma3 count of layers": ("gemma3_text", {"layer_types": [FULL]}, "layer_types is .*; expected 2 entries"),
    "gemma3 pattern": ("gemma3_text", {"sliding_window_pattern": 0}, "sliding_window_pattern is 0; expected an int"),
    "gemma3 per layer": ("gemma3_text", {"hidden_size_per_layer_input": 8, "altup_num_inputs": 4}, "altup_num_inputs is 4"),
    "smollm3 list": ("smollm3", {"no_rope_layers": [1]}, "no_rope_layers is .*; expected a list"),
    "smollm3 values": ("smollm3", {"no_rope_layers": [1, 2]}, "no_rope_layers is .*; expected a list"),
    "smollm3 interval": ("smollm3", {"no_rope_layer_interval": 0}, "no_rope_layer_interval is 0; expected an int"),
    "smollm3 bias": ("smollm3", {"mlp_bias": True}, "mlp_bias is True"),
    "ministral3 beta": (
        "ministral3",
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}},
        "llama_4_scaling_beta is missing",
    ),
    "ministral3 length": (
        "ministral3",
        {"rope_parameters": {"rope_type": "default", "llama_4_scaling_beta": 0.1}},
        "original_max_position_embeddings is missing",
    ),
    "ministral3 layers": (
        "ministral3",
        {"layer_types": [SLIDING, FULL]},
        "layer_types is .*all layers of Ministral 3 have the same window",
    ),
    "granite bias": ("granite", {"attention_bias": True}, "attention_bias is True"),
    "granite factor": ("granite", {"residual_multiplier": None}, "residual_multiplier is missing"),
    "granite layers": ("granite", {"layer_types": [SLIDING, FULL]}, "layer_types is"),
    "granite_swa thetas": ("granite_swa", {"layer_rope_theta": [1.0]}, "layer_rope_theta is .*; expected a list of 2 numbers"),
    "granite_swa negative": ("granite_swa", {"layer_rope_theta": [1.0, -2.0]}, "layer_rope_theta is"),
    "olmo2 bias": ("olmo2", {"attention_bias": True}, "attention_bias is True; expected False, .* OLMo 2"),
    "olmo2 clip": ("olmo2", {"clip_qkv": 8.0}, "clip_qkv is 8.0, which the model type olmo2 does not have"),
    "phi3 longrope": (
        "phi3",
        {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4}},
        "'longrope', LongRoPE; expected",
    ),
    "phi3 su": ("phi3", {"rope_scaling": {"type": "su"}}, "'su', LongRoPE"),
    "phi3 linear": ("phi3", {"rope_scaling": LINEAR}, "the rope is .*; expected the type 'default'"),
    "phi3 partial": ("phi3", {"partial_rotary_factor": 0.75}, "partial_rotary_factor is 0.75; expected 1"),
    "a field of another family": ("qwen3", {"logits_scaling": 8.0}, "logits_scaling is 8.0, which the model type qwen3"),
    "many layers": ("qwen3", {"num_hidden_layers": 2**40}, "num_hidden_layers is 1099511627776; expected at most 1000"),
    "architecture": ("qwen3", {"architectures": ["Qwen3ForSequenceClassification"]}, "expected one of Qwen3ForCausalLM"),
}


@pytest.mark.parametrize(("kind", "fields", "message"), REFUSED.values(), ids=REFUSED)
def test_other_values_are_refused_by_field(kind, fields, message):
    with pytest.raises(msrnn.Error, match=rf"^config(\.json)?: .*{message}"):
        config_from_hf({**BASE, "model_type": kind, **fields}, {})
