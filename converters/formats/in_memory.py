"""A model that is in memory already: transformers' (never imported here), ours, or a state dict and its config."""

from collections.abc import Mapping
from typing import Any

from msrnn import Error
from msrnn.models import Config

from ..files.torch_files import plain
from ..source import Source
from .huggingface import config_from_hf, from_hf


def open_live(model: Any) -> Source:
    """A model with ``.config`` and ``.state_dict()``, or a pair ``(state_dict, config)``.

    The config is Hugging Face's (an object with ``to_dict()``, or a dict of what ``config.json`` says) or a :class:`Config`;
    the names of the tensors are Hugging Face's or ours, which their names tell.

    Raises:
        Error: something else; whatever the config or a tensor's name says that this library is not.
    """
    state, config, generation = _parts(model)
    tensors = plain(state, "the state dict")
    if not isinstance(config, Config):
        config = config_from_hf(config, generation)
    if "embed.weight" not in tensors:
        tensors = from_hf(tensors, config.family == "yi", config.tied)
    return Source(config, tensors, getattr(model, "extra_files", {}))


def config_of(model: Any) -> Config:
    """The facts of such a model."""
    _, config, generation = _parts(model)
    return config if isinstance(config, Config) else config_from_hf(config, generation)


def _parts(model: Any) -> tuple[Mapping[str, Any], Any, Mapping[str, Any]]:
    """State dict, config (ours, or Hugging Face's as a dict), generation config."""
    if isinstance(model, tuple) and len(model) == 2:
        state, config = model
    elif hasattr(model, "config") and callable(getattr(model, "state_dict", None)):
        state, config = model.state_dict(), model.config
    else:
        state, config = None, None
    facts = config if isinstance(config, Config) else _dict(config)
    if not isinstance(state, Mapping) or facts is None:
        expected = (
            "a hub id (owner/name), a folder, a .gguf file, a model with .config and .state_dict(), or (state_dict, config)"
        )
        raise Error(f"source is {model!r:.60}; expected {expected}")
    return state, facts, _dict(getattr(model, "generation_config", None)) or {}


def _dict(config: Any) -> dict[str, Any] | None:
    facts = config.to_dict() if callable(getattr(config, "to_dict", None)) else config
    return dict(facts) if isinstance(facts, Mapping) else None
