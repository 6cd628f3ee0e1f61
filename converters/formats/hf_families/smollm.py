"""SmolLM3, which has layers without positions. Windows, if they are used, are in these layers."""

from typing import Any

from msrnn.errors import is_int
from msrnn.models import Config

from ...fields import Fields
from ..rope import rope_from_hf
from .family import HfFamily
from .windows import FULL, SLIDING, read_windows, window_if_used, windows_to_hf

THETA = 2e6


def _read(fields: Fields) -> dict[str, Any]:
    n_layers, interval = fields.get_int("num_hidden_layers"), fields.get_int("no_rope_layer_interval")
    rotated = fields.values.get("no_rope_layers")  # 1: the layer has positions, in spite of the name
    if rotated is None:
        rotated = [int((layer + 1) % interval != 0) for layer in range(n_layers)]
    if not isinstance(rotated, list) or len(rotated) < n_layers or not all(is_int(x) and x in (0, 1) for x in rotated):
        raise fields.error("no_rope_layers", f"a list of 0 (a layer without positions) and 1, for each of {n_layers} layers")
    window = window_if_used(fields)
    default = [FULL if window is None or x else SLIDING for x in rotated[:n_layers]]
    rope = rope_from_hf(fields.values, fields.get_int("max_position_embeddings"), THETA)
    ropes = tuple(rope if x else None for x in rotated[:n_layers])
    windows = read_windows(fields, default, window)[1]
    return {**windows, "rope": rope, "layer_ropes": () if None not in ropes else ropes}


def _write(config: Config) -> dict[str, Any]:
    windows = windows_to_hf(config)
    return {
        "no_rope_layers": [int(rope is not None) for rope in config.ropes],
        "use_sliding_window": windows["sliding_window"] is not None,
        "attention_bias": False,
        "mlp_bias": False,
        **windows,
    }


SMOLLM3 = HfFamily(
    family="smollm3",
    title="SmolLM3",
    model_type="smollm3",
    classes="SmolLM3",
    defaults={
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "sliding_window": None,
        "no_rope_layers": None,
        "no_rope_layer_interval": 4,
        "layer_types": None,
        "pad_token_id": 128004,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    },
    theta=THETA,
    fields=("no_rope_layers", "no_rope_layer_interval"),
    read=_read,
    write=_write,
)
