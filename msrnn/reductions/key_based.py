"""Operators that look at the keys alone: no attention probability enters."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import normalize

from .contract import EMPTY, Forms, Reduction, Seen


@dataclass(frozen=True)
class Keyed(Reduction):
    """What these have in common: keys in the dtype of scores."""

    blind: ClassVar[bool] = True
    keyed: ClassVar[bool] = True

    def keys(self, seen: Seen) -> Tensor:
        """``(B, K, R, D)`` in at least float32, 0 on empty rows."""
        assert seen.keys is not None
        return seen.keys.to(seen.weights.dtype).masked_fill(seen.positions[..., None] == EMPTY, 0)


@dataclass(frozen=True)
class KeyDiff(Keyed):
    """KeyDiff (arXiv:2504.15364): of each key/value head the key most like the others goes, by its cosine with the mean of all
    directions."""

    forms: ClassVar[Forms] = {"keydiff": {}}

    def score(self, seen: Seen) -> Tensor:
        directions = normalize(self.keys(seen), dim=-1)
        mean = normalize(directions.sum(2, keepdim=True), dim=-1)  # (B, K, 1, D); a cosine knows no length
        return -(directions @ mean.mT)[..., 0]


@dataclass(frozen=True)
class Knorm(Keyed):
    """The longest key of each key/value head goes (arXiv:2406.11430: queries attend to keys of small norm).

    The paper leaves the first layers whole, where this does not hold: say so with one reduction per layer. In the very first,
    rows of the same token tie, but for rounding.
    """

    forms: ClassVar[Forms] = {"knorm": {}}

    def score(self, seen: Seen) -> Tensor:
        return -self.keys(seen).norm(dim=-1)
