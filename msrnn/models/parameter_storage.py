"""The memory of loaded parameters: views of mapped files where file and memory agree, otherwise copies.

A parameter on the CPU in the dtype of its file is a view of the mapped file (:mod:`msrnn.storage.mapped_files`). Only the pages
that are used become resident. A fused group (``RecurrentLayer.fused_groups``) is mapped as one matrix if its tensors are stored
one after another, as in folders of this library. Otherwise a small group is copied into one matrix, and the tensors of a large
one (:data:`msrnn.layers.linear.MAX_MOVED_BYTES`) are mapped apart.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ..cell.cell import Cell
from ..cell.layer import RecurrentLayer
from ..layers.linear import MAX_MOVED_BYTES
from ..storage.lazy_tensors import LazyTensor
from ..storage.mapped_files import MappedFiles


def read_parameters(
    cell: Cell, tensors: Mapping[str, LazyTensor], dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """Return the values of the parameters of ``cell``.

    Args:
        cell: on the meta device; only its structure is used.
        tensors: by the names of the parameters. Those that are copied are read one at a time.
        dtype, device: of the values.

    Raises:
        Error: a tensor cannot be read.
    """
    files, values, copied = MappedFiles(), dict[str, Tensor](), list[str]()
    for names in _groups(cell, tensors):
        parts = [tensors[name].to(dtype) for name in names]
        views = _map(files, parts) if device.type == "cpu" else None
        if views is None:
            views = _allocate(parts, device)
            copied += names
        for name, view in zip(names, views, strict=True):
            values[name] = view.data  # edits of the tensors in one storage are counted apart
    for name in sorted(copied, key=lambda name: -math.prod(tensors[name].shape)):  # the largest first: lowest peak memory
        values[name].copy_(tensors[name].read())
    return values


def _groups(cell: Cell, names: Iterable[str]) -> list[list[str]]:
    """Return the names of the weights of each fused group, and each other name alone."""
    name_of: dict[object, str] = {x: name for name, x in cell.named_parameters()}
    groups = []
    for layer in cell.modules():
        for group in layer.fused_groups if isinstance(layer, RecurrentLayer) else ():
            found = [name_of.get(module._parameters.get("weight"), "") for module in group]
            if all(found):
                groups.append(found)
    fused = {name for group in groups for name in group}
    return groups + [[name] for name in names if name not in fused]


def _map(files: MappedFiles, parts: Sequence[LazyTensor]) -> list[Tensor] | None:
    """Return the tensors of a group as views of mapped files; None if they have to be copied."""
    together = files.view(*parts)
    if together is not None or sum(x.nbytes for x in parts) <= MAX_MOVED_BYTES:
        return together
    apart = [x for part in parts for x in files.view(part) or ()]
    return apart if len(apart) == len(parts) else None


def _allocate(parts: Sequence[LazyTensor], device: torch.device) -> list[Tensor]:
    """Return uninitialized tensors for a group, one after another in one storage."""
    sizes = [math.prod(x.shape) for x in parts]
    numbers = torch.empty(sum(sizes), dtype=parts[0].dtype, device=device)
    return [x.view(part.shape) for x, part in zip(numbers.split(sizes), parts, strict=True)]
