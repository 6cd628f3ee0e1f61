"""Gemma 3, text: Gemma 2 with normalized queries and keys, windows in five of six layers, and no attention softcap.

The layers with a window have rotary positions of their own (``layer_ropes``), with a smaller base (arXiv:2503.19786, sec. 2).
The state of the published model is bounded in five of six layers, by ``Window(W - 1)``.
"""

from ..layers.rotary import Rope
from .gemma2 import Gemma2, GemmaConfig, GemmaLayer
from .head_norm import HeadNormLayer

_LOCAL, _GLOBAL = Rope(10000.0), Rope(1e6)
GEMMA3_270M = GemmaConfig(
    family="gemma3",
    vocab_size=262144,
    width=640,
    n_layers=18,
    n_heads=4,
    n_kv_heads=1,
    head_dim=256,
    ffn_width=2048,
    norm_eps=1e-6,
    rope=_GLOBAL,
    layer_ropes=(*(_LOCAL,) * 5, _GLOBAL) * 3,
    layer_windows=(*(512,) * 5, None) * 3,
    context_length=32768,
    tied=True,
    bos_token_id=2,
    eos_token_ids=(1,),
)


class Gemma3Layer(HeadNormLayer, GemmaLayer):
    """A layer of Gemma 2 with norms of queries and keys."""


class Gemma3(Gemma2):
    """The network of Gemma 3."""

    arithmetic = "gemma3"
    layer_class = Gemma3Layer
