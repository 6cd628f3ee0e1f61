"""Qwen2 (also Qwen2.5 and the distilled DeepSeek-R1) and Qwen3, dense. Windows are in the last layers, if they are used."""

from dataclasses import replace
from typing import Any

from msrnn.models import Config

from ...fields import Fields
from .family import HEAD_NORMS, NAMES, PLAIN, HfFamily
from .windows import FULL, SLIDING, read_windows, window_if_used, windows_to_hf


def _read(fields: Fields) -> dict[str, Any]:
    window = window_if_used(fields)
    first, n_layers = fields.get_int("max_window_layers", at_least=0), fields.get_int("num_hidden_layers")
    default = [SLIDING if window is not None and layer >= first else FULL for layer in range(n_layers)]
    return read_windows(fields, default, window)[1]


def _write(config: Config) -> dict[str, Any]:
    windows = windows_to_hf(config)
    return {"use_sliding_window": windows["sliding_window"] is not None, **windows}


QWEN2 = HfFamily(
    family="qwen2",
    title="Qwen2",
    model_type="qwen2",
    classes="Qwen2",
    defaults={
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "sliding_window": 4096,
        "max_window_layers": 28,
        "layer_types": None,
        "bos_token_id": None,
        "eos_token_id": None,
    },
    # transformers ignores the fields about biases of q, k and v, which this family always has
    supported={**PLAIN, "attention_bias": (False, True), "qkv_bias": (True,)},
    fields=("max_window_layers",),
    names=replace(NAMES, vectors={f"self_attn.{x}_proj.bias": f"{x}_bias" for x in "qkv"}),
    read=_read,
    write=_write,
)
QWEN3 = replace(
    QWEN2,
    family="qwen3",
    title="Qwen3",
    model_type="qwen3",
    classes="Qwen3",
    defaults={**QWEN2.defaults, "head_dim": 128},
    supported=PLAIN,
    names=replace(NAMES, layer={**NAMES.layer, **HEAD_NORMS}),
    write=lambda config: {"attention_bias": False, **_write(config)},
)
