"""The rope settings of a Hugging Face ``config.json``, in both spellings, in and out."""

import math
from collections.abc import Mapping
from typing import Any

from msrnn import Error
from msrnn.layers.rotary import Dynamic, Linear, Llama3, Rope, Yarn

from ..json_fields import number

ROPE_KEYS = {
    *("rope_type", "type", "rope_theta", "factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    *(
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
        "partial_rotary_factor",
        "finetuned",
    ),
}


def rope_from_hf(facts: Mapping[str, Any], length: int) -> Rope:
    """The rope from either spelling: ``rope_theta`` and ``rope_scaling``, or ``rope_parameters`` (transformers ≥ 5).

    A theta that is nowhere is 10000, as in LLaMA 1 and 2.

    Raises:
        Error: a type other than default, linear, dynamic, llama3, yarn; a number missing or unknown.
    """
    spelled = [facts[name] for name in ("rope_scaling", "rope_parameters") if facts.get(name) is not None]
    for settings in spelled:
        if not isinstance(settings, dict):
            raise Error(f"config.json: the rope settings are {settings!r:.60}; expected an object")
    kinds = {str(settings[name]) for settings in spelled for name in ("rope_type", "type") if settings.get(name)}
    if len(kinds) > 1:
        raise Error(f"config.json: the rope is said to be {' and '.join(sorted(kinds))}; expected one type")
    rope = {name: value for settings in spelled for name, value in settings.items()}
    if unknown := sorted(rope.keys() - ROPE_KEYS):
        raise Error(f"config.json: rope setting {unknown[0]!r} is not known")
    if rope.get("partial_rotary_factor", 1.0) not in (1, None):
        raise Error(f"config.json: partial_rotary_factor is {rope['partial_rotary_factor']!r}; only 1 is supported")
    if "rope_theta" in rope and facts.get("rope_theta", rope["rope_theta"]) != rope["rope_theta"]:
        raise Error(f"config.json: rope_theta is {facts['rope_theta']!r} and, in rope_parameters, {rope['rope_theta']!r}")
    theta = number({"rope_theta": 10000.0, **{k: v for k, v in facts.items() if k == "rope_theta"}, **rope}, "rope_theta")
    kind = next(iter(kinds), "default")
    if kind == "default" and rope.get("factor") not in (None, 1):
        raise Error(f"config.json: the rope has a factor, {rope['factor']!r}, but no type that scales; expected one")
    original = rope.get("original_max_position_embeddings") or length
    if kind == "default":
        return Rope(theta)
    if kind == "linear":
        return Linear(theta, number(rope, "factor"))
    if kind == "dynamic":
        return Dynamic(theta, number(rope, "factor"), length)
    if kind == "llama3":
        low, high = number(rope, "low_freq_factor"), number(rope, "high_freq_factor")
        return Llama3(theta, number(rope, "factor"), low, high, original)
    if kind == "yarn":
        factor = number(rope, "factor")
        given = {name: value for name, value in rope.items() if value is not None}
        if "attention_factor" in given:
            gain = number(given, "attention_factor")
        elif given.get("mscale") and given.get("mscale_all_dim"):
            gain = _yarn_gain(factor, number(given, "mscale")) / _yarn_gain(factor, number(given, "mscale_all_dim"))
        else:
            gain = _yarn_gain(factor)
        fast, slow = (number({name: default} | given, name) for name, default in (("beta_fast", 32.0), ("beta_slow", 1.0)))
        return Yarn(theta, factor, original, gain, fast, slow, rope.get("truncate", True))
    raise Error(f"config.json: rope type {kind!r} is not supported; expected default, linear, dynamic, llama3 or yarn")


def rope_to_hf(rope: Rope) -> dict[str, Any] | None:
    """The ``rope_scaling`` entry; None for the plain rope."""
    match rope:
        case Linear(factor=factor):
            return {"rope_type": "linear", "factor": factor}
        case Dynamic(factor=factor):
            return {"rope_type": "dynamic", "factor": factor}
        case Llama3():
            facts = {"rope_type": "llama3", "factor": rope.factor, "low_freq_factor": rope.low, "high_freq_factor": rope.high}
            return facts | {"original_max_position_embeddings": rope.length}
        case Yarn():
            facts = {"rope_type": "yarn", "factor": rope.factor, "original_max_position_embeddings": rope.length}
            facts |= {"attention_factor": rope.attention_factor, "beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow}
            return facts | {"truncate": rope.truncate}
        case _:
            return None


def _yarn_gain(factor: float, scale: float = 1.0) -> float:
    """YaRN's temperature on the logits, as a gain on cos and sin (arXiv:2309.00071, eq. 22)."""
    return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0
