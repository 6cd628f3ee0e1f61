"""A tensor that is loaded on demand."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import Error
from .files import FileVersion


@dataclass(frozen=True)
class Location:
    """Where a file stores the numbers of a tensor: without gaps, in row-major order, little-endian.

    Attributes:
        file: the file, with a value that differs if another file has got its name.
        start: offset of the first byte in the file.
    """

    file: FileVersion
    start: int


@dataclass(frozen=True)
class LazyTensor:
    """The shape and dtype of a tensor, and a function that loads it.

    Attributes:
        shape, dtype: of the tensor that :meth:`read` returns.
        load: returns the tensor. The result may be a view of a mapped file or of a live model. Copy it and drop it before the
            next tensor is read, so that one tensor at a time is in memory. A function that only reads bytes of a file has an
            attribute ``location``.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], Tensor]

    @classmethod
    def of(cls, x: Tensor) -> "LazyTensor":
        """Wrap a tensor that is in memory."""
        return cls(tuple(x.shape), x.dtype, lambda: x)

    @property
    def nbytes(self) -> int:
        """The size of the tensor in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def location(self) -> Location | None:
        """Where a file stores the tensor; None if there is no such file or ``load`` does more than reading it."""
        return getattr(self.load, "location", None)

    def read(self) -> Tensor:
        """Return the tensor, detached.

        Raises:
            Error: the loaded tensor has another shape or dtype.
        """
        x = self.load()
        if tuple(x.shape) != self.shape or x.dtype != self.dtype:
            found, expected = f"{x.dtype} {tuple(x.shape)}", f"{self.dtype} {self.shape}"
            raise Error(f"a loaded tensor is {found}; expected {expected} (the file may have changed)")
        return x.detach()

    def rows(self, first: int, count: int) -> "LazyTensor":
        """Return ``count`` rows from ``first`` on. Those of a tensor in a file have a location of their own."""
        return LazyTensor((count, *self.shape[1:]), self.dtype, _Rows(self, first, count))

    def to(self, dtype: torch.dtype) -> "LazyTensor":
        """Return the same tensor in another dtype, converted when it is read."""
        return self if dtype == self.dtype else LazyTensor(self.shape, dtype, lambda: self.read().to(dtype))


@dataclass(frozen=True)
class _Rows:
    """Reads rows ``first`` to ``first + count`` of a tensor. If the tensor is contiguous in a file, so are they."""

    x: LazyTensor
    first: int
    count: int

    @property
    def location(self) -> Location | None:
        where = self.x.location
        if where is None:
            return None
        row_bytes = math.prod(self.x.shape[1:]) * self.x.dtype.itemsize
        return Location(where.file, where.start + self.first * row_bytes)

    def __call__(self) -> Tensor:
        return self.x.read()[self.first : self.first + self.count]
