"""What tells one model's states from another's."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..storage.digest import digest


@dataclass(frozen=True)
class Fingerprint:
    """A model, recognised: its facts and a few of its parameters.

    Attributes:
        facts: what enters a transition, in words.
        dtype: of the parameters, or empty where they are in training and have no lasting value.
        values: a few of them.
    """

    facts: str
    dtype: str = ""
    values: tuple[float, ...] = ()

    @classmethod
    def of(cls, facts: str, marks: list[Tensor]) -> "Fingerprint":
        """``facts`` and 16 numbers out of each of ``marks``; of none where one is trainable or on the meta device."""
        if any(x.requires_grad or x.is_meta for x in marks):
            return cls(facts)
        few = [x.detach().flatten()[:: max(1, x.numel() // 16)][:16].double().cpu() for x in marks]
        return cls(facts, str(marks[0].dtype).removeprefix("torch."), tuple(torch.cat(few).tolist()))

    def digest(self) -> str:
        """Return 16 hex digits that identify the model in the settings of a saved run."""
        return digest(repr([self.facts, self.dtype, self.values]))

    def matches(self, other: "Fingerprint") -> bool:
        """Whether both can be the same model: equal facts and equal numbers, up to rounding where the dtypes differ."""
        if self is other or self == other:
            return True
        if self.facts != other.facts or (self.dtype and self.dtype == other.dtype):
            return False
        if not self.dtype or not other.dtype:
            return True
        pairs = zip(self.values, other.values, strict=False)
        return len(self.values) == len(other.values) and all(
            abs(a - b) <= 2**-8 * abs(a) + 1e-7 for a, b in pairs
        )  # bfloat16 rounds by 2^-9, float16 below 6e-8


def version(x: Tensor) -> tuple[int, int, bool]:
    """What is another after ``x`` was edited, moved, or made trainable. Inference tensors keep no count of their edits."""
    return 0 if x.is_meta else x.data_ptr(), 0 if x.is_inference() else x._version, x.requires_grad
