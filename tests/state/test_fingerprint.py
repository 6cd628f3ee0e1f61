"""Fingerprints: equal for one model in any dtype, different for other parameters or another config."""

import copy

import numpy as np
import pytest
import torch
from support.refusals import refusing
from support.tiny_models import tiny_cell

import msrnn
from msrnn.state.fingerprint import Fingerprint, tensor_version


def parameters(seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in ((50, 24), (24,))]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_fingerprints_match_up_to_rounding_between_dtypes(dtype):
    wide, narrow = Fingerprint.of("cell", parameters()), Fingerprint.of("cell", parameters(dtype=dtype))
    assert wide.matches(narrow)
    assert narrow.matches(wide)
    assert wide.digest() != narrow.digest()


def test_other_parameters_do_not_match():
    one = Fingerprint.of("cell", parameters())
    for dtype in (torch.float32, torch.bfloat16):
        assert not one.matches(Fingerprint.of("cell", parameters(seed=1, dtype=dtype)))
    changed = parameters(dtype=torch.bfloat16)
    changed[1][0] *= 1 + 2**-6  # four times the rounding of bfloat16
    assert not one.matches(Fingerprint.of("cell", changed))
    assert not one.matches(Fingerprint.of("another cell", parameters()))


def test_differences_within_one_dtype_do_not_match():
    changed = parameters()
    changed[1][0] = changed[1][0].nextafter(torch.tensor(torch.inf))
    assert not Fingerprint.of("cell", parameters()).matches(Fingerprint.of("cell", changed))


def test_fingerprints_with_fewer_values_do_not_match():
    one = Fingerprint.of("cell", parameters())
    assert not one.matches(Fingerprint("cell", "float64", one.values[:-1]))


def test_trainable_and_meta_parameters_are_not_compared():
    for tensors in ([x.requires_grad_() for x in parameters()], [x.to("meta") for x in parameters()]):
        one = Fingerprint.of("cell", tensors)
        assert one == Fingerprint("cell")
        assert one.matches(Fingerprint.of("cell", parameters()))
        assert not one.matches(Fingerprint.of("another cell", parameters()))


def test_sixteen_values_are_taken_from_each_tensor():
    assert len(Fingerprint.of("cell", parameters()).values) == 32
    assert Fingerprint.of("cell", [torch.arange(3.0)]).values == (0, 1, 2)


def test_equal_models_have_equal_digests():
    cell = tiny_cell()
    assert cell.fingerprint().digest() == copy.deepcopy(cell).fingerprint().digest() == tiny_cell().fingerprint().digest()
    assert cell.fingerprint().digest() != tiny_cell(seed=1).fingerprint().digest()


class WithoutFloat64(torch.Tensor):
    """A tensor on a device that has no float64, such as MPS."""

    def double(self):
        raise TypeError("this device has no float64")

    def cpu(self):
        return self.as_subclass(torch.Tensor)


def test_parameters_on_a_device_without_float64():
    tensors = [x.as_subclass(WithoutFloat64) for x in parameters()]
    assert Fingerprint.of("cell", tensors) == Fingerprint.of("cell", parameters())


def test_nan_equals_nan():
    one, other = (Fingerprint("cell", "float32", (1.0, float("nan"))) for _ in range(2))
    assert one.matches(other)
    assert not one.matches(Fingerprint("cell", "float32", (float("nan"), 1.0)))


EDITS = {
    "data": lambda weight: weight.data.add_(1),
    "numpy": lambda weight: np.add(weight.numpy(), 1, out=weight.numpy()),
    "in place": lambda weight: weight.add_(1),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_edit_of_the_parameters_is_noticed(edit, tmp_path):
    cell, token, text = tiny_cell(), torch.tensor([3]), torch.tensor([[3, 4]])
    _, state = cell.step(token, cell.initial_state(1))
    state.save(tmp_path / "before")
    loaded = msrnn.load_state(tmp_path / "before")
    assert cell.step(token, loaded)[0].equal(cell.step(token, state)[0])
    edit(cell.embed.weight)
    with refusing("belongs to another model"):
        cell(text, state)
    with refusing("belongs to another model"):
        cell.step(token, msrnn.load_state(tmp_path / "before"))
    with refusing("belongs to another model"):
        cell.step(token, loaded)  # accepted before the edit
    _, state = cell.step(token, cell.initial_state(1))
    state.save(tmp_path / "after")
    other = tiny_cell()
    other.load_state_dict(cell.state_dict())
    assert other.step(token, msrnn.load_state(tmp_path / "after"))[0].equal(cell.step(token, state)[0])


def test_loaded_states_are_compared_once(monkeypatch, tmp_path):
    cell, token = tiny_cell(), torch.tensor([3])
    cell.initial_state(1).save(tmp_path / "state")
    state, computed, compute = msrnn.load_state(tmp_path / "state"), [], Fingerprint.of
    monkeypatch.setattr(Fingerprint, "of", lambda *arguments: computed.append(1) or compute(*arguments))
    for _ in range(5):
        _, state = cell.step(token, state)
    assert len(computed) == 1


def test_tensor_version_changes_when_a_tensor_is_edited_or_made_trainable():
    x = torch.zeros(3)
    version = tensor_version(x)
    assert tensor_version(x) == version
    x.add_(1)
    edited = tensor_version(x)
    assert edited != version
    assert tensor_version(x.requires_grad_()) != edited
