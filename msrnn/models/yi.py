"""Yi: LLaMA with four key/value heads, a large vocabulary and a large rotary base (arXiv:2403.04652).

Early checkpoints have the model type ``Yi`` and the norm names ``ln1`` and ``ln2``; later ones have the names of LLaMA. The
converters read both.
"""

from dataclasses import replace

from ..layers.rotary import Rope
from .config import Config

YI_6B = Config(
    family="yi",
    vocab_size=64000,
    width=4096,
    n_layers=32,
    n_heads=32,
    n_kv_heads=4,
    head_dim=128,
    ffn_width=11008,
    norm_eps=1e-5,
    rope=Rope(5e6),
    context_length=4096,
    bos_token_id=1,
    eos_token_ids=(2,),
)
YI_6B_200K = replace(YI_6B, context_length=200000)
