"""What a :class:`Decoder` is made of: facts, checked."""

from dataclasses import dataclass
from typing import ClassVar

from ..errors import Error
from ..layers.rotary import Rope
from .config import MOST, ModelConfig, check_part, check_rotary, check_sizes, check_whole

CHOICES = {
    "norm": ("rms", "rms-outside", "layer", "scale"),
    "placement": ("pre", "post"),
    "ffn": ("swiglu", "geglu", "reglu", "silu", "gelu", "relu", "none"),
}
ROTARY = Rope(10000.0)
POSITIONS = ("learned", "sinusoidal", "alibi")


@dataclass(frozen=True, kw_only=True)
class DecoderConfig(ModelConfig):
    """A small decoder-only network, to be trained. Those left as they are make it a LLaMA.

    Attributes:
        vocab_size, width, n_layers, n_heads, n_kv_heads, head_dim, length: as of :class:`Config`; multi-head attention where
            ``n_kv_heads`` is ``n_heads``, multi-query where it is 1. ``length`` is how many ``learned`` positions there are.
        ffn: of the feed-forward: gated (arXiv:2002.05202) by SiLU ``swiglu``, GELU ``geglu`` or ReLU ``reglu``; plain ``silu``,
            ``gelu``, ``relu``; or ``none``, and then ``ffn_width`` is 0.
        positions: a :class:`Rope` for rotary ones, or ``learned``, ``sinusoidal`` (both are added to what enters), ``alibi``.
        norm: ``rms`` with epsilon inside the root as in LLaMA, ``rms-outside`` as in its authors' code, ``layer``, ``scale``.
        placement: ``pre`` norms what a sublayer is given, and what leaves the last layer; ``post`` what has been added up.
        bias: whether the products within layers, and LayerNorm, have one.
        tied: whether the vocabulary product reuses the embedding.
        fixnorm: whether embeddings have the length √E, whatever the parameters' length, and where tied, 1 in the product
            (arXiv:1910.05895).
        small_init: whether attention begins as narrow as a feed-forward of 4 E, √(2 / 5E) (ibid.), and not by Xavier.
        dropout: of embeddings and of what each sublayer adds, in training.
        memory_tokens: how many are read before the text; ``recurrent``: whether they are written anew at the end of a chunk, by
            :meth:`Decoder.carry`; ``persistent``: how many rows each layer's H has from the first (all in ``learned.py``).
        bos_token_id, eos_token_ids: as of :class:`Config`.
    """

    family: ClassVar[str] = "decoder"
    vocab_size: int
    width: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_width: int
    length: int
    ffn: str = "swiglu"
    positions: Rope | str = ROTARY
    norm: str = "rms"
    norm_eps: float = 1e-5
    placement: str = "pre"
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

    def __post_init__(self) -> None:
        check_sizes(self)
        for name, known in CHOICES.items():
            if (value := getattr(self, name)) not in known:
                raise Error(f"config: {name} is {value!r:.60}; expected one of {', '.join(known)}")
        for name in ("bias", "tied", "fixnorm", "small_init", "recurrent"):
            if not isinstance(value := getattr(self, name), bool):
                raise Error(f"config: {name} is {value!r:.60}; expected a bool")
        check_part(self, "dropout")
        if not isinstance(self.positions, Rope) and self.positions not in POSITIONS:
            raise Error(f"config: positions are {self.positions!r:.60}; expected a Rope, or one of {', '.join(POSITIONS)}")
        if isinstance(self.positions, Rope):
            check_rotary(self.head_dim)
        if self.positions == "sinusoidal" and self.width % 2:
            raise Error(f"config: width is {self.width}; sinusoidal positions need an even one")
        check_whole(self, "memory_tokens", "persistent", at_least=0)
        if self.persistent * self.n_heads * self.head_dim > MOST:
            raise Error(f"config: {self.persistent} persistent rows of {self.n_heads} heads; expected at most {MOST} numbers")
        if self.recurrent and not self.memory_tokens:
            raise Error("config: recurrent is True and memory_tokens 0; expected memory tokens, which are written anew")
        if self.ffn != "none":
            check_whole(self, "ffn_width")
        elif self.ffn_width != 0:
            raise Error(f"config: ffn is none and ffn_width {self.ffn_width!r:.60}; expected 0")
