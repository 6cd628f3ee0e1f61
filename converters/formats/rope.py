"""The rope settings of a Hugging Face ``config.json``: read in all spellings, written in the older one."""

import math
from collections.abc import Collection, Mapping
from typing import Any

from msrnn import Error
from msrnn.errors import did_you_mean
from msrnn.layers.rotary import DynamicNTKRope, LinearRope, Llama3Rope, LongRope, Rope, YarnRope

from ..fields import Fields

TYPES = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
"""Rope types of transformers that cells have."""
ORIGINAL_LENGTH = "original_max_position_embeddings"
ROPE_KEYS = {
    *("rope_type", "type", "rope_theta", "factor", ORIGINAL_LENGTH, "low_freq_factor", "high_freq_factor"),
    *("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    *("short_factor", "long_factor", "partial_rotary_factor", "finetuned"),
}


def rope_from_hf(config: Mapping[str, Any], length: int, theta: float = 10000.0, more_keys: Collection[str] = ()) -> Rope:
    """Return the rope of ``rope_theta`` and ``rope_scaling``, or of ``rope_parameters`` (transformers ≥ 5).

    ``rope_theta`` and ``original_max_position_embeddings`` may be at the top level or among the settings. Null means missing. A
    config with both objects must mean the same by both: transformers reads ``rope_scaling`` only, and ignores a theta that is
    in ``rope_parameters``.

    Args:
        config: the fields of ``config.json``.
        length: maximum number of positions, the default of the original length.
        theta: the theta that is in neither place; 10000 in LLaMA 1 and 2.
        more_keys: further settings, which the caller reads.

    Raises:
        Error: a type other than default, linear, dynamic, llama3, yarn, longrope; a setting that is missing, unknown, or
            given twice with different values.
    """
    ropes = {}
    for name in ("rope_scaling", "rope_parameters"):
        settings = config.get(name)
        if settings is not None and not isinstance(settings, dict):
            raise Error(f"config.json: the rope settings are {settings!r:.60}; expected an object")
        if settings:
            settings = {key: value for key, value in settings.items() if key not in more_keys}
            ropes[name] = rope_from_settings(settings, config, length, theta)
    check_same_rope(ropes)
    return next(iter(ropes.values())) if ropes else rope_from_settings({}, config, length, theta)


def check_same_rope(ropes: Mapping[str, Rope]) -> None:
    """Refuse objects that describe different ropes.

    Raises:
        Error: with both, by their names in ``config.json``.
    """
    if len(set(ropes.values())) > 1:
        found = " and ".join(f"{name} is {rope!r:.160}" for name, rope in ropes.items())
        raise Error(f"config.json: {found}; expected one rope; remove the object that does not belong to the weights")


def rope_from_settings(
    settings: Mapping[str, Any],
    config: Mapping[str, Any],
    length: int,
    theta: float = 10000.0,
    names: Mapping[str, str] | None = None,
) -> Rope:
    """Return the rope of one object of settings.

    Args:
        settings: the object; null means missing.
        config: the fields of ``config.json``, where some settings may be instead.
        length: maximum number of positions.
        theta: the theta that is in neither place.
        names: those settings, with their names in ``config``; None: ``rope_theta`` and the original length.

    Raises:
        Error: as :func:`rope_from_hf`.
    """
    settings = {name: value for name, value in settings.items() if value is not None}
    names = {"rope_theta": "rope_theta", ORIGINAL_LENGTH: ORIGINAL_LENGTH} if names is None else names
    for name, outer_name in names.items():
        outer = config.get(outer_name)
        if outer is not None and settings.setdefault(name, outer) != outer:
            raise Error(
                f"config.json: {outer_name} is {outer!r:.60}, and {settings[name]!r:.60} in the rope settings; "
                "expected one value"
            )
    if unknown := sorted(settings.keys() - ROPE_KEYS):
        name, value = unknown[0], settings[unknown[0]]
        raise Error(f"config.json: rope setting {name!r} ({value!r:.60}) is unknown; expected {', '.join(sorted(ROPE_KEYS))}")
    if settings.get("partial_rotary_factor", 1.0) != 1:
        raise Error(f"config.json: partial_rotary_factor is {settings['partial_rotary_factor']!r:.60}; expected 1")
    return _rope({"rope_theta": theta, **settings}, length)


def _rope(settings: Mapping[str, Any], length: int) -> Rope:
    rope = Fields(settings, "config.json: rope settings")
    types = {str(settings[name]) for name in ("rope_type", "type") if settings.get(name)}
    if len(types) > 1:
        raise Error(f"config.json: the rope types are {' and '.join(sorted(types))}; expected one type")
    theta, original_length = rope.get_float("rope_theta"), settings.get(ORIGINAL_LENGTH) or length
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
            factor = _factor(rope, length)
            fast, slow = rope.get_float("beta_fast", 32.0) or 32.0, rope.get_float("beta_slow", 1.0) or 1.0
            truncate = settings.get("truncate", True)
            return YarnRope(theta, factor, original_length, _yarn_attention_factor(rope, factor), fast, slow, truncate)
        case "longrope":
            short, long = _divisors(rope, "short_factor"), _divisors(rope, "long_factor")
            return LongRope(theta, short, long, original_length, _long_attention_factor(rope, length))
        case other:
            hint = did_you_mean(other, TYPES)
            raise Error(f"config.json: rope type {other!r:.60} is not supported{hint}; expected one of {', '.join(TYPES)}")


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
            return scaling | {ORIGINAL_LENGTH: rope.original_length}
        case YarnRope():
            scaling = {"rope_type": "yarn", "factor": rope.factor, ORIGINAL_LENGTH: rope.original_length}
            scaling |= {"attention_factor": rope.attention_factor, "beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow}
            return scaling | {"truncate": rope.truncate}
        case LongRope():
            scaling = {"rope_type": "longrope", "short_factor": list(rope.short_factor), "long_factor": list(rope.long_factor)}
            return scaling | {ORIGINAL_LENGTH: rope.original_length, "attention_factor": rope.attention_factor}
        case _:
            return None


def rope_settings(rope: Rope) -> dict[str, Any]:
    """Return the settings of one object of ``rope_parameters``, with theta and type."""
    return {"rope_type": "default", "rope_theta": rope.theta, **(rope_to_hf(rope) or {})}


def _factor(rope: Fields, length: int) -> float:
    """Return the factor; a missing one is the ratio of the lengths, as DeepSeek and Phi 3 have it."""
    if "factor" not in rope.values and ORIGINAL_LENGTH in rope.values:
        return length / rope.get_int(ORIGINAL_LENGTH)
    return rope.get_float("factor")


def _yarn_attention_factor(rope: Fields, factor: float) -> float:
    """Return YaRN's factor on cos and sin: given, or from the two mscales (DeepSeek), or from the factor alone."""
    if "attention_factor" in rope.values:
        return rope.get_float("attention_factor")
    if rope.values.get("mscale") and rope.values.get("mscale_all_dim"):
        return yarn_mscale(factor, rope.get_float("mscale")) / yarn_mscale(factor, rope.get_float("mscale_all_dim"))
    return yarn_mscale(factor)


def yarn_mscale(factor: float, scale: float = 1.0) -> float:
    """Return the temperature on the logits as a factor on cos and sin (arXiv:2309.00071, eq. 22); 1 for a factor up to 1."""
    return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0


def _long_attention_factor(rope: Fields, length: int) -> float:
    """Return LongRoPE's factor on cos and sin: given, or from the extension factor and the original length."""
    if "attention_factor" in rope.values:
        return rope.get_float("attention_factor")
    factor = _factor(rope, length)
    if factor <= 1:
        return 1.0
    return math.sqrt(1 + math.log(factor) / math.log(rope.get_int(ORIGINAL_LENGTH, length, at_least=2)))


def _divisors(rope: Fields, name: str) -> tuple[float, ...]:
    """Return LongRoPE's divisors of the frequencies, ``(D/2,)``."""
    values = rope.values.get(name)
    if not isinstance(values, list) or not all(isinstance(x, int | float) and not isinstance(x, bool) for x in values):
        raise rope.error(name, "a list of numbers, one for each pair of a head")
    return tuple(values)
