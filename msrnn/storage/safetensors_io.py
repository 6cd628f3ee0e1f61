"""Safetensors files: header check, lazy and eager reading, metadata, and a streaming writer."""

import ctypes
import json
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import Error
from .files import MAX_SMALL_FILE_BYTES, FileVersion, check_file, parse_json
from .lazy_tensors import LazyTensor, Location

SAFETENSORS_DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool},
}
"""The dtypes that are read and written, by their names in the header."""
ALIGNMENT = 64
"""Bytes. The writer begins tensors at multiples of it, the width of the widest CPU registers, because a file may be mapped."""


@dataclass(frozen=True)
class _Stored:
    """Loads one tensor of a file.

    The file is mapped again for every tensor, because pages of one long-lived mapping would stay in memory.
    """

    path: Path
    name: str
    location: Location

    def __call__(self) -> Tensor:
        with _open_safetensors(self.path) as file:
            with open(self.path, "rb") as opened:
                if FileVersion.of(self.path, opened) != self.location.file:  # otherwise two models could be mixed
                    raise Error(f"{self.path} has changed while it was read; try again")
            return file.get_tensor(self.name)


def open_tensors(path: Path) -> dict[str, LazyTensor]:
    """Return the tensors of a safetensors file with their locations, none of them loaded.

    Raises:
        Error: the file does not exist, is truncated or corrupt, or has an unsupported dtype; also when a tensor is read.
    """
    tensors = {}
    version, data_start, header = check_header(path)
    with _open_safetensors(path) as file:
        for name in file.keys():  # noqa: SIM118  (not a mapping)
            piece = file.get_slice(name)
            if (dtype := piece.get_dtype()) not in SAFETENSORS_DTYPES:
                raise Error(f"{path}: tensor {name!r} is {dtype}; expected one of {', '.join(SAFETENSORS_DTYPES)}")
            if name not in header:
                raise Error(f"{path} has changed while it was opened; try again")
            location = Location(version, data_start + header[name]["data_offsets"][0])
            stored = _Stored(path, name, location)
            tensors[name] = LazyTensor(tuple(piece.get_shape()), SAFETENSORS_DTYPES[dtype], stored)
    return tensors


def read_tensors(path: str | Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and tensors of a safetensors file, one at a time, on the CPU.

    Raises:
        Error: the file does not exist, is truncated or corrupt.
    """
    check_header(path)
    with _open_safetensors(path) as file:
        for name in list(file.keys()):
            yield name, file.get_tensor(name)


def read_metadata(path: str | Path) -> dict[str, str]:
    """Return the ``__metadata__`` of a safetensors file.

    Raises:
        Error: as :func:`read_tensors`.
    """
    check_header(path)
    with _open_safetensors(path) as file:
        return file.metadata() or {}


@contextmanager
def _open_safetensors(path: str | Path) -> Iterator[Any]:
    try:
        with _utf8_path(path) as name, safe_open(name, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise Error(f"cannot read {path} as safetensors ({error})") from None


@contextmanager
def _utf8_path(path: str | Path) -> Iterator[str | Path]:
    """Yield another name of a file if its path is not UTF-8, which the safetensors package refuses."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        with open(path, "rb") as file:
            yield f"/dev/fd/{file.fileno()}"
    else:
        yield path


def check_header(path: str | Path) -> tuple[FileVersion, int, dict[str, Any]]:
    """Check the header of a safetensors file before the file is mapped.

    The safetensors package does not detect duplicate tensor names. It also maps a truncated file before it fails.

    Returns:
        The version of the file, the offset of its data, and its header.

    Raises:
        Error: the file does not exist, its header is not valid, a tensor name occurs twice, or the file is truncated.
    """
    path = Path(path)
    check_file(path)
    try:
        with path.open("rb") as file:
            version = FileVersion.of(path, file)
            start, size = 8 + int.from_bytes(file.read(8), "little"), path.stat().st_size
            if not 8 < start <= min(size, MAX_SMALL_FILE_BYTES):
                raise Error(f"{path} is truncated or not a safetensors file: a header of {start - 8} bytes in a file of {size}")
            header = parse_json(file.read(start - 8), f"{path}: the header of a safetensors file")
    except OSError as error:
        raise Error(f"cannot read {path} ({error.strerror})") from None
    try:
        end = max((x["data_offsets"][1] for name, x in header.items() if name != "__metadata__"), default=0)
        complete = start + end == size
    except (TypeError, KeyError, IndexError):
        raise Error(f"{path}: the header of a safetensors file has no valid data_offsets") from None
    if not complete:
        raise Error(f"{path} has {size} bytes; its safetensors header expects {start + end!r:.60}")
    return version, start, header


def write_tensors(path: Path, tensors: Mapping[str, LazyTensor], metadata: Mapping[str, str]) -> None:
    """Write ``tensors`` and ``metadata`` as one safetensors file, loading one tensor at a time.

    Format (github.com/huggingface/safetensors, README): 8 bytes, the length of the header, little-endian; the header, JSON
    padded with spaces; the bytes of the tensors without gaps. Tensors of a multiple of :data:`ALIGNMENT` bytes come first, in
    the given order, and begin at such multiples. The others begin at multiples of the size of their numbers.

    Raises:
        Error: the format does not have a dtype, or a tensor is on the meta device.
        OSError: the file cannot be written.
    """
    names = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    order, end = write_order(tensors), 0
    for name in order:
        x = tensors[name]
        if x.dtype not in names:
            raise Error(f"tensor {name!r} is {x.dtype}; expected one of {', '.join(map(str, names))}")
        start, end = end, end + x.nbytes
        header[name] = {"dtype": names[x.dtype], "shape": list(x.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            values = tensors[name].read()
            if values.is_meta:
                raise Error(f"cannot write tensor {name!r}; it is on the meta device and has no values")
            _write_bytes(file, values)


def write_order(tensors: Mapping[str, LazyTensor]) -> list[str]:
    """Return the names in the order in which :func:`write_tensors` reads the tensors."""
    return sorted(tensors, key=lambda name: _rank(tensors[name]))


def _rank(x: LazyTensor) -> tuple[bool, int]:
    """Return a key that sorts tensors so that each one is aligned although there are no gaps."""
    aligned = x.nbytes % ALIGNMENT == 0
    return not aligned, 0 if aligned else -x.dtype.itemsize


def _write_bytes(file: BinaryIO, x: Tensor) -> None:
    x = x.cpu().contiguous()
    if x.nbytes:
        file.write((ctypes.c_char * x.nbytes).from_address(x.data_ptr()))
