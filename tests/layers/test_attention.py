"""Tests of the attention of one query against torch, and of its rounding in 16 bits."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from msrnn.layers.attention import attend, attention_logits, mask_logits


def random(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("N", "K"), [(4, 4), (6, 2), (3, 1)])
def test_output_and_weights_equal_torchs(N, K, masked):
    q, k, v = random(2, N, 8), random(2, K, 5, 8, seed=1), random(2, K, 5, 8, seed=2)
    visible = torch.rand(2, K, 5, generator=torch.Generator().manual_seed(3)) < 0.6 if masked else None
    if masked:
        visible[..., -1] = True
    output, weights = attend(q, k, v, visible)
    grouped = [x.repeat_interleave(N // K, 1) for x in (k, v)]
    mask = None if visible is None else visible.repeat_interleave(N // K, 1)[:, :, None]
    assert torch.allclose(output, scaled_dot_product_attention(q[:, :, None], *grouped, mask)[:, :, 0], atol=1e-14)
    assert torch.allclose(torch.einsum("bkgr,bkrd->bkgd", weights, v).flatten(1, 2), output, atol=1e-14)
    assert masked is bool((weights == 0).any())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_16_bits_are_scaled_after_the_product(dtype):
    """D = 96, because scaling by a power of 2 does not round."""
    q, k = random(3, 7, 96, dtype=dtype), random(3, 5, 96, dtype=dtype, seed=1)
    assert attention_logits(q, k).equal((q @ k.mT).float() * 96**-0.5)


def test_hidden_logits_are_minus_infinity():
    logits = random(2, 3)
    visible = torch.tensor([True, False, True])
    assert mask_logits(logits, visible).equal(logits.masked_fill(~visible, -torch.inf))
