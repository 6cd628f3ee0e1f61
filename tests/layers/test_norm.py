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
    with torch.no_grad():
        layer.weight.mul_(1 + 0.3 * random(*layer.weight.shape, seed=1)).copy_(layer.weight.to(dtype))
    exact = layer(x.float())
    rounded = (layer(x.float()) / layer.weight).to(dtype) * layer.weight.to(dtype)
    assert layer.to(dtype)(x).equal(rounded)
    assert torch.allclose(rounded.float(), exact, rtol=2 * torch.finfo(dtype).eps, atol=0)


def test_rms_norm_divides_by_the_root_mean_square_plus_epsilon():
    """Epsilon is large, so that its place decides: outside the root it is added to the root mean square."""
    x, gain, eps = random(5, 8), random(8, seed=1), 0.5
    square = (x**2).mean(-1, keepdim=True)
    for norm, expected in ((RMSNorm, (square + eps).sqrt()), (RMSNormEpsOutside, square.sqrt() + eps)):
        layer = norm(8, eps).double()
        with torch.no_grad():
            layer.weight.copy_(gain)
        assert torch.allclose(layer(x), gain * x / expected, atol=1e-14)


def test_scale_norm_and_l2_normalize_divide_by_the_length_or_epsilon():
    x, eps = torch.tensor([[0.3, 0.4], [3.0, 4.0]], dtype=torch.float64), 2.0
    expected = x / torch.tensor([[2.0], [5.0]])
    assert torch.allclose(l2_normalize(x, eps), expected)
    layer = ScaleNorm(2, eps).double()
    assert layer.weight.item() == pytest.approx(2**0.5)
    assert torch.allclose(layer(x), 2**0.5 * expected)


def test_l2_normalize_has_length_one():
    x = random(4, 7)
    assert torch.allclose(l2_normalize(x).norm(dim=-1), torch.ones(4, dtype=torch.float64))
    assert l2_normalize(torch.zeros(3)).equal(torch.zeros(3))
