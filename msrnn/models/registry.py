"""The model families: config class and cell class of each, and configs from JSON."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

import torch

from ..cell.cell import Cell
from ..errors import Error
from ..layers.rotary import ROPE_TYPES, Rope
from .config import Config
from .decoder import Decoder
from .decoder_config import DecoderConfig
from .encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from .llama import Llama

AnyConfig = Config | DecoderConfig | EncoderDecoderConfig
CELLS: dict[type, type[Cell]] = {Config: Llama, DecoderConfig: Decoder, EncoderDecoderConfig: EncoderDecoder}
"""The cell class of each config class."""


def build_random(config: AnyConfig) -> Cell:
    """Return a new cell with random, trainable parameters."""
    return CELLS[type(config)](config)


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
    for kind in (DecoderConfig, EncoderDecoderConfig):
        if values.get("family") == kind.family:
            del values["family"]
            if isinstance(values.get("positions"), dict):
                values["positions"] = _rope(values["positions"], "positions")
            return _from_fields(kind, values, "config")
    return _from_fields(Config, {**values, "rope": _rope(values.get("rope"), "rope")}, "config")


def _rope(values: Any, name: str) -> Rope:
    if not isinstance(values, dict) or not isinstance(values.get("rope_type"), str) or values["rope_type"] not in ROPE_TYPES:
        raise Error(f"config: {name} is {values!r:.60}; expected a rope_type among {', '.join(ROPE_TYPES)} and its numbers")
    return _from_fields(
        ROPE_TYPES[values["rope_type"]], {k: v for k, v in values.items() if k != "rope_type"}, f"config: {name}"
    )


def _from_fields(kind: type, values: Mapping[str, Any], where: str) -> Any:
    """Return ``kind(**values)`` of a dataclass; refuse unknown and missing fields."""
    known = {f.name: f for f in fields(kind)}
    if unknown := sorted(values.keys() - known.keys()):
        raise Error(f"{where}: field {unknown[0]!r} is not known; expected {', '.join(known)}")
    required = {name for name, f in known.items() if f.default is MISSING and f.default_factory is MISSING}
    if missing := sorted(required - values.keys()):
        raise Error(f"{where}: field {missing[0]!r} is missing")
    return kind(**values)
