r"""The encoder-decoder of arXiv:1706.03762 as a recurrent cell: the encoded source is H_0.

The encoder has no step, because the whole source is available at once. Each decoder layer is two transitions
$(x, H) \mapsto (x, H)$. The first, self-attention, appends the token's row to the rows of the text, attends, and reduces, as
in every cell of this library. The second, cross-attention, attends to the rows of the source and does not change them. So the
state has two multi-states per layer, and every operation on a state (branch, select, save) includes the source.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn.functional import linear

from ..cell.cell import Cell
from ..cell.layer import RecurrentLayer, without_autocast
from ..cell.validation import check_text
from ..errors import Error, check_int
from ..layers.attention import attend
from ..layers.embedding import Embedding, embedding_weight
from ..layers.masks import padding_mask
from ..layers.multihead_attention import MultiheadAttention, attention
from ..layers.positional import PositionEncoding, PositionTensors, sinusoidal_encoding
from ..layers.residual import FeedForward
from ..recurrence.records import LayerRecorder, SharedAcrossLayers
from ..recurrence.transition import Writes
from ..reductions.calibrated import ModelSizes
from ..reductions.contract import EMPTY, LEARNED, Reduction
from ..reductions.tova_paper import Full
from ..state.multistate import MultiState
from ..state.state import State
from .config import MAX_SIZE, ModelConfig
from .encoder import Encoder, EncoderConfig


@dataclass(frozen=True, kw_only=True)
class EncoderDecoderConfig(EncoderConfig, ModelConfig):
    """The config of both stacks and of their common vocabulary.

    ``dropout`` is also applied to the embeddings. In the decoder it is not applied to attention weights, because operators use
    these weights.
    """

    family: ClassVar[str] = "encoder-decoder"
    vocab_size: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_int("config: vocab_size", self.vocab_size, at_most=MAX_SIZE)
        if self.width % 2:
            raise Error(f"config: width is {self.width}; expected an even width for sinusoidal positions")

    @property
    def n_kv_heads(self) -> int:
        """Equal to ``n_heads``: each head has its own keys and values."""
        return self.n_heads

    @property
    def head_dim(self) -> int:
        """D = E / N."""
        return self.width // self.n_heads


class AttentionSublayer(RecurrentLayer):
    """The base class of both sublayers of a decoder layer: attention with a residual connection."""

    position_encoding = PositionEncoding()  # positions are added to the embeddings

    def __init__(self, config: EncoderDecoderConfig):
        super().__init__()
        self.config = config
        self.attention = MultiheadAttention(config.width, config.n_heads)
        self.attention_residual = config.make_residual()

    @property
    def fused_groups(self) -> tuple[tuple[nn.Module, ...], ...]:
        return ()

    def project_qkv(self, x: Tensor, position_tensors: PositionTensors | None) -> tuple[Tensor, Tensor, Tensor]:
        x, heads = self.attention_residual.pre_norm(x), self.attention
        q, k, v = (
            rearrange(f(x).to(x.dtype), "... (N D) -> ... N D", N=heads.n_heads) for f in (heads.q, heads.k, heads.v)
        )  # the dtype of x also under torch.autocast
        return q, k, v

    def post_attention(self, x: Tensor, attn_output: Tensor) -> Tensor:
        return self.attention_residual.add_and_norm(x, self.attention.o(rearrange(attn_output, "... N D -> ... (N D)")))


class SelfAttentionSublayer(AttentionSublayer):
    """Self-attention of a token over the text so far, with any operator."""


class CrossAttentionSublayer(AttentionSublayer):
    """Cross-attention of a token over the source, followed by the MLP.

    Its rows are the source and no row is appended or evicted, so a trace records nothing for it.
    """

    def __init__(self, config: EncoderDecoderConfig):
        super().__init__(config)
        self.ffn = FeedForward(config.width, config.ffn_width, config.dropout)
        self.ffn_residual = config.make_residual()

    def encoder_state(self, source: Tensor, valid_mask: Tensor, clock: Tensor) -> MultiState:
        """Return H_0 from the encoded ``source (B, S, E)``; ``valid_mask (B, 1, S)`` bool is False for padding.

        Later states differ from it only in the clock.
        """
        keys, values = (rows.to(source.dtype) for rows in self.attention.project_kv(source))  # (B, N, S, D)
        positions = repeat(torch.where(valid_mask, LEARNED, EMPTY), "B 1 S -> B N S", N=keys.shape[1])
        n_learned = int(valid_mask.sum(-1).amin())
        full = n_learned == source.shape[1]
        return MultiState(keys, values, positions, clock, Full(), no_empty_rows=full, n_learned=n_learned)

    def step(
        self,
        x: Tensor,
        H: MultiState,
        *,
        active: Tensor | None = None,
        position_tensors: PositionTensors | None = None,
        in_place: bool = False,
        writes: Writes | None = None,
    ) -> tuple[Tensor, MultiState]:
        query = self._query(x)
        with without_autocast(x.device):
            attn_output, _ = attend(query, *H.dequantised(query.dtype), None if H.no_empty_rows else ~H.empty)
        return self.post_attention(x, attn_output), replace(H, clock=H.clock + (1 if active is None else active))

    def unroll(
        self,
        x: Tensor,
        H: MultiState,
        position_tensors: PositionTensors | None,
        active: Tensor | None,
        recorder: LayerRecorder | None,
        shared: SharedAcrossLayers,
    ) -> tuple[Tensor, MultiState]:
        query = rearrange(self._query(x), "B T N D -> B N T D")
        with without_autocast(x.device):
            attn_output, _ = attention(query, *H.dequantised(query.dtype), None if H.no_empty_rows else ~H.empty[:, :, None])
        clock = H.clock + (x.shape[1] if active is None else active.sum(1))
        return self.post_attention(x, rearrange(attn_output, "B N T D -> B T N D")), replace(H, clock=clock)

    def post_attention(self, x: Tensor, attn_output: Tensor) -> Tensor:
        return self.ffn_residual(super().post_attention(x, attn_output), self.ffn)

    def _query(self, x: Tensor) -> Tensor:
        """``(…, E) -> (…, N, D)``."""
        x = self.attention.q(self.attention_residual.pre_norm(x)).to(x.dtype)
        return rearrange(x, "... (N D) -> ... N D", N=self.attention.n_heads)


class EncoderDecoder(Cell):
    """Both stacks and one embedding, shared by source, text and output projection (tied).

    ``state = cell.encode(source)`` gives a state for the calls of any cell: ``cell.step(token, state)``,
    ``cell(tokens, state)``, ``msrnn.generate(cell, tokens, state, …)``. A new cell is random and trainable.
    """

    config: EncoderDecoderConfig

    def __init__(self, config: EncoderDecoderConfig):
        super().__init__()
        self.config = config
        self.embed = Embedding(config.vocab_size, config.width)
        if not self.embed.weight.is_meta:
            nn.init.normal_(self.embed.weight, std=config.width**-0.5)
        self.encoder = Encoder(config)
        self.layers = nn.ModuleList(
            sublayer(config) for _ in range(config.n_layers) for sublayer in (SelfAttentionSublayer, CrossAttentionSublayer)
        )
        self.norm = config.make_final_norm()
        self.dropout = nn.Dropout(config.dropout)

    def encode(
        self,
        source: Tensor,
        lengths: Tensor | None = None,
        reduction: Reduction | str | Sequence[Reduction | str] | None = None,
    ) -> State:
        """Return the state before the first token of the text, which contains the encoded source.

        Args:
            source: ``(B, S)`` int64, right-padded where ragged.
            lengths: ``(B,)`` int64, the lengths of the sources without padding, each at least 1. None: all S.
            reduction: an operator for the rows of the text, its spec string, or one of either per layer; None: no eviction.
                Rows of the source are never evicted.

        Raises:
            Error: an id is outside the vocabulary, a source is empty, or an operator does not fit the cell.
        """
        operators = self.operators_per_layer(reduction)
        source, lengths = check_text(source, lengths, self.config.vocab_size)
        if not len(source) or (lengths < 1).any():
            raise Error(f"encode: source lengths are {lengths.tolist()}; expected at least one source, each of at least 1")
        valid_mask = padding_mask(lengths, source.shape[1])  # (B, 1, S)
        position = torch.arange(source.shape[1], device=source.device)
        x = self.encoder(self.embed_tokens(source, position), valid_mask)  # (B, S, E)
        clock, layers = torch.zeros_like(lengths), list[MultiState]()
        for operator, sublayer in zip(operators, self.layers[1::2], strict=True):
            assert isinstance(sublayer, CrossAttentionSublayer)
            layers += self.init_layer_state(len(source), operator, clock, x.dtype), sublayer.encoder_state(x, valid_mask, clock)
        return State(layers, self.fingerprint())

    def initial_state(self, *_: object, **__: object) -> State:
        """Raise an error, because the state before the first token comes from :meth:`encode`.

        Raises:
            Error: always.
        """
        raise Error("an encoder-decoder has no state without a source; expected the state that cell.encode(source) returns")

    @property
    def default_reduction(self) -> Reduction:
        return Full()

    @property
    def sizes(self) -> ModelSizes:
        return super().sizes._replace(n_layers=self.config.n_layers)  # operators are those of self-attention

    @property
    def signature(self) -> str:
        return f"encoder-decoder {self.config.signature()}"

    @property
    def fingerprint_tensors(self) -> list[Tensor]:
        return self.tensors_of("embed", "layers.0.attention.q", f"layers.{len(self.layers) - 1}.ffn.down")

    def embed_tokens(self, token: Tensor, position: Tensor) -> Tensor:
        x = self.embed(token) * self.config.width**0.5  # the scale of the position encoding
        return self.dropout(x + sinusoidal_encoding(position, self.config.width, x.dtype))

    def compute_logits(self, x: Tensor) -> Tensor:
        return linear(self.norm(x), embedding_weight(self.embed))
