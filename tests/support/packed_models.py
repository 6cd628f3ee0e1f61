"""Tiny cells with packed weights, and float cells with the same numbers."""

import torch
from support.tiny_models import tiny_cell

import converters
from msrnn.layers.packed.modules import PackedModule
from msrnn.models.llama import Llama

SHAPES = {"width": 64, "ffn_width": 96, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16}
"""Fields of a config in which all matrices of the layers fit int4."""


def packed_cell(weights: str = "int4", dtype: torch.dtype | None = torch.float64, seed: int = 0, **fields) -> Llama:
    """Return a random packed cell; ``fields`` are those of :func:`support.tiny_models.tiny_cell`."""
    cell = tiny_cell(seed=seed, dtype=torch.float32, **(SHAPES | fields))
    return converters.load((cell.state_dict(), cell.config), weights=weights, dtype=dtype)


def dequantised(cell: Llama, dtype: torch.dtype = torch.float64) -> Llama:
    """Return a float cell with the numbers of a packed one."""
    plain = Llama(cell.config).to(dtype).eval().requires_grad_(False)
    with torch.no_grad():
        for name, module in cell.named_modules():
            if isinstance(module, PackedModule):
                plain.get_parameter(f"{name}.weight").copy_(module.matrix.dequantise(dtype))
        for name, x in cell.named_parameters():
            plain.get_parameter(name).copy_(x)
    return plain
