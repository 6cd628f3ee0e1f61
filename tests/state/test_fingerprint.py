"""Fingerprints: equal for one model in any dtype, different for other parameters or another config."""

import copy

import pytest
import torch
from support.tiny_models import tiny_cell

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


def test_tensor_version_changes_when_a_tensor_is_edited_or_made_trainable():
    x = torch.zeros(3)
    version = tensor_version(x)
    assert tensor_version(x) == version
    x.add_(1)
    edited = tensor_version(x)
    assert edited != version
    assert tensor_version(x.requires_grad_()) != edited
