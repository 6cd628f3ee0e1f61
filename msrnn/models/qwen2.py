"""Qwen2 and Qwen2.5: LLaMA with biases of q, k and v (arXiv:2407.10671, arXiv:2412.15115).

The biases are added before the rotation, so a cached row is a key and a value as in LLaMA, and the recurrence is the same. The
distilled DeepSeek-R1 models of Qwen have these layers too. Some checkpoints have a sliding window in the last layers
(``layer_windows``); the released ones switch it off.
"""

import torch
from torch import Tensor, nn

from ..layers.positional import PositionEncoding
from ..layers.rotary import Rope
from .config import Config
from .llama import Llama, LlamaLayer

QWEN25_05B = Config(
    family="qwen2",
    vocab_size=151936,
    width=896,
    n_layers=24,
    n_heads=14,
    n_kv_heads=2,
    head_dim=64,
    ffn_width=4864,
    norm_eps=1e-6,
    rope=Rope(1e6),
    context_length=32768,
    tied=True,
    bos_token_id=151643,
    eos_token_ids=(151643,),
)


class Qwen2Layer(LlamaLayer):
    """A layer with the biases ``q_bias (N D,)``, ``k_bias (K D,)`` and ``v_bias (K D,)``."""

    def __init__(self, config: Config, position_encoding: PositionEncoding):
        super().__init__(config, position_encoding)
        self.q_bias = nn.Parameter(torch.zeros(config.n_heads * config.head_dim))
        self.k_bias = nn.Parameter(torch.zeros(config.n_kv_heads * config.head_dim))
        self.v_bias = nn.Parameter(torch.zeros(config.n_kv_heads * config.head_dim))

    def qkv_product(self, x: Tensor) -> Tensor:
        return super().qkv_product(x) + torch.cat((self.q_bias, self.k_bias, self.v_bias))


class Qwen2(Llama):
    """The network of Qwen2."""

    arithmetic = "qwen2"
    layer_class = Qwen2Layer
