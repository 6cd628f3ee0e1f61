"""What a transformer's layer is made of: parts with a residual around them, and a norm before or after."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from ..errors import Error

PLACEMENTS = ("pre", "post")


class Residual(nn.Module):
    """One part of a layer and the way around it (arXiv:1910.05895, sec. 2.1, has both forms side by side).

    ``pre``: x + part(norm(x)). Nothing stands in the way of x, so a stack ends with a norm of its own.
    ``post``: norm(x + part(x)), as arXiv:1706.03762 has it.
    """

    def __init__(self, norm: nn.Module, placement: str, dropout: float = 0.0):
        super().__init__()
        if placement not in PLACEMENTS:
            raise Error(f"the norm's placement is {placement!r:.60}; expected {' or '.join(PLACEMENTS)}")
        self.norm, self.placement, self.dropout = norm, placement, nn.Dropout(dropout)

    def forward(self, x: Tensor, part: Callable[..., Tensor], *seen: Tensor) -> Tensor:
        """``(…, E) -> (…, E)``; ``part`` is given x and whatever else of the same layer it is to see, normed alike."""
        return self.leave(x, part(*map(self.enter, (x, *seen))))

    def enter(self, x: Tensor) -> Tensor:
        """What the part is given."""
        return self.norm(x) if self.placement == "pre" else x

    def leave(self, x: Tensor, made: Tensor) -> Tensor:
        """What comes of x and of what the part made."""
        x = x + self.dropout(made)
        return x if self.placement == "pre" else self.norm(x)


class FeedForward(nn.Module):
    """Each token by itself: E to F numbers, those below 0 cut off, back to E (arXiv:1706.03762, eq. 2)."""

    def __init__(self, width: int, ffn_width: int, dropout: float = 0.0):
        super().__init__()
        self.up, self.down, self.dropout = nn.Linear(width, ffn_width), nn.Linear(ffn_width, width), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``(…, E) -> (…, E)``."""
        return self.down(self.dropout(functional.relu(self.up(x))))
