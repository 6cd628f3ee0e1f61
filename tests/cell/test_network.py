"""The loops over the layers with operators that differ per layer, and with modules that a user has replaced."""

import copy
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from support.tiny_models import assert_close, assert_same, random_tokens, step_loop, tiny_cell
from torch.func import functional_call
from torch.nn.utils import parametrize, prune

import msrnn
from msrnn import Window


@pytest.mark.parametrize(
    "operators", [["window:4", "tova:4"], ["h2o:4", "window:4"], ["random:4", "tova:4"], ["sinks:8:1", "cam:8"]]
)
def test_layers_with_different_operators_of_one_size(operators):
    """The block length depends on the operator, so only layers with equal blocks may share work."""
    cell, text = tiny_cell(), random_tokens(3, 1, 100)
    logits, state = cell(text, cell.initial_state(1, operators))
    expected, end = step_loop(cell, text, cell.initial_state(1, operators))
    assert_close(logits, expected, 1e-8)
    assert_same(state, end, 1e-8)
    msrnn.prefill(cell, text, ["tova:8", "h2o:8"])


@dataclass(frozen=True)
class MergingWindow(Window):
    """A window that adds a tenth of the evicted value to the newest row. It needs no weights."""

    merges_values: ClassVar[bool] = True

    def merge(self, observation, values, row):
        evicted = values.gather(2, row[..., None, None].expand(-1, -1, 1, values.shape[-1]))
        return torch.cat((values[:, :, :-1], values[:, :, -1:] + 0.1 * evicted), dim=2)


def test_operator_that_needs_no_weights_and_merges_values():
    cell, text = tiny_cell(), random_tokens(3, 2, 20)
    logits, state = cell(text, cell.initial_state(2, MergingWindow(4)))
    expected, end = step_loop(cell, text, cell.initial_state(2, MergingWindow(4)))
    assert_close(logits, expected, 1e-8)
    assert_same(state, end, 1e-8)


def test_pruned_module_can_be_moved_and_a_replaced_forward_is_called():
    cell, text = tiny_cell(dtype=torch.float32), random_tokens(8, 1, 4)
    prune.random_unstructured(cell.layers[0].k, "weight", 0.5)
    expected = cell(text)[0]
    assert_close(cell.to(torch.float64).to(torch.float32)(text)[0], expected, 1e-5)
    called, q = [], cell.layers[1].q
    forward = q.forward
    q.forward = lambda x: called.append("q") or forward(x)
    cell.step(text[:, 0])
    assert called == ["q"]


FINGERPRINT_PARAMETERS = ["embed", "layers.0.q", "layers.1.down", "norm"]


def test_functional_call_with_other_parameters():
    cell, text = tiny_cell(), random_tokens(8, 2, 9)
    other = tiny_cell(seed=1)
    logits, state = functional_call(cell, dict(other.named_parameters()), (text,))
    expected, after = other(text)
    assert_close(logits, expected, 1e-12)
    assert_same(state, after, 1e-12)
    assert_close(cell(text)[0], tiny_cell()(text)[0], 0)


class Negated(torch.nn.Module):
    def forward(self, x):
        return -x


@pytest.mark.parametrize("name", FINGERPRINT_PARAMETERS)
def test_parametrized_module_is_used_in_the_step_and_in_a_call(name):
    """These parameters enter the fingerprint, so the cell reads them by name."""
    cell, text = tiny_cell(), random_tokens(8, 2, 9)
    expected_cell = copy.deepcopy(cell)
    with torch.no_grad():
        expected_cell.get_submodule(name).weight.neg_()
    parametrize.register_parametrization(cell.get_submodule(name), "weight", Negated())
    expected, _ = expected_cell(text)
    assert_close(cell(text)[0], expected, 1e-12)
    assert_close(step_loop(cell, text)[0], expected, 1e-9)


def test_pruned_fingerprint_parameter_is_used_in_the_step_and_in_a_call():
    cell, text = tiny_cell(), random_tokens(8, 2, 9)
    prune.random_unstructured(cell.layers[0].q, "weight", 0.5)
    assert_close(step_loop(cell, text)[0], cell(text)[0], 1e-9)
    assert (cell(text)[0] - tiny_cell()(text)[0]).abs().max() > 1e-3


@pytest.mark.parametrize("name", FINGERPRINT_PARAMETERS)
def test_fingerprint_follows_an_edit_of_a_parameter(name):
    cell = tiny_cell()
    before = cell.fingerprint()
    assert cell.fingerprint() is before
    with torch.no_grad():
        cell.get_submodule(name).weight.mul_(2)
    assert not cell.fingerprint().matches(before)
