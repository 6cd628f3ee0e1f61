"""PyTorch files (``.bin``, ``.pth``): pickles in a zip. Only tensors are read, and no code of the pickle is run."""

import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from msrnn import Error
from msrnn.storage.files import check_file
from msrnn.storage.lazy_tensors import LazyTensor

STATE_DICTS = ("model", "state_dict", "module", "model_state_dict")
"""The entry of a training checkpoint that is the model: fairseq and timm, Lightning, DeepSpeed, tutorials of PyTorch."""
REMAP_BYTES = 128 * 2**20
"""Bytes read before a file is mapped again, because pages stay in memory while the file is mapped."""


def open_pickle(path: Path) -> dict[str, LazyTensor]:
    """Open a file of ``torch.save(state_dict)``. Tensors are read later, except in the format before PyTorch 1.6.

    Raises:
        Error: no such file, a damaged file, or other objects than plain tensors by name.
    """
    check_file(path)
    mapped = zipfile.is_zipfile(path)
    stored = inner_state_dict(_load(path, mapped), str(path))
    if not isinstance(stored, dict):
        raise Error(f"{path} holds a {type(stored).__name__}; expected tensors by name")
    tensors, file = check_plain_tensors(stored, str(path)), _MappedFile(path)
    return {name: LazyTensor(x.shape, x.dtype, partial(file.get, name)) for name, x in tensors.items()} if mapped else tensors


def inner_state_dict(stored: Any, where: str) -> Any:
    """Return the state dict in a training checkpoint such as ``{"model": …, "optimizer": …}``, or ``stored`` if it has none.

    Raises:
        Error: several entries of ``stored`` are tensors by name, so that the model is not known; ``where`` is named.
    """
    if not isinstance(stored, Mapping) or any(isinstance(x, Tensor) for x in stored.values()):
        return stored
    found = [name for name, x in stored.items() if isinstance(x, Mapping) and x and all(map(_is_tensor, x.items()))]
    if len(found) > 1:
        names = ", ".join(map(repr, found[:4]))
        raise Error(f"{where} holds several state dicts, {names:.120}; expected one; save the one of the model alone")
    return stored[found[0]] if found and found[0] in STATE_DICTS else stored


def _is_tensor(item: tuple[Any, Any]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def check_plain_tensors(tensors: Any, where: str) -> dict[str, LazyTensor]:
    """Return the tensors by name after a check that all are dense tensors in memory.

    Raises:
        Error: a name that is no string; a subclass, or a sparse, quantised, expanded or meta tensor. ``where`` is named in
            the message.
    """
    for name, x in tensors.items():
        if not isinstance(name, str) or not isinstance(x, Tensor):
            raise Error(f"{where}: {name!r:.60} is a {type(x).__name__}; expected tensors by name only")
        if type(x) not in (Tensor, Parameter) or x.layout != torch.strided or x.is_quantized or x.is_meta:
            what = f"{x.dtype} {type(x).__name__} ({x.layout}, on {x.device})"
            raise Error(f"{where}: tensor {name!r} is a {what}; expected plain numbers in memory")
        if x.nbytes > x.untyped_storage().nbytes():  # expanded: a small file could claim any size
            raise Error(f"{where}: tensor {name!r} has shape {tuple(x.shape)} but fewer numbers; expected one for each element")
    return {name: LazyTensor.of(x) for name, x in tensors.items()}


class _MappedFile:
    """A mapped file that is mapped again after every ``REMAP_BYTES``."""

    def __init__(self, path: Path):
        self.path, self.left = path, 0
        self.tensors: dict[str, Tensor] = {}

    def get(self, name: str) -> Tensor:
        if self.left <= 0:
            self.tensors.clear()
            self.tensors, self.left = inner_state_dict(_load(self.path, mapped=True), str(self.path)), REMAP_BYTES
        x = self.tensors[name]
        self.left -= x.nbytes
        return x


def _load(path: Path, mapped: bool) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError as error:
        raise Error(f"cannot read {path} ({error.strerror or error})") from None
    except Exception as error:  # damaged or hostile files raise any class in zip and pickle
        lines = [line.strip() for line in str(error).splitlines() if line.strip() and "weights_only" not in line]
        reason = f": {lines[0]:.120}" if lines else ""  # without PyTorch's advice to allow the code
        raise Error(f"{path} is damaged, or more than tensors ({type(error).__name__}{reason})") from None
