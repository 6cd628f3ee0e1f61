"""Layers that differ, rows that stand still, hooks and odd modules: what runs on shortcuts still means the step loop."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from support.tiny_models import assert_close, assert_same, random_tokens, step_loop, tiny_cell
from torch.nn.utils import prune

import msrnn
from msrnn import Window


@pytest.mark.parametrize(
    "forms", [["window:4", "tova:4"], ["h2o:4", "window:4"], ["random:4", "tova:4"], ["sinks:8:1", "cam:8"]]
)
def test_layers_of_one_size_and_several_operators(forms):
    """They decide in blocks of different lengths, so what they share is shared by blocks of the same."""
    cell, text = tiny_cell(), random_tokens(3, 1, 100)
    logits, state = cell(text, cell.initial_state(1, forms))
    expected, end = step_loop(cell, text, cell.initial_state(1, forms))
    assert_close(logits, expected, 1e-8)
    assert_same(state, end, 1e-8)
    msrnn.prefill(cell, text, ["tova:8", "h2o:8"])


@dataclass(frozen=True)
class Lump(Window):
    """Blind, and what leaves is added to the newest row."""

    merges_values: ClassVar[bool] = True

    def merge(self, seen, values, row):
        gone = values.gather(2, row[..., None, None].expand(-1, -1, 1, values.shape[-1]))
        return torch.cat((values[:, :, :-1], values[:, :, -1:] + 0.1 * gone), dim=2)


def test_a_blind_operator_that_merges():
    cell, text = tiny_cell(), random_tokens(3, 2, 20)
    logits, state = cell(text, cell.initial_state(2, Lump(4)))
    expected, end = step_loop(cell, text, cell.initial_state(2, Lump(4)))
    assert_close(logits, expected, 1e-8)
    assert_same(state, end, 1e-8)


@pytest.mark.parametrize("reduction", ["tova:12", "h2o:200", "window:12"])
def test_a_trace_from_a_state_whose_first_row_is_empty(reduction):
    cell, text = tiny_cell(), random_tokens(4, 2, 90)
    _, state = cell.step(torch.tensor([3, 4]), cell.initial_state(2, reduction), active=torch.tensor([True, False]))
    for token in text[:, :4].T:
        _, state = cell.step(token, state)
    _, trace = cell.scan(text[:, 4:], state)
    assert_same(trace.at(70), cell(text[:, 4:74], state)[1], 1e-8)


@pytest.mark.parametrize("reduction", ["tova:34", "h2o:34", "cam:34"])
def test_a_trace_outlives_steps_in_place_on_the_state_it_began_from(reduction):
    cell, text = tiny_cell(), random_tokens(5, 1, 120)
    _, state = cell(text[:, :32], cell.initial_state(1, reduction))
    _, state = cell.step_(text[:, 32], state)
    before = state.clone()
    (_, trace), (_, nothing) = cell.scan(text[:, 33:113], state), cell.scan(text[:, :0], state)
    for token in text[:, 113:117].T:
        cell.step_(token, state)
    assert_same(trace.at(75), cell(text[:, 33:108], before)[1], 1e-8)
    assert_same(nothing.at(0), before, 1e-8)


def test_a_change_of_every_tensor_sees_one_layer_at_a_time():
    cell = tiny_cell()
    state = cell.initial_state(2, "tova:3")
    for token in random_tokens(6, 2, 5).T:
        _, state = cell.step(token, state)
    turned = state.map(lambda x: x.flip(0))
    for H, G in zip(state, turned, strict=True):
        assert G.keys.equal(H.keys.flip(0))
    assert state.map(lambda x: x[1:2]).clock.shape == (1,)


@pytest.mark.parametrize("reduction", ["tova:3", "window:3", "h2o:3", "full"])
def test_what_a_hook_brings_in_is_trained_through_steps(reduction):
    cell, text = tiny_cell(), random_tokens(7, 2, 8)
    added = torch.zeros(24, dtype=torch.float64, requires_grad=True)
    cell.layers[0].o.register_forward_hook(lambda module, inputs, output: output + added)
    ways = []
    for way in (lambda state: cell(text, state)[0], lambda state: step_loop(cell, text, state)[0]):
        ways.append(torch.autograd.grad(way(cell.initial_state(2, reduction)).square().sum(), added)[0])
    assert_close(ways[0], ways[1], 1e-8)
    assert ways[0].abs().sum() > 0


def test_odd_modules_are_moved_and_called_as_they_are():
    cell, text = tiny_cell(dtype=torch.float32), random_tokens(8, 1, 4)
    prune.random_unstructured(cell.layers[0].k, "weight", 0.5)
    expected = cell(text)[0]
    assert_close(cell.to(torch.float64).to(torch.float32)(text)[0], expected, 1e-5)
    called, layer = [], cell.layers[1]
    inner = layer.q.forward
    layer.q.forward = lambda x: called.append("q") or inner(x)
    cell.step(text[:, 0])
    assert called == ["q"]


def test_a_step_leaves_a_graph_on_the_rows_before_it_whole():
    """A pure step writes behind rows that a loss of one's own may have saved."""
    cell = tiny_cell()
    _, state = cell(random_tokens(0, 1, 40), cell.initial_state(1, "full"))
    _, state = cell.step(random_tokens(1, 1, 1)[:, 0], state)  # it has room
    gain = torch.randn(6, dtype=torch.float64, requires_grad=True)
    loss = (state[0].keys * gain).sum() + (state[0].values * gain).sum() + (state[0].positions * gain[0]).sum()
    cell.step(random_tokens(2, 1, 1)[:, 0], state)
    loss.backward()
    expected = (state[0].keys + state[0].values).sum((0, 1, 2))
    expected[0] += state[0].positions.sum()
    torch.testing.assert_close(gain.grad, expected, atol=1e-12, rtol=0)
