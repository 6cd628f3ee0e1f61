"""8-bit rows have no gradient: refused by name where one is needed. Other transforms work as for other dtypes."""

import pytest
import torch
from support.tiny_models import assert_close, assert_same, random_tokens, step_loop, tiny_cell, tiny_decoder

import msrnn

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # by forward-mode AD itself
TEXT = random_tokens(5, 1, 9)


@pytest.mark.parametrize("reduction", ["full", "tova:4", "window:4"])
def test_trainable_keys_are_refused_and_no_grad_is_the_way(reduction):
    cell = tiny_cell(frozen=False)
    state = cell.initial_state(1, reduction, dtype=torch.int8)
    for read in (lambda: cell(TEXT, state), lambda: cell.step(TEXT[:, 0], state), lambda: cell.scan(TEXT, state)):
        with pytest.raises(msrnn.Error, match=r"8-bit rows have no gradient.*no_grad"):
            read()
    with pytest.raises(msrnn.Error, match="step_ works in place"):
        cell.step_(TEXT[:, 0], state)
    with torch.no_grad():
        logits, end = cell(TEXT, state)
    expected, same = step_loop(tiny_cell(), TEXT, tiny_cell().initial_state(1, reduction, dtype=torch.int8))
    assert_close(logits, expected, 1e-8)
    assert_same(end, same)


def test_refusal_leaves_the_state_unchanged_and_usable():
    cell = tiny_cell(frozen=False)
    with torch.no_grad():
        _, state = cell(TEXT, cell.initial_state(1, "tova:4", dtype=torch.int8))
        expected, _ = cell.step(TEXT[:, 0], state)
    with pytest.raises(msrnn.Error, match="no gradient"):
        cell.step(TEXT[:, 0], state)
    with torch.no_grad():
        assert cell.step(TEXT[:, 0], state)[0].equal(expected)


@pytest.mark.parametrize("reduction", ["full", "tova:4"])
def test_gradients_of_parameters_behind_the_last_keys_are_exact(reduction):
    cell = tiny_cell(tied=False)
    cell.head.requires_grad_()
    state = cell.initial_state(1, reduction, dtype=torch.int8)
    (gradient,) = torch.autograd.grad(cell(TEXT, state)[0].square().sum(), [cell.head.weight])
    (expected,) = torch.autograd.grad(step_loop(cell, TEXT, state)[0].square().sum(), [cell.head.weight])
    assert_close(gradient, expected, 1e-8)
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("reduction", ["full", "tova:4"])
def test_forward_derivatives_and_torch_func_are_refused(reduction):
    cell = tiny_cell()
    _, state = cell(TEXT, cell.initial_state(1, reduction, dtype=torch.int8))
    x, H = torch.randn(1, 24, dtype=torch.float64), state[0]

    def output(x):
        return cell.layers[0].step(x, H)[0]

    for transform in (torch.func.jacrev(output), torch.func.jacfwd(output), lambda x: torch.func.jvp(output, (x,), (x,))):
        with pytest.raises(msrnn.Error, match="8-bit rows have no gradient"):
            transform(x)


@pytest.mark.parametrize("reduction", ["full", "tova:4", "h2o:4"])
def test_vmap_over_a_layer_equals_a_loop(reduction):
    cell = tiny_cell()
    _, state = cell(TEXT, cell.initial_state(1, reduction, dtype=torch.int8))
    x = torch.randn(3, 1, 24, dtype=torch.float64)
    outputs, keys = torch.func.vmap(lambda x: (lambda y: (y[0], y[1].keys))(cell.layers[0].step(x, state[0])))(x)
    for i in range(3):
        y, H = cell.layers[0].step(x[i], state[0])
        assert_close(outputs[i], y)
        assert keys[i].equal(H.keys)


@pytest.mark.parametrize("reduction", ["tova:4", "full"])
def test_compiled_step_is_one_graph_and_equals_the_plain_one(reduction):
    cell = tiny_cell()
    _, state = cell(TEXT, cell.initial_state(1, reduction, dtype=torch.int8))
    compiled = torch.compile(cell.step_, fullgraph=True, backend="eager")
    logits, after = compiled(TEXT[:, 0], state.clone())
    expected, end = cell.step(TEXT[:, 0], state)
    assert_close(logits, expected)
    assert_same(after, end, 1e-6)


def test_trainable_learned_rows_are_refused():
    cell = tiny_decoder(frozen=False, persistent=2)
    with pytest.raises(msrnn.Error, match="8-bit rows have no gradient"):
        cell.initial_state(1, dtype=torch.int8)
    with torch.no_grad():
        assert cell.initial_state(1, dtype=torch.int8).dtype == torch.int8
