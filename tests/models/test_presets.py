"""Tests that the presets have the parameter counts and windows of the published models."""

import pytest
import torch

from msrnn import models

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


def test_every_preset_is_listed():
    assert {name for name in models.__all__ if name.isupper()} == PUBLISHED.keys()


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_parameter_counts(name, count):
    with torch.device("meta"):
        cell = models.Llama(getattr(models, name))
    assert sum(x.numel() for x in cell.parameters()) == count
    assert str(cell.default_reduction) == ("window:4095" if name == "MISTRAL_7B_V01" else "full")
