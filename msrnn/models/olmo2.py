"""OLMo 2: the norms are on the output of each sublayer, and on the queries and keys of all heads (arXiv:2501.00656).

A sublayer reads x itself, its output is normalized, and the sum follows. RMSNorm over the whole projected width of queries, and
of keys, comes before they are split into heads. Norms act on one token, so the recurrence is that of LLaMA.
"""

import torch
from torch import Tensor

from ..layers.norm import WideGainRMSNorm
from ..layers.positional import PositionEncoding, PositionTensors
from ..layers.residual import add_residual
from ..layers.rotary import Rope
from .config import Config
from .llama import Llama, LlamaLayer

OLMO2_1B = Config(
    family="olmo2",
    vocab_size=100352,
    width=2048,
    n_layers=16,
    n_heads=16,
    n_kv_heads=16,
    head_dim=128,
    ffn_width=8192,
    norm_eps=1e-6,
    rope=Rope(500000.0),
    context_length=4096,
    eos_token_ids=(100257,),
)


class Olmo2Layer(LlamaLayer):
    """A layer with norms on outputs; ``attention_norm`` and ``ffn_norm`` normalize the outputs of attention and MLP."""

    norm_class = WideGainRMSNorm

    def __init__(self, config: Config, position_encoding: PositionEncoding):
        super().__init__(config, position_encoding)
        self.q_norm = self.norm_class(config.n_heads * config.head_dim, config.norm_eps)
        self.k_norm = self.norm_class(config.n_kv_heads * config.head_dim, config.norm_eps)

    def project_qkv(self, x: Tensor, position_tensors: PositionTensors | None) -> tuple[Tensor, Tensor, Tensor]:
        return self.qkv_heads(x, position_tensors)

    def qkv_product(self, x: Tensor) -> Tensor:
        N, K, D = self.config.n_heads, self.config.n_kv_heads, self.config.head_dim
        q, k, v = super().qkv_product(x).split_with_sizes((N * D, K * D, K * D), dim=-1)
        return torch.cat((self.q_norm(q), self.k_norm(k), v), dim=-1)

    def post_attention(self, x: Tensor, attn_output: Tensor) -> Tensor:
        x = add_residual(x, self.attention_norm(self.o(attn_output.flatten(-2))))
        return add_residual(x, self.ffn_norm(self.mlp(x)))


class Olmo2(Llama):
    """The network of OLMo 2."""

    arithmetic = "olmo2"
    layer_class = Olmo2Layer
