"""Tests of the arithmetic of the Decoder against an independent implementation in float64."""

import math
from dataclasses import replace

import pytest
import torch
from support.tiny_models import (
    CONFIG,
    DECODER_CONFIG,
    ROPES,
    assert_close,
    assert_same,
    random_tokens,
    tiny_cell,
    tiny_decoder,
)
from torch import nn
from torch.nn.functional import gelu, relu, scaled_dot_product_attention, silu
from transformers.models.bloom.modeling_bloom import build_alibi_tensor

import msrnn
from msrnn.layers.norm import RMSNorm, RMSNormEpsOutside, ScaleNorm
from msrnn.models import Decoder, DecoderConfig
from msrnn.models.decoder_config import CHOICES


def naive(cell, text, rotated=lambda x, position: x, entered=None, bias=None):
    """Return logits of ``text (B, T)`` from PyTorch's own modules; ``bias (N, T, T)`` is added to the attention logits."""
    c, (B, T) = cell.config, text.shape
    N, K, D = c.n_heads, c.n_kv_heads, c.head_dim
    mask = torch.zeros(T, T, dtype=torch.float64).masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf)
    mask = mask if bias is None else mask + bias
    x = cell.embed.weight[text] if entered is None else entered
    ffn = {"swiglu": silu, "geglu": gelu, "reglu": relu, "silu": silu, "gelu": gelu, "relu": relu}.get(c.ffn)
    for layer in cell.layers:
        pre, post = (lambda f, y: f(y), lambda f, y: y) if c.norm_placement == "pre" else (lambda f, y: y, lambda f, y: f(y))
        y = pre(layer.attention_norm, x)
        q = rotated(layer.q(y).view(B, T, N, D).transpose(1, 2), torch.arange(T))
        k = rotated(layer.k(y).view(B, T, K, D).transpose(1, 2), torch.arange(T)).repeat_interleave(N // K, dim=1)
        v = layer.v(y).view(B, T, K, D).transpose(1, 2).repeat_interleave(N // K, dim=1)
        read = scaled_dot_product_attention(q, k, v, mask)
        x = post(layer.attention_norm, x + layer.o(read.transpose(1, 2).flatten(2)))
        if ffn is not None:
            y = pre(layer.ffn_norm, x)
            y = ffn(layer.gate(y)) * layer.up(y) if c.ffn.endswith("glu") else ffn(layer.up(y))
            x = post(layer.ffn_norm, x + layer.down(y))
    x = cell.norm(x) if c.norm_placement == "pre" else x
    return x @ (cell.embed.weight if c.tied else cell.head.weight).T


TEXT = random_tokens(1, 3, 20)


@pytest.mark.parametrize("reduction", ["full", "tova:5", "h2o:6", "window:4"])
@pytest.mark.parametrize("rope", sorted(ROPES))
def test_default_config_equals_llama(rope, reduction):
    llama = tiny_cell(rope=ROPES[rope])
    cell = (
        Decoder(DecoderConfig(**{**DECODER_CONFIG, "context_length": CONFIG["context_length"]}, positions=ROPES[rope]))
        .double()
        .eval()
    )
    cell.load_state_dict(llama.state_dict())
    cell.requires_grad_(False)
    a, b = llama(TEXT, llama.initial_state(3, reduction)), cell(TEXT, cell.initial_state(3, reduction))
    assert torch.equal(a[0], b[0])
    assert_same(a[1], b[1])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)], ids=["multi-head", "grouped", "multi-query"])
def test_attention(heads, tied):
    cell = tiny_decoder(positions="learned", n_heads=heads[0], n_kv_heads=heads[1], tied=tied)
    entered = cell.embed.weight[TEXT] + cell.position_embedding.weight[:20]
    assert_close(cell(TEXT)[0], naive(cell, TEXT, entered=entered), 1e-12)


@pytest.mark.parametrize("ffn", CHOICES["ffn"])
def test_feed_forward(ffn):
    cell = tiny_decoder(positions="alibi", ffn=ffn, ffn_width=0 if ffn == "none" else 32, n_kv_heads=4)
    assert any("ffn" in name or "up" in name for name, _ in cell.named_parameters()) == (ffn != "none")
    assert_close(cell(TEXT)[0], naive(cell, TEXT, bias=alibi(4)), 1e-12)


def alibi(n_heads, T=20):
    """Return the bias of BLOOM in transformers, a function of the key position only: softmax ignores a shift per query."""
    return build_alibi_tensor(torch.ones(1, T), n_heads, torch.float64).view(n_heads, 1, T)


@pytest.mark.parametrize("n_heads", [1, 2, 3, 4, 6, 8, 12])
def test_alibi(n_heads, figure):
    cell = tiny_decoder(positions="alibi", n_heads=n_heads, n_kv_heads=1)
    state = cell.initial_state(3, "tova:20")  # its weights, not only PyTorch's kernel
    expected = naive(cell, TEXT, bias=alibi(n_heads))
    exact = n_heads in (1, 2, 4, 8)  # transformers' slopes are of float32, which has all of these
    for logits in (cell(TEXT)[0], cell(TEXT, state)[0]):
        assert_close(logits, expected, 1e-12 if exact else 1e-6)
    if n_heads == 8:
        figure(f"ALiBi as two numbers of a row, against BLOOM's bias in float64: {(logits - expected).abs().max():.1e}")
    assert (expected - naive(cell, TEXT)).abs().max() > 0.05


def test_alibi_is_exact_at_position_10000():
    """The logits have the precision of float32 there."""
    cell = tiny_decoder(positions="alibi")
    near = cell.initial_state(1, "full")
    far = near.with_layers(replace(H, clock=H.clock + 10_000) for H in near)
    assert_close(cell(TEXT[:1], near)[0], cell(TEXT[:1], far)[0], 1e-9)
    cell = cell.float()
    near, far = near.to(torch.float32), far.to(torch.float32)
    assert_close(cell(TEXT[:1], near)[0], cell(TEXT[:1], far)[0], 1e-2)


def test_alibi_refuses_16_bits_and_operators_that_need_keys():
    with pytest.raises(msrnn.Error, match="the operator needs keys"):
        tiny_decoder(positions="alibi").initial_state(1, msrnn.KeyDiff(4))
    with pytest.raises(msrnn.Error, match="bfloat16, too coarse"):
        tiny_decoder(positions="alibi").bfloat16().initial_state(1)
    tiny_decoder().bfloat16().initial_state(1, msrnn.KeyDiff(4))
    state = tiny_decoder(positions="alibi").initial_state(2)
    with pytest.raises(msrnn.Error, match="float16, too coarse"):
        tiny_decoder(positions="alibi").half().step(torch.tensor([1, 2]), state.to(torch.float16))


def test_texts_beyond_the_learned_positions_are_refused():
    cell = tiny_decoder(positions="learned", context_length=20)
    _, state = cell(TEXT)
    longer = torch.cat((TEXT, TEXT[:, :1]), dim=1)
    with pytest.raises(msrnn.Error, match="21 tokens; expected at most 20"):
        cell(longer)
    with pytest.raises(msrnn.Error, match="21 tokens; expected at most 20"):
        cell.step(TEXT[:, 0], state)
    cell.step(TEXT[:, 0], state, active=torch.zeros(3, dtype=torch.bool))
    logits, _ = cell(longer, lengths=torch.tensor([20, 3, 0]))  # what is not read may stand anywhere
    assert_close(logits[0, :20], cell(TEXT)[0][0], 1e-12)
    _, uneven = cell(TEXT, lengths=torch.tensor([0, 15, 20]))
    more, _ = cell(TEXT, uneven, lengths=torch.tensor([20, 5, 0]))
    assert_close(more[0], cell(TEXT)[0][0], 1e-12)
    msrnn.generate(cell, TEXT[:, :15], max_new_tokens=5)
    msrnn.lookahead(cell, TEXT[:, :15], max_new_tokens=5, window=3, ngram=3, guesses=2)


def test_sinusoidal_positions():
    cell = tiny_decoder(positions="sinusoidal")
    table = torch.tensor([[angle(t, j) for j in range(24)] for t in range(20)], dtype=torch.float64)
    assert_close(cell(TEXT)[0], naive(cell, TEXT, entered=cell.embed.weight[TEXT] * math.sqrt(24) + table), 1e-12)


def angle(t, j):
    """arXiv:1706.03762, sec. 3.5, element by element."""
    return (math.sin if j % 2 == 0 else math.cos)(t / 10000 ** ((j - j % 2) / 24))


@pytest.mark.parametrize("tied", [True, False])
def test_fixnorm(tied):
    cell = tiny_decoder(positions="learned", fixnorm=True, tied=tied)
    words = cell.embed.weight / cell.embed.weight.pow(2).sum(1, keepdim=True).sqrt()
    x = words[TEXT] * math.sqrt(24) + cell.position_embedding.weight[:20]
    if tied:
        cell_of_words = tiny_decoder(positions="learned", tied=True)
        cell_of_words.embed.weight.copy_(words)
    else:
        cell_of_words = cell
    assert_close(cell(TEXT)[0], naive(cell_of_words, TEXT, entered=x), 1e-12)


def test_fixnorm_of_long_and_of_zero_embeddings():
    """The length is computed in float32: in float16 the length of 300 elements of 200 overflows, and 1e-12 is 0."""
    cell = tiny_decoder(fixnorm=True, tied=True).float()
    cell.embed.weight.mul_(1000)
    cell.embed.weight[TEXT[0, 3]] = 0
    wide = cell(TEXT)[0]
    assert wide.isfinite().all()
    assert_close(cell.half()(TEXT)[0].float(), wide, 0.1)


def test_norms():
    x, gain = torch.randn(5, 24, dtype=torch.float64), torch.rand(24, dtype=torch.float64)
    x[0] *= 1e-3  # epsilon matters
    inside, outside, scale = RMSNorm(24, 1e-2).double(), RMSNormEpsOutside(24, 1e-2).double(), ScaleNorm(24, 1e-2).double()
    with torch.no_grad():
        inside.weight.copy_(gain)
        outside.weight.copy_(gain)
    torch_own = nn.RMSNorm(24, eps=1e-2, dtype=torch.float64)
    with torch.no_grad():
        torch_own.weight.copy_(gain)
    assert_close(inside(x), torch_own(x), 1e-14)
    rms = torch.tensor([math.sqrt(math.fsum(v * v for v in row) / 24) for row in x.tolist()], dtype=torch.float64)
    assert_close(outside(x), x / (rms[:, None] + 1e-2) * gain, 1e-14)
    assert_close(scale(x), x / (rms[:, None] * math.sqrt(24)).clamp(min=1e-2) * math.sqrt(24), 1e-6)
    assert scale.weight.numel() == 1
    assert scale(torch.zeros(1, 24, dtype=torch.float64)).eq(0).all()
    for norm in (outside, scale):  # what is rounded is rounded last, and no gradient is lost at zero
        assert norm.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
        zero = torch.zeros(1, 24, dtype=torch.float32, requires_grad=True)
        norm.float()(zero).sum().backward()
        assert zero.grad.isfinite().all()


@pytest.mark.parametrize("norm", CHOICES["norm"])
@pytest.mark.parametrize("placement", CHOICES["norm_placement"])
def test_norm_and_placement(norm, placement):
    """Every norm in every placement; ``tests/layers/test_norm.py`` tests the norms themselves."""
    cell = tiny_decoder(norm=norm, norm_placement=placement, positions="learned", norm_eps=1e-3, bias=True)
    kinds = {"rms": RMSNorm, "rms-outside": RMSNormEpsOutside, "layer": nn.LayerNorm, "scale": ScaleNorm}
    norms = [m for name, m in cell.named_modules() if name.endswith("norm")]
    assert len(norms) == (5 if placement == "pre" else 4)
    assert all(type(m) is kinds[norm] and m.eps == 1e-3 for m in norms)
    assert_close(cell(TEXT)[0], naive(cell, TEXT, entered=cell.embed.weight[TEXT] + cell.position_embedding.weight[:20]), 1e-12)


@pytest.mark.parametrize("ffn", ["relu", "gelu"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("placement", ["pre", "post"])
def test_layer_equals_pytorchs(placement, bias, ffn, figure):
    cell = tiny_decoder(
        norm="layer", norm_placement=placement, bias=bias, ffn=ffn, n_kv_heads=4, positions="learned", tied=True
    )
    layer = nn.TransformerEncoderLayer(
        24, 4, 32, dropout=0.0, activation=ffn, batch_first=True, norm_first=placement == "pre", bias=bias, dtype=torch.float64
    )
    final = nn.LayerNorm(24, bias=bias, dtype=torch.float64) if placement == "pre" else None
    reference = nn.TransformerEncoder(layer, 2, norm=final, enable_nested_tensor=False)
    with torch.no_grad():
        if final is not None:
            reference.norm.load_state_dict(cell.norm.state_dict())
        for theirs, ours in zip(reference.layers, cell.layers, strict=True):
            for name in ("weight", "bias") if bias else ("weight",):
                whole = torch.cat([getattr(m, name) for m in (ours.q, ours.k, ours.v)])
                getattr(theirs.self_attn, f"in_proj_{name}").copy_(whole)
            for mine, its in (("o", "self_attn.out_proj"), ("up", "linear1"), ("down", "linear2")):
                theirs.get_submodule(its).load_state_dict(ours.get_submodule(mine).state_dict())
            theirs.norm1.load_state_dict(ours.attention_norm.state_dict())
            theirs.norm2.load_state_dict(ours.ffn_norm.state_dict())
    mask = nn.Transformer.generate_square_subsequent_mask(20, dtype=torch.float64)
    x = reference.train()(cell.embed.weight[TEXT] + cell.position_embedding.weight[:20], mask=mask, is_causal=True)
    logits, expected = cell(TEXT)[0], x @ cell.embed.weight.T
    assert_close(logits, expected, 1e-12)
    gap = (logits - expected).abs().max().item()
    if bias and ffn == "gelu":
        figure(f"Decoder, {placement}-norm, against torch.nn.TransformerEncoder with a causal mask in float64: {gap:.1e}")


def test_an_odd_head_dim_is_allowed_without_rope():
    cell = tiny_decoder(positions="alibi", head_dim=5)
    assert_close(cell(TEXT)[0], naive(cell, TEXT, bias=alibi(4)), 1e-6)
