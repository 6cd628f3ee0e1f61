"""The header of a GGUF file: metadata and the offsets of the tensors (``ggml/docs/gguf.md``, versions 2 and 3).

``gguf.GGUFReader`` is not used for two reasons: it makes an array of every token and merge, which takes ten times as long,
and it does not notice the end of a truncated file.
"""

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from msrnn.errors import Error

STRING, ARRAY, FLOAT32 = 8, 9, 6
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", FLOAT32: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
DEFAULT_ALIGNMENT = 32
MAX_ITEMS = 1 << 22
"""Maximum number of items of a list and of bytes of a text, 16 times the largest vocabularies."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file.

    Attributes:
        shape: rows first, as in torch.
        ggml_type: ggml's number of the quantisation type.
        offset: first byte, counted from the beginning of the file.
    """

    shape: tuple[int, ...]
    ggml_type: int
    offset: int


@dataclass(frozen=True)
class Header:
    """The header of a file.

    Attributes:
        path: the file.
        size: bytes of the file.
        metadata: values by key.
        tensors: tensors by GGUF name.
        start: first byte of the tensor data.
        alignment: each tensor begins at the next multiple of this number of bytes.
    """

    path: Path
    size: int
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]
    start: int = 0
    alignment: int = DEFAULT_ALIGNMENT


def read_header(path: Path) -> Header:
    """Read the header of the file at ``path``.

    Raises:
        Error: the file cannot be read, or its header is truncated or damaged.
    """
    try:
        with open(path, "rb") as stream:
            return _Parser(Path(path), stream).read()
    except OSError as error:
        raise Error(f"{path}: cannot be read ({error.strerror}); expected a GGUF file") from error


class _Parser:
    """A cursor that never reads past the end, because a length in a damaged file may be any number up to 2^64."""

    def __init__(self, path: Path, stream: BinaryIO):
        self.path, self.stream = path, stream
        self.size = self.left = os.fstat(stream.fileno()).st_size

    def read(self) -> Header:
        magic = self.take(4)
        if magic != b"GGUF":
            raise Error(f"{self.path}: begins with {magic!r}; expected a GGUF file, which begins with b'GGUF'")
        version = self.number("I")
        if version not in (2, 3):
            hint = " (a big-endian file?)" if version & 0xFFFF == 0 else ""
            raise Error(f"{self.path}: GGUF version {version}{hint}; expected 2 or 3, little-endian")
        n_tensors, n_keys = self.number("Q"), self.number("Q")
        metadata: dict[str, Any] = {}
        for _ in range(n_keys):
            key = self.string()
            if key in metadata:
                raise Error(f"{self.path}: metadata key {key} occurs twice; expected once")
            metadata[key] = self.value(key)
        tensors: dict[str, TensorInfo] = {}
        for _ in range(n_tensors):
            name = self.string()
            if name in tensors:
                raise Error(f"{self.path}: tensor {name} occurs twice; expected once")
            tensors[name] = self.tensor(name)
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or isinstance(alignment, bool) or alignment < 1 or alignment & (alignment - 1):
            raise Error(f"{self.path}: general.alignment is {alignment!r:.60}; expected a power of two")
        start = -(-(self.size - self.left) // alignment) * alignment
        tensors = {name: TensorInfo(x.shape, x.ggml_type, start + x.offset) for name, x in tensors.items()}
        return Header(self.path, self.size, metadata, tensors, start, alignment)

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise Error(f"{self.path}: ends inside its header ({self.size} bytes); expected at least {count - self.left} more")
        self.left -= count
        return self.stream.read(count)

    def length(self) -> int:
        count = self.number("Q")
        if MAX_ITEMS < count <= self.left:  # a larger count is refused at the end of the file
            raise Error(f"{self.path}: a list or a text in its header has {count} items; expected at most {MAX_ITEMS}")
        return count

    def numbers(self, code: str, count: int) -> tuple[Any, ...]:
        data = self.take(count * struct.calcsize(f"<{code}"))  # refuses counts that are too large for struct
        return struct.unpack(f"<{count}{code}", data)

    def number(self, code: str) -> Any:
        return self.numbers(code, 1)[0]

    def string(self) -> str:
        data = self.take(self.length())
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise Error(f"{self.path}: text {data[:40]!r} in its header is not UTF-8; expected UTF-8") from error

    def value(self, key: str) -> Any:
        value_type = self.number("I")
        if value_type == STRING:
            return self.string()
        if value_type == FLOAT32:
            return float(str(np.float32(self.number("f"))))  # the shortest decimal: 1e-05, not 9.99999974…e-06
        if value_type in NUMBERS:
            return self.number(NUMBERS[value_type])
        if value_type != ARRAY:
            raise Error(f"{self.path}: metadata {key} has a value of type {value_type}; expected one of GGUF's, 0 to 12")
        item_type, count = self.number("I"), self.length()
        if item_type == STRING:
            return [self.string() for _ in range(count)]
        if item_type not in NUMBERS:
            raise Error(f"{self.path}: metadata {key} is an array of type {item_type}; expected numbers or strings")
        return list(self.numbers(NUMBERS[item_type], count))

    def tensor(self, name: str) -> TensorInfo:
        n_axes = self.number("I")
        if not 1 <= n_axes <= 4:
            raise Error(f"{self.path}: tensor {name} has {n_axes} axes; expected 1 to 4")
        shape = self.numbers("Q", n_axes)[::-1]  # the file lists the fastest axis first
        return TensorInfo(shape, self.number("I"), self.number("Q"))
