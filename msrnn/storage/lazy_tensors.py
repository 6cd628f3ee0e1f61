"""A tensor that is loaded on demand."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import Error


@dataclass(frozen=True)
class LazyTensor:
    """The shape and dtype of a tensor, and a function that loads it.

    Attributes:
        shape, dtype: of the tensor that :meth:`read` returns.
        load: returns the tensor. The result may be a view of a mapped file or of a live model. Copy it and drop it before the
            next tensor is read, so that one tensor at a time is in memory.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], Tensor]

    @classmethod
    def of(cls, x: Tensor) -> "LazyTensor":
        """Wrap a tensor that is in memory."""
        return cls(tuple(x.shape), x.dtype, lambda: x)

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

    def to(self, dtype: torch.dtype) -> "LazyTensor":
        """Return the same tensor in another dtype, converted when it is read."""
        return LazyTensor(self.shape, dtype, lambda: self.read().to(dtype))
