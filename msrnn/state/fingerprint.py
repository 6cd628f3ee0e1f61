"""Fingerprints, which distinguish the states of one model from those of another."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..layers.differentiation import to_list
from ..storage.digest import digest

VALUES_PER_TENSOR = 16
"""Number of values of each tensor in a fingerprint."""
RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE = 2**-8, 1e-7
"""Differences that count as rounding between dtypes: bfloat16 rounds by 2^-9 of a number, float16 by less than 6e-8 near 0."""


@dataclass(frozen=True)
class Fingerprint:
    """Identity of a model: its config and a few of its parameters.

    Attributes:
        signature: the config fields that enter a step, as text.
        dtype: dtype of the parameters; empty if they are trainable and therefore change.
        values: a few parameters; empty if they are trainable.
    """

    signature: str
    dtype: str = ""
    values: tuple[float, ...] = ()

    @classmethod
    def of(cls, signature: str, tensors: list[Tensor], numbers: Sequence[float] = ()) -> "Fingerprint":
        """Return the fingerprint of tensors; without values if a tensor is trainable or on the meta device.

        Args:
            signature: as the attribute.
            tensors: of which ``VALUES_PER_TENSOR`` values each are taken, at equal distances in the order of memory.
            numbers: further values.
        """
        if any(x.requires_grad or x.is_meta for x in tensors):
            return cls(signature)
        n = VALUES_PER_TENSOR
        values = [x.detach().flatten()[:: max(1, x.numel() // n)][:n].cpu().double() for x in tensors]
        return cls.of_values(signature, tensors[0].dtype, values, numbers)

    @classmethod
    def of_values(cls, signature: str, dtype: torch.dtype, values: list[Tensor], numbers: Sequence[float]) -> "Fingerprint":
        """Return the fingerprint with ``values``, the dtype of the parameters, and further ``numbers``."""
        return cls(signature, str(dtype).removeprefix("torch."), (*to_list(torch.cat(values)), *numbers))

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Fingerprint":
        """Return the fingerprint of its fields, as ``dataclasses.asdict`` gives them.

        Raises:
            KeyError, TypeError: a field is missing or of another type.
        """
        signature, dtype, values = fields["signature"], fields["dtype"], fields["values"]
        numbers = isinstance(values, list | tuple) and all(
            isinstance(x, int | float) and not isinstance(x, bool) for x in values
        )
        if not (numbers and isinstance(signature, str) and isinstance(dtype, str)):
            raise TypeError("the fingerprint is not a signature, a dtype and numbers")
        return cls(signature, dtype, tuple(map(float, values)))

    def digest(self) -> str:
        """Return 16 hex digits that identify the model in the settings of a saved run."""
        return digest(repr([self.signature, self.dtype, self.values]))

    def matches(self, other: "Fingerprint") -> bool:
        """Return True if both can belong to one model: equal signatures, and equal values up to rounding between dtypes."""
        if self is other:
            return True
        if self.signature != other.signature:
            return False
        if not self.dtype or not other.dtype:
            return True
        same_dtype = self.dtype == other.dtype
        return len(self.values) == len(other.values) and all(
            a == b
            or (a != a and b != b)  # NaN
            or (not same_dtype and abs(a - b) <= RELATIVE_TOLERANCE * abs(a) + ABSOLUTE_TOLERANCE)
            for a, b in zip(self.values, other.values, strict=True)
        )


def tensor_version(x: Tensor) -> tuple[int, int, bool]:
    """Return a value that changes when ``x`` is edited, moved or made trainable. Edits of inference tensors are not counted."""
    return 0 if x.is_meta else x.data_ptr(), 0 if x.is_inference() else x._version, x.requires_grad
