"""Gradients through the cell: of the step loop and of the many-token call, through states, and of single projections."""

import pytest
import torch
from support.tiny_models import assert_close, random_tokens, retained_positions, step_loop, tiny_cell

import msrnn
from msrnn import H2O, TOVA, Full, Window


@pytest.mark.parametrize("reduction", [TOVA(3), TOVA(3, per_head=True), H2O(4), Window(3), Full()], ids=str)
def test_gradients_equal_finite_differences_while_the_evictions_stay_the_same(reduction):
    cell = tiny_cell(seed=4, frozen=False, n_layers=2)
    text = random_tokens(7, 2, 9)
    target = torch.randn(2, 9, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def loss():
        logits, state = cell(text, cell.initial_state(2, reduction))
        return (logits.tanh() * target).sum(), retained_positions(state)

    value, retained = loss()
    value.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in cell.parameters())
    parameters = [cell.embed.weight, cell.head.weight, cell.norm.weight]
    parameters += [p for layer in cell.layers for p in layer.parameters()]
    delta = 1e-6
    for p in parameters:
        i = p.grad.abs().argmax()  # the largest gradient, because a gradient of 0 would compare nothing
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                p.view(-1)[i] += sign * delta
                value, same = loss()
                p.view(-1)[i] -= sign * delta
            assert same == retained
            values.append(value)
        torch.testing.assert_close(p.grad.view(-1)[i], (values[0] - values[1]) / (2 * delta), rtol=1e-6, atol=1e-7)


def test_gradients_flow_through_a_state_until_it_is_detached():
    cell, text, token = tiny_cell(frozen=False), random_tokens(1, 1, 6), random_tokens(2, 1, 1)[:, 0]
    _, state = cell(text, cell.initial_state(1, TOVA(3)))
    assert state.requires_grad
    for detached in (False, True):
        cell.zero_grad()
        logits, _ = cell.step(token, state.detach() if detached else state)
        logits.sum().backward(retain_graph=True)
        gradient = cell.embed.weight.grad.abs().sum(1)
        for position in retained_positions(state)[0][0][0]:
            id = text[0, position]
            assert (gradient[id] > 0) != detached or id == token[0]


def test_statistics_of_operators_carry_no_graph():
    cell = tiny_cell(frozen=False)
    _, state = cell(random_tokens(1, 1, 6), cell.initial_state(1, H2O(3)))
    assert not any(x.requires_grad for H in state for x in H.row_stats.values())


def test_step_in_place_refuses_a_graph():
    token = random_tokens(1, 2, 1)[:, 0]
    trainable, frozen = tiny_cell(frozen=False), tiny_cell()
    with pytest.raises(msrnn.Error, match="in place"):
        trainable.step_(token, trainable.initial_state(2))
    with torch.no_grad():
        trainable.step_(token, trainable.initial_state(2))
    _, with_graph = trainable.step(token)
    with pytest.raises(msrnn.Error, match="in place"):
        frozen.step_(token, with_graph)


def test_frozen_cell_builds_no_graph():
    cell = tiny_cell()
    logits, state = cell(random_tokens(1, 2, 5))
    assert not logits.requires_grad
    assert not state.requires_grad
    logits, state = cell.step(random_tokens(1, 2, 1)[:, 0], state)
    assert not logits.requires_grad
    assert not state.requires_grad


@pytest.mark.parametrize("reduction", ["tova:3", "window:2", "h2o:3", "full"])
def test_state_with_a_graph_is_never_modified(reduction):
    cell = tiny_cell(frozen=False)
    _, state = cell(random_tokens(2, 2, 6), cell.initial_state(2, reduction))
    token = torch.tensor([3, 4])
    with torch.no_grad():
        with pytest.raises(msrnn.Error, match="graph"):
            cell.step_(token, state)
        expected, _ = cell.step(token, state)
        logits, _ = cell.step_(token, state.detach())
    assert torch.equal(logits, expected)
    state[-1].keys.sum().backward()  # raises if a tensor that the graph saved was modified
    assert cell.embed.weight.grad is not None


@pytest.mark.parametrize("name", ["q", "k", "v", "o"])
@pytest.mark.parametrize("reduction", ["tova:3", "window:2", "h2o:3"])
def test_gradient_of_a_single_projection_is_the_same_by_steps_and_by_a_call(name, reduction):
    """The graph may need rows that require no gradient themselves: with q alone trainable, the keys."""
    gradients = []
    for read in (step_loop, lambda cell, text, state: cell(text, state)):
        cell = tiny_cell()
        weight = cell.layers[0].get_parameter(f"{name}.weight").requires_grad_()
        logits, _ = read(cell, random_tokens(2, 2, 7), cell.initial_state(2, reduction))
        logits.tanh().sum().backward()
        gradients.append(weight.grad)
    assert gradients[0].abs().max() > 0
    assert_close(*gradients, 1e-8)


@pytest.mark.parametrize("reduction", ["tova:3", "window:3", "h2o:3", "full"])
def test_gradient_of_a_tensor_from_a_hook_is_the_same_by_steps_and_by_a_call(reduction):
    cell, text = tiny_cell(), random_tokens(7, 2, 8)
    added = torch.zeros(24, dtype=torch.float64, requires_grad=True)
    cell.layers[0].o.register_forward_hook(lambda module, inputs, output: output + added)
    gradients = []
    for read in (step_loop, lambda cell, text, state: cell(text, state)):
        logits, _ = read(cell, text, cell.initial_state(2, reduction))
        gradients.append(torch.autograd.grad(logits.square().sum(), added)[0])
    assert_close(*gradients, 1e-8)
    assert gradients[0].abs().sum() > 0
