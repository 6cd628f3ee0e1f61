"""A stored head of a tied embedding."""

import pytest
import torch

import msrnn
from converters.tied_head import compare_with_head
from msrnn.storage.lazy_tensors import LazyTensor


def test_the_embedding_is_compared_with_the_head_when_it_is_read():
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    embed, read = LazyTensor.of(x), []
    head = LazyTensor((5, 3), x.dtype, lambda: read.append("head") or x.clone())
    compared = compare_with_head(embed, head, "params.json", "output.weight")
    assert (compared.shape, compared.dtype, read) == (embed.shape, embed.dtype, [])
    assert compared.read().equal(x)
    assert read == ["head"]


@pytest.mark.parametrize("change", [lambda x: x * 2, lambda x: x[:4], lambda x: x.T.clone()])
def test_another_head_is_refused(change):
    x = torch.ones(5, 3)
    compared = compare_with_head(LazyTensor.of(x), LazyTensor.of(change(x)), "params.json", "output.weight")
    with pytest.raises(msrnn.Error, match=r"params\.json ties the head to the embedding, but 'output\.weight' differs"):
        compared.read()
