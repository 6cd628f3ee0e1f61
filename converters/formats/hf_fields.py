"""Which fields of a Hugging Face ``config.json`` are read, which are harmless, and which are refused.

transformers ignores a field that its class does not have, so it reads a config of another architecture under the name of LLaMA
without an error. The same holds for the other families. The rule here:

1. A field in ``READ``, or in ``fields`` and ``supported`` of its family, is read (or checked) by ``hf_config.py``.
2. A field in ``NEUTRAL`` is accepted with the values that are listed there.
3. Any other field is refused if a word of its name is in ``ARITHMETIC_WORDS``, unless it is switched off (null, false, 0,
   empty; 1 for a multiplier), or its name has a word of ``HARMLESS_WORDS`` (dropout, initialization, losses, token ids).
4. All others are accepted: names, versions, paths, settings of training and of generation.
"""

import re
from collections.abc import Mapping
from typing import Any

from msrnn import Error

from .hf_families import HfFamily

READ = {
    *("model_type", "architectures", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim"),
    *("num_attention_heads", "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "hidden_act"),
    *("attention_bias", "mlp_bias", "tie_word_embeddings", "sliding_window", "use_sliding_window", "layer_types"),
    *("bos_token_id", "eos_token_id", "rope_theta", "rope_scaling", "rope_parameters", "original_max_position_embeddings"),
    *("quantization_config", "quantization", "compression_config"),
}
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "causal": (True,),
    "is_causal": (True,),
    "use_causal_mask": (True,),
    "scale_attn_weights": (True,),
    "position_embedding_type": ("rope", "rotary"),
    "hidden_activation": ("silu", "swish"),
    "activation": ("silu", "swish"),
    "activation_function": ("silu", "swish"),
    "mlp_hidden_act": ("silu", "swish"),
    "norm_type": ("rmsnorm", "rms_norm", "rms"),
}
ALSO_HARMLESS = {
    *("layer_norm_eps", "layer_norm_epsilon", "norm_eps"),  # of LayerNorm, which the architecture does not have
    "max_window_layers",  # counts only with use_sliding_window
    "guidance_scale",  # of generation
}
ALSO_ARITHMETIC = {
    *("per_layer_config", "dim_model_base", "is_encoder_decoder", "add_cross_attention", "parallel_attn"),
    *("attn_temperature_tuning", "attention_temperature", "use_parallel_attention"),
}
SHARE_WORDS = {"factor", "ratio", "pct", "fraction"}
"""A field with one of these words is switched off by 1, but many settings of training have such names too."""
SCALE_WORDS = {"scale", "scaling", "scalar", "multiplier", "mult"}
MULTIPLIER_WORDS = SCALE_WORDS | SHARE_WORDS
ARITHMETIC_WORDS = SCALE_WORDS | {
    *("softcap", "softcapping", "softcaps", "cap", "capping", "clip", "clamp", "alibi", "bias", "biases", "mup"),
    *("rope", "rotary", "nope", "interleave", "interleaved", "norm", "layernorm", "rmsnorm", "qk", "prenorm", "postnorm"),
    *("window", "windows", "sliding", "sink", "sinks", "chunked", "expert", "experts", "moe", "residual", "causal"),
    *("bidirectional", "activation", "act", "lora", "mamba", "altup", "laurel"),
}
HARMLESS_WORDS = {"dropout", "pdrop", "init", "initializer", "loss", "coef", "grad", "token"}


def check_supported(config: Mapping[str, Any], family: HfFamily) -> None:
    """Refuse values that transformers reads and that the layers of msrnn do not have: activations, biases.

    Raises:
        Error: the first such field by name, with its value.
    """
    for name, known in family.supported.items():
        if config.get(name) not in (None, *known):
            found = f"{name} is {config[name]!r:.60}; expected {known[0]!r}"
            raise Error(f"config.json: {found}, because the layers of {family.title} have no other form")


def check_other_fields(config: Mapping[str, Any], family: HfFamily) -> None:
    """Refuse fields that change the arithmetic of a model, but that transformers ignores in this family; see the rule above.

    Raises:
        Error: the first such field by name, with its value.
    """
    known = {*READ, *ALSO_HARMLESS, *family.fields, *family.supported}
    for name, value in config.items():
        if name in known or value in NEUTRAL.get(name, ()):
            continue
        words = set(re.split(r"[^a-z0-9]+", name.lower()))
        off = value is None if name in NEUTRAL else not value or (value == 1 and value is not True and words & MULTIPLIER_WORDS)
        arithmetic = name in NEUTRAL or name in ALSO_ARITHMETIC or words & ARITHMETIC_WORDS
        if off or not arithmetic or words & HARMLESS_WORDS:
            continue
        neutral = NEUTRAL[name][0] if name in NEUTRAL else 1 if words & MULTIPLIER_WORDS else None
        raise Error(
            f"config.json: {name} is {value!r:.60}, which the model type {family.model_type} does not have; expected "
            f"{neutral!r} or no such field; remove the field only if the weights do not depend on it"
        )


def check_quantisation(config: Mapping[str, Any], where: str = "config.json") -> None:
    """Refuse quantised weights; ``where`` is the file, for the message.

    Raises:
        Error: with the method (gptq, awq, bitsandbytes, fp8, …).
    """
    for name in ("quantization_config", "quantization", "compression_config"):
        if value := config.get(name):
            method = value.get("quant_method") if isinstance(value, Mapping) else None
            raise Error(
                f"{where}: {name} is {(method or value)!r:.60}; expected weights that are not quantised; take the original "
                "model (float32, float16 or bfloat16), or a GGUF file of it"
            )
