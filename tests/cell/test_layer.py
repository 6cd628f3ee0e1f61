"""``layer.step``: chained by hand it is ``Cell.step``; the position tensors (cos and sin) may be passed in or left out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.cell_strategies import cells, examples
from support.tiny_models import ROPES, assert_close, assert_same, random_tokens, tiny_cell

from msrnn.cell import layer as module
from msrnn.models.llama import LlamaLayer


@given(st.data())
@examples(15)
def test_layer_steps_chained_by_hand_equal_the_step_of_the_cell(data):
    cell, B, reduction = data.draw(cells())
    state = cell.initial_state(B, reduction)
    for token in random_tokens(3, B, 9).T:
        expected, after = cell.step(token, state)
        x, layers = cell.embed(token), []
        for layer, H in zip(cell.layers, state, strict=True):
            x, H = layer.step(x, H)
            assert x.shape == (B, cell.config.width)
            layers.append(H)
        assert_close(cell.compute_logits(x), expected, 1e-12)
        assert_same(state.with_layers(layers), after, 1e-12)
        state = after


@pytest.mark.parametrize("reduction", ["tova:4", "h2o:4", "window:4", "full"])
def test_each_layer_by_itself_follows_the_layers_of_the_state(reduction):
    """A cell stacks bounded layers; H of every layer equals H of ``layer.step``, in any row order."""
    cell = tiny_cell()
    state = cell.initial_state(2, reduction)
    layers = list(state)
    for token in random_tokens(8, 2, 9).T:
        _, state = cell.step(token, state)
        x = cell.embed(token)
        for i, layer in enumerate(cell.layers):
            x, layers[i] = layer.step(x, layers[i])
        for H, expected in zip(state, layers, strict=True):
            for name, rows in H.sorted_by_position().rows.items():
                assert_close(rows.double(), expected.sorted_by_position().rows[name].double())


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES)
def test_step_with_and_without_given_position_tensors(rope, in_place):
    cell = tiny_cell(rope=rope)
    _, state = cell(random_tokens(1, 2, 12), cell.initial_state(2, "tova:4"), lengths=torch.tensor([12, 7]))
    layer, H = cell.layers[0], state[0]
    x, active = cell.embed(torch.tensor([3, 4])), torch.tensor([True, False])
    prepared = layer.position_encoding.prepare(H.clock, x.dtype)
    expected, after = layer.step(x, H, active=active)
    output, given = layer.step(x, H, active=active, position_tensors=prepared, in_place=in_place)
    assert output.equal(expected)
    assert_same(state.with_layers([given]), state.with_layers([after]))
    other = layer.position_encoding.prepare(H.clock + 5, x.dtype)
    assert (layer.step(x, H, position_tensors=other)[1].keys - layer.step(x, H)[1].keys).abs().max() > 1e-3


def test_key_is_cached_unrotated_if_positions_are_remapped():
    cell = tiny_cell()
    _, state = cell(random_tokens(1, 2, 3), cell.initial_state(2, "tova:4", places="inside"))
    x = cell.embed(torch.tensor([3, 4]))
    _, H = cell.layers[0].step(x, state[0])
    _, k, _ = cell.layers[0].project_qkv(x, None)
    assert H.keys[:, :, -1].equal(k)


@pytest.mark.parametrize("B", [1, 3])
def test_the_mlp_of_a_long_text_is_computed_in_chunks(B, monkeypatch):
    """No product has more than 256 tokens of the batch, and the result does not depend on it."""
    cell, text, sizes = tiny_cell(), random_tokens(0, B, 300), []
    expected = cell(text)[0]
    post_attention = LlamaLayer.post_attention
    monkeypatch.setattr(
        LlamaLayer, "post_attention", lambda self, x, y: sizes.append(len(x.flatten(0, -2))) or post_attention(self, x, y)
    )
    monkeypatch.setattr(module, "MLP_CHUNK_TOKENS", 7)
    assert_close(cell(text)[0], expected, 1e-12)
    assert max(sizes) == 7 // B * B
    assert sum(sizes) == 2 * 300 * B
