"""Dropout and initialization of the Decoder, and a text that a bounded cell learns."""

import math

import pytest
import torch
from support.tiny_models import DECODER_CONFIG, assert_close, random_tokens, tiny_decoder
from torch.nn.functional import cross_entropy

from msrnn.models import Decoder, DecoderConfig

TEXT = random_tokens(1, 3, 20)


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
