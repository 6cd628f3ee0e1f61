"""Tests of the linear layers: the kernel, the 16-bit paths, and fused storage."""

import copy

import pytest
import safetensors.torch
import torch
from support.tiny_models import assert_close, random_tokens, step_loop, tiny_cell
from torch.nn import functional

import msrnn
from msrnn.layers import emulation
from msrnn.layers import linear as module
from msrnn.layers.linear import linear

RELATIVE_ERROR = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("dtype", RELATIVE_ERROR)
@pytest.mark.parametrize("shape", [(1, 24), (3, 24), (2, 5, 24), (0, 24), (2, 0, 24), (300, 24)])
def test_linear_equals_a_float64_product(shape, dtype, native, monkeypatch):
    monkeypatch.setattr(emulation, "HAS_NATIVE_16BIT", dict.fromkeys((torch.bfloat16, torch.float16), native))
    x, weight = random(*shape, dtype=dtype), random(40, 24, dtype=dtype, seed=1)
    expected = torch.einsum("...e,fe->...f", x.double(), weight.double())
    for matrix in (weight, weight.mT.contiguous().mT):
        y = linear(x, matrix)
        assert y.dtype == dtype
        assert y.shape == (*shape[:-1], 40)
        assert torch.allclose(y.double(), expected, rtol=RELATIVE_ERROR[dtype], atol=10 * RELATIVE_ERROR[dtype])


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduction", ["full", "tova:6", "h2o:6", "window:6"])
def test_unroll_and_step_loop_agree_in_16_bits(reduction, dtype, native, monkeypatch):
    """Equal up to rounding, with native and with emulated 16-bit products."""
    monkeypatch.setitem(emulation.HAS_NATIVE_16BIT, dtype, native)
    cell, text = tiny_cell(dtype=dtype), random_tokens(1, 2, 7)
    logits, state = cell(text, cell.initial_state(2, reduction))
    stepped, _ = step_loop(cell, text, cell.initial_state(2, reduction))
    assert logits.dtype == state[0].keys.dtype == dtype
    assert all(x.dtype == torch.float32 for x in state[0].row_stats.values())
    bound = 8 * torch.finfo(dtype).eps
    assert (logits - stepped).abs().mean() < bound * stepped.abs().mean()
    if reduction == "full":
        exact = tiny_cell(dtype=dtype).double()(text)[0]
        assert (logits - exact).abs().mean() < bound * exact.abs().mean()


def test_few_rows_of_16_bits_are_not_upcast(monkeypatch):
    monkeypatch.setitem(emulation.HAS_NATIVE_16BIT, torch.bfloat16, False)
    plain, dtypes, weight = functional.linear, [], random(40, 24, dtype=torch.bfloat16)
    monkeypatch.setattr(module.functional, "linear", lambda x, w: dtypes.append(w.dtype) or plain(x, w))
    monkeypatch.setattr(module, "HAS_KERNEL", False)
    for rows in (1, 3, 4, 9):
        linear(random(rows, 24, dtype=torch.bfloat16), weight)
    assert dtypes == [torch.bfloat16] * 2 + [torch.float32] * 2


def test_gradients_equal_those_of_a_product():
    x, weight = random(3, 8).requires_grad_(), random(5, 8, seed=1).requires_grad_()
    linear(x, weight).sum().backward()
    assert torch.allclose(weight.grad, x.detach().sum(0).expand(5, 8), atol=1e-5)
    assert torch.allclose(x.grad, weight.detach().sum(0).expand(3, 8), atol=1e-5)


@pytest.mark.skipif(not module.HAS_KERNEL, reason="this torch has no oneDNN kernel")
def test_the_kernel_is_called_with_few_numbers_of_rows(monkeypatch):
    """The kernel caches code for each number of rows, so the cache stays small for texts of any length."""
    kernel, called = torch.ops.mkldnn._linear_pointwise, set()
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", lambda x, *a: called.add(x.numel() // 24) or kernel(x, *a))
    weight = random(40, 24)
    for rows in range(1, 1025, 3):
        x = random(rows, 24, seed=rows)
        y = linear(x, weight)
        assert y.shape == (rows, 40)
        assert torch.allclose(y, functional.linear(x, weight), rtol=1e-5, atol=1e-5)
    assert 0 < len(called) <= 34
    assert linear(random(5, 7, 24), weight).shape == (5, 7, 40)


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


@pytest.mark.skipif(not module.HAS_KERNEL, reason="this torch has no oneDNN kernel")
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_logits_equal_those_of_separate_plain_products(change, monkeypatch):
    cell, text = tiny_cell(dtype=torch.float32), random_tokens(1, 2, 7)
    cell(text)  # a first call may cache
    cell = change(cell)
    fast, state = cell(text)
    cell.requires_grad_(False)  # the change may have set a new parameter
    _, stepped = cell.step_(text[:, 0], state.detach().clone())
    monkeypatch.setattr(module, "HAS_KERNEL", False)
    monkeypatch.setattr(module, "_fused_weight", lambda weights: None)
    assert_close(fast, cell(text)[0], 1e-4)
    assert_close(stepped[0].keys, cell.step(text[:, 0], state)[1][0].keys, 1e-4)


def is_fused(layer):
    groups = ((layer.q, layer.k, layer.v), (layer.gate, layer.up))
    return all(module._fused_weight([linear.weight for linear in group]) is not None for group in groups)


def test_fused_parameters_survive_every_move_and_are_stored_once(tmp_path):
    cell = tiny_cell(dtype=torch.float32)
    cell.save(tmp_path / "folder")
    moved = {
        "built": cell,
        "loaded": msrnn.load(tmp_path / "folder"),
        "loaded in another dtype": msrnn.load(tmp_path / "folder", dtype=torch.bfloat16),
        "copied": copy.deepcopy(cell),
        "moved": copy.deepcopy(cell).to(torch.float64),
        "from meta": copy.deepcopy(cell).to("meta").to_empty(device="cpu"),
    }
    for name, now in moved.items():
        assert all(map(is_fused, now.layers)), name
        storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in now.parameters()}
        assert sum(storages.values()) == sum(x.nbytes for x in now.parameters()), name
        assert {n: x.shape for n, x in now.state_dict().items()} == {n: x.shape for n, x in cell.state_dict().items()}, name
    safetensors.torch.save_file(cell.state_dict(), tmp_path / "other.safetensors")
    for name, x in safetensors.torch.load_file(tmp_path / "other.safetensors").items():
        assert x.equal(cell.state_dict()[name])


def test_only_small_groups_are_moved_into_one_storage(monkeypatch):
    cell = tiny_cell(dtype=torch.float32)
    qkv = sum(linear.weight.nbytes for linear in (cell.layers[0].q, cell.layers[0].k, cell.layers[0].v))
    for limit, fused in ((qkv, True), (qkv - 1, False)):
        monkeypatch.setattr(module, "MAX_MOVED_BYTES", limit)
        layer = copy.deepcopy(cell).layers[0]
        assert (module._fused_weight([layer.q.weight, layer.k.weight, layer.v.weight]) is not None) == fused
        text = random_tokens(1, 2, 9)
        assert_close(copy.deepcopy(cell)(text)[0], cell(text)[0], 1e-4)


def test_hooks_on_fused_modules_are_called():
    cell, called = tiny_cell(dtype=torch.float32), []
    cell.layers[0].k.register_forward_hook(lambda *_: called.append("k"))
    cell.layers[1].up.register_forward_pre_hook(lambda *_: called.append("up"))
    cell.step(random_tokens(1, 2, 1)[:, 0])
    assert called == ["k", "up"]


def test_adjacent_storages_are_not_one_matrix():
    """Two storages can be adjacent by chance; a view from one into the other is refused."""
    whole = torch.randn(8, 4)
    shorter = torch.empty(0).set_(whole.untyped_storage(), 0, (4, 4))
    parts = [torch.nn.Parameter(shorter), torch.nn.Parameter(whole[4:])]
    assert module._fused_weight(parts).equal(whole)
    assert module._fused_weight(parts[::-1]) is None
    assert module._fused_weight([parts[0], torch.nn.Parameter(whole[4:].clone())]) is None
    assert module._fused_weight([torch.nn.Parameter(whole[:4].mT), parts[1]]) is None
    memory = bytearray(whole.nbytes)
    halves = [torch.frombuffer(memory, dtype=torch.float32, count=16, offset=offset).view(4, 4) for offset in (0, 64)]
    assert halves[0].data_ptr() + halves[0].nbytes == halves[1].data_ptr()
    assert module._fused_weight([torch.nn.Parameter(half) for half in halves]) is None
