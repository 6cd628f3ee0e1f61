"""Phi-3 mini: LLaMA with a sliding window in every layer (arXiv:2404.14219).

The files store q, k and v as one matrix, and gate and up as another; the converters split them. The published models with a
context of 128,000 tokens use LongRoPE, which the converters refuse for this family.
"""

from ..layers.rotary import Rope
from .config import Config

PHI3_MINI_4K = Config(
    family="phi3",
    vocab_size=32064,
    width=3072,
    n_layers=32,
    n_heads=32,
    n_kv_heads=32,
    head_dim=96,
    ffn_width=8192,
    norm_eps=1e-5,
    rope=Rope(10000.0),
    context_length=4096,
    sliding_window=2047,
    bos_token_id=1,
    eos_token_ids=(32000,),
)
