"""Tiny cells with packed weights, and float cells with the same numbers."""

import warnings
from pathlib import Path

import gguf
import numpy as np
import torch
from support.gguf_files import METADATA, to_gguf, write
from support.tiny_models import tiny_cell

import converters
from msrnn.layers.packed.modules import PackedModule
from msrnn.models.llama import Llama

SHAPES = {"width": 64, "ffn_width": 96, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16}
"""Fields of a config in which all matrices of the layers fit int4."""

GGUF_SHAPES = {"llama.embedding_length": 64, "llama.feed_forward_length": 96, "llama.attention.key_length": 16}
"""The keys of a GGUF file for ``SHAPES``."""


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


def kept_cell(folder: Path, dtype: torch.dtype | None = torch.float64) -> Llama:
    """Return a cell that keeps the four bits of a GGUF file; its down projections are Q8_0 in the file and have 8 bits."""
    cell = tiny_cell(seed=1, dtype=torch.float32, **SHAPES)
    tensors, types = to_gguf(cell), {}
    for name, x in tensors.items():
        if name.startswith("blk") and x.ndim == 2:
            types[name] = gguf.GGMLQuantizationType.Q8_0 if "down" in name else gguf.GGMLQuantizationType.Q4_1
            tensors[name] = gguf.quants.quantize(np.ascontiguousarray(x), types[name])
    path = write(folder / "kept.gguf", METADATA | GGUF_SHAPES, tensors, types)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the missing tokenizer, and of matrices with 8 bits
        return converters.load(path, weights="packed", dtype=dtype)


def every_packed_cell(folder: Path, dtype: torch.dtype | None = torch.float64) -> dict[str, Llama]:
    """Return one cell of each value of ``weights=``."""
    return {"int4": packed_cell("int4", dtype), "int8": packed_cell("int8", dtype), "packed": kept_cell(folder, dtype)}
