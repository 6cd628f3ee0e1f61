"""Mistral: LLaMA with grouped queries and, in v0.1, a sliding window (arXiv:2310.06825).

The window W = 4096 includes the current token, and ``size`` counts the rows carried to the next step. So the published model is
the LLaMA cell with the default reduction ``Window(W - 1)``. v0.2 and v0.3 have no window.
"""

from dataclasses import replace

from ..layers.rotary import Rope
from .config import Config

MISTRAL_7B_V01 = Config(
    family="mistral",
    vocab_size=32000,
    width=4096,
    n_layers=32,
    n_heads=32,
    n_kv_heads=8,
    head_dim=128,
    ffn_width=14336,
    norm_eps=1e-5,
    rope=Rope(10000.0),
    context_length=32768,
    sliding_window=4096,
    bos_token_id=1,
    eos_token_ids=(2,),
)
MISTRAL_7B_V02 = replace(MISTRAL_7B_V01, rope=Rope(1e6), sliding_window=None)
MISTRAL_7B_V03 = replace(MISTRAL_7B_V02, vocab_size=32768)
