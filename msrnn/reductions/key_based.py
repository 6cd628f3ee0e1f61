"""Operators that look at the keys alone: no attention probability enters."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import normalize

from .contract import EMPTY, Observation, Reduction, SpecNames


@dataclass(frozen=True)
class KeyBasedReduction(Reduction):
    """What these have in common: keys in the dtype of scores."""

    tie_tolerance: ClassVar[float] = 1e-5
    needs_keys: ClassVar[bool] = True

    def keys(self, observation: Observation) -> Tensor:
        """``(B, K, R, D)`` in at least float32, 0 on empty rows."""
        assert observation.keys is not None
        return observation.keys.to(observation.weights.dtype).masked_fill(observation.positions[..., None] == EMPTY, 0)


@dataclass(frozen=True)
class KeyDiff(KeyBasedReduction):
    """KeyDiff (arXiv:2504.15364): of each key/value head the key most like the others goes, by its cosine with the mean of all
    directions."""

    spec_names: ClassVar[SpecNames] = {"keydiff": {}}
    needs_weights: ClassVar[bool] = False
    depends_on_row_layout: ClassVar[bool] = False

    def score(self, observation: Observation) -> Tensor:
        directions = normalize(self.keys(observation), dim=-1)
        mean = normalize(directions.sum(2, keepdim=True), dim=-1)  # (B, K, 1, D); a cosine knows no length
        return -(directions @ mean.mT)[..., 0]


@dataclass(frozen=True)
class Knorm(KeyBasedReduction):
    """The longest key of each key/value head goes (arXiv:2406.11430: queries attend to keys of small norm).

    The paper leaves the first layers whole, where this does not hold: say so with one reduction per layer. In the very first,
    rows of the same token tie, but for rounding.
    """

    spec_names: ClassVar[SpecNames] = {"knorm": {}}
    needs_weights: ClassVar[bool] = False
    depends_on_row_layout: ClassVar[bool] = False

    def score(self, observation: Observation) -> Tensor:
        return -self.keys(observation).norm(dim=-1)
