"""The fast product is the plain one."""

import copy

import pytest
import torch
from tiny import close, tiny_cell, tokens
from torch.nn.functional import linear

from msrnn import linear as module
from msrnn.linear import product


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 24), (3, 24), (2, 5, 24), (0, 24), (2, 0, 24), (300, 24)])
def test_product_is_linear(shape, dtype):
    x, weight = torch.randn(shape).to(dtype), torch.randn(40, 24).to(dtype)
    y = product(x, weight)
    assert y.dtype == dtype
    assert y.shape == (*shape[:-1], 40)
    assert torch.allclose(y, linear(x, weight), rtol=1e-5, atol=1e-5)
    strided = torch.randn(24, 40).to(dtype).mT
    assert torch.allclose(product(x, strided), linear(x, strided), rtol=1e-5, atol=1e-5)


def test_gradients_flow():
    x, weight = torch.randn(3, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    product(x, weight).sum().backward()
    assert torch.allclose(weight.grad, x.detach().sum(0).expand(5, 8))
    assert torch.allclose(x.grad, weight.detach().sum(0).expand(3, 8))


CHANGES = {
    "nothing": lambda cell: cell,
    "to float64": lambda cell: cell.to(torch.float64),
    "half and back": lambda cell: cell.half().float(),
    "a deep copy": lambda cell: copy.deepcopy(cell),
    "load_state_dict": lambda cell: cell.load_state_dict(tiny_cell(seed=3, dtype=torch.float32).state_dict()) and cell,
    "edited in place": lambda cell: cell.layers[0].q.weight.mul_(1.5) is not None and cell,
}


@pytest.mark.skipif(not module.HAS_KERNEL, reason="this torch has no oneDNN kernel, so there is one way only")
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_cells_logits_are_those_of_plain_products(change, monkeypatch):
    cell, text = tiny_cell(dtype=torch.float32), tokens(1, 2, 7)
    cell(text)  # whatever a first call may leave behind
    cell = change(cell)
    fast, _ = cell(text)
    monkeypatch.setattr(module, "HAS_KERNEL", False)
    close(fast, cell(text)[0], 1e-4)
