"""The config of a :class:`Decoder`."""

from dataclasses import dataclass
from typing import ClassVar

from ..errors import Error, check_bool, check_int, did_you_mean
from ..layers.residual import NORM_PLACEMENTS
from ..layers.rotary import Rope
from .config import MAX_SIZE, ModelConfig, check_fraction, check_rotary_dim, check_sizes

GATED_FFNS = ("swiglu", "geglu", "reglu")
CHOICES = {
    "norm": ("rms", "rms-outside", "layer", "scale"),
    "norm_placement": NORM_PLACEMENTS,
    "ffn": (*GATED_FFNS, "silu", "gelu", "relu", "none"),
}
ROTARY = Rope(10000.0)
POSITIONS = ("learned", "sinusoidal", "alibi")


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(ModelConfig):
    """A small decoder-only network for training. With the default values it is a LLaMA.

    Attributes:
        vocab_size, width, n_layers, n_heads, n_kv_heads, head_dim: as in :class:`Config`. Multi-head attention has
            ``n_kv_heads`` equal to ``n_heads``, multi-query attention has 1.
        context_length: as in :class:`Config`, and the number of ``learned`` positions.
        ffn: kind of the MLP. ``swiglu``, ``geglu`` and ``reglu`` are gated (arXiv:2002.05202) by SiLU, GELU and ReLU; ``silu``,
            ``gelu`` and ``relu`` are not gated; ``none`` is a layer without an MLP.
        ffn_width: elements in the hidden layer of the MLP; 0 for ``none``.
        positions: a :class:`Rope`; ``learned`` or ``sinusoidal``, added to the embeddings; or ``alibi``.
        norm: ``rms`` with epsilon inside the root as in LLaMA, ``rms-outside`` as in the code of its authors, ``layer``,
            ``scale``.
        norm_eps: epsilon of every norm.
        norm_placement: ``pre`` normalizes the input of each sublayer and the output of the last layer; ``post`` normalizes
            each residual sum.
        bias: True: the linear maps within layers, and LayerNorm, have a bias.
        tied: True: the output projection reuses the embedding.
        fixnorm: True: embeddings are scaled to length √E, and in a tied output projection to length 1 (arXiv:1910.05895).
        small_init: True: the attention matrices are initialized with variance 2 / 5E (ibid.); False: by Xavier.
        dropout: of embeddings and of the output of each sublayer, in training.
        memory_tokens: number of memory tokens before the text (:mod:`msrnn.models.learned_rows`).
        recurrent: True: :meth:`Decoder.next_segment` computes the memory of the next segment.
        persistent: number of persistent rows in the H of each layer.
        bos_token_id, eos_token_ids: as in :class:`Config`.
    """

    family: ClassVar[str] = "decoder"
    not_in_signature = (*ModelConfig.not_in_signature, "small_init")
    vocab_size: int
    width: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_width: int
    context_length: int
    ffn: str = "swiglu"
    positions: Rope | str = ROTARY
    norm: str = "rms"
    norm_eps: float = 1e-5
    norm_placement: str = "pre"
    bias: bool = False
    tied: bool = False
    fixnorm: bool = False
    small_init: bool = True
    dropout: float = 0.0
    memory_tokens: int = 0
    recurrent: bool = False
    persistent: int = 0
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    @property
    def mlp_matrices(self) -> int:
        """Number of matrices in the MLP of a layer: gate, up and down; up and down if it is not gated; none."""
        return 3 if self.ffn in GATED_FFNS else 0 if self.ffn == "none" else 2

    def __post_init__(self) -> None:
        check_sizes(self)
        for name, known in CHOICES.items():
            if (value := getattr(self, name)) not in known:
                hint = did_you_mean(str(value), known)
                raise Error(f"config: {name} is {value!r:.60}{hint}; expected one of {', '.join(known)}")
        for name in ("bias", "tied", "fixnorm", "small_init", "recurrent"):
            check_bool(f"config: {name}", getattr(self, name))
        check_fraction("config: dropout", self.dropout)
        if isinstance(self.positions, Rope):
            check_rotary_dim(self.head_dim)
            self.positions.check_head_dim(self.head_dim)
        elif self.positions not in POSITIONS:
            found = f"positions are {self.positions!r:.60}{did_you_mean(str(self.positions), POSITIONS)}"
            raise Error(f"config: {found}; expected a Rope, or one of {', '.join(POSITIONS)}")
        if self.positions == "sinusoidal" and self.width % 2:
            raise Error(f"config: width is {self.width}; expected an even width for sinusoidal positions")
        for name in ("memory_tokens", "persistent"):
            check_int(f"config: {name}", getattr(self, name), at_least=0, at_most=MAX_SIZE)
        if self.persistent * self.n_heads * self.head_dim > MAX_SIZE:
            raise Error(f"config: persistent is {self.persistent}; expected at most {MAX_SIZE} elements in all heads")
        if self.recurrent and not self.memory_tokens:
            raise Error("config: recurrent is True and memory_tokens is 0; expected at least 1 memory token")
        if self.ffn != "none":
            check_int("config: ffn_width", self.ffn_width, at_most=MAX_SIZE)
        elif self.ffn_width != 0:
            raise Error(f"config: ffn is none and ffn_width is {self.ffn_width!r:.60}; expected 0")
