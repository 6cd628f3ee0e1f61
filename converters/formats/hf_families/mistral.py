"""Ministral, which has windows in some layers, and Ministral 3, where queries grow with the position."""

from typing import Any

from msrnn.layers.rotary import Llama3Rope, YarnRope
from msrnn.models import Config
from msrnn.models.ministral3 import Ministral3Config

from ...fields import Fields
from ..rope import ORIGINAL_LENGTH, rope_from_hf, rope_settings
from .family import HfFamily
from .windows import FULL, SLIDING, read_window, read_windows, same_window, windows_to_hf

BETA = "llama_4_scaling_beta"
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, ORIGINAL_LENGTH: 16384, "mscale": 1.0, "mscale_all_dim": 1.0}
"""The ``rope_parameters`` of a Ministral 3 without them."""


def _read_ministral(fields: Fields) -> dict[str, Any]:
    window, n_layers = read_window(fields), fields.get_int("num_hidden_layers")
    return read_windows(fields, [FULL if window is None else SLIDING] * n_layers, window)[1]


def _read_ministral3(fields: Fields) -> dict[str, Any]:
    length, config = fields.get_int("max_position_embeddings"), fields.values
    if not config.get("rope_scaling") and not config.get("rope_parameters"):
        config = {**config, "rope_parameters": {**YARN, BETA: 0.1}}
    # transformers writes the length of the model into these settings too, and does not read it there
    rope = rope_from_hf(config, length, more_keys={BETA, "max_position_embeddings"})
    settings = Fields(config.get("rope_scaling") or config["rope_parameters"], "config.json: rope settings")
    # transformers needs the original length, and sets a default for these types only
    original_length = rope.original_length if isinstance(rope, YarnRope | Llama3Rope) else None
    return {
        **same_window(fields, "Ministral 3", read=True),
        "rope": rope,
        "query_beta": settings.get_float(BETA),
        "query_length": settings.get_int(ORIGINAL_LENGTH, original_length),
    }


def _write_ministral(config: Config) -> dict[str, Any]:
    return windows_to_hf(config, unused=4096)


def _write_ministral3(config: Ministral3Config) -> dict[str, Any]:
    settings = {**rope_settings(config.rope), BETA: config.query_beta, ORIGINAL_LENGTH: config.query_length}
    return {"rope_parameters": settings, "sliding_window": config.sliding_window}


MINISTRAL = HfFamily(
    family="ministral",
    title="Ministral",
    model_type="ministral",
    classes="Ministral",
    defaults={
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": None,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "sliding_window": 4096,
        "layer_types": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    read=_read_ministral,
    write=_write_ministral,
)
MINISTRAL3 = HfFamily(
    family="ministral3",
    title="Ministral 3",
    model_type="ministral3",
    classes="Ministral3",
    defaults={
        "vocab_size": 131072,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 34,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 262144,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "sliding_window": None,
        "pad_token_id": 11,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    config_class=Ministral3Config,
    read=_read_ministral3,
    write=_write_ministral3,
)
