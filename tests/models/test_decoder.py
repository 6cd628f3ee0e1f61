"""Tests of every part of the Decoder against an independent implementation in float64, and of the laws of a cell."""

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_models import (
    CONFIG,
    DECODER_CONFIG,
    ROPES,
    assert_close,
    assert_same,
    random_tokens,
    step_loop,
    tiny_cell,
    tiny_decoder,
)
from torch import nn
from torch.nn.functional import cross_entropy, gelu, relu, scaled_dot_product_attention, silu
from transformers.models.bloom.modeling_bloom import build_alibi_tensor

import converters
import msrnn
from msrnn.cli.main import main
from msrnn.layers.norm import RMSNorm, RMSNormEpsOutside, ScaleNorm
from msrnn.models import Decoder, DecoderConfig
from msrnn.models.decoder_config import CHOICES, POSITIONS
from msrnn.models.registry import build_on_meta, config_from_dict


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


def test_dropout():
    """Elements of embeddings and sublayer outputs are zeroed with probability p in training; the others are scaled up."""
    plain, cell = tiny_decoder(frozen=False), tiny_decoder(frozen=False, dropout=0.25)
    assert torch.equal(cell(TEXT)[0], plain(TEXT)[0])
    plain.train()
    assert torch.equal(plain(TEXT)[0], tiny_decoder(frozen=False)(TEXT)[0])
    cell.train()
    torch.manual_seed(1)
    first = cell(TEXT)[0]
    assert not torch.equal(cell(TEXT)[0], first)
    torch.manual_seed(1)
    assert torch.equal(cell(TEXT)[0], first)
    x = cell.embed_tokens(TEXT, torch.arange(20).expand(3, -1))
    gone = x == 0
    assert abs(float(gone.double().mean()) - 0.25) < 0.05
    assert_close(x[~gone], (plain.embed.weight[TEXT] / 0.75)[~gone], 1e-14)
    layer, x = cell.layers[0], torch.ones(4000, 24, dtype=torch.float64)
    added = layer._add(x, 3 * x, layer.ffn_norm) - x
    assert added.unique().tolist() == [0, 4]
    assert abs(float((added == 0).double().mean()) - 0.25) < 0.02
    torch.manual_seed(0)
    twice = [layer.post_attention(x, torch.ones(4000, 4, 6, dtype=torch.float64)) for _ in range(2)]
    assert not torch.equal(*twice)


def test_initialization():
    wide = {"width": 160, "n_kv_heads": 4, "head_dim": 40, "ffn_width": 640, "vocab_size": 1000}
    torch.manual_seed(0)
    for small in (True, False):
        cell = Decoder(DecoderConfig(**{**DECODER_CONFIG, **wide}, small_init=small, bias=True, positions="learned"))
        expected = {"q": 2 / (5 * 160) if small else 2 / 320, "up": 2 / 800, "down": 2 / 800, "gate": 2 / 800}
        expected |= dict.fromkeys("kvo", expected["q"])
        for name, variance in expected.items():
            module = cell.layers[1].get_submodule(name)
            assert abs(module.weight.std().item() / math.sqrt(variance) - 1) < 0.03
            assert module.bias.eq(0).all()
        assert abs(cell.head.weight.std().item() / math.sqrt(2 / 1160) - 1) < 0.03
        for table in (cell.embed, cell.position_embedding):
            assert abs(table.weight.std().item() * math.sqrt(160) - 1) < 0.03
        assert abs(cell(random_tokens(0, 2, 30, 1000))[0].std().item() - 0.5) < 0.4  # near to no opinion
        assert cell.layers[0].attention_norm.weight.eq(1).all()


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"norm_placement": "post", "norm": "layer", "ffn": "gelu", "bias": True, "positions": "sinusoidal", "tied": True},
        {"norm": "scale", "fixnorm": True, "tied": True, "positions": "learned", "memory_tokens": 2},
        {"ffn": "none", "ffn_width": 0, "persistent": 16, "positions": "alibi", "norm": "rms-outside"},
    ],
    ids=["llama", "classic", "without tears", "all-attention"],
)
def test_a_bounded_cell_learns_a_text(facts):
    """The loss falls below log 3 = 1.1, the entropy of the three tokens of the text."""
    torch.manual_seed(0)
    cell = Decoder(DecoderConfig(**{**DECODER_CONFIG, **facts}))
    text, losses = random_tokens(0, 4, 24, 3), []
    optimizer = torch.optim.Adam(cell.parameters(), 1e-2)
    for _ in range(80):
        logits, _ = cell(text, cell.initial_state(4, "h2o:12"))
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), text[:, 1:].flatten())
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert 3 < losses[0] < 5.5  # of 50 tokens none is known
    assert losses[-1] < 0.95


# Laws.

BOUNDED = ["full", "window:3", "sinks:5:2", "tova:4", "tova-head:4", "h2o:5"]


@st.composite
def cells(draw, **fixed):
    positions = draw(st.sampled_from([*POSITIONS, ROPES["default"], ROPES["dynamic"]]))
    ffn = draw(st.sampled_from(CHOICES["ffn"]))
    flags = {name: draw(st.booleans()) for name in ("bias", "tied", "fixnorm")}
    return tiny_decoder(
        draw(st.integers(0, 99)),
        n_kv_heads=draw(st.sampled_from([1, 2, 4])),
        ffn=ffn,
        ffn_width=0 if ffn == "none" else 32,
        positions=positions,
        norm=draw(st.sampled_from(CHOICES["norm"])),
        norm_placement=draw(st.sampled_from(CHOICES["norm_placement"])),
        **flags,
        **fixed,
    )


@given(cells(), st.sampled_from(BOUNDED), st.integers(0, 9))
@settings(max_examples=16, deadline=None, derandomize=True, database=None)
def test_unroll_equals_the_step_loop(cell, reduction, cut):
    text, lengths = random_tokens(cut, 3, 14), torch.tensor([14, 5, 0])
    state = cell.initial_state(3, reduction)
    logits, after = cell(text, state)
    stepped, expected = step_loop(cell, text, state)
    assert_close(logits, stepped)
    assert_same(after, expected, 1e-9)
    first, middle = cell(text[:, :cut], state)
    second, end = cell(text[:, cut:], middle)
    assert_close(torch.cat((first, second), dim=1), stepped)
    assert_same(end, expected, 1e-9)
    ragged, after = cell(text, state, lengths=lengths)
    stepped, expected = step_loop(cell, text, state, lengths)
    assert_close(ragged, stepped)
    assert_same(after, expected, 1e-9)
    assert_same(cell.scan(text, state)[1].at(9), step_loop(cell, text[:, :9], state)[1], 1e-9)
    x, H = cell.embed.weight[text[:, 0]], list(state)
    x = cell.embed_tokens(text[:, 0], state.clock)
    for l, layer in enumerate(cell.layers):
        x, H[l] = layer.step(x, H[l])
    assert_close(cell.compute_logits(x), cell.step(text[:, 0], state)[0])
    placed = state.clone()
    for token in text.T:
        logits, placed = cell.step_(token, placed)
    assert_close(logits, cell(text, state)[0][:, -1])


@given(cells(frozen=False), st.sampled_from(BOUNDED))
@settings(max_examples=12, deadline=None, derandomize=True, database=None)
def test_gradients_of_a_bounded_unroll_equal_those_of_the_step_loop(cell, reduction):
    text, gradients = random_tokens(2, 2, 9), []
    for read in (cell, lambda *a: step_loop(cell, *a)):
        cell.zero_grad()
        logits, _ = read(text, cell.initial_state(2, reduction))
        logits.tanh().sum().backward()
        gradients.append({name: x.grad.clone() for name, x in cell.named_parameters()})
    for name, gradient in gradients[0].items():
        assert_close(gradient, gradients[1][name], 1e-8)
    assert gradients[0]["layers.0.k.weight"].abs().max() > 0


@pytest.mark.parametrize("facts", [{"positions": "alibi"}, {"positions": "learned", "norm": "scale", "fixnorm": True}], ids=str)
def test_decoding_and_disk(facts, tmp_path, capsys):
    cell = tiny_decoder(tied=True, **facts, bos_token_id=1, eos_token_ids=(2, 3))
    text = TEXT[:, :9]
    new, state, _ = msrnn.generate(cell, text, cell.initial_state(3, "tova:6"), max_new_tokens=12)
    ahead, same, _, _ = msrnn.lookahead(
        cell, text, cell.initial_state(3, "tova:6"), max_new_tokens=12, window=4, ngram=3, guesses=3
    )
    assert torch.equal(new, ahead)
    assert_same(state, same, 1e-9)
    msrnn.prefill(cell, text, "h2o:5")
    cell.save(tmp_path / "own")
    for load in (msrnn.load, converters.load):
        again = load(tmp_path / "own")
        assert again.config == cell.config
        assert not again.training
        assert not any(p.requires_grad for p in again.parameters())
        assert torch.equal(again(text)[0], cell(text)[0])
    assert msrnn.load(tmp_path / "own", dtype=torch.float32).embed.weight.dtype == torch.float32
    state.save(tmp_path / "state")
    step = again.step(text[:, 0], msrnn.load_state(tmp_path / "state"))
    assert_close(step[0], cell.step(text[:, 0], state)[0])
    with pytest.raises(msrnn.Error, match="another model"):
        tiny_decoder(seed=7, tied=True, **facts).step(text[:, 0], state)
    assert main(["info", str(tmp_path / "own")]) == 0
    out = capsys.readouterr().out
    assert "decoder" in out
    assert f"{facts['positions']}, context length 40" in out
    assert f"{2 * 2 * (8 * cell.kv_dim + 8):,} in float32" in out  # of two layers, two heads
    converters.convert(tmp_path / "own", tmp_path / "half", dtype=torch.float16)
    assert msrnn.load(tmp_path / "half").config == cell.config
    with pytest.raises(msrnn.Error, match="which transformers does not support"):
        converters.convert(tmp_path / "own", tmp_path / "hf", to="hf")
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize("positions", [*POSITIONS, *ROPES.values()], ids=str)
def test_configs_survive_json(positions):
    config = DecoderConfig(
        **DECODER_CONFIG, positions=positions, norm="rms-outside", norm_eps=1e-3, norm_placement="post", bias=True, tied=True,
        fixnorm=True, small_init=False, dropout=0.5, ffn="geglu", bos_token_id=1, eos_token_ids=(2, 3),
    )  # fmt: skip
    assert config_from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"width": 0}, "width is 0"),
        ({"n_layers": 1001}, "n_layers is 1001"),
        ({"n_kv_heads": 3}, "n_heads is 4; expected a multiple of n_kv_heads, 3"),
        ({"ffn": "maxout"}, "ffn is 'maxout'"),
        ({"ffn": "none"}, "ffn is none and ffn_width is 32; expected 0"),
        ({"ffn_width": 0}, "ffn_width is 0"),
        ({"positions": "absolute"}, "positions are 'absolute'"),
        ({"positions": None}, "positions are None"),
        ({"head_dim": 5}, "head_dim is 5; expected an even number"),
        ({"positions": "sinusoidal", "width": 25}, "width is 25; expected an even width"),
        ({"norm": "batch"}, "norm is 'batch'"),
        ({"norm_eps": 0}, "norm_eps is 0"),
        ({"norm_placement": "sandwich"}, "norm_placement is 'sandwich'"),
        ({"bias": 1}, "bias is 1"),
        ({"tied": None}, "tied is None"),
        ({"fixnorm": "yes"}, "fixnorm is 'yes'"),
        ({"small_init": 0}, "small_init is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": False}, "dropout is False;"),
        ({"bos_token_id": 50}, "special token id is 50"),
        ({"eos_token_ids": 3}, "eos_token_ids are 3; expected a tuple"),
    ],
)
def test_wrong_configs_are_refused_by_field(facts, message):
    with pytest.raises(msrnn.Error, match=message):
        DecoderConfig(**{**DECODER_CONFIG, **facts})


@pytest.mark.parametrize("field", [*tiny_decoder().config.to_dict()])
def test_a_damaged_field_is_refused_in_one_sentence_or_builds_a_cell(field):
    facts, messages = DecoderConfig(**DECODER_CONFIG).to_dict(), list[str]()
    damages = [
        None,
        -1,
        0,
        1,
        2**28,
        2**70,
        1.5,
        float("nan"),
        "",
        "rms",
        [],
        [1],
        {},
        {"rope_type": "default"},
        True,
        "decoder",
    ]
    for wrong in damages:
        try:
            build_on_meta(config_from_dict({**facts, field: wrong}))
        except msrnn.Error as error:
            messages.append(str(error))
    assert len(messages) >= 5
    assert all(len(text.splitlines()) == 1 for text in messages)


@pytest.mark.parametrize("head_dim", [1, 2, 5])
def test_rotary_positions_need_an_even_head_dim_of_at_least_4(head_dim):
    with pytest.raises(msrnn.Error, match=f"head_dim is {head_dim}; expected an even number of at least 4"):
        DecoderConfig(**{**DECODER_CONFIG, "head_dim": head_dim})
    assert DecoderConfig(**{**DECODER_CONFIG, "head_dim": 4}).head_dim == 4


def test_an_odd_head_dim_is_allowed_without_rope():
    cell = tiny_decoder(positions="alibi", head_dim=5)
    assert_close(cell(TEXT)[0], naive(cell, TEXT, bias=alibi(4)), 1e-6)


def test_a_state_fits_a_cell_with_other_special_tokens_and_dropout():
    """Only fields that enter a step are part of the fingerprint."""
    cell, other = (tiny_decoder(**facts) for facts in ({}, {"bos_token_id": 1, "eos_token_ids": (2, 3), "dropout": 0.5}))
    _, state = cell(TEXT, cell.initial_state(3, "tova:5"))
    assert_close(other.step(TEXT[:, 0], state)[0], cell.step(TEXT[:, 0], state)[0])
    with pytest.raises(msrnn.Error, match="another model"):
        tiny_decoder(norm_eps=1e-3).step(TEXT[:, 0], state)
