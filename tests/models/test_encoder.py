"""Tests of the encoder against torch.nn.TransformerEncoder, and of the masks that allow a step."""

import pytest
import torch
from support.tiny_models import assert_close
from support.torch_nn_reference import parameters_under_our_names, randomized
from torch import nn

import msrnn
from msrnn.layers.masks import padding_mask, subsequent_mask, window_mask
from msrnn.models.encoder import Encoder, EncoderConfig

FACTS = {"width": 24, "n_layers": 3, "n_heads": 4, "ffn_width": 40}
LENGTHS = torch.tensor([9, 4, 1])


def pair(placement, seed=0, **facts):
    """Return our encoder and torch's with the same weights."""
    config = EncoderConfig(**FACTS, norm_placement=placement, norm_eps=1e-3, **facts)
    layer = nn.TransformerEncoderLayer(
        config.width,
        config.n_heads,
        config.ffn_width,
        config.dropout,
        layer_norm_eps=config.norm_eps,
        batch_first=True,
        norm_first=placement == "pre",
    )
    last = nn.LayerNorm(config.width, config.norm_eps) if placement == "pre" else None
    theirs = randomized(nn.TransformerEncoder(layer, config.n_layers, last, enable_nested_tensor=False), seed)
    encoder = Encoder(config).double().eval()
    encoder.load_state_dict(parameters_under_our_names(theirs))
    return encoder, theirs


def text(seed=1, B=3, T=9):
    return torch.randn(B, T, FACTS["width"], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_equals_torch_with_padding(placement, figure):
    encoder, theirs = pair(placement)
    x, real = text(), padding_mask(LENGTHS, 9)
    expected = theirs(x, src_key_padding_mask=~real[:, 0])
    found = encoder(x, real)
    gap = (found - expected)[real[:, 0]].abs().amax().item()
    figure(f"encoder, {placement}-norm, padded, against torch.nn.TransformerEncoder in float64: {gap:.1e}")
    assert gap < 1e-10
    assert_close(encoder(x), theirs(x), 1e-10)


@pytest.mark.parametrize("placement", ["pre", "post"])
@pytest.mark.parametrize("mask", [subsequent_mask(9), window_mask(9, 3), window_mask(9, 3) & subsequent_mask(9)])
def test_equals_torch_under_masks(placement, mask):
    encoder, theirs = pair(placement)
    assert_close(encoder(text(), mask), theirs(text(), mask=~mask), 1e-10)


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_gradients_equal_torchs(placement):
    encoder, theirs = pair(placement)
    for model, padding in ((encoder, {"mask": padding_mask(LENGTHS, 9)}), (theirs, {"src_key_padding_mask": None})):
        if model is theirs:
            padding["src_key_padding_mask"] = ~padding_mask(LENGTHS, 9)[:, 0]
        (model(text(), **padding)[padding_mask(LENGTHS, 9)[:, 0]] ** 2).sum().backward()
    expected = {name: x.grad for name, x in theirs.named_parameters()}
    assert_close(encoder.layers[1].ffn.up.weight.grad, expected["layers.1.linear1.weight"], 1e-10)
    joined = torch.cat([getattr(encoder.layers[0].attention, letter).weight.grad for letter in "qkv"])
    assert_close(joined, expected["layers.0.self_attn.in_proj_weight"], 1e-10)


def test_dropout_is_applied_as_in_torch():
    encoder, theirs = pair("pre", dropout=0.3)
    x = text(B=1)  # torch lays a batch out in another order, and so draws other numbers for it
    torch.manual_seed(5)
    expected = theirs.train()(x)
    torch.manual_seed(5)
    found = encoder.train()(x)
    assert_close(found, expected, 1e-10)
    calm = theirs.eval()(x)
    assert_close(encoder.eval()(x), calm, 1e-10)
    assert (found - calm).abs().amax() > 0.1


def test_content_of_padding_does_not_matter():
    encoder, _ = pair("post")
    real = padding_mask(LENGTHS, 9)
    other = torch.where(real[:, 0, :, None], text(), 7.0)
    assert_close(encoder(text(), real)[real[:, 0]], encoder(other, real)[real[:, 0]], 1e-12)


def test_a_new_token_changes_earlier_rows_except_under_the_subsequent_mask():
    encoder, _ = pair("pre")
    longer, shorter = text(), text()[:, :8]
    assert ((encoder(longer)[:, :8] - encoder(shorter)).abs().amax(-1) > 1e-3).all()
    assert_close(encoder(longer, subsequent_mask(9))[:, :8], encoder(shorter, subsequent_mask(8)), 1e-12)


def test_a_query_that_sees_no_row_gives_no_nan():
    encoder, _ = pair("pre")
    mask = window_mask(9, 2) & padding_mask(LENGTHS, 9)  # the last tokens see padding alone
    x = text().requires_grad_()
    found = encoder(x, mask)
    found.sum().backward()
    assert found.isfinite().all()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"width": 0}, "width is 0"),
        ({"n_layers": True}, "n_layers is True"),
        ({"n_layers": 1001}, "n_layers is 1001; expected an int from 1 to 1000"),
        ({"n_heads": 5}, "width is 24; expected a multiple of n_heads, 5"),
        ({"norm_placement": "sandwich"}, "norm_placement is 'sandwich'"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": False}, "dropout is False"),
        ({"norm_eps": 1}, "norm_eps is 1"),
    ],
)
def test_wrong_configs_are_refused(facts, message):
    with pytest.raises(msrnn.Error, match=message):
        EncoderConfig(**{**FACTS, **facts})
