"""The Memory Transformer encoder (arXiv:2006.11527): m trained memory tokens are added to the text.

In a decoder the same tokens are read before the text and never evicted: a learned H_0 (:mod:`msrnn.models.learned_rows`). In an
encoder all tokens attend at once. The paper has three forms, which differ in how memory and text attend to each other.
"""

from dataclasses import dataclass

import torch
from einops import repeat
from torch import Tensor, nn

from ..errors import Error, check_int, did_you_mean
from .config import MAX_SIZE
from .encoder import EncoderConfig, EncoderLayer

FORMS = ("tokens", "controller", "bottleneck")


@dataclass(frozen=True, kw_only=True)
class MemoryConfig(EncoderConfig):
    """The config of an encoder with memory tokens.

    Attributes:
        n_memory: m, the number of memory tokens.
        form: how memory and text attend to each other.
            ``tokens``: memory and text form one longer text for an ordinary encoder.
            ``controller`` (MemCtrl): the same, with separate layer parameters for the memory.
            ``bottleneck`` (MemBottleneck): as ``controller``, but the text attends only to the updated memory. Text tokens
            exchange information only through the memory, and the cost grows with m × T instead of T × T.
    """

    n_memory: int
    form: str

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("config: n_memory", self.n_memory, at_most=MAX_SIZE)
        if self.form not in FORMS:
            found = f"config: form is {self.form!r:.60}{did_you_mean(str(self.form), FORMS)}"
            raise Error(f"{found}; expected one of {', '.join(FORMS)}")


class MemoryLayer(nn.Module):
    """One layer of any form."""

    def __init__(self, config: MemoryConfig):
        super().__init__()
        self.form = config.form
        self.text = EncoderLayer(config)
        if config.form != "tokens":
            self.memory = EncoderLayer(config)

    def forward(self, memory: Tensor, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the updated memory and text.

        Args:
            memory: ``(B, m, E)``.
            x: ``(B, T, E)``, the text.
            mask: ``(B, 1, m + T)`` bool, False for padding; None: no padding.
        """
        both = torch.cat((memory, x), dim=1)  # (B, m + T, E)
        if self.form == "tokens":
            memory, x = self.text(both, mask).split((memory.shape[1], x.shape[1]), dim=1)
            return memory, x
        memory = self.memory(memory, mask, both)
        return memory, self.text(x, None, memory) if self.form == "bottleneck" else self.text(x, mask, both)


class MemoryEncoder(nn.Module):
    """A stack of :class:`MemoryLayer`, with a final norm if ``norm_placement`` is ``pre``."""

    def __init__(self, config: MemoryConfig):
        super().__init__()
        self.config = config
        self.tokens = nn.Parameter(torch.randn(config.n_memory, config.width))
        self.layers = nn.ModuleList(MemoryLayer(config) for _ in range(config.n_layers))
        self.norm = config.make_final_norm()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the text and the memory after the last layer.

        Args:
            x: ``(B, T, E)``.
            mask: ``(B, 1, T)`` bool from :func:`msrnn.layers.masks.padding_mask`; None: no padding.

        Returns:
            ``(B, T, E)``, and the memory ``(B, m, E)``, which the paper drops.

        Raises:
            Error: the mask has another shape. A mask per query is refused, because it has no rows for the memory.
        """
        B, T, _ = x.shape
        memory = repeat(self.tokens, "m E -> B m E", B=B)
        if mask is not None:
            if mask.shape != (B, 1, T) or mask.dtype != torch.bool:
                found = f"{mask.dtype} of shape {tuple(mask.shape)}"
                raise Error(f"the mask is {found}; an encoder with memory takes padding alone, bool of shape {(B, 1, T)}")
            mask = torch.cat((mask.new_ones(B, 1, memory.shape[1]), mask), dim=2)  # the memory is always visible
        for layer in self.layers:
            memory, x = layer(memory, x, mask)
        return self.norm(x), self.norm(memory)
