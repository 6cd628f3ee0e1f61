r"""LLaMA as a recurrent cell: the decoder layer and the network.

Pre-norm residual layers, grouped-query attention, half-split rotary positions, a gated MLP with SiLU, no biases:
arXiv:2302.13971; grouped queries: arXiv:2307.09288; llama3 rope scaling: arXiv:2407.21783. Mistral and Yi are the same network
with other configs (``mistral.py``, ``yi.py``). The loops over layers and tokens are in ``msrnn/cell``.
"""

from operator import attrgetter

from torch import Tensor, nn
from torch.nn.functional import silu

from ..cell.cell import Cell
from ..cell.layer import RecurrentLayer
from ..layers.embedding import Embedding
from ..layers.linear import Linear, product, side_by_side
from ..layers.norm import RMSNorm
from ..layers.rotary import Rope, Rotation
from ..reductions.contract import Reduction
from ..reductions.core import Full, Window
from .config import Config


class LlamaLayer(RecurrentLayer):
    """A LLaMA decoder layer: ``(x_t^l, H_{t-1}^l) -> (x_t^{l+1}, H_t^l)``."""

    def __init__(self, config: Config):
        super().__init__()
        E, F, D = config.width, config.ffn_width, config.head_dim
        self.config = config
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

    def project_qkv(self, x: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        return self.qkv_heads(self.attention_norm(x), rotation)

    def post_attention(self, x: Tensor, attn_output: Tensor) -> Tensor:
        x = x + self.o(attn_output.flatten(-2))  # (…, N, D) -> (…, N D) -> (…, E)
        normed = self.ffn_norm(x)
        gate, up = side_by_side(normed, self.gate, self.up).chunk(2, dim=-1)
        return x + self.down(silu(gate) * up)


class Llama(Cell):
    """Embedding, layers, final norm and LM head. A new network is random and trainable."""

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
        """:class:`Full`, or for a sliding window W ``Window(W - 1)``: W counts the current token, ``size`` does not."""
        return Full() if self.config.window is None else Window(self.config.window - 1)

    @property
    def rope(self) -> Rope:
        return self.config.rope

    @property
    def signature(self) -> str:
        c = self.config
        sizes = (c.vocab_size, c.width, c.n_layers, c.n_heads, c.n_kv_heads, c.head_dim, c.ffn_width)
        return f"llama {sizes} tied={c.tied} eps={c.norm_eps:.6g} {c.rope}"

    @property
    def fingerprint_tensors(self) -> list[Tensor]:
        last = len(self.layers) - 1
        return list(attrgetter("embed.weight", "layers.0.q.weight", f"layers.{last}.down.weight", "norm.weight")(self))

    def compute_logits(self, x: Tensor) -> Tensor:
        head = self.embed if self.config.tied else self.head
        return product(self.norm(x), head.weight)
