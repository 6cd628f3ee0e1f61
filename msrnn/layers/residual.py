"""Parts of a transformer layer: the residual connection with its norm, and the MLP."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from ..errors import Error

NORM_PLACEMENTS = ("pre", "post")


def add_residual(x: Tensor, output: Tensor) -> Tensor:
    """Return the sum of x and the output of a sublayer in the dtype of x, ``(…, E), (…, E) -> (…, E)``.

    An adapter of float32 in a 16-bit model, or ``torch.autocast``, can give ``output`` another dtype.
    """
    return x + (output if output.dtype == x.dtype else output.to(x.dtype))


class Residual(nn.Module):
    """The residual connection around one sublayer (arXiv:1910.05895, sec. 2.1, compares both forms).

    ``pre``: x + sublayer(norm(x)). A stack then ends with a norm.
    ``post``: norm(x + sublayer(x)), as in arXiv:1706.03762.
    """

    def __init__(self, norm: nn.Module, norm_placement: str, dropout: float = 0.0):
        super().__init__()
        if norm_placement not in NORM_PLACEMENTS:
            raise Error(f"norm_placement is {norm_placement!r:.60}; expected {' or '.join(NORM_PLACEMENTS)}")
        self.norm, self.norm_placement, self.dropout = norm, norm_placement, nn.Dropout(dropout)

    def forward(self, x: Tensor, sublayer: Callable[..., Tensor], *context: Tensor) -> Tensor:
        """Return x after the sublayer, ``(…, E) -> (…, E)``.

        ``sublayer`` is called with x and ``context``, other inputs of the layer that are normalized in the same way.
        """
        return self.add_and_norm(x, sublayer(*map(self.pre_norm, (x, *context))))

    def pre_norm(self, x: Tensor) -> Tensor:
        """Return the input of the sublayer: x, normalized in the form ``pre``."""
        return self.norm(x) if self.norm_placement == "pre" else x

    def add_and_norm(self, x: Tensor, output: Tensor) -> Tensor:
        """Return the sum of x and the output of the sublayer, normalized in the form ``post``."""
        x = add_residual(x, self.dropout(output))
        return x if self.norm_placement == "pre" else self.norm(x)


class FeedForward(nn.Module):
    """The MLP of arXiv:1706.03762, eq. 2: E to F elements, ReLU, back to E, for each token separately."""

    def __init__(self, width: int, ffn_width: int, dropout: float = 0.0):
        super().__init__()
        self.up, self.down, self.dropout = nn.Linear(width, ffn_width), nn.Linear(ffn_width, width), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return the MLP output, ``(…, E) -> (…, E)``."""
        return self.down(self.dropout(functional.relu(self.up(x))))
