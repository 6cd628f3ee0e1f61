"""The Memory Transformer (arXiv:2006.11527): m trained tokens beside the text, for what belongs to no token of it.

The same tokens at the beginning of a decoder are read first and never leave: a learned H_0. In an encoder all look at once, and
the question is only who updates the memory and who sees it; the source answers it in three ways.
"""

from dataclasses import dataclass

import torch
from einops import repeat
from torch import Tensor, nn

from ..errors import Error
from .config import check_whole
from .encoder import EncoderConfig, EncoderLayer

FORMS = ("tokens", "controller", "bottleneck")


@dataclass(frozen=True, kw_only=True)
class MemoryConfig(EncoderConfig):
    """An encoder's facts, ``n_memory`` tokens, and the form.

    ``tokens``: memory and text are one longer text, read by an ordinary encoder.
    ``controller`` (MemCtrl): the same, but the layers have parameters of their own for the memory.
    ``bottleneck`` (MemBottleneck): as that, but the text sees the memory alone, once it has been updated; tokens of the text
    learn of each other only through it, and the work grows with m × T instead of T × T.
    """

    n_memory: int
    form: str

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, "n_memory")
        if self.form not in FORMS:
            raise Error(f"config: form is {self.form!r:.60}; expected one of {', '.join(FORMS)}")


class MemoryLayer(nn.Module):
    """One layer of any of the forms."""

    def __init__(self, config: MemoryConfig):
        super().__init__()
        self.form = config.form
        self.text = EncoderLayer(config)
        if config.form != "tokens":
            self.memory = EncoderLayer(config)

    def forward(self, memory: Tensor, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """``(B, m, E), (B, T, E) -> (B, m, E), (B, T, E)``; ``mask (B, 1, m + T)`` bool says which rows are no padding."""
        everything = torch.cat((memory, x), dim=1)  # (B, m + T, E)
        if self.form == "tokens":
            memory, x = self.text(everything, mask).split((memory.shape[1], x.shape[1]), dim=1)
            return memory, x
        memory = self.memory(memory, mask, everything)
        return memory, self.text(x, None, memory) if self.form == "bottleneck" else self.text(x, mask, everything)


class MemoryEncoder(nn.Module):
    """A stack of N such layers over vectors; where the norms come first, a last one ends it."""

    def __init__(self, config: MemoryConfig):
        super().__init__()
        self.config = config
        self.tokens = nn.Parameter(torch.randn(config.n_memory, config.width))
        self.layers = nn.ModuleList(MemoryLayer(config) for _ in range(config.n_layers))
        self.norm = config.norm() if config.placement == "pre" else nn.Identity()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The text and the memory, read together.

        Args:
            x: ``(B, T, E)``.
            mask: ``(B, 1, T)`` bool as :func:`msrnn.layers.masks.padding_mask` makes it; None: no padding.

        Returns:
            ``(B, T, E)``, and the memory ``(B, m, E)``, which the source drops.

        Raises:
            Error: a mask that says who may look at whom: it would not say what the memory sees.
        """
        B, T, _ = x.shape
        memory = repeat(self.tokens, "m E -> B m E", B=B)
        if mask is not None:
            if mask.shape != (B, 1, T) or mask.dtype != torch.bool:
                found = f"{mask.dtype} of shape {tuple(mask.shape)}"
                raise Error(f"the mask is {found}; an encoder with memory takes padding alone, bool of shape {(B, 1, T)}")
            mask = torch.cat((mask.new_ones(B, 1, memory.shape[1]), mask), dim=2)  # the memory is seen by all who see
        for layer in self.layers:
            memory, x = layer(memory, x, mask)
        return self.norm(x), self.norm(memory)
