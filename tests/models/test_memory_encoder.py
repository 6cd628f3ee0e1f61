"""Tests of the three forms of the Memory Transformer against torch's modules, combined as in the paper."""

import pytest
import torch
from support.tiny_models import assert_close
from support.torch_nn_reference import parameters_under_our_names, randomized
from torch import nn
from torch.nn.functional import layer_norm, linear, relu

import msrnn
from msrnn.layers.masks import padding_mask, subsequent_mask
from msrnn.models.memory_encoder import MemoryConfig, MemoryEncoder

FACTS = {"width": 24, "n_layers": 2, "n_heads": 4, "ffn_width": 40, "n_memory": 3}
REAL = padding_mask(torch.tensor([7, 3]), 7)


def encoder(form, placement, seed=0):
    return randomized(MemoryEncoder(MemoryConfig(**FACTS, form=form, norm_placement=placement)), seed)


def text(seed=1, T=7):
    return torch.randn(2, T, FACTS["width"], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def updated(x, seen, hidden, w, placement):
    """A + FF(A), A = x + MH(x, seen, seen), with ``torch.nn.MultiheadAttention``; a norm before or after each."""
    theirs = nn.MultiheadAttention(24, 4, batch_first=True, dtype=torch.float64)
    joined = {f"in_proj_{kind}": torch.cat([w[f"attention.{n}.{kind}"] for n in "qkv"]) for kind in ("weight", "bias")}
    theirs.load_state_dict({**joined, **{f"out_proj.{kind}": w[f"attention.o.{kind}"] for kind in ("weight", "bias")}})
    pre = placement == "pre"

    def norm(x, name, now):
        name = f"{name}_residual.norm."
        return layer_norm(x, (24,), w[name + "weight"], w[name + "bias"], 1e-5) if now else x

    q, kv = norm(x, "attention", pre), norm(seen, "attention", pre)
    a = norm(x + theirs(q, kv, kv, key_padding_mask=hidden)[0], "attention", not pre)
    b = relu(linear(norm(a, "ffn", pre), w["ffn.up.weight"], w["ffn.up.bias"]))
    return norm(a + linear(b, w["ffn.down.weight"], w["ffn.down.bias"]), "ffn", not pre)


def described(model, x, real):
    """Return memory and text of the two other forms, equation by equation of the paper."""
    config, m = model.config, model.tokens.detach().expand(2, -1, -1)
    hidden = torch.cat((torch.zeros(2, 3, dtype=torch.bool), ~real[:, 0]), dim=1)
    for layer in model.layers:
        both = torch.cat((m, x), dim=1)
        m = updated(m, both, hidden, layer.memory.state_dict(), config.norm_placement)
        if config.form == "bottleneck":
            x = updated(x, m, None, layer.text.state_dict(), config.norm_placement)
        else:
            x = updated(x, both, hidden, layer.text.state_dict(), config.norm_placement)
    return model.norm(x), model.norm(m)


@pytest.mark.parametrize("placement", ["pre", "post"])
@pytest.mark.parametrize("form", ["controller", "bottleneck"])
def test_forms_with_memory_parameters_equal_the_equations(form, placement):
    model = encoder(form, placement)
    found, memory = model(text(), REAL)
    expected, expected_memory = described(model, text(), REAL)
    assert_close(found[REAL[:, 0]], expected[REAL[:, 0]], 1e-10)
    assert_close(memory, expected_memory, 1e-10)


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_memory_tokens_equal_a_longer_text_in_torchs_encoder(placement):
    pre = placement == "pre"
    layer = nn.TransformerEncoderLayer(24, 4, 40, 0.0, batch_first=True, norm_first=pre)
    last = nn.LayerNorm(24) if pre else None
    theirs = randomized(nn.TransformerEncoder(layer, 2, last, enable_nested_tensor=False), 0)
    model = encoder("tokens", placement)
    own = {
        name.replace("layers.0.", "layers.0.text.").replace("layers.1.", "layers.1.text."): x
        for name, x in parameters_under_our_names(theirs).items()
    }
    model.load_state_dict({**own, "tokens": model.tokens})
    longer = torch.cat((model.tokens.expand(2, -1, -1), text()), dim=1)
    hidden = torch.cat((torch.zeros(2, 3, dtype=torch.bool), ~REAL[:, 0]), dim=1)
    expected = theirs(longer, src_key_padding_mask=hidden)
    found, memory = model(text(), REAL)
    assert_close(found[REAL[:, 0]], expected[:, 3:][REAL[:, 0]], 1e-10)
    assert_close(memory, expected[:, :3], 1e-10)


def test_a_controller_with_equal_parameters_equals_memory_tokens():
    plain, controlled = encoder("tokens", "pre"), encoder("controller", "pre")
    own = plain.state_dict()
    controlled.load_state_dict({**own, **{name.replace(".text.", ".memory."): x for name, x in own.items()}})
    for one, other in zip(plain(text(), REAL), controlled(text(), REAL), strict=True):
        assert_close(one, other, 1e-12)


def test_bottleneck_passes_information_through_the_memory_only():
    model = encoder("bottleneck", "pre")
    x, changed = text(), text()
    changed[:, 0] = text(2)[:, 0]
    assert ((model(x)[0] - model(changed)[0])[:, 1:].abs().amax(-1) > 1e-6).all()
    for layer in model.layers:  # a memory that learns nothing
        nn.init.zeros_(layer.memory.attention.o.weight)
    assert_close(model(x)[0][:, 1:], model(changed)[0][:, 1:], 0)


def test_every_parameter_receives_a_gradient():
    for form in ("tokens", "controller", "bottleneck"):
        model = encoder(form, "pre").train()
        sum(out.square().sum() for out in model(text(), REAL)).backward()
        still = [name for name, x in model.named_parameters() if x.grad is None or x.grad.abs().amax() < 1e-6]
        assert all(name.endswith("attention.k.bias") for name in still), (form, still)  # which adds the same to all logits


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MemoryConfig(**{**FACTS, "n_memory": 0}, form="tokens"), "n_memory is 0"),
        (lambda: MemoryConfig(**FACTS, form="token"), r"form is 'token' \(did you mean 'tokens'\?\); expected one of tokens"),
        (lambda: MemoryConfig(**FACTS, form="banana"), "form is 'banana'; expected one of tokens, controller, bottleneck"),
        (lambda: encoder("tokens", "pre")(text(), subsequent_mask(7)), r"\(7, 7\); an encoder with memory takes padding alone"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(msrnn.Error, match=message):
        call()
