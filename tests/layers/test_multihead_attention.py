"""Tests of multi-head attention against torch's fused kernel and its MultiheadAttention."""

import pytest
import torch
from support.tiny_models import assert_close
from support.torch_nn_reference import randomized
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

import msrnn
from msrnn.layers.masks import padding_mask, subsequent_mask
from msrnn.layers.multihead_attention import MultiheadAttention, attention


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


Q, K, V = random(2, 3, 5, 8), 2 * random(2, 3, 7, 8, seed=1), random(2, 3, 7, 8, seed=2)
RAGGED = torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(3)) < 0.4
NOTHING = RAGGED & (torch.arange(5) != 2)[:, None]  # query 2 sees no row


@pytest.mark.parametrize("mask", [None, RAGGED, NOTHING, RAGGED[0, 0], padding_mask(torch.tensor([7, 2]), 7)[:, None]])
def test_attention_equals_torchs(mask):
    inputs = [x.clone().requires_grad_() for x in (Q, K, V)]
    again = [x.clone().requires_grad_() for x in (Q, K, V)]
    found, weights = attention(*inputs, mask)
    expected = scaled_dot_product_attention(*again, mask)
    assert_close(found, expected, 1e-12)
    assert_close(weights @ V, expected, 1e-12)
    (found**3).sum().backward()
    (expected**3).sum().backward()
    for x, y in zip(inputs, again, strict=True):
        assert_close(x.grad, y.grad, 1e-11)


def test_a_query_that_sees_no_row_has_output_zero():
    found, weights = attention(Q, K, V, NOTHING)
    assert not found[:, :, 2].any()
    assert not weights[:, :, 2].any()
    assert not attention(Q, K[:, :, :0], V[:, :, :0])[0].any()


def test_dropout_zeroes_weights_and_scales_the_others():
    torch.manual_seed(0)
    ones = torch.ones(2, 3, 7, 8, dtype=torch.float64)
    found = torch.stack([attention(Q, K, ones, dropout=0.25)[0] for _ in range(2000)])
    assert_close(found.mean(0), torch.ones_like(Q), 0.06)
    assert found.std(0).amin() > 0.1
    assert attention(Q, K, ones, dropout=0.25)[1].sum(-1).allclose(torch.ones(1, dtype=torch.float64))


def test_dropout_is_applied_in_training_only():
    heads, x = MultiheadAttention(24, 4, dropout=0.5).double(), random(2, 5, 24)
    torch.manual_seed(0)
    assert not heads.train()(x, x)[0].equal(heads(x, x)[0])
    assert heads.eval()(x, x)[0].equal(heads(x, x)[0])


def test_multi_head_attention_equals_torchs():
    theirs = randomized(nn.MultiheadAttention(24, 4, batch_first=True), 0)
    heads = MultiheadAttention(24, 4).double()
    parts = zip("qkv", theirs.in_proj_weight.chunk(3), theirs.in_proj_bias.chunk(3), strict=True)
    own = {f"{n}.{kind}": x for n, w, b in parts for kind, x in (("weight", w), ("bias", b))}
    heads.load_state_dict({**own, "o.weight": theirs.out_proj.weight, "o.bias": theirs.out_proj.bias})
    x, source, visible = random(3, 5, 24), random(3, 7, 24, seed=1), padding_mask(torch.tensor([7, 3, 1]), 7)
    expected, weights = theirs(x, source, source, key_padding_mask=~visible[:, 0], average_attn_weights=False)
    found, own_weights = heads(x, source, visible)
    assert_close(found, expected, 1e-12)
    assert_close(own_weights, weights, 1e-12)
    assert_close(heads(x, x, subsequent_mask(5))[0], theirs(x, x, x, attn_mask=~subsequent_mask(5))[0], 1e-12)


def test_weights_are_at_least_float32():
    found, weights = attention(Q.bfloat16(), K.bfloat16(), V.bfloat16(), RAGGED)
    assert (found.dtype, weights.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: attention(Q, K, V, RAGGED.double()), "expected bool, True"),
        (
            lambda: attention(Q, K, V, RAGGED[..., :6]),
            r"shape \(2, 1, 5, 6\); expected a shape that broadcasts to \(2, 3, 5, 7\)",
        ),
        (lambda: attention(Q, K, V, RAGGED[None]), "expected a shape that broadcasts"),
        (lambda: attention(Q, K[..., :4], V), "query, key and value"),
        (lambda: attention(Q, K, V[:, :, :3]), "query, key and value"),
        (lambda: attention(Q[0, 0, 0], K, V), "expected tensors"),
        (lambda: attention(Q.tolist(), K, V), "expected tensors"),
        (
            lambda: MultiheadAttention(24, 3)(torch.zeros(2, 24), torch.zeros(1, 2, 24)),
            r"the input is \(2, 24\); expected \(B, T, 24\)",
        ),
        (lambda: MultiheadAttention(24, 3)(torch.zeros(1, 2, 24), [[0.0]]), "the input is list"),
        (lambda: MultiheadAttention(24, 3)(torch.zeros(1, 2, 24), torch.zeros(1, 2, 24), [[True]]), "expected bool, True"),
        (lambda: MultiheadAttention(24, 5), "width is 24; expected a multiple of n_heads, 5"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(msrnn.Error, match=message):
        call()
