"""Ministral 8B (October 2024): LLaMA with a sliding window in three of four layers.

A layer with a window W is a bounded state, ``Window(W - 1)``; the other layers keep every row. So H grows in one of four layers
only. ``layer_windows`` has the windows.
"""

from ..layers.rotary import Rope
from .config import Config

MINISTRAL_8B = Config(
    family="ministral",
    vocab_size=131072,
    width=4096,
    n_layers=36,
    n_heads=32,
    n_kv_heads=8,
    head_dim=128,
    ffn_width=12288,
    norm_eps=1e-5,
    rope=Rope(1e8),
    layer_windows=(None, 32768, 32768, 32768) * 9,
    context_length=32768,
    bos_token_id=1,
    eos_token_ids=(2,),
)
