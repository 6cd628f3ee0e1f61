"""Matrices that a format stores as one (Phi-3): split when they are read, joined when they are written."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from msrnn import Error
from msrnn.storage.lazy_tensors import LazyTensor


def split_matrices(
    tensors: Mapping[str, LazyTensor], fused: Mapping[str, tuple[str, ...]], config: Any
) -> dict[str, LazyTensor]:
    """Return ``tensors``, under msrnn's names, with each fused matrix replaced by its parts.

    Args:
        tensors: by name. The name of a fused matrix ends with a key of ``fused`` and ``.weight``.
        fused: the names of the parts of each fused matrix, in the order of their rows.
        config: of the model; its sizes give the number of rows of each part.

    Raises:
        Error: a fused matrix has another number of rows than its parts together.
    """
    D = config.head_dim
    heights = {"q": config.n_heads * D, "k": config.n_kv_heads * D, "v": config.n_kv_heads * D}
    heights |= {"gate": config.ffn_width, "up": config.ffn_width}
    found: dict[str, LazyTensor] = {}
    for name, x in tensors.items():
        prefix, _, module = name.removesuffix(".weight").rpartition(".")
        if module not in fused:
            found[name] = x
            continue
        rows = [heights[part] for part in fused[module]]
        if len(x.shape) != 2 or x.shape[0] != sum(rows):
            raise Error(f"tensor {name!r} has shape {x.shape}; expected {sum(rows)} rows, those of {', '.join(fused[module])}")
        first = 0
        for part, height in zip(fused[module], rows, strict=True):
            found[f"{prefix}.{part}.weight"] = x.rows(first, height)
            first += height
    return found


def join_matrices(tensors: Mapping[str, LazyTensor], fused: Mapping[str, tuple[str, ...]]) -> dict[str, LazyTensor]:
    """Return ``tensors`` with the parts of each fused matrix joined. All parts have to be among ``tensors``."""
    module_of = {parts[0]: (module, parts) for module, parts in fused.items()}
    others = {part for parts in fused.values() for part in parts[1:]}
    joined: dict[str, LazyTensor] = {}
    for name, x in tensors.items():
        prefix, _, module = name.removesuffix(".weight").rpartition(".")
        if module in module_of:
            fused_name, parts = module_of[module]
            matrices = [tensors[f"{prefix}.{part}.weight"] for part in parts]
            shape = (sum(matrix.shape[0] for matrix in matrices), x.shape[1])
            joined[f"{prefix}.{fused_name}.weight"] = LazyTensor(shape, x.dtype, partial(_join, matrices))
        elif module not in others:
            joined[name] = x
    return joined


def _join(matrices: list[LazyTensor]) -> Tensor:
    return torch.cat([matrix.read() for matrix in matrices])
