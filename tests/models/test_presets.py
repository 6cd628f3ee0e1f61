"""Tests that the presets have the parameter counts and windows of the published models."""

import json

import pytest

from msrnn import models
from msrnn.layers.rotary import Llama3Rope, Rope
from msrnn.models.registry import build_on_meta, config_from_dict
from msrnn.reductions.per_layer import format_operators

PUBLISHED = {
    "GEMMA2_2B": 2_614_341_888,
    "GEMMA3_270M": 268_098_176,
    "GRANITE_33_2B": 2_533_539_840,
    "LLAMA_2_7B": 6_738_415_616,
    "LLAMA_3_8B": 8_030_261_248,
    "LLAMA_31_8B": 8_030_261_248,
    "LLAMA_32_1B": 1_235_814_400,
    "MINISTRAL3_8B": 8_489_553_920,
    "MINISTRAL_8B": 8_019_808_256,
    "MISTRAL_7B_V01": 7_241_732_096,
    "MISTRAL_7B_V02": 7_241_732_096,
    "MISTRAL_7B_V03": 7_248_023_552,
    "OLMO2_1B": 1_484_916_736,
    "PHI3_MINI_4K": 3_821_079_552,
    "QWEN25_05B": 494_032_768,
    "QWEN3_06B": 596_049_920,
    "SMOLLM3_3B": 3_075_098_624,
    "YI_6B": 6_061_035_520,
    "YI_6B_200K": 6_061_035_520,
}


LLAMA31 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_length": 8192}
FIELDS = {
    "LLAMA_2_7B": (Rope(1e4), 4096, None, 1, (2,)),
    "LLAMA_3_8B": (Rope(5e5), 8192, None, 128000, (128001,)),
    "LLAMA_31_8B": (Llama3Rope(5e5, factor=8.0, **LLAMA31), 131072, None, 128000, (128001,)),
    "LLAMA_32_1B": (Llama3Rope(5e5, factor=32.0, **LLAMA31), 131072, None, 128000, (128001,)),
    "MISTRAL_7B_V01": (Rope(1e4), 32768, 4096, 1, (2,)),
    "MISTRAL_7B_V02": (Rope(1e6), 32768, None, 1, (2,)),
    "MISTRAL_7B_V03": (Rope(1e6), 32768, None, 1, (2,)),
    "YI_6B": (Rope(5e6), 4096, None, 1, (2,)),
    "YI_6B_200K": (Rope(5e6), 200000, None, 1, (2,)),
}
"""Rotary frequencies, context length, sliding window, and the ids of bos and eos."""

BOUNDED = {
    "GEMMA2_2B": "window:4095 in 13 layers, full in 13",
    "GEMMA3_270M": "window:511 in 15 layers, full in 3",
    "MINISTRAL_8B": "full in 9 layers, window:32767 in 27",
    "MISTRAL_7B_V01": "window:4095",
    "PHI3_MINI_4K": "window:2046",
}
"""The operators of the published models that bound some layers."""


@pytest.mark.parametrize("name", FIELDS)
def test_fields_without_parameters(name):
    config = getattr(models, name)
    fields = (config.rope, config.context_length, config.sliding_window, config.bos_token_id, config.eos_token_ids)
    assert fields == FIELDS[name]
    assert config.norm_eps == 1e-5
    assert config.tied == (name == "LLAMA_32_1B")
    assert config.family == name.partition("_")[0].lower()


def test_every_preset_is_listed():
    assert {name for name in models.__all__ if name.isupper()} == PUBLISHED.keys()


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_parameter_counts(name, count):
    cell = build_on_meta(getattr(models, name))
    assert sum(x.numel() for x in cell.parameters()) == count
    assert format_operators(cell.default_reduction) == BOUNDED.get(name, "full")
    assert [cell.config.ropes.count(None), len(cell.config.ropes)] == [9 if name == "SMOLLM3_3B" else 0, cell.config.n_layers]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_equals_itself_after_json(name):
    config = getattr(models, name)
    assert config_from_dict(json.loads(json.dumps(config.to_dict()))) == config
