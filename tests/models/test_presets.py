"""Tests that the presets have the parameter counts and windows of the published models."""

import pytest
import torch

from msrnn import models
from msrnn.layers.rotary import Llama3Rope, Rope

PUBLISHED = {
    "LLAMA_2_7B": 6_738_415_616,
    "LLAMA_3_8B": 8_030_261_248,
    "LLAMA_31_8B": 8_030_261_248,
    "LLAMA_32_1B": 1_235_814_400,
    "MISTRAL_7B_V01": 7_241_732_096,
    "MISTRAL_7B_V02": 7_241_732_096,
    "MISTRAL_7B_V03": 7_248_023_552,
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


@pytest.mark.parametrize("name", PUBLISHED)
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
    with torch.device("meta"):
        cell = models.Llama(getattr(models, name))
    assert sum(x.numel() for x in cell.parameters()) == count
    assert str(cell.default_reduction) == ("window:4095" if name == "MISTRAL_7B_V01" else "full")
