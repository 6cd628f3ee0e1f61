"""The row order of q and k, compared with the code of transformers and of Meta."""

import pytest
import torch
from support.tiny_checkpoints import interleave

from converters.row_order import half_split
from msrnn.layers.rotary import Rope, apply_rotary


@pytest.mark.parametrize(("heads", "half"), [(1, 2), (4, 3), (3, 4)])
def test_half_split_equals_the_formula_of_transformers(heads, half):
    """The function ``permute`` of convert_llama_weights_to_hf.py, copied."""
    w = torch.randn(heads * 2 * half, 7)
    dim1, dim2 = w.shape
    assert torch.equal(half_split(w, heads), w.view(heads, dim1 // heads // 2, 2, dim2).transpose(1, 2).reshape(dim1, dim2))
    assert torch.equal(half_split(interleave(w, heads), heads), w)


def test_half_split_rotation_equals_that_of_metas_code():
    """llama/model.py, ``apply_rotary_emb``, rotates pairs (2i, 2i + 1) as complex numbers."""
    w, x, rope, position = torch.randn(2 * 6, 5).double(), torch.randn(5).double(), Rope(50.0), torch.tensor([7])
    angle = 7 * 50.0 ** -(torch.arange(0, 6, 2).double() / 6)
    rotated = torch.view_as_complex((w @ x).view(2, 3, 2)) * torch.polar(torch.ones(3).double(), angle)
    ours = apply_rotary((half_split(w, 2) @ x).view(1, 2, 6), rope.cos_sin(position, 6, torch.float64))
    torch.testing.assert_close(ours[0], torch.cat((rotated.real, rotated.imag), dim=-1))
