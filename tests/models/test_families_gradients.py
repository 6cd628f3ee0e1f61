"""Tests that gradients of every family are the same by the step loop and by many tokens, and equal finite differences."""

import copy

import pytest
import torch
from support.tape import Tape
from support.tiny_families import NEW, tiny_family
from support.tiny_models import assert_close, assert_same, random_tokens, step_loop

import msrnn
from msrnn.cell import capture

TEXT = random_tokens(1, 2, 10)


def gradients(cell, logits):
    generator = torch.Generator().manual_seed(0)
    cotangent = torch.randn(logits.shape, generator=generator, dtype=logits.dtype)
    found = torch.autograd.grad((logits * cotangent).sum(), list(cell.parameters()), allow_unused=True)
    return dict(zip(dict(cell.named_parameters()), found, strict=True)), cotangent


@pytest.mark.parametrize("family", NEW)
@pytest.mark.parametrize("spec", [None, "tova:4", "all-layers:h2o:4"])
def test_every_parameter_has_the_same_gradient_by_both_paths(family, spec):
    """This includes biases, norms of queries and keys, sinks, and norms with the gain 1 + weight."""
    cell = tiny_family(family, frozen=False)
    state = cell.initial_state(2, spec)
    stepped, _ = gradients(cell, step_loop(cell, TEXT, state)[0])
    read, _ = gradients(cell, cell(TEXT, state)[0])
    scanned, _ = gradients(cell, cell.scan(TEXT, state)[0])
    for name, expected in stepped.items():
        assert expected is not None, name
        assert expected.abs().max() > 1e-9, name
        assert_close(read[name], expected, 1e-8)
        assert_close(scanned[name], expected, 1e-8)


@pytest.mark.parametrize("family", NEW)
def test_gradients_equal_finite_differences(family):
    cell = tiny_family(family, frozen=False)
    found, cotangent = gradients(cell, cell(TEXT, cell.initial_state(2, "tova:4"))[0])
    generator, moved = torch.Generator().manual_seed(1), copy.deepcopy(cell).requires_grad_(False)
    direction = {name: torch.randn(x.shape, generator=generator, dtype=x.dtype) for name, x in moved.named_parameters()}

    def value(step):
        for (name, x), start in zip(moved.named_parameters(), cell.parameters(), strict=True):
            x.copy_(start.detach() + step * direction[name])
        return float((moved(TEXT, moved.initial_state(2, "tova:4"))[0] * cotangent).sum())

    expected = (value(1e-6) - value(-1e-6)) / 2e-6
    derivative = sum(float((found[name] * direction[name]).sum()) for name in direction)
    assert abs(derivative - expected) < 1e-5 * max(1, abs(expected))


@pytest.mark.parametrize("family", ["gemma3", "granite_swa"])
@pytest.mark.parametrize("spec", [None, "tova:4"])
def test_torch_func_per_sequence_gradients_equal_a_loop(family, spec):
    cell = tiny_family(family)
    parameters = {name: x.detach() for name, x in cell.named_parameters()}

    def loss(parameters, token):
        logits = torch.func.functional_call(StepLoop(cell, spec), _prefixed(parameters), (token[:, None],))
        return logits.square().mean()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, TEXT)
    for b in range(2):
        alone = torch.func.grad(loss)(parameters, TEXT[b])
        for name, x in alone.items():
            assert_close(found[name][b], x, 1e-8)
    assert found["layers.0.q.weight"].abs().max() > 1e-9


class StepLoop(torch.nn.Module):
    """The step loop of a cell as a module, over tokens ``(T, B)``."""

    def __init__(self, cell, spec):
        super().__init__()
        self.cell, self.spec = cell, spec

    def forward(self, tokens):
        state, logits = self.cell.initial_state(tokens.shape[1], self.spec), []
        for token in tokens:
            read, state = self.cell.step(token, state)
            logits.append(read)
        return torch.stack(logits)


def _prefixed(parameters):
    return {f"cell.{name}": x for name, x in parameters.items()}


@pytest.mark.parametrize("family", ["gemma2", "granite_swa"])
def test_a_compiled_step_equals_step(family):
    cell = tiny_family(family, dtype=torch.float32)
    _, state = cell(random_tokens(2, 1, 12), cell.initial_state(1, "all-layers:tova:4"))
    compiled = torch.compile(cell.step, backend="eager", fullgraph=True)
    same = state
    for token in TEXT[:1, :2].T:
        expected, state = cell.step(token, state)
        logits, same = compiled(token, same)
        assert_close(logits, expected, 1e-4)


@pytest.mark.parametrize("family", NEW)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_captured_step_equals_step(family, dtype, monkeypatch):
    """A recording on the CPU takes the place of a CUDA graph, and refuses operations that a graph cannot repeat."""
    monkeypatch.setitem(capture.GRAPHS, "cpu", Tape)
    cell = tiny_family(family, dtype=dtype)
    _, state = cell(random_tokens(3, 2, 12), cell.initial_state(2, "all-layers:tova:4"))
    captured = cell.capture(state)
    for token in TEXT.T:
        expected, state = cell.step(token, state)
        assert_close(captured(token)[0], expected, 0)
    assert_same(captured.state, state)


@pytest.mark.parametrize("family", NEW)
def test_capture_is_refused_on_the_cpu_by_name(family):
    cell = tiny_family(family)
    with pytest.raises(msrnn.Error, match="capture: the cell is on cpu; expected cuda, or step_ instead"):
        cell.capture(cell(TEXT, cell.initial_state(2, "all-layers:tova:4"))[1])
