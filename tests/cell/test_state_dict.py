"""State dicts of cells in the savers of other libraries: every parameter is written, once, without copies in memory."""

import copy
import io

import pytest
import safetensors.torch
import torch
from accelerate import Accelerator
from support.module_changes import CHANGES
from support.tiny_models import random_tokens, tiny_cell, tiny_decoder
from torch.nn.utils import prune

from msrnn.layers import linear

CELLS = {
    "untied": lambda: tiny_cell(dtype=torch.float32),
    "tied, 16 bits": lambda: tiny_cell(dtype=torch.bfloat16, tied=True),
    "decoder": lambda: tiny_decoder(bias=True, memory_tokens=2),
    "pruned and parametrized": lambda: changed(tiny_cell(dtype=torch.float32)),
    "in inference mode": lambda: torch.inference_mode()(tiny_cell)(dtype=torch.float32),
}


def changed(cell):
    prune.random_unstructured(cell.layers[0].k, "weight", 0.5)
    CHANGES["parametrization"](cell, "layers.1.up")
    CHANGES["lora"](cell, "layers.1.v")
    return cell


def save_model(cell, folder):
    safetensors.torch.save_model(cell, str(folder / "model.safetensors"))
    return safetensors.torch.load_file(folder / "model.safetensors")


def accelerate_model(cell, folder):
    Accelerator(cpu=True).save_model(cell, folder)
    return safetensors.torch.load_file(folder / "model.safetensors")


def save_file(cell, folder):
    safetensors.torch.save_file(cell.state_dict(), folder / "file.safetensors")
    return safetensors.torch.load_file(folder / "file.safetensors")


def torch_save(cell, folder):
    torch.save(cell.state_dict(), folder / "model.pt")
    return torch.load(folder / "model.pt", weights_only=True)


@pytest.mark.parametrize("save", [save_model, accelerate_model, save_file, torch_save])
@pytest.mark.parametrize("make", CELLS.values(), ids=CELLS)
def test_every_parameter_is_saved(make, save, tmp_path):
    cell = make()
    expected = {**dict(cell.named_parameters()), **dict(cell.named_buffers())}
    found = save(cell, tmp_path)
    assert found.keys() == expected.keys()
    assert all(found[name].equal(x) and found[name].dtype == x.dtype for name, x in expected.items())
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    data = sum(x.nbytes for x in expected.values())
    assert data < size < data + 20_000


def test_a_few_tensors_of_a_state_dict_are_saved_alone(tmp_path):
    cell = tiny_cell(dtype=torch.float32, width=96)
    file = io.BytesIO()
    torch.save({"q": cell.layers[0].state_dict()["q.weight"]}, file)
    assert file.tell() < cell.layers[0].q.weight.nbytes + 2000


def test_load_model_of_safetensors_reads_what_save_model_writes(tmp_path):
    cell, other = tiny_cell(dtype=torch.float32), tiny_cell(seed=1, dtype=torch.float32)
    safetensors.torch.save_model(cell, str(tmp_path / "x.safetensors"))
    assert safetensors.torch.load_model(other, str(tmp_path / "x.safetensors")) == (set(), [])
    assert all(a.equal(b) for a, b in zip(cell.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("make", CELLS.values(), ids=CELLS)
def test_a_state_dict_has_the_memory_of_the_parameters(make):
    cell = make()
    tensors = cell.state_dict()
    assert list(tensors) == list(torch.nn.Module.state_dict(cell))
    for name, x in {**dict(cell.named_parameters()), **dict(cell.named_buffers())}.items():
        assert tensors[name].data_ptr() == x.data_ptr()
        assert tensors[name].untyped_storage().nbytes() == x.nbytes
        assert not tensors[name].requires_grad
    assert cell.state_dict(keep_vars=True)["embed.weight"] is cell.embed.weight
    assert cell.state_dict(keep_vars=True)["layers.0.q.weight"] is cell.layers[0].q.weight


def test_an_edit_of_a_state_dict_changes_the_cell():
    """As an exponential moving average of parameters is often written."""
    cell, other = tiny_cell(dtype=torch.float32), tiny_cell(seed=1, dtype=torch.float32)
    for mine, its in zip(cell.state_dict().values(), other.state_dict().values(), strict=True):
        mine.copy_(its)
    text = random_tokens(1, 2, 5)
    assert cell(text)[0].equal(other(text)[0])


def test_a_cell_that_got_a_state_dict_by_assignment_is_right():
    cell, other = tiny_cell(dtype=torch.float32), tiny_cell(seed=1, dtype=torch.float32)
    tensors = copy.deepcopy(other.state_dict())
    cell.load_state_dict(tensors, assign=True)
    text = random_tokens(1, 2, 5)
    assert torch.allclose(cell(text)[0], other(text)[0], atol=1e-5)


def test_other_tensors_are_returned_as_they_are():
    x = torch.randn(4, 4)
    parameter = torch.nn.Parameter(x[1:3])
    for same in (x, parameter, x[:, 1:], torch.empty(3, device="meta")[1:]):
        assert linear.with_own_storage(same) is same
