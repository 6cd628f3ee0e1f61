"""LLaMA as a recurrent cell: the decoder layer, the network, and presets of published models.

The layers have pre-norm residuals, rotary positions (half-split), a gated MLP with SiLU, and no biases (arXiv:2302.13971).
Grouped queries are from LLaMA 2 (arXiv:2307.09288), and the RoPE scaling is from LLaMA 3.1 (arXiv:2407.21783). Mistral and Yi
are the same cell with other configs (``mistral.py``, ``yi.py``).
"""

from dataclasses import replace

from torch import Tensor, nn
from torch.nn.functional import silu

from ..cell.cell import Cell
from ..cell.layer import RecurrentLayer
from ..layers.embedding import Embedding, tied_logits
from ..layers.linear import Linear, gated_linear
from ..layers.norm import RMSNorm
from ..layers.positional import PositionTensors, RotaryEncoding
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
    """A LLaMA decoder layer: ``(x_t^l, H_{t-1}^l) -> (x_t^{l+1}, H_t^l)``."""

    def __init__(self, config: Config):
        super().__init__()
        E, F, D = config.width, config.ffn_width, config.head_dim
        self.config = config
        self.position_encoding = RotaryEncoding(config.rope, D)
        self.attention_norm = RMSNorm(E, config.norm_eps)
        self.q = Linear(E, config.n_heads * D)
        self.k = Linear(E, config.n_kv_heads * D)
        self.v = Linear(E, config.n_kv_heads * D)
        self.o = Linear(config.n_heads * D, E)
        self.ffn_norm = RMSNorm(E, config.norm_eps)
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
        return add_residual(x, self.down(gated_linear(self.ffn_norm(x), self.gate, self.up, silu)))


class Llama(Cell):
    """The network: embedding, layers, final norm, LM head. A new one is random and trainable."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embed = Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(LlamaLayer(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        if not config.tied:
            self.head = Linear(config.width, config.vocab_size)

    @property
    def default_reduction(self) -> Reduction:
        """:class:`Full`, or ``Window(W - 1)`` for a sliding window W, which includes the current token."""
        return Full() if self.config.sliding_window is None else Window(self.config.sliding_window - 1)

    @property
    def signature(self) -> str:
        return f"llama {self.config.signature()}"

    @property
    def fingerprint_tensors(self) -> list[Tensor]:
        return self.tensors_of("embed", "layers.0.q", f"layers.{len(self.layers) - 1}.down", "norm")

    def compute_logits(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return tied_logits(x, self.embed) if self.config.tied else self.head(x)
