"""The fast product is the plain one."""

import copy

import pytest
import torch
from tiny import close, fold, tiny_cell, tokens
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


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", ["full", "tova:6", "h2o:6", "window:6"])
def test_16_bits_fold_as_they_step(reduction, dtype, native, monkeypatch):
    """By products of 16 bits, or where the CPU has none of float32: up to rounding the fold is the step loop, in its dtype."""
    monkeypatch.setitem(module.NATIVE, dtype, native)
    cell, text = tiny_cell(dtype=dtype), tokens(1, 2, 7)
    logits, state = cell(text, cell.initial_state(2, reduction))
    stepped, _ = fold(cell, text, cell.initial_state(2, reduction))
    assert logits.dtype == state[0].keys.dtype == dtype
    assert all(x.dtype == torch.float32 for x in state[0].numbers.values())
    assert (logits - stepped).abs().mean() < 0.1 * stepped.abs().mean()
    wide, _ = tiny_cell(dtype=torch.float32)(text, None)
    if reduction == "full":
        assert (logits - wide).abs().mean() < 0.1 * wide.abs().mean()


def test_few_rows_of_16_bits_are_multiplied_as_they_are(monkeypatch):
    monkeypatch.setitem(module.NATIVE, torch.bfloat16, False)
    weight, asked = torch.randn(40, 24).bfloat16(), []
    monkeypatch.setattr(module.functional, "linear", lambda x, w: asked.append(w.dtype) or linear(x, w))
    monkeypatch.setattr(module, "HAS_KERNEL", False)
    for rows in (1, 3, 4, 9):
        x = torch.randn(rows, 24).bfloat16()
        assert torch.allclose(product(x, weight), linear(x, weight), rtol=1e-2, atol=1e-2)
    assert asked == [torch.bfloat16] * 2 + [torch.float32] * 2


def test_gradients_flow():
    x, weight = torch.randn(3, 8, requires_grad=True), torch.randn(5, 8, requires_grad=True)
    product(x, weight).sum().backward()
    assert torch.allclose(weight.grad, x.detach().sum(0).expand(5, 8), atol=1e-5)
    assert torch.allclose(x.grad, weight.detach().sum(0).expand(3, 8), atol=1e-5)


@pytest.mark.skipif(not module.HAS_KERNEL, reason="this torch has no oneDNN kernel, so there is one way only")
def test_the_kernel_meets_few_numbers_of_rows(monkeypatch):
    """It keeps code for each, so texts of any length must not make many."""
    kernel, met = torch.ops.mkldnn._linear_pointwise, set()
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", lambda x, *a: met.add(x.numel() // 24) or kernel(x, *a))
    weight = torch.randn(40, 24)
    for rows in range(1, 1025, 3):
        x = torch.randn(rows, 24)
        y = product(x, weight)
        assert y.shape == (rows, 40)
        assert torch.allclose(y, linear(x, weight), rtol=1e-5, atol=1e-5)
    assert len(met) <= 34
    assert product(torch.randn(5, 7, 24), weight).shape == (5, 7, 40)


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
