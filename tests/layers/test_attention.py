"""Tests of the attention of one query against torch, and of its rounding in 16 bits."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from msrnn.layers import emulation
from msrnn.layers.attention import attend, attention_logits, mask_logits
from msrnn.state.quantised_rows import SCALES, dequantise_rows, encode_rows


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
@pytest.mark.parametrize("native", [True, False])
def test_logits_of_16_bits_are_scaled_after_the_product(dtype, native, monkeypatch):
    """D = 96, because scaling by a power of 2 does not round. Where products are emulated, they are computed in float32."""
    monkeypatch.setitem(emulation.HAS_NATIVE_16BIT, dtype, native)
    q, k = random(3, 7, 96, dtype=dtype), random(3, 5, 96, dtype=dtype, seed=1)
    product = (q @ k.mT).float() if native else q.float() @ k.float().mT
    assert attention_logits(q, k).equal(product * 96**-0.5)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_outputs_of_16_bits_are_close_to_float64(dtype, native, monkeypatch):
    monkeypatch.setitem(emulation.HAS_NATIVE_16BIT, dtype, native)
    q, k, v = random(2, 6, 8, dtype=dtype), random(2, 2, 5, 8, dtype=dtype, seed=1), random(2, 2, 5, 8, dtype=dtype, seed=2)
    output, weights = attend(q, k, v, None)
    exact, exact_weights = attend(q.double(), k.double(), v.double(), None)
    assert (output.dtype, weights.dtype) == (dtype, torch.float32)
    assert torch.allclose(output.double(), exact, atol=4 * torch.finfo(dtype).eps)
    assert torch.allclose(weights.double(), exact_weights, atol=4 * torch.finfo(dtype).eps)


def test_hidden_logits_are_minus_infinity():
    logits = random(2, 3)
    visible = torch.tensor([True, False, True])
    assert mask_logits(logits, visible).equal(logits.masked_fill(~visible, -torch.inf))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-7), (torch.bfloat16, 5e-3), (torch.float16, 1e-3)])
def test_8_bit_rows_are_read_as_their_numbers(dtype, bound):
    """Queries and weights are not rounded, only the output is. Products of integers and large queries exceed float16."""
    k, v = random(2, 3, 5, 64) * torch.tensor([1e-3, 1, 30])[:, None, None], random(2, 3, 5, 64, seed=1)
    q = random(2, 6, 64, seed=2)
    q[:, 4:] = 100 * q[:, 4:].sign()
    rows, q = encode_rows(k, v, True), q.to(dtype)
    output, weights = attend(q, visible=None, **rows)
    numbers = [dequantise_rows(rows[name], rows[scales], torch.float64) for name, scales in SCALES.items()]
    expected, exact = attend(q.double(), *numbers, None)
    assert output.dtype == dtype
    assert (weights[:, :2] - exact[:, :2]).abs().max() < 1e-5
    assert (output.double() - expected).abs().max() < bound * expected.abs().max()
    assert weights[:, 2].amax(-1).equal(torch.ones(2, 2))  # the logits are far apart, not infinite
