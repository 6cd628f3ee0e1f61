"""Tests of the modules that hold packed matrices: blocks of other CPUs, sharing between processes, and replaced tensors."""

import pytest
import torch
from support.packed_models import dequantised, packed_cell
from support.tiny_models import assert_close, random_tokens
from torch import nn
from torch.nn.utils import parametrize

from msrnn.layers.packed import kernels


@pytest.fixture
def blocks_of_64_rows(monkeypatch):
    """Hold int4 codes as on a CPU with AVX-512. The kernel of such a CPU is not used."""
    monkeypatch.setattr(kernels, "KERNEL_BLOCK_ROWS", 64)
    monkeypatch.setattr(kernels, "MAX_KERNEL_ROWS", {4: 0, 8: 0})


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])  # 16, 32 and 64 rows of k and v, 64 of q
@pytest.mark.parametrize("ffn_width", [96, 128])
def test_matrices_in_different_blocks_are_not_fused(n_kv_heads, ffn_width, blocks_of_64_rows):
    cell, text = packed_cell("int4", n_kv_heads=n_kv_heads, ffn_width=ffn_width), random_tokens(1, 2, 7)
    assert (cell.layers[0].q._fused is not None) == (n_kv_heads == 4)
    assert_close(cell(text)[0], dequantised(cell)(text)[0])


@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_share_memory_shares_all_matrices(weights):
    cell, text = packed_cell(weights), random_tokens(1, 2, 7)
    expected = cell(text)[0]
    cell.share_memory()
    assert all(x.is_shared() for x in [*cell.parameters(), *cell.buffers()])
    assert_close(cell(text)[0], expected)


@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_a_cell_on_the_meta_device_takes_the_tensors_of_a_state_dict(weights):
    cell, text = packed_cell(weights, torch.bfloat16), random_tokens(1, 2, 7)
    empty = packed_cell(weights, torch.bfloat16, seed=1).to("meta")
    empty.load_state_dict({name: x.clone() for name, x in cell.state_dict().items()}, assign=True)
    assert_close(empty(text)[0], cell(text)[0])


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x


def test_parametrized_scales_take_effect():
    cell, text = packed_cell("int8"), random_tokens(1, 2, 7)
    parametrize.register_parametrization(cell.layers[0].k, "scales", Doubled())
    expected = dequantised(packed_cell("int8"))
    with torch.no_grad():
        expected.layers[0].k.weight.mul_(2)
    assert_close(cell(text)[0], expected(text)[0])


def test_printed_modules_have_their_sizes_as_those_of_pytorch():
    layer, cell = packed_cell("int4").layers[0], packed_cell("int8")
    assert repr(layer.gate) == "Int4Linear(in_features=64, out_features=96)"
    assert repr(cell.layers[0].down) == "Int8Linear(in_features=96, out_features=64)"
    assert repr(cell.embed) == "Int8Embedding(50, 64)"
