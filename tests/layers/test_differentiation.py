"""Numbers of tensors inside of transforms, also where PyTorch has no data pointer of them."""

import pytest
import torch
from torch.func import jvp, vmap

from msrnn.layers.differentiation import to_list

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # by forward-mode AD itself


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 0, 3), (2, 1, 2)])
@pytest.mark.parametrize("readable", [True, False])
def test_lists_are_those_of_pytorch(shape, readable, monkeypatch):
    x = torch.randint(9, shape)
    expected = x.tolist()
    if not readable:  # as inside of a transform with torch 2.8
        monkeypatch.setattr(torch.Tensor, "tolist", refuse)
    assert to_list(x) == expected


def refuse(x):
    raise RuntimeError("Cannot access data pointer of Tensor that doesn't have storage")


def test_lists_inside_of_transforms():
    def double(x):
        assert to_list((x > 1).long()) == [0, 1]
        return 2 * x

    value, tangent = jvp(double, (torch.tensor([1.0, 2.0]),), (torch.ones(2),))
    assert (value.tolist(), tangent.tolist()) == ([2, 4], [2, 2])
    with pytest.raises(RuntimeError, match="vmap"):
        vmap(double)(torch.ones(3, 2))
