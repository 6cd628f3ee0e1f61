"""The ``config.json`` of Hugging Face: which models it describes, and the defaults of missing fields, in both directions."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from msrnn import Error
from msrnn.models import Config
from msrnn.models.config import MAX_LAYERS

from ..fields import Fields
from .hf_families import ALL, BY_FAMILY, BY_MODEL_TYPE, HfFamily
from .hf_fields import check_other_fields, check_quantisation, check_supported
from .left_out import LEFT_OUT
from .nested import text_fields
from .rope import rope_from_hf, rope_to_hf

SUPPORTED = ", ".join(dict.fromkeys(family.model_type for family in ALL))


def config_from_hf(config: Mapping[str, Any], generation: Mapping[str, Any]) -> Config:
    """Return the config that ``config.json`` and ``generation_config.json`` (which has all eos ids) describe.

    A field that is missing has the default of transformers. A field that is null counts as missing only where transformers
    accepts null. Of a model with text and images, the text part is read.

    Raises:
        Error: another model type, architecture, activation or rope type, biases, quantised weights, a field that changes the
            arithmetic and is not known (``hf_fields.py``), or a wrong value.
    """
    config = text_fields(config)
    family = _family(config)
    _check_architecture(config, family)
    check_quantisation(config)
    check_supported(config, family)
    check_other_fields(config, family)
    fields = Fields({**family.defaults, **config}, "config.json")
    width, heads = fields.get_int("hidden_size"), fields.get_int("num_attention_heads")
    head_dim = fields.values.get("head_dim")
    if head_dim is None and width % heads:
        raise Error(f"config.json: hidden_size {width} is no multiple of num_attention_heads {heads}, and head_dim is missing")
    length = fields.get_int("max_position_embeddings")
    if fields.get_int("num_hidden_layers") > MAX_LAYERS:  # checked before a list with one entry per layer is made
        raise fields.error("num_hidden_layers", f"at most {MAX_LAYERS}")
    eos = generation.get("eos_token_id", fields.values.get("eos_token_id"))
    eos = [] if eos is None else eos if isinstance(eos, list) else [eos]
    more = family.read(fields)
    if "rope" not in more:
        more["rope"] = rope_from_hf(fields.values, length, family.theta)
    return family.config_class(
        family=family.family,
        vocab_size=fields.get_int("vocab_size"),
        width=width,
        n_layers=fields.get_int("num_hidden_layers"),
        n_heads=heads,
        n_kv_heads=fields.get_int("num_key_value_heads", heads),
        head_dim=width // heads if head_dim is None else head_dim,
        ffn_width=fields.get_int("intermediate_size"),
        norm_eps=fields.get_float("rms_norm_eps"),
        context_length=length,
        tied=fields.values.get("tie_word_embeddings") or False,
        bos_token_id=fields.values.get("bos_token_id"),
        eos_token_ids=tuple(eos),
        **more,
    )


def _family(config: Mapping[str, Any]) -> HfFamily:
    """Return the family of ``model_type``.

    Raises:
        Error: it is not supported. The message says what support needs, if ``left_out.py`` has it.
    """
    name = str(config.get("model_type"))
    if (family := BY_MODEL_TYPE.get(name)) is not None:
        return family
    found, expected = f"model_type is {config.get('model_type')!r:.60}", f"expected one of {SUPPORTED}"
    if name in LEFT_OUT:
        raise Error(f"config.json: {found}, {LEFT_OUT[name]}; {expected}")
    raise Error(f"config.json: {found}; {expected}; other architectures are not supported")


def _check_architecture(config: Mapping[str, Any], family: HfFamily) -> None:
    """Refuse another class of model, such as a classifier. Case is ignored: LLaMA 1 was ``LLaMAForCausalLM``.

    Conversions that save the network without its head write a class without a head. The tensors show whether there is one.
    """
    names = (family.classes, *family.related, *([f"{family.classes}Text"] if family.model_type.endswith("_text") else []))
    known = {f"{name}{end}".lower() for name in names for end in ("ForCausalLM", "Model")}
    architectures = config.get("architectures") or []
    for name in architectures if isinstance(architectures, list) else [architectures]:
        if str(name).lower() not in known:
            expected = ", ".join(f"{name}ForCausalLM" for name in names)
            raise Error(f"config.json: architecture {name!r:.60} is not supported; expected one of {expected}")


def config_to_hf(config: Config, dtype: torch.dtype) -> dict[str, Any]:
    """Return the fields of ``config.json`` that transformers reads, before and from version 5.

    transformers has no Yi, which is written as a LLaMA. A LLaMA with a window is written as a Mistral, because the family in
    a GGUF of Mistral is llama.

    Raises:
        Error: the config has values that ``config.json`` of its family cannot have.
    """
    family = BY_FAMILY[config.family]
    if family.family in ("llama", "yi"):
        family = BY_FAMILY["llama" if config.sliding_window is None else "mistral"]
    more = family.write(config)
    fields = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.ffn_width,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_ids) if len(config.eos_token_ids) > 1 else next(iter(config.eos_token_ids), None),
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    if "rope_parameters" not in more:
        fields |= {"rope_theta": config.rope.theta, "rope_scaling": rope_to_hf(config.rope)}
    fields |= more
    if (pad := family.defaults.get("pad_token_id")) is not None and pad >= config.vocab_size:
        fields["pad_token_id"] = None  # otherwise transformers makes a padding token of the default
    again = config_from_hf(fields, {})
    for name in ("windows", "ropes"):
        if getattr(again, name) != getattr(config, name):
            raise Error(
                f"config: the {name} of the layers are {getattr(config, name)!s:.80}, which a {family.title} cannot have"
            )
    expected = replace(config, family=again.family, layer_windows=(), layer_ropes=(), sliding_window=None)
    if (again := replace(again, layer_windows=(), layer_ropes=(), sliding_window=None)) != expected:
        name = next(name for name, x in vars(expected).items() if getattr(again, name) != x)
        raise Error(f"config: {name} is {getattr(config, name)!r:.80}, which config.json of a {family.title} cannot have")
    return fields
