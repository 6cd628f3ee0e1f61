"""The ``config.json`` of Hugging Face's LLaMA family: which models it describes, and the defaults of missing fields."""

from collections.abc import Mapping
from typing import Any

from msrnn import Error
from msrnn.models import Config

from ..fields import Fields
from .hf_fields import check_other_fields, check_quantisation
from .rope import rope_from_hf

FAMILIES = {"llama": "llama", "mistral": "mistral", "Yi": "yi", "yi": "yi"}
ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "YiForCausalLM")
BASE_ARCHITECTURES = ("LlamaModel", "MistralModel", "YiModel")
"""Written by conversions that saved the network without its head class. The tensors show whether there is a head."""

LLAMA_DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": LLAMA_DEFAULTS,
    # a config.json of v0.1 may lack the window; later versions have null
    "mistral": LLAMA_DEFAULTS
    | {"intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096},
    "yi": {},
}
"""What transformers assumes for a missing field. The config class of the first Yi models is not in transformers."""


def config_from_hf(config: Mapping[str, Any], generation: Mapping[str, Any]) -> Config:
    """Return the config that ``config.json`` and ``generation_config.json`` (which has all eos ids) describe.

    A field that is missing has the default of transformers. A field that is null counts as missing only where transformers
    accepts null.

    Raises:
        Error: another model type, architecture, activation or rope type, biases, quantised weights, a field that changes the
            arithmetic and is not known (``hf_fields.py``), or a wrong value.
    """
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None:
        found = f"model_type is {config.get('model_type')!r:.60}"
        raise Error(f"config.json: {found}; expected llama, mistral or Yi; other architectures are not supported")
    _check_architecture(config)
    check_quantisation(config)
    plain = {"hidden_act": ("silu", "swish"), "attention_bias": (False,), "mlp_bias": (False,)}
    for name, known in plain.items():
        if config.get(name) not in (None, *known):
            found = f"{name} is {config[name]!r:.60}; expected {known[0]!r}"
            raise Error(f"config.json: {found}, because the layers of LLaMA, Mistral and Yi have no other form")
    check_other_fields(config)
    config = {**DEFAULTS[family], **config}
    fields = Fields(config, "config.json")
    width, heads = fields.get_int("hidden_size"), fields.get_int("num_attention_heads")
    head_dim = config.get("head_dim")
    if head_dim is None and width % heads:
        raise Error(f"config.json: hidden_size {width} is no multiple of num_attention_heads {heads}, and head_dim is missing")
    length = fields.get_int("max_position_embeddings")
    eos = generation.get("eos_token_id", config.get("eos_token_id"))
    eos = [] if eos is None else eos if isinstance(eos, list) else [eos]
    return Config(
        family=family,
        vocab_size=fields.get_int("vocab_size"),
        width=width,
        n_layers=fields.get_int("num_hidden_layers"),
        n_heads=heads,
        n_kv_heads=fields.get_int("num_key_value_heads", heads),
        head_dim=width // heads if head_dim is None else head_dim,
        ffn_width=fields.get_int("intermediate_size"),
        norm_eps=fields.get_float("rms_norm_eps"),
        rope=rope_from_hf(config, length),
        context_length=length,
        tied=config.get("tie_word_embeddings") or False,
        sliding_window=_sliding_window(config, family),
        bos_token_id=config.get("bos_token_id"),
        eos_token_ids=tuple(eos),
    )


def _check_architecture(config: Mapping[str, Any]) -> None:
    """Refuse another class of model, such as a classifier. Case is ignored: LLaMA 1 was ``LLaMAForCausalLM``."""
    known = {name.lower() for name in (*ARCHITECTURES, *BASE_ARCHITECTURES)}
    architectures = config.get("architectures") or []
    for name in architectures if isinstance(architectures, list) else [architectures]:
        if str(name).lower() not in known:
            raise Error(f"config.json: architecture {name!r:.60} is not supported; expected one of {', '.join(ARCHITECTURES)}")


def _sliding_window(config: Mapping[str, Any], family: str) -> int | None:
    """Return Mistral's window. transformers ignores the field in a LLaMA, so there it must not be in use.

    Raises:
        Error: ``use_sliding_window`` or ``layer_types`` contradicts the window, or states one for a LLaMA or for some layers.
    """
    window = config.get("sliding_window") if family == "mistral" else None
    kind = "full_attention" if window is None else "sliding_attention"
    layer_types = config.get("layer_types")
    if layer_types is not None and (not isinstance(layer_types, list) or any(x != kind for x in layer_types)):
        raise Error(
            f"config.json: layer_types is {layer_types!r:.80}, and sliding_window is {window!r}; expected {kind!r} "
            "everywhere, because all layers of LLaMA, Mistral and Yi attend alike"
        )
    used = config.get("use_sliding_window")
    if used is not None and used != (window is not None):
        raise Error(
            f"config.json: use_sliding_window is {used!r:.60}, but transformers uses "
            f"{'no window' if window is None else f'the window {window!r}'} for this model_type; "
            f"expected {window is not None} or no such field"
        )
    return window
