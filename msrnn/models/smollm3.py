"""SmolLM3: LLaMA in which every fourth layer has no positions (NoPE, arXiv:2501.18795).

``layer_ropes`` has None for these layers. Their keys are not rotated, so a row does not depend on its position, and attention
there sees the rows of H as a set. The recurrence is that of LLaMA.
"""

from ..layers.rotary import Rope
from .config import Config

_ROPE = Rope(5e6)
SMOLLM3_3B = Config(
    family="smollm3",
    vocab_size=128256,
    width=2048,
    n_layers=36,
    n_heads=16,
    n_kv_heads=4,
    head_dim=128,
    ffn_width=11008,
    norm_eps=1e-6,
    rope=_ROPE,
    layer_ropes=(_ROPE, _ROPE, _ROPE, None) * 9,
    context_length=65536,
    tied=True,
    bos_token_id=128000,
    eos_token_ids=(128012,),
)
