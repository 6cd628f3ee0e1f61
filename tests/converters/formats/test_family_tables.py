"""The tables of the families are those of the classes of transformers, so that omitted fields cannot drift."""

from dataclasses import field, fields

import pytest
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, PreTrainedConfig

import msrnn
from converters.formats.hf_config import config_from_hf
from converters.formats.hf_families import ALL
from converters.formats.hf_families.qwen import QWEN2
from converters.formats.left_out import LEFT_OUT

FAMILIES = [family for family in ALL if family.defaults]
IDS = [family.model_type for family in FAMILIES]
NO_HEAD_DIM = field(default=None)
INFERRED = {"layer_types", "no_rope_layers", "layer_rope_theta", "num_key_value_heads", "head_dim"}
"""Fields that are null in the tables, because transformers infers them from others."""
OTHER_FIELDS = {  # fields of the config classes that are read or checked for every family, or do not enter a step
    *("rope_parameters", "hidden_act", "hidden_activation", "attention_bias", "mlp_bias", "use_bidirectional_attention"),
    *("attention_dropout", "resid_pdrop", "embd_pdrop", "initializer_range", "use_cache", "pad_token_id", "pretraining_tp"),
    *("tie_word_embeddings", "original_max_position_embeddings"),
}


def test_only_yi_is_not_in_transformers():
    assert {family.model_type for family in ALL} - set(IDS) == {"yi"}


@pytest.mark.parametrize("family", FAMILIES, ids=IDS)
def test_defaults_are_those_of_transformers(family):
    reference = AutoConfig.for_model(family.model_type)
    if family is QWEN2 or family.model_type == "qwen3":  # the window is null in an object without use_sliding_window
        reference.sliding_window = type(reference)(use_sliding_window=True).sliding_window
    for name, value in family.defaults.items():
        assert hasattr(reference, name), name
        if value is not None or name not in INFERRED:
            assert getattr(reference, name) == value, name
    own = {x.name for x in fields(reference)} - {x.name for x in fields(PreTrainedConfig)}
    assert own - OTHER_FIELDS - {"head_dim"} <= family.defaults.keys()
    assert "head_dim" in family.defaults or type(reference).__dataclass_fields__.get("head_dim", NO_HEAD_DIM).default is None
    assert reference.pad_token_id == family.defaults.get("pad_token_id")
    tied = family.defaults.get("tie_word_embeddings", False)
    assert reference.tie_word_embeddings == tied
    assert family.classes == MODEL_FOR_CAUSAL_LM_MAPPING[type(reference)].__name__.removesuffix("ForCausalLM")


@pytest.mark.parametrize("family", FAMILIES, ids=IDS)
def test_a_missing_field_is_read_as_transformers_reads_it(family):
    kind = family.model_type
    reference = AutoConfig.for_model(kind)
    assert config_from_hf({"model_type": kind}, {}) == config_from_hf(reference.to_dict(), {})
    large = {name: value for name, value in reference.to_dict().items() if name in family.defaults or name == "model_type"}
    large |= {"hidden_size": 96, "num_attention_heads": 32, "head_dim": 4, "num_key_value_heads": 2}
    if "use_sliding_window" in large:
        large |= {"use_sliding_window": True, "sliding_window": 9}
    large |= {name: None for name in ("layer_types", "no_rope_layers", "layer_rope_theta") if name in large}
    for name in family.defaults.keys() - {"hidden_size", "head_dim"}:
        rest = {other: value for other, value in large.items() if other != name}
        assert config_from_hf(rest, {}) == config_from_hf(AutoConfig.for_model(**rest).to_dict(), {}), name
    for name in ("rms_norm_eps", "max_position_embeddings", "hidden_size"):
        with pytest.raises(msrnn.Error, match=f"{name} is missing"):
            config_from_hf({**large, name: None}, {})


def test_theta_of_a_file_without_one_is_that_of_transformers():
    for family in FAMILIES:
        reference = AutoConfig.for_model(family.model_type).rope_parameters
        theta = reference.get("full_attention", reference)["rope_theta"]
        assert config_from_hf({"model_type": family.model_type}, {}).rope.theta == theta


def test_model_types_that_are_left_out_are_refused_with_what_support_needs():
    for kind, reason in LEFT_OUT.items():
        with pytest.raises(msrnn.Error, match=r"model_type is '.*; support needs .*; expected one of llama, ") as refused:
            config_from_hf({"model_type": kind}, {})
        assert reason in str(refused.value)
    unknown = LEFT_OUT.keys() - CONFIG_MAPPING.keys() - {"rwkv"}
    assert not unknown, unknown
