"""Qwen3, dense: LLaMA with normalized queries and keys, and without the biases of Qwen2 (arXiv:2505.09388).

``head_dim`` is given: N D differs from the width. The norms act on one token, so the recurrence is that of LLaMA.
"""

from ..layers.rotary import Rope
from .config import Config
from .head_norm import HeadNormLayer
from .llama import Llama

QWEN3_06B = Config(
    family="qwen3",
    vocab_size=151936,
    width=1024,
    n_layers=28,
    n_heads=16,
    n_kv_heads=8,
    head_dim=128,
    ffn_width=3072,
    norm_eps=1e-6,
    rope=Rope(1e6),
    context_length=40960,
    tied=True,
    bos_token_id=151643,
    eos_token_ids=(151645,),
)


class Qwen3(Llama):
    """The network of Qwen3."""

    arithmetic = "qwen3"
    layer_class = HeadNormLayer
