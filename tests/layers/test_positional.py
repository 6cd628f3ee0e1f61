"""Tests of the position encodings: attention logits depend on distances, and sinusoids follow their formula."""

import math

import pytest
import torch

import msrnn
from msrnn.layers.attention import attention_logits
from msrnn.layers.positional import AlibiEncoding, PositionEncoding, RotaryEncoding, alibi_slopes, sinusoidal_encoding
from msrnn.layers.rotary import Rope

N, K, D, T = 4, 2, 6, 5
QK, V = torch.randn(T, N + K, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.ones(T, K, D).double()
ENCODINGS = [PositionEncoding(), RotaryEncoding(Rope(100.0), D), AlibiEncoding(N, D)]


def logits(encoding, position):
    """Return the logits ``(N, T, T)`` of tokens at ``position (T,)``; None: without a position."""
    tensors = None if position is None else encoding.prepare(position, torch.float64)
    q, k, v = encoding.apply(QK, V, N, tensors)
    assert (q.shape, k.shape, v.shape) == tuple((T, n, D + encoding.extra_dims) for n in (N, K, K))
    assert v[..., :D].equal(V)
    assert not v[..., D:].any()
    return attention_logits(q.transpose(0, 1), k.repeat_interleave(N // K, 1).transpose(0, 1))


@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda encoding: type(encoding).__name__)
def test_logits_depend_on_distances_only(encoding):
    position = torch.tensor([3, 4, 5, 9, 20])
    assert torch.allclose(logits(encoding, position), logits(encoding, position + 1000), atol=1e-9)
    plain = logits(PositionEncoding(), position)
    assert torch.allclose(logits(encoding, None), plain, atol=1e-12)
    assert torch.allclose(logits(encoding, position), plain, atol=1e-12) is (type(encoding) is PositionEncoding)


def test_alibi_subtracts_slope_times_distance():
    position = torch.tensor([3, 4, 5, 9, 20])
    bias = alibi_slopes(N, torch.float64)[:, None, None] * (position[:, None] - position)
    assert torch.allclose(logits(AlibiEncoding(N, D), position), logits(PositionEncoding(), position) - bias, atol=1e-12)


@pytest.mark.parametrize(("n_heads", "expected"), [(4, [2, 4, 6, 8]), (8, [1, 2, 3, 4, 5, 6, 7, 8]), (3, [4, 8, 2])])
def test_alibi_slopes(n_heads, expected):
    assert alibi_slopes(n_heads, torch.float64).tolist() == [2.0**-x for x in expected]


def test_sinusoidal_encoding_follows_the_formula():
    found = sinusoidal_encoding(torch.tensor([[0, 7]]), 6, torch.float64)
    for s, p in enumerate((0, 7)):
        for i in range(3):
            angle = p / 10000 ** (2 * i / 6)
            assert found[0, s, 2 * i : 2 * i + 2].tolist() == pytest.approx([math.sin(angle), math.cos(angle)], abs=1e-12)


def test_alibi_refuses_16_bits_and_operators_that_need_keys():
    for encoding in ENCODINGS[:2]:
        encoding.check(torch.bfloat16, reads_keys=True)
    ENCODINGS[2].check(torch.float32)
    with pytest.raises(msrnn.Error, match=r"dtype is torch\.bfloat16"):
        ENCODINGS[2].check(torch.bfloat16)
    with pytest.raises(msrnn.Error, match="needs keys"):
        ENCODINGS[2].check(torch.float32, reads_keys=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sinusoids_of_16_bits_are_those_of_float32_rounded(dtype):
    """Positions and angles of 16 bits would be off by several turns."""
    position = torch.tensor([0, 3, 1001, 60001])
    exact = sinusoidal_encoding(position, 24, torch.float64)
    assert sinusoidal_encoding(position, 24, dtype).equal(sinusoidal_encoding(position, 24, torch.float32).to(dtype))
    assert torch.allclose(sinusoidal_encoding(position, 24, dtype).double(), exact, atol=0.02)
