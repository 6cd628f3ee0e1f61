"""Granite 3, and Granite with windows, learned sinks and one theta per layer."""

from dataclasses import replace
from typing import Any

from msrnn.errors import is_int
from msrnn.models.granite import GraniteConfig

from ...fields import Fields
from ..rope import rope_from_hf
from .family import NAMES, PLAIN, HfFamily
from .windows import FULL, SLIDING, read_window, read_windows, same_window, windows_to_hf

FACTORS = ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling")
THETAS = "layer_rope_theta"


def _factors(fields: Fields) -> dict[str, float]:
    return {name: fields.get_float(name) for name in FACTORS}


def _read_swa(fields: Fields) -> dict[str, Any]:
    n_layers = fields.get_int("num_hidden_layers")
    default = [SLIDING if layer % 4 else FULL for layer in range(n_layers)]
    rope = rope_from_hf(fields.values, fields.get_int("max_position_embeddings"))
    thetas = fields.values.get(THETAS, [rope.theta] * n_layers)
    numbers = isinstance(thetas, list) and all(is_int(x) or isinstance(x, float) for x in thetas)
    if not numbers or len(thetas) < n_layers or not all(0 <= x < float("inf") for x in thetas):
        raise fields.error(THETAS, f"a list of {n_layers} numbers, 0 for a layer without positions")
    ropes = tuple(replace(rope, theta=float(theta)) if theta else None for theta in thetas[:n_layers])
    same = all(x == rope for x in ropes)
    windows = read_windows(fields, default, read_window(fields))[1]
    return {**_factors(fields), **windows, "rope": rope, "layer_ropes": () if same else ropes}


def _write(config: GraniteConfig) -> dict[str, Any]:
    return {"attention_bias": False, "mlp_bias": False, **{name: getattr(config, name) for name in FACTORS}}


def _write_swa(config: GraniteConfig) -> dict[str, Any]:
    thetas = [0 if rope is None else rope.theta for rope in config.ropes]
    return {**_write(config), **windows_to_hf(config, unused=128), THETAS: thetas}


GRANITE = HfFamily(
    family="granite",
    title="Granite",
    model_type="granite",
    classes="Granite",
    defaults={
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        **dict.fromkeys(FACTORS, 1.0),
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    supported=PLAIN,
    fields=FACTORS,
    config_class=GraniteConfig,
    read=lambda fields: _factors(fields) | same_window(fields, "Granite", read=False),
    write=_write,
)
GRANITE_SWA = replace(
    GRANITE,
    family="granite_swa",
    title="Granite with windows",
    model_type="granite_swa",
    classes="GraniteSWA",
    defaults={
        **GRANITE.defaults,
        "vocab_size": 100352,
        "hidden_size": 2560,
        "intermediate_size": 8192,
        "num_hidden_layers": 24,
        "num_attention_heads": 20,
        "num_key_value_heads": 4,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "sliding_window": 128,
        "layer_types": None,
        THETAS: None,
        "bos_token_id": 100257,
        "eos_token_id": 100257,
    },
    fields=(*FACTORS, THETAS),
    names=replace(NAMES, vectors={"self_attn.sinks": "sinks"}),
    read=_read_swa,
    write=_write_swa,
)
