"""Tests of the norms against transformers and against their formulas."""

import pytest
import torch

from msrnn.layers.norm import RMSNorm, RMSNormEpsOutside, ScaleNorm, l2_normalize


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rms_norm_in_16_bits_equals_transformers_bit_for_bit(dtype):
    """The result is rounded before the gain multiplies it."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    x, gain = (3 * random(50, 96)).to(dtype), (1 + 0.3 * random(96, seed=1)).to(dtype)
    ours, theirs = RMSNorm(96, 1e-5).to(dtype), LlamaRMSNorm(96, 1e-5).to(dtype)
    with torch.no_grad():
        ours.weight.copy_(gain)
        theirs.weight.copy_(gain)
    assert ours(x).equal(theirs(x))
    assert not ours(x).equal((gain.float() * RMSNorm(96, 1e-5)(x.float())).to(dtype))  # another order rounds differently


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("norm", [RMSNormEpsOutside, ScaleNorm])
def test_other_norms_are_computed_in_float32(norm, dtype):
    layer, x = norm(96, 1e-5), (3 * random(50, 96)).to(dtype)
    exact = layer(x.float())
    rounded = (layer(x.float()) / layer.weight).to(dtype) * layer.weight.to(dtype)
    assert layer.to(dtype)(x).equal(rounded)
    assert torch.allclose(rounded.float(), exact, rtol=2 * torch.finfo(dtype).eps, atol=0)


def test_l2_normalize_has_length_one():
    x = random(4, 7)
    assert torch.allclose(l2_normalize(x).norm(dim=-1), torch.ones(4, dtype=torch.float64))
    assert l2_normalize(torch.zeros(3)).equal(torch.zeros(3))
