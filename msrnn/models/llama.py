"""LLaMA as a recurrent cell: the decoder layer, the network, and presets of published models.

The layers have pre-norm residuals, rotary positions (half-split), a gated MLP with SiLU, and no biases (arXiv:2302.13971).
Grouped queries are from LLaMA 2 (arXiv:2307.09288), and the RoPE scaling is from LLaMA 3.1 (arXiv:2407.21783). Mistral and Yi
are the same cell with other configs (``mistral.py``, ``yi.py``).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import silu

from ..cell.cell import Cell
from ..cell.layer import RecurrentLayer
from ..layers.embedding import Embedding, tied_logits
from ..layers.linear import Linear, gated_linear
from ..layers.norm import RMSNorm
from ..layers.positional import PositionEncoding, PositionTensors, RotaryEncoding
from ..layers.residual import add_residual
from ..layers.rotary import Llama3Rope, Rope
from ..reductions.contract import Reduction
from ..reductions.tova_paper import Full, Window
from .config import Config

LLAMA_2_7B = Config(
    family="llama",
    vocab_size=32000,
    width=4096,
    n_layers=32,
    n_heads=32,
    n_kv_heads=32,
    head_dim=128,
    ffn_width=11008,
    norm_eps=1e-5,
    rope=Rope(10000.0),
    context_length=4096,
    bos_token_id=1,
    eos_token_ids=(2,),
)
LLAMA_3_8B = replace(
    LLAMA_2_7B,
    vocab_size=128256,
    n_kv_heads=8,
    ffn_width=14336,
    rope=Rope(500000.0),
    context_length=8192,
    bos_token_id=128000,
    eos_token_ids=(128001,),
)
LLAMA_31_8B = replace(
    LLAMA_3_8B,
    rope=Llama3Rope(500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_length=8192),
    context_length=131072,
)
LLAMA_32_1B = replace(
    LLAMA_31_8B,
    width=2048,
    n_layers=16,
    head_dim=64,
    ffn_width=8192,
    rope=Llama3Rope(500000.0, factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_length=8192),
    tied=True,
)


class LlamaLayer(RecurrentLayer):
    """A LLaMA decoder layer: ``(x_t^l, H_{t-1}^l) -> (x_t^{l+1}, H_t^l)``.

    Other families are subclasses, each with the arithmetic in which it differs.
    """

    norm_class: type[RMSNorm] = RMSNorm
    activation: Callable[[Tensor], Tensor] = staticmethod(silu)
    """The function on the gate of the MLP."""

    def __init__(self, config: Any, position_encoding: PositionEncoding):
        super().__init__()
        E, F, D = config.width, config.ffn_width, config.head_dim
        self.config, self.position_encoding = config, position_encoding
        self.attention_norm = self.norm_class(E, config.norm_eps)
        self.q = Linear(E, config.n_heads * D)
        self.k = Linear(E, config.n_kv_heads * D)
        self.v = Linear(E, config.n_kv_heads * D)
        self.o = Linear(config.n_heads * D, E)
        self.ffn_norm = self.norm_class(E, config.norm_eps)
        self.gate = Linear(E, F)
        self.up = Linear(E, F)
        self.down = Linear(F, E)
        self.fuse_storage_()

    @property
    def fused_groups(self) -> tuple[tuple[nn.Module, ...], ...]:
        return ((self.q, self.k, self.v), (self.gate, self.up))

    def project_qkv(self, x: Tensor, position_tensors: PositionTensors | None) -> tuple[Tensor, Tensor, Tensor]:
        return self.qkv_heads(self.attention_norm(x), position_tensors)

    def post_attention(self, x: Tensor, attn_output: Tensor) -> Tensor:
        x = add_residual(x, self.o(attn_output.flatten(-2)))  # (…, N, D) -> (…, N D) -> (…, E)
        return add_residual(x, self.mlp(self.ffn_norm(x)))

    def mlp(self, x: Tensor) -> Tensor:
        """Return the output of the gated MLP for a normed x, ``(…, E) -> (…, E)``."""
        return self.down(gated_linear(x, self.gate, self.up, self.activation))


class Llama(Cell):
    """The network: embedding, layers, final norm, LM head. A new one is random and trainable.

    The networks of other families are subclasses with other layers.
    """

    arithmetic = "llama"
    """Families with the same layers share this name, so that a state of one is accepted by the other."""
    layer_class: type[LlamaLayer] = LlamaLayer

    def __init__(self, config: Any):
        super().__init__()
        self.config = config
        self.embed = Embedding(config.vocab_size, config.width)
        encodings = {rope: self.make_position_encoding(rope) for rope in config.ropes}
        self.layers = nn.ModuleList(self.layer_class(config, encodings[rope]) for rope in config.ropes)
        self.norm = self.layer_class.norm_class(config.width, config.norm_eps)
        if not config.tied:
            self.head = Linear(config.width, config.vocab_size)

    def make_position_encoding(self, rope: Rope | None) -> PositionEncoding:
        """Return the encoding of the layers with this ``rope``; None: layers without positions."""
        return PositionEncoding() if rope is None else RotaryEncoding(rope, self.config.head_dim)

    @property
    def default_reduction(self) -> Reduction | tuple[Reduction, ...]:
        """:class:`Full`, or ``Window(W - 1)`` for a sliding window W, which includes the current token."""
        operators = tuple(Full() if W is None else Window(W - 1) for W in self.config.windows)
        return operators if len(set(operators)) > 1 else operators[0]

    @property
    def signature(self) -> str:
        return f"{self.arithmetic} {self.config.signature()}"

    @property
    def fingerprint_tensors(self) -> list[Tensor]:
        first = (f"layers.0.{name}" for name in ("q", "k", "v", "o", "gate", "up", "down"))
        return self.tensors_of("embed", *first, f"layers.{len(self.layers) - 1}.down", "norm")

    def compute_logits(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return tied_logits(x, self.embed) if self.config.tied else self.head(x)
