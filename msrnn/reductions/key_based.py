"""Operators that score rows by their keys, without attention weights."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import normalize

from .contract import EMPTY, Observation, Reduction, SpecNames


@dataclass(frozen=True)
class KeyBasedReduction(Reduction):
    """Base class: keys that are 0 for absent rows, and ties up to rounding.

    Rotation and the shape of a product change a key by rounding, so equal keys of one token at two positions have norms and
    cosines that differ by rounding. The tolerance makes such ties exact.
    """

    tie_tolerance: ClassVar[float] = 1e-5
    needs_keys: ClassVar[bool] = True

    def keys(self, observation: Observation) -> Tensor:
        """Return ``(B, K, R, D)`` in at least float32, 0 for absent rows."""
        assert observation.keys is not None
        return observation.keys.masked_fill(observation.positions[..., None] == EMPTY, 0)


@dataclass(frozen=True)
class KeyDiff(KeyBasedReduction):
    """KeyDiff (arXiv:2504.15364): the key that is most similar to the others is evicted.

    Similarity is the cosine with the mean direction of all keys. One decision per key/value head.
    """

    spec_names: ClassVar[SpecNames] = {"keydiff": {}}
    needs_weights: ClassVar[bool] = False
    depends_on_row_layout: ClassVar[bool] = False
    reads_heads: ClassVar[str] = "own"

    def score(self, observation: Observation) -> Tensor:
        keys = self.keys(observation)
        # factors of 1 / norm for the products: normalised keys would be a copy of all keys
        inverse = keys.norm(dim=-1).clamp(min=1e-12).reciprocal().masked_fill(observation.positions == EMPTY, 0)  # (B, K, R)
        mean = normalize(inverse[:, :, None] @ keys, dim=-1)  # (B, K, 1, D)
        return -(mean @ keys.mT)[:, :, 0] * inverse


@dataclass(frozen=True)
class Knorm(KeyBasedReduction):
    """L2 norm (arXiv:2406.11430): the longest key is evicted, because queries attend to keys of small norm.

    One decision per key/value head. The paper excludes the first layers, where this does not hold; one operator per layer does
    the same here. In the first layer, rows of the same token have equal norms up to rounding.
    """

    spec_names: ClassVar[SpecNames] = {"knorm": {}}
    needs_weights: ClassVar[bool] = False
    depends_on_row_layout: ClassVar[bool] = False
    reads_heads: ClassVar[str] = "own"

    def score(self, observation: Observation) -> Tensor:
        return -self.keys(observation).norm(dim=-1)
