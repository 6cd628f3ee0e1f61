"""Tensors by name: known by shape and dtype before they are read, and written to safetensors one by one."""

import ctypes
import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ..errors import Error
from .files import check_header, opened

KINDS = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool},
}
"""safetensors' words for the types of numbers."""


@dataclass(frozen=True)
class Unread:
    """A tensor that can be had: what it is, before any of it is read.

    Attributes:
        shape, dtype: of what will come.
        fetch: gives it. It may lie in a mapped file or belong to a live model, so :meth:`read` and copy it, and let go
            of it before the next is read: then one tensor at a time is held.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    fetch: Callable[[], Tensor]

    @classmethod
    def of(cls, x: Tensor) -> "Unread":
        return cls(tuple(x.shape), x.dtype, lambda: x)

    def read(self) -> Tensor:
        """The tensor, which is what was said."""
        x = self.fetch()
        if tuple(x.shape) != self.shape or x.dtype != self.dtype:
            raise Error(f"a tensor came as {x.dtype} {tuple(x.shape)}; {self.dtype} {self.shape} was said (a file changed?)")
        return x.detach()

    def to(self, dtype: torch.dtype) -> "Unread":
        """The same numbers in another type, cast when they are read."""
        return Unread(self.shape, dtype, lambda: self.read().to(dtype))


def open_tensors(path: Path) -> dict[str, Unread]:
    """What a safetensors file holds, none of it read. It is mapped anew for every tensor: pages once looked at would stay.

    Raises:
        Error: no such file, truncated or corrupt, numbers of an unknown type; reading raises the same.
    """

    def fetch(name: str) -> Tensor:
        with opened(path) as file:
            return file.get_tensor(name)

    found = {}
    check_header(path)
    with opened(path) as file:
        for name in file.keys():  # noqa: SIM118  (not a mapping)
            piece = file.get_slice(name)
            if piece.get_dtype() not in KINDS:
                raise Error(f"{path}: tensor {name!r} holds {piece.get_dtype()} numbers; expected one of {', '.join(KINDS)}")
            found[name] = Unread(tuple(piece.get_shape()), KINDS[piece.get_dtype()], partial(fetch, name))
    return found


def write_tensors(path: Path, tensors: Mapping[str, Unread], about: Mapping[str, str]) -> None:
    """``tensors`` and a little text as one safetensors file, each read when its turn comes.

    The format (github.com/huggingface/safetensors, README): the header's length in 8 bytes, little-endian; the header, JSON
    filled up with spaces to a multiple of 8; then the bytes of the tensors, without a gap.

    Raises:
        Error: it cannot be written; a type of numbers that the format does not have.
    """
    words = {kind: word for word, kind in KINDS.items()}
    header: dict[str, object] = {"__metadata__": dict(about)}
    names, end = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize), 0  # so that each lies aligned
    for name in names:
        x = tensors[name]
        if x.dtype not in words:
            raise Error(f"tensor {name!r} is {x.dtype}; a file can have {', '.join(str(kind) for kind in words)}")
        start, end = end, end + torch.Size(x.shape).numel() * x.dtype.itemsize
        header[name] = {"dtype": words[x.dtype], "shape": list(x.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    try:
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name in names:
                _put(file, tensors[name].read())
    except (OSError, NotImplementedError) as wrong:  # no room; a tensor on the meta device
        raise Error(f"cannot write {path.name} ({wrong})") from None


def _put(file: BinaryIO, x: Tensor) -> None:
    x = x.cpu().contiguous()
    if x.nbytes:
        file.write((ctypes.c_char * x.nbytes).from_address(x.data_ptr()))
