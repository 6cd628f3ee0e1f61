"""The classic encoder (arXiv:1706.03762): every token sees every other, so it has no step.

A decoder's layer is a cell because a token sees what came before it and is never changed by what comes after: H grows by a
row. Here each new token changes all rows of all layers, and there is nothing to carry over. With ``subsequent_mask`` the same
stack is a decoder's, and is a cell again (docs/encoder.md).
"""

from dataclasses import dataclass

from torch import Tensor, nn

from ..errors import Error
from ..layers.multihead_attention import MultiHead
from ..layers.residual import PLACEMENTS, FeedForward, Residual
from .config import MOST_LAYERS, check_part, check_whole


@dataclass(frozen=True)
class EncoderConfig:
    """What one stack is. ``placement`` of the norms is ``pre`` or ``post``; ``dropout`` is on attention weights, within the
    feed-forward, and on what each of both adds."""

    width: int
    n_layers: int
    n_heads: int
    ffn_width: int
    placement: str = "pre"
    norm_eps: float = 1e-5
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_whole(self, "width", "n_layers", "n_heads", "ffn_width")
        if self.n_layers > MOST_LAYERS:
            raise Error(f"config: n_layers is {self.n_layers!r:.60}; expected at most {MOST_LAYERS}")
        if self.width % self.n_heads:
            raise Error(f"config: a width of {self.width} cannot be shared by {self.n_heads} heads evenly")
        if self.placement not in PLACEMENTS:
            raise Error(f"config: placement is {self.placement!r:.60}; expected {' or '.join(PLACEMENTS)}")
        check_part(self, "norm_eps", above=True)
        check_part(self, "dropout")

    def norm(self) -> nn.Module:
        """A norm of this stack's kind."""
        return nn.LayerNorm(self.width, self.norm_eps)

    def residual(self) -> Residual:
        """The way around one part of a layer."""
        return Residual(self.norm(), self.placement, self.dropout)


class EncoderLayer(nn.Module):
    """Attention, then the feed-forward, each with a residual around it."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.attention = MultiHead(config.width, config.n_heads, config.dropout)
        self.around_attention = config.residual()
        self.ffn = FeedForward(config.width, config.ffn_width, config.dropout)
        self.around_ffn = config.residual()

    def forward(self, x: Tensor, mask: Tensor | None = None, seen: Tensor | None = None) -> Tensor:
        """``(B, T, E) -> (B, T, E)``.

        Args:
            x: the tokens that move on.
            mask: ``(T, S)`` or ``(B, 1 or T, S)`` bool, true where a row may be seen; None: all may.
            seen: ``(B, S, E)``, the rows that they look at; None: each other.

        Raises:
            Error: a mask of other shape or type.
        """
        x = self.around_attention(x, lambda x, seen: self.attention(x, seen, mask)[0], x if seen is None else seen)
        return self.around_ffn(x, self.ffn)


class Encoder(nn.Module):
    """A stack of N layers over vectors; where the norms come first, a last one ends it."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.n_layers))
        self.norm = config.norm() if config.placement == "pre" else nn.Identity()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """``(B, T, E) -> (B, T, E)``; ``mask`` is ``(T, T)`` or ``(B, 1 or T, T)``, as made by :mod:`msrnn.layers.masks`.

        Raises:
            Error: vectors of another width, a mask of other shape or type.
        """
        if x.ndim != 3 or x.shape[-1] != self.config.width:
            raise Error(f"encoder: x has shape {tuple(x.shape)}; expected (B, T, {self.config.width})")
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x)
