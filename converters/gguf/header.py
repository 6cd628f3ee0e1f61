"""The header of a GGUF file: its metadata and where its tensors lie (``ggml/docs/gguf.md``, versions 2 and 3).

Read by hand rather than by ``gguf.GGUFReader``: that one makes an array of every single token and merge, which takes
ten times as long, and does not notice where a damaged file ends.
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
ALIGNMENT = 32  # unless the metadata says otherwise
MOST = 1 << 22
"""Items of one list, bytes of one text: the largest vocabularies have a sixteenth of that."""


@dataclass(frozen=True)
class Stored:
    """One tensor as the file has it: shape (rows first, as in torch), ggml's number of its type, first byte."""

    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True)
class File:
    """A file's header: ``metadata`` by key, ``tensors`` by GGUF name, which begin at ``start``, each at the next multiple of
    ``alignment``."""

    path: Path
    size: int
    metadata: dict[str, Any]
    tensors: dict[str, Stored]
    start: int = 0
    alignment: int = ALIGNMENT


def open_file(path: Path) -> File:
    """The header of the file at ``path``; raises :class:`msrnn.Error` where it is not a whole, sound GGUF header."""
    try:
        with open(path, "rb") as stream:
            return _Header(Path(path), stream).read()
    except OSError as fault:
        raise Error(f"{path}: cannot be read ({fault.strerror}); expected a GGUF file") from fault


class _Header:
    """A cursor that never reads past the end: a length in a damaged file may be any number up to 2^64."""

    def __init__(self, path: Path, stream: BinaryIO):
        self.path, self.stream = path, stream
        self.size = self.left = os.fstat(stream.fileno()).st_size

    def read(self) -> File:
        magic = self.take(4)
        if magic != b"GGUF":
            raise Error(f"{self.path}: begins with {magic!r}; expected a GGUF file, which begins with b'GGUF'")
        version = self.number("I")
        if version not in (2, 3):
            other = " (a big-endian file?)" if version & 0xFFFF == 0 else ""
            raise Error(f"{self.path}: GGUF version {version}{other}; expected 2 or 3, little-endian")
        n_tensors, n_keys = self.number("Q"), self.number("Q")
        metadata: dict[str, Any] = {}
        for _ in range(n_keys):
            key = self.string()
            if key in metadata:
                raise Error(f"{self.path}: metadata key {key} is there twice; expected once")
            metadata[key] = self.value(key)
        tensors: dict[str, Stored] = {}
        for _ in range(n_tensors):
            name = self.string()
            if name in tensors:
                raise Error(f"{self.path}: tensor {name} is there twice; expected once")
            tensors[name] = self.tensor(name)
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or isinstance(alignment, bool) or alignment < 1 or alignment & (alignment - 1):
            raise Error(f"{self.path}: general.alignment is {alignment!r:.60}; expected a power of two")
        start = -(-(self.size - self.left) // alignment) * alignment
        tensors = {name: Stored(x.shape, x.kind, start + x.offset) for name, x in tensors.items()}  # offsets into the file
        return File(self.path, self.size, metadata, tensors, start, alignment)

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise Error(
                f"{self.path}: ends inside its header ({self.size} bytes); expected {count - self.left} bytes more at least"
            )
        self.left -= count
        return self.stream.read(count)

    def few(self, count: int) -> int:
        if MOST < count <= self.left:  # more than is left ends where the file does
            raise Error(f"{self.path}: a list or a text in its header has {count} items; expected at most {MOST}")
        return count

    def numbers(self, code: str, count: int) -> tuple[Any, ...]:
        data = self.take(count * struct.calcsize(f"<{code}"))  # refuses counts that struct could not even hold
        return struct.unpack(f"<{count}{code}", data)

    def number(self, code: str) -> Any:
        return self.numbers(code, 1)[0]

    def string(self) -> str:
        data = self.take(self.few(self.number("Q")))
        try:
            return data.decode()
        except UnicodeDecodeError as fault:
            raise Error(f"{self.path}: text {data[:40]!r} in its header is not UTF-8; expected UTF-8") from fault

    def value(self, key: str) -> Any:
        kind = self.number("I")
        if kind == STRING:
            return self.string()
        if kind == FLOAT32:
            return float(str(np.float32(self.number("f"))))  # the decimal it was written from: 1e-05, not 9.99999974…e-06
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind != ARRAY:
            raise Error(f"{self.path}: metadata {key} has a value of type {kind}; expected one of GGUF's, 0 to 12")
        item, count = self.number("I"), self.few(self.number("Q"))
        if item == STRING:
            return [self.string() for _ in range(count)]
        if item not in NUMBERS:
            raise Error(f"{self.path}: metadata {key} is an array of type {item}; expected numbers or strings")
        return list(self.numbers(NUMBERS[item], count))

    def tensor(self, name: str) -> Stored:
        n_axes = self.number("I")
        if not 1 <= n_axes <= 4:
            raise Error(f"{self.path}: tensor {name} has {n_axes} axes; expected 1 to 4")
        shape = self.numbers("Q", n_axes)[::-1]  # the file counts the fastest axis first
        return Stored(shape, self.number("I"), self.number("Q"))
