"""Adapters with random B, and the weights that they stand for."""

import torch
from torch import Tensor

import msrnn
from msrnn.cell.cell import Cell

TARGETS = ("q", "k", "v", "o", "gate", "up", "down", "head")


def adapt(cell: Cell, seed: int = 0, **settings) -> Cell:
    """Add adapters to ``cell`` and give B random numbers, so that they change the logits."""
    generator = torch.Generator().manual_seed(seed)
    msrnn.lora.add(cell, generator=generator, **settings)
    with torch.no_grad():
        for x in cell.adapters.values():
            x.lora_B.copy_(torch.randn(x.lora_B.shape, generator=generator) * 0.3)
    return cell


def merged_weights(adapted: Cell, scaling: float) -> dict[str, Tensor]:
    """Return the names and values of the weights with the adapters added, computed in numpy's float64 by the formula."""
    tensors = adapted.state_dict()
    merged = {}
    for name, x in tensors.items():
        if name.endswith(".base_layer.weight"):
            path = name.removesuffix(".base_layer.weight")
            a, b = (tensors[f"{path}.lora_{part}"].double().numpy() for part in "AB")
            merged[f"{path}.weight"] = torch.from_numpy(x.double().numpy() + scaling * b.dot(a)).to(x.dtype)
        elif ".lora_" not in name:
            merged[name] = x
    return merged
