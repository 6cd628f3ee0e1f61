r"""The classic encoder-decoder (arXiv:1706.03762) as a cell: what the encoder makes of the source is H_0.

The encoder has no step and needs none, since the source is all there when it reads. The decoder has one, and each of its layers
is two transitions $(x, H) \mapsto (x, H)$, one after the other. The first appends the token's row to those of the text written
so far, attends and reduces, as everywhere in this library. The second attends to the source's rows, which the encoder left in
its H, and changes nothing there. So the state has two multi-states a layer, and whatever a state can do (branch, select, save)
carries the source along.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import ClassVar

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn.functional import linear

from ..cell.cell import Cell
from ..cell.layer import RecurrentLayer
from ..cell.validation import check_text
from ..errors import Error
from ..layers.attention import attend
from ..layers.embedding import Embedding
from ..layers.masks import padding_mask
from ..layers.multihead_attention import MultiHead, attention
from ..layers.positional import sinusoids
from ..layers.residual import FeedForward
from ..layers.rotary import Rotation
from ..recurrence.unroll import Before, Events
from ..reductions.contract import EMPTY, LEARNED, Reduction
from ..reductions.core import Full
from ..reductions.registry import per_layer
from ..state.multistate import MultiState
from ..state.state import State
from .config import ModelConfig, check_whole
from .encoder import Encoder, EncoderConfig


@dataclass(frozen=True, kw_only=True)
class EncoderDecoderConfig(EncoderConfig, ModelConfig):
    """The facts of both stacks, and the one vocabulary of source and text. In the decoder, ``dropout`` leaves attention weights
    alone, by which operators go; it is on what enters a stack, too."""

    family: ClassVar[str] = "encoder-decoder"
    vocab_size: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole(self, "vocab_size")
        if self.width % 2:
            raise Error(f"config: width is {self.width}; a position is told by pairs of numbers, so it has to be even")

    @property
    def n_kv_heads(self) -> int:
        """Every head has keys and values of its own."""
        return self.n_heads

    @property
    def head_dim(self) -> int:
        return self.width // self.n_heads


class Half(RecurrentLayer):
    """What both halves of a decoder's layer have in common: heads of attention, and a residual around them."""

    fused_groups = ()

    def __init__(self, config: EncoderDecoderConfig):
        super().__init__()
        self.config = config
        self.attention = MultiHead(config.width, config.n_heads)
        self.around_attention = config.residual()

    def rotation(self, position: Tensor, dtype: torch.dtype) -> Rotation | None:
        """None: positions are told once, where a token enters."""
        return None

    def project_qkv(self, x: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        x, heads = self.around_attention.enter(x), self.attention
        q, k, v = (rearrange(f(x), "... (N D) -> ... N D", N=heads.n_heads) for f in (heads.q, heads.k, heads.v))
        return q, k, v

    def post_attention(self, x: Tensor, read: Tensor) -> Tensor:
        return self.around_attention.leave(x, self.attention.o(rearrange(read, "... N D -> ... (N D)")))


class OwnText(Half):
    """The first half: a token and the text before it. Its H is like any other, under any operator."""


class Source(Half):
    """The second half: a token and the source, whose rows were there before it and stay; then the feed-forward. No token enters
    its H, so a trace tells of none there."""

    def __init__(self, config: EncoderDecoderConfig):
        super().__init__(config)
        self.ffn = FeedForward(config.width, config.ffn_width, config.dropout)
        self.around_ffn = config.residual()

    def given(self, source: Tensor, real: Tensor, clock: Tensor) -> MultiState:
        """H_0, and but for the clock every H after it: the rows of ``source (B, S, E)`` where ``real (B, 1, S)``."""
        keys, values = self.attention.rows(source)  # (B, N, S, D)
        positions = repeat(torch.where(real, LEARNED, EMPTY), "B 1 S -> B N S", N=keys.shape[1])
        n_learned = int(real.sum(-1).amin())
        return MultiState(
            keys, values, positions, clock, Full(), no_empty_rows=n_learned == source.shape[1], n_learned=n_learned
        )

    def step(
        self,
        x: Tensor,
        H: MultiState,
        *,
        active: Tensor | None = None,
        rotation: Rotation | None = None,
        in_place: bool = False,
    ) -> tuple[Tensor, MultiState]:
        read, _ = attend(self._query(x), H.keys, H.values, None if H.no_empty_rows else H.empty)
        return self.post_attention(x, read), replace(H, clock=H.clock + (1 if active is None else active))

    def unroll(
        self, x: Tensor, H: MultiState, rotation: Rotation | None, active: Tensor | None, events: Events | None, before: Before
    ) -> tuple[Tensor, MultiState]:
        query = rearrange(self._query(x), "B T N D -> B N T D")
        read, _ = attention(query, H.keys, H.values, None if H.no_empty_rows else ~H.empty[:, :, None])
        clock = H.clock + (x.shape[1] if active is None else active.sum(1))
        return self.post_attention(x, rearrange(read, "B N T D -> B T N D")), replace(H, clock=clock)

    def post_attention(self, x: Tensor, read: Tensor) -> Tensor:
        return self.around_ffn(super().post_attention(x, read), self.ffn)

    def _query(self, x: Tensor) -> Tensor:
        """``(…, E) -> (…, N, D)``."""
        x = self.attention.q(self.around_attention.enter(x))
        return rearrange(x, "... (N D) -> ... N D", N=self.attention.n_heads)


class EncoderDecoder(Cell):
    """Both stacks and one embedding, which is the source's, the text's and, turned around, the vocabulary product's.

    ``state = cell.encode(source)``, and then a cell like any other: ``cell.step(token, state)``, ``cell(tokens, state)``,
    ``msrnn.generate(cell, tokens, state, …)``. Freshly built it is random and trainable.
    """

    config: EncoderDecoderConfig

    def __init__(self, config: EncoderDecoderConfig):
        super().__init__()
        self.config = config
        self.embed = Embedding(config.vocab_size, config.width)
        if not self.embed.weight.is_meta:
            nn.init.normal_(self.embed.weight, std=config.width**-0.5)
        self.encoder = Encoder(config)
        self.layers = nn.ModuleList(half(config) for _ in range(config.n_layers) for half in (OwnText, Source))
        self.norm = config.norm() if config.placement == "pre" else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)

    def encode(
        self,
        source: Tensor,
        lengths: Tensor | None = None,
        reduction: Reduction | str | Sequence[Reduction | str] | None = None,
    ) -> State:
        """The state before the first token of the text: what the encoder made of the source.

        Args:
            source: ``(B, S)`` int64, right-padded where ragged.
            lengths: ``(B,)`` int64, the sources' real lengths, each at least 1. None: all S.
            reduction: what bounds the rows of the text, an operator, its text form, or one of either per layer; None: nothing
                does. The source's rows stay.

        Raises:
            Error: an id outside the vocabulary, an empty source, an operator that does not fit.
        """
        operators = per_layer(self.default_reduction if reduction is None else reduction, self.config.n_layers)
        source, lengths = check_text(source, lengths, self.config.vocab_size)
        if not len(source) or (lengths < 1).any():
            raise Error(f"encode: source lengths are {lengths.tolist()}; expected at least one, each of at least 1")
        real = padding_mask(lengths, source.shape[1])  # (B, 1, S)
        x = self.encoder(self.embed_tokens(source, torch.arange(source.shape[1], device=source.device)), real)  # (B, S, E)
        clock, layers = torch.zeros_like(lengths), list[MultiState]()
        for operator, half in zip(operators, self.layers[1::2], strict=True):
            assert isinstance(half, Source)
            layers += self.init_layer_state(len(source), operator, clock, x.dtype), half.given(x, real, clock)
        return State(layers, self.fingerprint())

    def initial_state(self, *_: object, **__: object) -> State:
        """Refused: this cell's H_0 is what :meth:`encode` makes of a source.

        Raises:
            Error: always.
        """
        raise Error("an encoder-decoder has no state before it has read a source; expected one that cell.encode(source) gives")

    @property
    def default_reduction(self) -> Reduction:
        return Full()

    @property
    def signature(self) -> str:
        return str(replace(self.config, dropout=0.0))

    @property
    def fingerprint_tensors(self) -> list[Tensor]:
        last = len(self.layers) - 1
        return list(attrgetter("embed.weight", "layers.0.attention.q.weight", f"layers.{last}.ffn.down.weight")(self))

    def embed_tokens(self, token: Tensor, position: Tensor) -> Tensor:
        x = self.embed(token) * self.config.width**0.5  # as long as what is added
        return self.dropout(x + sinusoids(position, self.config.width, x.dtype))

    def compute_logits(self, x: Tensor) -> Tensor:
        return linear(self.norm(x), self.embed.weight)
