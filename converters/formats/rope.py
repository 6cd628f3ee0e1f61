"""The rope settings of a Hugging Face ``config.json``: read in both spellings, written in the older one."""

import math
from collections.abc import Mapping
from typing import Any

from msrnn import Error
from msrnn.layers.rotary import DynamicNTKRope, LinearRope, Llama3Rope, Rope, YarnRope

from ..fields import Fields

ROPE_KEYS = {
    *("rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    *("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    *("partial_rotary_factor", "finetuned"),
}


def rope_from_hf(config: Mapping[str, Any], length: int) -> Rope:
    """Return the rope of ``rope_theta`` and ``rope_scaling``, or of ``rope_parameters`` (transformers ≥ 5).

    A theta that is in neither place is 10000, as in LLaMA 1 and 2.

    Args:
        config: the fields of ``config.json``.
        length: maximum number of positions, the default of the original length.

    Raises:
        Error: a type other than default, linear, dynamic, llama3, yarn; a setting that is missing or unknown.
    """
    spellings = [config[name] for name in ("rope_scaling", "rope_parameters") if config.get(name) is not None]
    for settings in spellings:
        if not isinstance(settings, dict):
            raise Error(f"config.json: the rope settings are {settings!r:.60}; expected an object")
    types = {str(settings[name]) for settings in spellings for name in ("rope_type", "type") if settings.get(name)}
    if len(types) > 1:
        raise Error(f"config.json: the rope types are {' and '.join(sorted(types))}; expected one type")
    settings = {name: value for settings in spellings for name, value in settings.items()}
    if unknown := sorted(settings.keys() - ROPE_KEYS):
        raise Error(f"config.json: rope setting {unknown[0]!r} is unknown; expected one of {', '.join(sorted(ROPE_KEYS))}")
    if settings.get("partial_rotary_factor", 1.0) not in (1, None):
        raise Error(f"config.json: partial_rotary_factor is {settings['partial_rotary_factor']!r}; expected 1")
    outer_theta = {"rope_theta": config["rope_theta"]} if "rope_theta" in config else {}
    if "rope_theta" in settings and outer_theta.get("rope_theta", settings["rope_theta"]) != settings["rope_theta"]:
        inner, outer = settings["rope_theta"], config["rope_theta"]
        raise Error(f"config.json: rope_theta is {outer!r} and, in rope_parameters, {inner!r}; expected one value")
    rope = Fields(outer_theta | settings, "config.json")
    theta = rope.get_float("rope_theta", 10000.0)
    original_length = settings.get("original_max_position_embeddings") or length
    match next(iter(types), "default"):
        case "default":
            if settings.get("factor") not in (None, 1):
                raise Error(f"config.json: the rope factor is {settings['factor']!r}, but the type is default; expected a type")
            return Rope(theta)
        case "linear":
            return LinearRope(theta, rope.get_float("factor"))
        case "dynamic":
            return DynamicNTKRope(theta, rope.get_float("factor"), length)
        case "llama3":
            low, high = rope.get_float("low_freq_factor"), rope.get_float("high_freq_factor")
            return Llama3Rope(theta, rope.get_float("factor"), low, high, original_length)
        case "yarn":
            fast, slow = rope.get_float("beta_fast", 32.0), rope.get_float("beta_slow", 1.0)
            truncate = settings.get("truncate", True)
            return YarnRope(
                theta, rope.get_float("factor"), original_length, _yarn_attention_factor(rope), fast, slow, truncate
            )
        case other:
            raise Error(f"config.json: rope type {other!r} is not supported; expected default, linear, dynamic, llama3 or yarn")


def rope_to_hf(rope: Rope) -> dict[str, Any] | None:
    """Return the ``rope_scaling`` entry, or None for the plain rope."""
    match rope:
        case LinearRope(factor=factor):
            return {"rope_type": "linear", "factor": factor}
        case DynamicNTKRope(factor=factor):
            return {"rope_type": "dynamic", "factor": factor}
        case Llama3Rope():
            scaling = {
                "rope_type": "llama3",
                "factor": rope.factor,
                "low_freq_factor": rope.low_freq_factor,
                "high_freq_factor": rope.high_freq_factor,
            }
            return scaling | {"original_max_position_embeddings": rope.original_length}
        case YarnRope():
            scaling = {"rope_type": "yarn", "factor": rope.factor, "original_max_position_embeddings": rope.original_length}
            scaling |= {"attention_factor": rope.attention_factor, "beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow}
            return scaling | {"truncate": rope.truncate}
        case _:
            return None


def _yarn_attention_factor(rope: Fields) -> float:
    """Return YaRN's factor on cos and sin: given, or from the two mscales (DeepSeek), or from the factor alone."""
    if "attention_factor" in rope.values:
        return rope.get_float("attention_factor")
    factor = rope.get_float("factor")
    if rope.values.get("mscale") and rope.values.get("mscale_all_dim"):
        return _yarn_mscale(factor, rope.get_float("mscale")) / _yarn_mscale(factor, rope.get_float("mscale_all_dim"))
    return _yarn_mscale(factor)


def _yarn_mscale(factor: float, scale: float = 1.0) -> float:
    """Return the temperature on the logits as a factor on cos and sin (arXiv:2309.00071, eq. 22); 1 for a factor up to 1."""
    return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0
