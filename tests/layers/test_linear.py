"""The fast product is the plain one."""

import copy

import pytest
import safetensors.torch
import torch
from support.tiny_models import close, fold, tiny_cell, tokens
from torch.nn.functional import linear

import msrnn
from msrnn.layers import linear as module
from msrnn.layers.linear import product


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
    assert all(x.dtype == torch.float32 for x in state[0].row_stats.values())
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
    "load_state_dict": lambda cell: cell.load_state_dict(other_parameters()) and cell,
    "load_state_dict, assigned": lambda cell: cell.load_state_dict(other_parameters(), assign=True) and cell,
    **{
        f"{name} edited in place": lambda cell, name=name: (
            cell.get_submodule(f"layers.0.{name}").weight.mul_(1.5) is not None and cell
        )
        for name in ("q", "k", "v", "o", "gate", "up", "down")
    },
    "k given other data": lambda cell: setattr(cell.layers[0].k.weight, "data", torch.randn(12, 24)) or cell,
    "up a new parameter": lambda cell: setattr(cell.layers[1].up, "weight", torch.nn.Parameter(torch.randn(32, 24))) or cell,
    "v another module": lambda cell: setattr(cell.layers[0], "v", torch.nn.Linear(24, 12)) or cell,
    "k and v sharing": lambda cell: setattr(cell.layers[0].v, "weight", cell.layers[0].k.weight) or cell,
}


def other_parameters():
    return {name: x.clone() for name, x in tiny_cell(seed=3, dtype=torch.float32).state_dict().items()}


@pytest.mark.skipif(not module.HAS_KERNEL, reason="this torch has no oneDNN kernel, so there is one way only")
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_cells_logits_are_those_of_plain_products(change, monkeypatch):
    cell, text = tiny_cell(dtype=torch.float32), tokens(1, 2, 7)
    cell(text)  # whatever a first call may leave behind
    cell = change(cell)
    fast, state = cell(text)
    cell.requires_grad_(False)  # a parameter may be new
    _, stepped = cell.step_(text[:, 0], state.detach().clone())
    monkeypatch.setattr(module, "HAS_KERNEL", False)
    monkeypatch.setattr(module, "_joined", lambda weights: None)
    close(fast, cell(text)[0], 1e-4)
    close(stepped[0].keys, cell.step(text[:, 0], state)[1][0].keys, 1e-4)


def joined(layer):
    return all(
        module._joined([m.weight for m in some]) is not None for some in ((layer.q, layer.k, layer.v), (layer.gate, layer.up))
    )


def test_matrices_that_read_the_same_lie_together_and_are_held_once(tmp_path):
    cell = tiny_cell(dtype=torch.float32)
    cell.save(tmp_path / "folder")
    moved = {
        "built": cell,
        "loaded": msrnn.load(tmp_path / "folder"),
        "loaded in another type": msrnn.load(tmp_path / "folder", dtype=torch.bfloat16),
        "copied": copy.deepcopy(cell),
        "moved": copy.deepcopy(cell).to(torch.float64),
        "from meta": copy.deepcopy(cell).to("meta").to_empty(device="cpu"),
    }
    for name, now in moved.items():
        assert all(map(joined, now.layers)), name
        storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in now.parameters()}
        assert sum(storages.values()) == sum(x.nbytes for x in now.parameters()), name
        assert {n: x.shape for n, x in now.state_dict().items()} == {n: x.shape for n, x in cell.state_dict().items()}, name
    safetensors.torch.save_file(cell.state_dict(), tmp_path / "other.safetensors")
    for name, x in safetensors.torch.load_file(tmp_path / "other.safetensors").items():
        assert x.equal(cell.state_dict()[name])


def test_a_hook_on_one_of_them_is_called():
    cell, called = tiny_cell(dtype=torch.float32), []
    cell.layers[0].k.register_forward_hook(lambda *_: called.append("k"))
    cell.layers[1].up.register_forward_pre_hook(lambda *_: called.append("up"))
    cell.step(tokens(1, 2, 1)[:, 0])
    assert called == ["k", "up"]


def test_neighbours_by_chance_are_no_matrix():
    """Two storages may touch; reading on from one into the other is refused."""
    whole = torch.randn(8, 4)
    shorter = torch.empty(0).set_(whole.untyped_storage(), 0, (4, 4))
    parts = [torch.nn.Parameter(shorter), torch.nn.Parameter(whole[4:])]
    assert module._joined(parts).equal(whole)
    assert module._joined(parts[::-1]) is None
    assert module._joined([parts[0], torch.nn.Parameter(whole[4:].clone())]) is None
    assert module._joined([torch.nn.Parameter(whole[:4].mT), parts[1]]) is None
