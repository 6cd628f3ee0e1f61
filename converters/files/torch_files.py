"""PyTorch's own files (``.bin``, ``.pth``): a pickle in a zip. Tensors are all that is taken; nothing in it runs."""

import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from msrnn import Error
from msrnn.storage.files import check_file
from msrnn.storage.lazy_tensors import LazyTensor

MAPPED = 128 * 2**20
"""Bytes handed out before a file is mapped anew: its pages, once looked at, would stay."""


def open_pickle(path: Path) -> dict[str, LazyTensor]:
    """What a file of ``torch.save(state_dict)`` holds, none of it read (all of it in the format of before PyTorch 1.6).

    Raises:
        Error: no such file, truncated or corrupt, or anything in it but plain tensors by name.
    """
    check_file(path)
    mapped = zipfile.is_zipfile(path)
    held = _load(path, mapped)
    if not isinstance(held, dict):
        raise Error(f"{path} holds a {type(held).__name__}; expected tensors by name")
    tensors, file = plain(held, str(path)), _File(path)
    return {name: LazyTensor(x.shape, x.dtype, partial(file.get, name)) for name, x in tensors.items()} if mapped else tensors


def plain(tensors: Any, where: str) -> dict[str, LazyTensor]:
    """Tensors by name, refused where one is something cleverer than numbers in memory.

    Raises:
        Error: a name that is none; a subclass, or a tensor that is sparse, quantised or on the meta device.
    """
    for name, x in tensors.items():
        if not isinstance(name, str) or not isinstance(x, Tensor):
            raise Error(f"{where}: {name!r:.60} is a {type(x).__name__}; expected nothing but tensors by name")
        if type(x) not in (Tensor, Parameter) or x.layout != torch.strided or x.is_quantized or x.is_meta:
            what = f"{x.dtype} {type(x).__name__} ({x.layout}, on {x.device})"
            raise Error(f"{where}: tensor {name!r} is a {what}; expected plain numbers in memory")
        if x.nbytes > x.untyped_storage().nbytes():  # a few numbers, said to be as many as one likes
            raise Error(f"{where}: tensor {name!r} has shape {tuple(x.shape)} but fewer numbers; expected one for each place")
    return {name: LazyTensor.of(x) for name, x in tensors.items()}


class _File:
    """A file that is mapped, and now and then mapped anew."""

    def __init__(self, path: Path):
        self.path, self.left = path, 0
        self.held: dict[str, Tensor] = {}

    def get(self, name: str) -> Tensor:
        if self.left <= 0:
            self.held.clear()
            self.held, self.left = _load(self.path, mapped=True), MAPPED
        x = self.held[name]
        self.left -= x.nbytes
        return x


def _load(path: Path, mapped: bool) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except OSError as wrong:
        raise Error(f"cannot read {path} ({wrong.strerror or wrong})") from None
    except Exception as wrong:  # whatever a damaged or hostile file makes of zip and pickle
        lines = [line.strip() for line in str(wrong).splitlines() if line.strip() and "weights_only" not in line]
        said = f": {lines[0]:.120}" if lines else ""  # without PyTorch's advice to run it after all
        raise Error(f"{path} is damaged, or more than tensors ({type(wrong).__name__}{said})") from None
