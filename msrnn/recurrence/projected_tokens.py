"""What a layer passes to the recurrence for T tokens: its input, and the projections of it."""

from dataclasses import dataclass

from torch import Tensor

from ..layers.attention import LogitRule


@dataclass(frozen=True)
class ProjectedTokens:
    """T tokens of one layer.

    Attributes:
        x: ``(B, T, E)``, input of the layer.
        q: ``(B, N, T, D)``, rotated, like ``k`` and ``v (B, K, T, D)``, unless H has places.
        rule: of the attention logits.
    """

    x: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    rule: LogitRule

    @property
    def T(self) -> int:
        """Number of tokens."""
        return self.k.shape[2]

    def between(self, start: int, stop: int) -> "ProjectedTokens":
        """Return tokens ``start`` to ``stop``."""
        q, k, v = (y[:, :, start:stop] for y in (self.q, self.k, self.v))
        return ProjectedTokens(self.x[:, start:stop], q, k, v, self.rule)
