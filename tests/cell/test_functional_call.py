"""``torch.func`` over the parameters of a cell: other parameters, ensembles and gradients, by a call and by steps."""

import copy

import pytest
import torch
from support.tiny_models import assert_close, assert_same, random_tokens, step_loop, tiny_cell, tiny_decoder
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

import msrnn

TEXT = random_tokens(8, 2, 9)
MAKE = {"llama": tiny_cell, "decoder": lambda seed=0: tiny_decoder(seed, positions="learned", memory_tokens=2)}


class Reader(nn.Module):
    """A module that reads a text by steps or by a call, so that ``functional_call`` can be applied to both."""

    def __init__(self, cell, reduction, in_steps):
        super().__init__()
        self.cell, self.reduction, self.in_steps = cell, reduction, in_steps

    def forward(self, text):
        state = self.cell.initial_state(len(text), self.reduction)
        if not self.in_steps:
            return self.cell(text, state)
        logits = []
        for token in text.T:
            part, state = self.cell.step(token, state)
            logits.append(part)
        return torch.stack(logits, dim=1), state


def parameters(cell):
    return {f"cell.{name}": x.detach().clone() for name, x in cell.named_parameters()}


@pytest.mark.parametrize("in_steps", [True, False])
@pytest.mark.parametrize("reduction", ["full", "tova:4"])
@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_other_parameters(make, reduction, in_steps):
    cell, other = make(), make(seed=1)
    before = Reader(cell, reduction, in_steps)(TEXT)[0]
    logits, state = functional_call(Reader(cell, reduction, in_steps), parameters(other), (TEXT,))
    expected, after = step_loop(other, TEXT, other.initial_state(2, reduction))
    assert_close(logits, expected, 1e-9)
    assert_same(state, after, 1e-9)
    assert Reader(cell, reduction, in_steps)(TEXT)[0].equal(before)
    with pytest.raises(msrnn.Error, match="another model"):
        cell.step(TEXT[:, 0], state)


@pytest.mark.parametrize("in_steps", [True, False])
@pytest.mark.parametrize("reduction", ["full", "tova:4", "h2o:4"])
@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_gradients(make, reduction, in_steps):
    cell = make()
    trainable = copy.deepcopy(cell).requires_grad_()
    step_loop(trainable, TEXT, trainable.initial_state(2, reduction))[0].tanh().sum().backward()

    def loss(p):
        return functional_call(Reader(cell, reduction, in_steps), p, (TEXT,))[0].tanh().sum()

    gradients = grad(loss)(parameters(cell))
    for name, x in trainable.named_parameters():
        assert_close(gradients[f"cell.{name}"], torch.zeros_like(x) if x.grad is None else x.grad, 1e-9)


@pytest.mark.parametrize("reduction", ["full", "tova:4", "h2o:4"])
def test_ensembles_step_under_vmap_and_a_call_is_refused(reduction):
    cells = [tiny_cell(seed) for seed in range(3)]
    stacked = {f"cell.{name}": x.detach() for name, x in stack_module_state(cells)[0].items()}

    def read(in_steps):
        return vmap(lambda p: functional_call(Reader(cells[0], reduction, in_steps), p, (TEXT,))[0])(stacked)

    expected = torch.stack([step_loop(cell, TEXT, cell.initial_state(2, reduction))[0] for cell in cells])
    assert_close(read(True), expected, 1e-9)
    with pytest.raises(msrnn.Error, match=r"vmap cannot read many tokens at once; expected cell\.step"):
        read(False)
