"""The stacked step against its definition, the plain loop over ``layer.step``."""

import pytest
import torch
from support.tiny_models import assert_close, assert_same, random_tokens, tiny_cell

import msrnn
from msrnn.cell.stacked_step import stacked_step

OPERATORS = ["window:3", "sinks:4:2", "h2o:4", "h2o-layer:4", "tova:3", "tova-head:3", "caote:3"]


def plain_loop(cell, token, state, active=None):
    """Run the layers one by one."""
    x, layers = cell.embed_tokens(token, state.clock), []
    for layer, H in zip(cell.layers, state, strict=True):
        x, H = layer.step(x, H, active=active)
        layers.append(H)
    return cell.compute_logits(x), state.with_layers(layers)


@pytest.mark.parametrize("reduction", OPERATORS)
@pytest.mark.parametrize("in_place", [False, True])
def test_stacked_step_equals_the_plain_loop(reduction, in_place):
    cell = tiny_cell(n_layers=3)
    plain = cell.initial_state(2, reduction)
    stacked = plain.clone()
    for t, token in enumerate(random_tokens(1, 2, 9).T):
        active = None if t % 4 else torch.tensor([True, t % 8 == 0])
        expected, plain = plain_loop(cell, token, plain, active)
        logits, stacked = (cell.step_ if in_place else cell.step)(token, stacked, active=active)
        rows = slice(None) if active is None else active
        assert_close(logits[rows], expected[rows], 1e-12)
    assert_same(stacked, plain, 1e-12)


@pytest.mark.parametrize("reduction", ["full", ["tova:3", "window:3"], ["tova:3", "tova:4"]])
def test_unbounded_layers_and_layers_that_differ_are_not_stacked(reduction):
    cell = tiny_cell()
    state = cell.initial_state(2, reduction)
    for token in random_tokens(1, 2, 5).T:
        _, state = cell.step(token, state)
    x = cell.embed_tokens(token, state.clock)
    prepared = cell.prepare_positions(state.clock, x.dtype)
    assert stacked_step(list(cell.layers), x, state, prepared, None, in_place=False) is None


@pytest.mark.parametrize("first", [0, 1, 2])
def test_graph_that_begins_in_a_later_layer_is_recorded_and_each_layer_runs_once(first):
    """A hook may bring in a trainable tensor in the middle of the network."""
    cell, shift = tiny_cell(n_layers=3), torch.zeros(24, dtype=torch.float64, requires_grad=True)
    calls = [0, 0, 0]

    def count(i):
        def hook(*_):
            calls[i] += 1

        return hook

    for i, layer in enumerate(cell.layers):
        layer.o.register_forward_hook(count(i))
    text = random_tokens(1, 2, 6)
    state = cell.initial_state(2, "tova:3")
    for token in text.T[:5]:
        _, state = cell.step(token, state)
    expected, end = plain_loop(cell, text[:, 5], state)
    cell.layers[first].q.register_forward_hook(lambda _, __, out: out + shift)
    calls[:] = [0, 0, 0]
    logits, after = cell.step(text[:, 5], state)
    assert calls == [1, 1, 1]
    assert_close(logits.detach(), expected, 1e-12)
    assert_same(after.detach(), end, 1e-12)
    logits.sum().backward()
    assert bool(shift.grad.abs().sum() > 0)


def test_stacked_step_of_a_frozen_cell_builds_no_graph():
    cell = tiny_cell()
    logits, state = cell.step(random_tokens(1, 2, 1)[:, 0], cell.initial_state(2, msrnn.TOVA(3)))
    assert not logits.requires_grad
    assert not state.requires_grad
