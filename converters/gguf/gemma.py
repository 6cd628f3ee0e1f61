"""The keys of Gemma 2 and 3 in a GGUF file: windows, their rotary positions, softcaps, and the scale of queries."""

from dataclasses import replace
from typing import Any

from msrnn.layers.rotary import LinearRope, Rope

from ..fields import Fields
from .architectures import WINDOW

LAYERS_OF_27B = {"gemma2": 46, "gemma3": 62}
"""Number of layers of the models of 27B, by which llama.cpp recognises them."""
PERIODS = {"gemma2": 2, "gemma3": 6}
"""Default of ``sliding_window_pattern``: in each group of this many layers, the last one has no window."""
DEFAULT_WINDOWS = {"gemma2": 4096, "gemma3": 0}
"""The window of a file without the key; 0: none."""
DEFAULT_SOFTCAPS = {"gemma2": 30.0, "gemma3": 0.0}
"""The softcap of the logits of the next token of a file without the key; 0: none."""


def query_scalar(family: str, n_layers: int, n_heads: int, width: int, head_dim: int) -> int:
    """Return Gemma's ``query_pre_attn_scalar``: D, but E / N in the models of 27B. GGUF has no key for it."""
    return width // n_heads if n_layers == LAYERS_OF_27B[family] else head_dim


def gemma_fields(meta: Fields, family: str, rope: Rope, n_layers: int, head_dim: int) -> dict[str, Any]:
    """Return the fields of the config that only Gemma has, except ``query_pre_attn_scalar``.

    Args:
        meta: the metadata of the file.
        family: ``gemma2`` or ``gemma3``.
        rope: of the layers without a window.
        n_layers, head_dim: L and D.

    Raises:
        Error: a key has a wrong value, or layers with a window have another head dimension.
    """
    prefix = f"{family}."
    for key in ("attention.key_length_swa", "attention.value_length_swa", "rope.dimension_count_swa"):
        if meta.get_int(prefix + key, head_dim) != head_dim:
            raise meta.error(prefix + key, f"{head_dim}, the head dimension of all layers")
    window = meta.get_int(prefix + WINDOW, DEFAULT_WINDOWS[family], at_least=0)
    local = _local_layers(meta, family, n_layers) if window else (False,) * n_layers
    local_rope = _local_rope(meta, family, rope)
    fields: dict[str, Any] = {
        "layer_windows": tuple(window if x else None for x in local) if any(local) else (),
        "layer_ropes": tuple(local_rope if x else rope for x in local) if any(local) and local_rope != rope else (),
        "logits_softcap": meta.get_float(prefix + "final_logit_softcapping", DEFAULT_SOFTCAPS[family]) or None,
    }
    if family == "gemma2":
        fields["attention_softcap"] = meta.get_float(prefix + "attn_logit_softcapping", 50.0) or None
    return fields


def _local_layers(meta: Fields, family: str, n_layers: int) -> tuple[bool, ...]:
    """Return which layers have a window: by the list in the file, or all but the last layer of each period."""
    key = f"{family}.attention.sliding_window_pattern"
    pattern = meta.values.get(key)
    if isinstance(pattern, list):
        if len(pattern) != n_layers or not all(x in (0, 1) for x in pattern):
            raise meta.error(key, f"a number, or a list of {n_layers} truth values")
        return tuple(bool(x) for x in pattern)
    period = meta.get_int(key, PERIODS[family], at_least=0)
    return tuple(period == 0 or n % period < period - 1 for n in range(n_layers))


def _local_rope(meta: Fields, family: str, rope: Rope) -> Rope:
    """Return the rope of layers with a window. Gemma 3 scales the rope of the others only; Gemma 2 has one rope.

    Raises:
        Error: Gemma 3 with another scaling than the linear one, which llama.cpp applies to all layers in part.
    """
    key = f"{family}.rope.freq_base_swa"
    if family == "gemma2":
        return replace(rope, theta=meta.get_float(key, rope.theta))
    if type(rope) not in (Rope, LinearRope):
        raise meta.error(f"{family}.rope.scaling.type", "'none' or 'linear'")
    return Rope(meta.get_float(key, 10000.0))
