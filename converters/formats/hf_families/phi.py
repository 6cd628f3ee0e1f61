"""Phi-3 without LongRoPE. Its files store q, k and v as one matrix, and gate and up as another."""

from dataclasses import replace
from typing import Any

from msrnn import Error
from msrnn.layers.rotary import Rope

from ...fields import Fields
from ..rope import rope_from_hf
from .family import NAMES, PLAIN, HfFamily
from .windows import same_window

FUSED = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up")}
PARTS = [part for parts in FUSED.values() for part in parts]


def _read(fields: Fields) -> dict[str, Any]:
    for name in ("rope_scaling", "rope_parameters"):
        settings = fields.values.get(name)
        kind = (settings.get("rope_type") or settings.get("type")) if isinstance(settings, dict) else None
        if kind in ("longrope", "su", "yarn"):  # transformers reads the three alike
            raise Error(
                f"config.json: the rope type is {kind!r}, LongRoPE; expected 'default' for a Phi-3, because the frequencies of "
                "LongRoPE depend on the length of the whole text, and a step would need a rule for the keys in H"
            )
    rope = rope_from_hf(fields.values, fields.get_int("max_position_embeddings"))
    if type(rope) is not Rope:
        raise Error(f"config.json: the rope is {rope!r:.60}; expected the type 'default', as transformers has it for Phi-3")
    return {**same_window(fields, "Phi-3", read=True), "rope": rope}


PHI3 = HfFamily(
    family="phi3",
    title="Phi-3",
    model_type="phi3",
    classes="Phi3",
    defaults={
        "vocab_size": 32064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "sliding_window": None,
        "pad_token_id": 32000,
        "bos_token_id": 1,
        "eos_token_id": 32000,
    },
    supported={**PLAIN, "partial_rotary_factor": (1,)},
    names=replace(
        NAMES,
        layer={
            **{name: own for name, own in NAMES.layer.items() if own not in PARTS},
            "self_attn.qkv_proj": "qkv",
            "mlp.gate_up_proj": "gate_up",
        },
    ),
    fused=FUSED,
    read=_read,
    write=lambda config: {"sliding_window": config.sliding_window},
)
