"""The slices of one tensor: taken from the whole tensor when a model is loaded, joined when it is saved."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..errors import Error
from ..layers.packed.matrix import BLOCK_ROWS, GROUP
from ..storage.lazy_tensors import LazyTensor

Bounds = tuple[tuple[int, int], ...]
"""By rank, start and stop of a slice, as in Python's ``range``."""
ADAPTER_PARTS = ("lora_A", "lora_B")
"""Names of the matrices of an adapter: A has the columns of the adapted matrix, and B has its rows."""


@dataclass(frozen=True)
class Placement:
    """The slices of one tensor.

    Attributes:
        dim: the dimension that is split.
        bounds: the slice of each rank. Slices of several ranks may be the same.
        in_blocks: True for int4 codes ``(F, E / 2)`` that are split by columns: a block of 32 rows is ``(E, 16)`` in memory.
    """

    dim: int
    bounds: Bounds
    in_blocks: bool = False

    @classmethod
    def of_part(cls, name: str, part: str, x: "Tensor | LazyTensor", bounds: Bounds, by_columns: bool) -> "Placement | None":
        """Return the slices of one part of a matrix; None if each rank holds all of it.

        Args:
            name: of the tensor, for a message.
            part: ``weight``, a part of a :class:`~msrnn.layers.packed.matrix.PackedMatrix`, the buffer ``scales_and_zeros`` of
                an int4 matrix in memory, or ``lora_A`` or ``lora_B`` of an adapter.
            x: a tensor of the dtype and the number of dimensions of the part.
            bounds: slices of the rows of the matrix, or of its columns if ``by_columns``.

        Raises:
            Error: slices of an int4 matrix that do not begin at its groups.
        """
        if part in ADAPTER_PARTS:
            return cls(int(by_columns), bounds) if by_columns == (part == "lora_A") else None
        is_int4 = x.dtype == torch.uint8 or part == "zeros" or (part.startswith("scales") and len(x.shape) > 1)
        if not is_int4:
            return None if part == "scales" and by_columns else cls(int(by_columns), bounds)
        unit, what = (GROUP, "columns") if by_columns else (BLOCK_ROWS, "rows")
        if any(start % unit for start, _ in bounds):
            found = ", ".join(str(stop - start) for start, stop in bounds)
            raise Error(f"tensor {name!r} has 4 bits and slices of {found} {what}; expected multiples of {unit}, its groups")
        if by_columns and part != "codes":
            bounds = tuple((start // GROUP, stop // GROUP) for start, stop in bounds)
        if part == "scales_and_zeros":  # (E / 32, F, 2)
            return cls(int(not by_columns), bounds)
        return cls(int(by_columns), bounds, in_blocks=by_columns and part == "codes")

    def _blocks(self, x: Tensor) -> Tensor:
        """View codes ``(F, E / 2)`` as blocks ``(F / 32, E, 16)``, and other tensors as they are."""
        return x.view(-1, 2 * x.shape[1], BLOCK_ROWS // 2) if self.in_blocks else x

    def take(self, x: Tensor, rank: int) -> Tensor:
        """Return the slice of ``rank``, a view where that is possible."""
        start, stop = self.bounds[rank]
        part = self._blocks(x).narrow(self.dim, start, stop - start)
        return part.reshape(x.shape[0], -1) if self.in_blocks else part

    def put_(self, whole: Tensor, part: Tensor, rank: int) -> None:
        """Write the slice of ``rank`` into the whole tensor."""
        start, stop = self.bounds[rank]
        self._blocks(whole).narrow(self.dim, start, stop - start).copy_(self._blocks(part))

    def shape_of(self, shape: tuple[int, ...], size: int) -> tuple[int, ...]:
        """Return ``shape`` with ``size`` elements in the dimension that is split."""
        if self.in_blocks:
            return shape[0], size // 2
        return *shape[: self.dim], size, *shape[self.dim + 1 :]

    @property
    def size(self) -> int:
        """The number of elements of the whole tensor in the dimension that is split."""
        return max(stop for _, stop in self.bounds)

    def take_lazily(self, x: LazyTensor, rank: int) -> LazyTensor:
        """Return the slice of ``rank``, which is read from ``x`` later. Rows of a file stay rows of the file."""
        start, stop = self.bounds[rank]
        if self.dim == 0:
            return x.rows(start, stop - start)
        return LazyTensor(self.shape_of(x.shape, stop - start), x.dtype, partial(self._read, x, rank))

    def _read(self, x: LazyTensor, rank: int) -> Tensor:
        return self.take(x.read(), rank)
