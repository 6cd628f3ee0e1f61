"""The encoder of arXiv:1706.03762: every token attends to every other token, so it has no step.

A decoder layer is a recurrent cell because a token attends to earlier tokens and never changes afterwards: H grows by one row.
In an encoder each new token would change all rows of all layers, so there is no state to carry. With ``subsequent_mask`` the
same stack is a decoder and a recurrent cell again (docs/encoder.md).
"""

from dataclasses import dataclass

from torch import Tensor, nn

from ..errors import Error, check_int
from ..layers.multihead_attention import MultiheadAttention
from ..layers.residual import NORM_PLACEMENTS, FeedForward, Residual
from .config import MAX_LAYERS, MAX_SIZE, check_fraction


@dataclass(frozen=True)
class EncoderConfig:
    """The config of one stack.

    Attributes:
        width, n_layers, n_heads, ffn_width: the sizes E, L and N, and the MLP width; heads have E / N elements.
        norm_placement: ``pre`` or ``post`` (:class:`msrnn.layers.residual.Residual`).
        norm_eps: epsilon of LayerNorm.
        dropout: of attention weights, of the hidden layer of the MLP, and of the output of each sublayer.
    """

    width: int
    n_layers: int
    n_heads: int
    ffn_width: int
    norm_placement: str = "pre"
    norm_eps: float = 1e-5
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("width", "n_layers", "n_heads", "ffn_width"):
            check_int(f"config: {name}", getattr(self, name), at_most=MAX_LAYERS if name == "n_layers" else MAX_SIZE)
        if self.width % self.n_heads:
            raise Error(f"config: width is {self.width}; expected a multiple of n_heads, {self.n_heads}")
        if self.norm_placement not in NORM_PLACEMENTS:
            raise Error(f"config: norm_placement is {self.norm_placement!r:.60}; expected {' or '.join(NORM_PLACEMENTS)}")
        check_fraction("config: norm_eps", self.norm_eps, above_zero=True)
        check_fraction("config: dropout", self.dropout)

    def make_norm(self) -> nn.Module:
        """Return a new norm."""
        return nn.LayerNorm(self.width, self.norm_eps)

    def make_final_norm(self) -> nn.Module:
        """Return a new norm for the end of a stack; the identity if ``norm_placement`` is ``post``."""
        return self.make_norm() if self.norm_placement == "pre" else nn.Identity()

    def make_residual(self) -> Residual:
        """Return a new residual connection."""
        return Residual(self.make_norm(), self.norm_placement, self.dropout)


class EncoderLayer(nn.Module):
    """Attention and the MLP, each with a residual connection."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.attention = MultiheadAttention(config.width, config.n_heads, config.dropout)
        self.attention_residual = config.make_residual()
        self.ffn = FeedForward(config.width, config.ffn_width, config.dropout)
        self.ffn_residual = config.make_residual()

    def forward(self, x: Tensor, mask: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """Return the layer output, ``(B, T, E) -> (B, T, E)``.

        Args:
            x: the tokens that the layer updates.
            mask: ``(T, S)`` or ``(B, 1 or T, S)`` bool, True where a row is visible; None: all rows are visible.
            context: ``(B, S, E)``, the rows that ``x`` attends to; None: ``x`` itself.

        Raises:
            Error: the mask has another shape or dtype.
        """
        context = x if context is None else context
        x = self.attention_residual(x, lambda x, context: self.attention(x, context, mask)[0], context)
        return self.ffn_residual(x, self.ffn)


class Encoder(nn.Module):
    """A stack of :class:`EncoderLayer`, with a final norm if ``norm_placement`` is ``pre``."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.n_layers))
        self.norm = config.make_final_norm()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the output of the stack, ``(B, T, E) -> (B, T, E)``.

        Args:
            x: the input vectors.
            mask: ``(T, T)`` or ``(B, 1 or T, T)`` bool (:mod:`msrnn.layers.masks`); None: all tokens are visible.

        Raises:
            Error: ``x`` has another width, or the mask another shape or dtype.
        """
        if x.ndim != 3 or x.shape[-1] != self.config.width:
            raise Error(f"encoder: x has shape {tuple(x.shape)}; expected (B, T, {self.config.width})")
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x)
