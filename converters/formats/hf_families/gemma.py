"""Gemma 2 and the text part of Gemma 3, with windows in some layers; layers of Gemma 3 with a window have their own rope."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from msrnn import Error
from msrnn.layers.rotary import Rope
from msrnn.models.gemma2 import GemmaConfig

from ...fields import Fields
from ..rope import check_same_rope, rope_from_settings, rope_settings
from .family import HEAD_NORMS, NAMES, HfFamily
from .windows import FULL, SLIDING, read_window, read_windows, windows_to_hf

GELU = "gelu_pytorch_tanh"
THETAS = {FULL: ("rope_theta", 1e6), SLIDING: ("rope_local_base_freq", 1e4)}
"""The field and the default of theta of both kinds of layers in Gemma 3."""
PATTERN = "sliding_window_pattern"
"""Every layer of Gemma 3 with a number (from 1) divisible by this field has no window, if there are no ``layer_types``."""
LAYER = {
    **NAMES.layer,
    "post_attention_layernorm": "attention_output_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "ffn_output_norm",
}


def _scales(fields: Fields) -> dict[str, Any]:
    softcaps = {"attention_softcap": "attn_logit_softcapping", "logits_softcap": "final_logit_softcapping"}
    return {
        "query_pre_attn_scalar": fields.get_float("query_pre_attn_scalar"),
        **{own: fields.get_float(name) if name in fields.values else None for own, name in softcaps.items()},
    }


def _read_gemma2(fields: Fields) -> dict[str, Any]:
    default = [FULL if layer % 2 else SLIDING for layer in range(fields.get_int("num_hidden_layers"))]
    return _scales(fields) | read_windows(fields, default, read_window(fields))[1]


def _read_gemma3(fields: Fields) -> dict[str, Any]:
    n_layers, pattern = fields.get_int("num_hidden_layers"), fields.get_int(PATTERN, 6)
    default = [SLIDING if (layer + 1) % pattern else FULL for layer in range(n_layers)]
    kinds, windows = read_windows(fields, default, read_window(fields))
    ropes = _ropes(fields)
    layer_ropes = tuple(ropes[kind] for kind in kinds)
    same = all(rope == ropes[FULL] for rope in layer_ropes)
    return {**_scales(fields), **windows, "rope": ropes[FULL], "layer_ropes": () if same else layer_ropes}


def _ropes(fields: Fields) -> dict[str, Rope]:
    """Return the rope of both kinds of layers. ``rope_scaling`` (older files) is about the layers without a window.

    Raises:
        Error: ``rope_parameters`` is not one object per kind of layer, or both spellings are given with different meanings.
    """
    length, given = fields.get_int("max_position_embeddings"), fields.values.get("rope_parameters", {})
    if not isinstance(given, Mapping) or not given.keys() <= THETAS.keys():
        raise fields.error("rope_parameters", f"an object with {FULL!r} and {SLIDING!r}")
    ropes = {}
    for kind, (name, theta) in THETAS.items():
        settings = {} if given.get(kind) is None else given[kind]
        scaling = fields.values.get("rope_scaling", {}) if kind == FULL else {}
        if not isinstance(settings, Mapping) or not isinstance(scaling, Mapping):
            raise Error(f"config.json: the rope settings are {settings or scaling!r:.60}; expected an object")
        names = {"rope_theta": name}
        # as in transformers: settings of rope_scaling are added to the plain type
        merged = rope_from_settings({"rope_type": "default", **settings, **scaling}, fields.values, length, theta, names=names)
        if settings and scaling:
            plain = rope_from_settings(settings, fields.values, length, theta, names=names)
            check_same_rope({"rope_scaling": merged, "rope_parameters": plain})
        ropes[kind] = merged
    return ropes


def _write(config: GemmaConfig) -> dict[str, Any]:
    return {
        "hidden_act": GELU,
        "hidden_activation": GELU,
        "query_pre_attn_scalar": _int_if_whole(config.query_pre_attn_scalar),
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logits_softcap,
        "attention_bias": False,
        **windows_to_hf(config, unused=4096),
    }


def _write_gemma3(config: GemmaConfig) -> dict[str, Any]:
    local = [rope for rope, window in zip(config.ropes, config.windows, strict=True) if window is not None]
    ropes = {FULL: config.rope, SLIDING: local[0] if local and local[0] is not None else Rope(THETAS[SLIDING][1])}
    return _write(config) | {"rope_parameters": {kind: rope_settings(rope) for kind, rope in ropes.items()}}


def _int_if_whole(number: float) -> float:
    """Return an int if it is equal, because transformers declares ``query_pre_attn_scalar`` as an int."""
    return int(number) if number == int(number) else number


GEMMA2 = HfFamily(
    family="gemma2",
    title="Gemma 2",
    model_type="gemma2",
    classes="Gemma2",
    defaults={
        "vocab_size": 256000,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "layer_types": None,
        "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 1,
    },
    supported={
        "hidden_activation": (GELU,),
        "hidden_act": (GELU,),
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "use_bidirectional_attention": (False,),
    },
    fields=("query_pre_attn_scalar", "final_logit_softcapping", "attn_logit_softcapping"),
    names=replace(NAMES, layer=LAYER),
    config_class=GemmaConfig,
    read=_read_gemma2,
    write=_write,
)
GEMMA3 = replace(
    GEMMA2,
    family="gemma3",
    title="Gemma 3",
    model_type="gemma3_text",
    classes="Gemma3",
    defaults={
        **GEMMA2.defaults,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "final_logit_softcapping": None,
        "attn_logit_softcapping": None,
    },
    # transformers does not use the softcap of attention logits in Gemma 3
    supported={**GEMMA2.supported, "attn_logit_softcapping": (None,)},
    fields=(*GEMMA2.fields, PATTERN, f"_{PATTERN}", "rope_local_base_freq"),
    names=replace(NAMES, layer={**LAYER, **HEAD_NORMS}),
    read=_read_gemma3,
    write=_write_gemma3,
)
