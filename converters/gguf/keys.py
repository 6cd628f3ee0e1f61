"""The metadata keys of an architecture: all must be known, because an unknown one may change the arithmetic.

The sources are ``gguf-py/gguf/constants.py`` and ``llama-model.cpp`` of llama.cpp. llama.cpp reads many more keys than its
converter writes for these models; those are accepted with the value that changes nothing.
"""

from typing import Any

from ..fields import Fields
from .architectures import Architecture

SCALING = ("type", "factor", "original_context_length", "attn_factor", "finetuned", "yarn_beta_fast", "yarn_beta_slow")
READ = {
    *("block_count", "embedding_length", "feed_forward_length", "context_length", "vocab_size", "expert_count"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
    "attention.layer_norm_rms_epsilon",
    *("rope.dimension_count", "rope.freq_base", "rope.scale_linear", *(f"rope.scaling.{key}" for key in SCALING)),
}
"""Keys that are read for all architectures."""
HARMLESS = {
    "tensor_data_layout",  # the order of rows of Meta's files, which every converter writes
    "attention.layer_norm_epsilon",  # of LayerNorm, which the architectures do not have
    "expert_used_count",  # counts only with expert_count
}
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "logit_scale": (0, 1),
    "embedding_scale": (0, 1),
    "residual_scale": (0, 1),
    "rope.scaling.yarn_ext_factor": (1,),
    "rope.scaling.yarn_attn_factor": (1,),
}
"""Values that change nothing, in addition to 0 and false. In llama.cpp 0 switches a scale off."""


def check_keys(meta: Fields, architecture: Architecture, scale: float) -> None:
    """Refuse keys of the architecture that would change the arithmetic.

    Args:
        meta: the metadata of the file.
        architecture: that of the file.
        scale: the factor of attention logits.

    Raises:
        Error: the first such key by name, with its value.
    """
    prefix = architecture.prefix
    for key, value in meta.values.items():
        name = key.removeprefix(prefix)
        if not key.startswith(prefix) or name in READ or name in HARMLESS or name in architecture.keys:
            continue
        if name in NEUTRAL:
            known = NEUTRAL[name]
        elif name == "attention.scale":
            known = (0, scale)
        elif name == "rope.freq_base_swa":
            known = (meta.values.get(prefix + "rope.freq_base", 10000.0),)
        else:
            known = (0,)
        number = isinstance(value, int | float)  # false is 0
        if not number or not any(abs(value - x) <= 1e-6 * abs(x) for x in known):
            expected = "true" if known == (True,) else " or ".join(f"{x:g}" for x in known)
            reason = f"because the architecture {architecture.name} of msrnn does not have it"
            raise meta.error(key, f"{expected} or no such key, {reason}")
