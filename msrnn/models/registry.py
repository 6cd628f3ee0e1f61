"""The model families: config class and cell class of each, and configs from JSON."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

import torch

from ..cell.cell import Cell
from ..errors import Error, did_you_mean
from ..layers.rotary import ROPE_TYPES, Rope
from .config import Config
from .decoder import Decoder
from .decoder_config import DecoderConfig
from .encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from .gemma2 import Gemma2, GemmaConfig
from .gemma3 import Gemma3
from .granite import Granite, GraniteConfig
from .granite_swa import GraniteSwa
from .llama import Llama
from .ministral3 import Ministral3, Ministral3Config
from .olmo2 import Olmo2
from .qwen2 import Qwen2
from .qwen3 import Qwen3

AnyConfig = Config | DecoderConfig | EncoderDecoderConfig
FAMILIES: dict[str, tuple[type, type[Cell]]] = {
    "llama": (Config, Llama),
    "mistral": (Config, Llama),
    "yi": (Config, Llama),
    "ministral": (Config, Llama),
    "ministral3": (Ministral3Config, Ministral3),
    "smollm3": (Config, Llama),
    "phi3": (Config, Llama),
    "qwen2": (Config, Qwen2),
    "qwen3": (Config, Qwen3),
    "olmo2": (Config, Olmo2),
    "gemma2": (GemmaConfig, Gemma2),
    "gemma3": (GemmaConfig, Gemma3),
    "granite": (GraniteConfig, Granite),
    "granite_swa": (GraniteConfig, GraniteSwa),
    "decoder": (DecoderConfig, Decoder),
    "encoder-decoder": (EncoderDecoderConfig, EncoderDecoder),
}
"""The config class and the cell class of each family."""


def build_random(config: AnyConfig) -> Cell:
    """Return a new cell with random, trainable parameters."""
    return FAMILIES[config.family][1](config)


def build_on_meta(config: AnyConfig) -> Cell:
    """Return a new cell on the meta device: parameters have shapes but no storage."""
    with torch.device("meta"):
        return build_random(config)


def config_from_dict(values: Mapping[str, Any]) -> AnyConfig:
    """Return the config with these ``values``, as :meth:`ModelConfig.to_dict` returns them.

    Raises:
        Error: a field is unknown, missing or has a wrong type or value.
    """
    values = dict(values)
    if "eos_token_ids" in values:
        if not isinstance(eos := values["eos_token_ids"], list | tuple):
            raise Error(f"config: eos_token_ids is {eos!r:.60}; expected a list of token ids")
        values["eos_token_ids"] = tuple(eos)
    family = values.get("family")
    if not isinstance(family, str) or family not in FAMILIES:
        found = f"family is {family!r:.60}{did_you_mean(str(family), FAMILIES)}"
        raise Error(f"config: {found}; expected {', '.join(FAMILIES)}")
    kind = FAMILIES[family][0]
    if not issubclass(kind, Config):
        del values["family"]
        if isinstance(values.get("positions"), dict):
            values["positions"] = _rope(values["positions"], "positions")
        return _from_fields(kind, values, "config")
    values["rope"] = _rope(values.get("rope"), "rope")
    for name in ("layer_windows", "layer_ropes"):
        if not isinstance(entries := values.get(name, []), list | tuple):
            raise Error(f"config: {name} is {entries!r:.60}; expected a list with one entry per layer")
        values[name] = tuple(entries)
    values["layer_ropes"] = tuple(None if x is None else _rope(x, "layer_ropes") for x in values["layer_ropes"])
    return _from_fields(kind, values, "config")


def _rope(values: Any, name: str) -> Rope:
    kind = values.get("rope_type") if isinstance(values, dict) else None
    if not isinstance(kind, str) or kind not in ROPE_TYPES:
        hint = did_you_mean(kind, ROPE_TYPES) if isinstance(kind, str) else ""
        expected = f"expected a rope_type among {', '.join(ROPE_TYPES)} and its numbers"
        raise Error(f"config: {name} is {values!r:.60}{hint}; {expected}")
    return _from_fields(ROPE_TYPES[kind], {k: v for k, v in values.items() if k != "rope_type"}, f"config: {name}")


def _from_fields(kind: type, values: Mapping[str, Any], where: str) -> Any:
    """Return ``kind(**values)`` of a dataclass; refuse unknown and missing fields."""
    known = {f.name: f for f in fields(kind)}
    if unknown := sorted(values.keys() - known.keys()):
        found = f"field {unknown[0]!r:.60} is not known{did_you_mean(unknown[0], known)}"
        raise Error(f"{where}: {found}; expected {', '.join(known)}")
    required = {name for name, f in known.items() if f.default is MISSING and f.default_factory is MISSING}
    if missing := sorted(required - values.keys()):
        raise Error(f"{where}: field {missing[0]!r} is missing")
    return kind(**values)
