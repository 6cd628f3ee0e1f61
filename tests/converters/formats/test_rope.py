"""Rope settings of config.json: spellings, YaRN's attention factor, refusals."""

import math

import pytest
import torch
from support.transformers_reference import ROPES, TINY_CONFIG

import msrnn
from converters.formats.huggingface import config_from_hf, config_to_hf
from converters.formats.rope import rope_from_hf

CONFIG = {
    **{"model_type": "llama", "rms_norm_eps": 1e-5, "max_position_embeddings": 64, "num_key_value_heads": 2, "eos_token_id": 2},
    **TINY_CONFIG,
}


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES)
def test_both_spellings_give_the_same_rope(rope):
    new = config_from_hf(CONFIG | {"rope_parameters": rope}, {})
    scaling = {k: v for k, v in rope.items() if k != "rope_theta"}
    old = config_from_hf(CONFIG | {"rope_theta": rope["rope_theta"], "rope_scaling": scaling}, {})
    legacy = {"type" if k == "rope_type" else k: v for k, v in scaling.items()}
    older = config_from_hf(CONFIG | {"rope_theta": rope["rope_theta"], "rope_scaling": legacy}, {})
    assert new == old == older
    assert config_from_hf(config_to_hf(new, torch.float32), {}) == new


@pytest.mark.parametrize(
    ("settings", "attention_factor"),
    [
        ({"factor": 0.5}, 1.0),
        ({"factor": 1.0}, 1.0),
        ({"factor": 4.0}, 0.1 * math.log(4.0) + 1),
        ({"factor": 0.5, "mscale": 0.7, "mscale_all_dim": 1.3}, 1.0),
        ({"factor": 4.0, "attention_factor": 0.3}, 0.3),
    ],
)
def test_yarn_attention_factor(settings, attention_factor):
    """Equation 22 of arXiv:2309.00071 for factors above 1; transformers uses 1 for all others."""
    assert rope_from_hf({"rope_scaling": {"rope_type": "yarn", **settings}}, 64).attention_factor == attention_factor


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope_scaling": {"rope_type": "su", "factor": 2.0}}, "rope type 'su' is not supported"),
        (
            {"rope_scaling": {"rope_type": "lama3", "factor": 2.0}},
            r"rope type 'lama3' is not supported \(did you mean 'llama3'\?\); expected one of default, linear",
        ),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "high_freq_factor": 4.0}}, "low_freq_factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "wobble": 1}}, "wobble"),
        ({"rope_scaling": "linear"}, "rope settings"),
        ({"rope_theta": 5.0, "rope_parameters": {"rope_type": "default", "rope_theta": 6.0}}, "rope_theta"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 6.0, "partial_rotary_factor": 0.5}}, "partial_rotary"),
        ({"rope_theta": float("nan")}, "theta"),
        ({"rope_theta": "big"}, "rope_theta"),
        ({"rope_scaling": {"rope_type": "default", "factor": 2.0}}, "factor"),
        ({"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 2.0}}, "linear and yarn; expected one type"),
    ],
)
def test_other_ropes_are_refused(fields, message):
    with pytest.raises(msrnn.Error, match=message):
        config_from_hf(CONFIG | fields, {})
