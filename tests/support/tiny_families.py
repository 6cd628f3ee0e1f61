"""One tiny random cell of each family, with a config in which every field of the family takes effect within a dozen tokens."""

from dataclasses import replace

import torch

from msrnn.layers.rotary import LinearRope, Rope, YarnRope
from msrnn.models.config import Config
from msrnn.models.gemma2 import GemmaConfig
from msrnn.models.granite import GraniteConfig
from msrnn.models.llama import Llama
from msrnn.models.ministral3 import Ministral3Config
from msrnn.models.registry import build_random

SIZES = {"vocab_size": 50, "width": 24, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "head_dim": 6, "ffn_width": 32}
A, B = Rope(100.0), Rope(1000.0)
SHARED = {**SIZES, "norm_eps": 1e-5, "rope": A, "context_length": 64}
GRANITE = {"embedding_multiplier": 3.0, "residual_multiplier": 0.6, "attention_multiplier": 0.3, "logits_scaling": 1.7}

CONFIGS: dict[str, Config] = {
    "llama": Config("llama", **SHARED),
    "qwen2": Config("qwen2", **SHARED, layer_windows=(None, None, 4), tied=True),
    "qwen3": Config("qwen3", **{**SHARED, "head_dim": 8}),
    "smollm3": Config("smollm3", **SHARED, layer_ropes=(A, None, A)),
    "phi3": Config("phi3", **SHARED, sliding_window=5),
    "olmo2": Config("olmo2", **SHARED),
    "ministral": Config("ministral", **SHARED, layer_windows=(None, 4, 4)),
    "ministral3": Ministral3Config(
        "ministral3", **{**SHARED, "rope": YarnRope(100.0, 4.0, 8, 1.1, 2.0, 0.5)}, query_beta=0.7, query_length=4
    ),
    "gemma2": GemmaConfig(
        "gemma2",
        **{**SHARED, "head_dim": 8},
        layer_windows=(4, None, 4),
        tied=True,
        query_pre_attn_scalar=5.0,
        attention_softcap=3.0,
        logits_softcap=4.0,
    ),
    "gemma3": GemmaConfig(
        "gemma3",
        **{**SHARED, "head_dim": 8, "n_kv_heads": 1},
        layer_windows=(4, 4, None),
        layer_ropes=(A, A, LinearRope(1000.0, 2.0)),
        tied=True,
        query_pre_attn_scalar=5.0,
    ),
    "granite": GraniteConfig("granite", **SHARED, **GRANITE),
    "granite_swa": GraniteConfig(
        "granite_swa", **SHARED, **GRANITE, layer_windows=(None, 4, 4), layer_ropes=(A, None, B), tied=True
    ),
}
"""The configs by family."""
NEW = [family for family in CONFIGS if family != "llama"]
MIXED = [family for family, config in CONFIGS.items() if len(set(config.windows)) > 1]
"""The families with windows in some layers only."""


def tiny_family(family: str, seed: int = 0, dtype: torch.dtype = torch.float64, frozen: bool = True, **fields) -> Llama:
    """Return a random cell of a family; ``fields`` override ``CONFIGS``. Its attention is far from uniform."""
    cell = build_random(replace(CONFIGS[family], **fields)).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, x in cell.named_parameters():
            noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
            if x.ndim == 1 and "norm" in name:
                x.copy_(x + 0.3 * noise)  # the gain of a new norm is 1, also where it is 1 + weight
            elif "embed" in name or x.ndim == 1:  # biases and sinks
                x.copy_(noise)
            else:
                x.copy_((1.5 if ".q." in name or ".k." in name else 1.0) * noise * x.shape[1] ** -0.5)
    return cell.eval().requires_grad_(not frozen)
