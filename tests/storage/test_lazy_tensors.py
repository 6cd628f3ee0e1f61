"""Tests of LazyTensor."""

import pytest
import torch

import msrnn
from msrnn.storage.lazy_tensors import LazyTensor


def test_a_lazy_tensor_is_loaded_when_it_is_read():
    loaded = []
    x = LazyTensor((2,), torch.float32, lambda: loaded.append(1) or torch.ones(2, requires_grad=True))
    half = x.to(torch.float16)
    assert loaded == []
    assert not x.read().requires_grad
    assert half.read().equal(torch.ones(2, dtype=torch.float16))
    assert loaded == [1, 1]


@pytest.mark.parametrize("found", [torch.zeros(4), torch.zeros(3, dtype=torch.float64)])
def test_another_shape_or_dtype_is_refused(found):
    with pytest.raises(msrnn.Error, match=r"expected torch.float32 \(3,\)"):
        LazyTensor((3,), torch.float32, lambda: found).read()
