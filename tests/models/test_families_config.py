"""Tests that wrong fields of the families' configs are refused by name, in a config and in a model folder."""

import json
import math
from dataclasses import replace

import pytest
from support.tiny_families import CONFIGS, A

import msrnn
from msrnn.models.registry import config_from_dict

WRONG = [
    ("gemma3", {"layer_windows": (4, 4)}, "layer_windows is (4, 4); expected () or a tuple with one entry per layer"),
    ("gemma3", {"layer_windows": (4, 0, None)}, "layer_windows is 0"),
    ("gemma3", {"layer_windows": (4, True, None)}, "layer_windows is True"),
    ("gemma3", {"layer_windows": [4, 4, None]}, "layer_windows is [4, 4, None]; expected () or a tuple"),
    ("gemma3", {"layer_ropes": (A, A)}, "layer_ropes is"),
    ("smollm3", {"layer_ropes": (A, 100.0, None)}, "layer_ropes has 100.0; expected a Rope or None for each layer"),
    ("phi3", {"layer_windows": (4, 4, 4)}, "sliding_window and layer_windows are both given"),
    ("gemma2", {"attention_softcap": 0.0}, "attention_softcap is 0.0"),
    ("gemma2", {"logits_softcap": math.nan}, "logits_softcap is nan"),
    ("gemma2", {"query_pre_attn_scalar": -1}, "query_pre_attn_scalar is -1"),
    ("gemma2", {"query_pre_attn_scalar": None}, "query_pre_attn_scalar is None"),
    ("granite", {"residual_multiplier": 0}, "residual_multiplier is 0"),
    ("granite", {"logits_scaling": math.inf}, "logits_scaling is inf"),
    ("granite_swa", {"attention_multiplier": "1"}, "attention_multiplier is '1'"),
    ("ministral3", {"query_beta": -0.1}, "query_beta is -0.1"),
    ("ministral3", {"query_length": 0}, "query_length is 0"),
    ("granite", {"family": "gemma2"}, "family is 'gemma2'; expected granite or granite_swa"),
    ("qwen3", {"head_dim": 5}, "head_dim is 5; expected an even number of at least 4"),
]


@pytest.mark.parametrize(("family", "fields", "message"), WRONG)
def test_wrong_fields_are_refused(family, fields, message):
    with pytest.raises(msrnn.Error) as caught:
        replace(CONFIGS[family], **fields)
    assert str(caught.value).startswith("config: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("gemma3", {"layer_windows": 4}, "layer_windows is 4; expected a list with one entry per layer"),
        ("gemma3", {"layer_windows": [4, {}, None]}, "layer_windows is {}"),
        ("smollm3", {"layer_ropes": [None, 1, None]}, "layer_ropes is 1; expected a rope_type"),
        ("smollm3", {"layer_ropes": "none"}, "layer_ropes is 'none'; expected a list"),
        ("qwen3", {"attention_softcap": 30.0}, "field 'attention_softcap' is not known"),
        ("gemma2", {"family": "gemma9"}, "family is 'gemma9' (did you mean 'gemma3' or 'gemma2'?); expected llama, "),
    ],
)
def test_wrong_json_is_refused(family, fields, message):
    values = json.loads(json.dumps({**CONFIGS[family].to_dict(), **fields}))
    with pytest.raises(msrnn.Error) as caught:
        config_from_dict(values)
    assert message in str(caught.value)


@pytest.mark.parametrize("family", CONFIGS)
def test_optional_fields_do_not_change_the_json_of_other_families(family):
    values = CONFIGS[family].to_dict()
    assert ("layer_windows" in values) == bool(CONFIGS[family].layer_windows)
    assert ("layer_ropes" in values) == bool(CONFIGS[family].layer_ropes)
