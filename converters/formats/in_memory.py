"""Models in memory: of transformers (which is never imported here), of msrnn, or a state dict with a config."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from msrnn import Error
from msrnn.models import Config
from msrnn.storage.files import to_json

from ..extra_files import GENERATION
from ..files.torch_files import check_plain_tensors, inner_state_dict
from ..names import split_wrappers
from ..source import Source
from .huggingface import config_from_hf, tensors_from_hf


def open_checkpoint(model: Any) -> Source:
    """Open a model with ``.config`` and ``.state_dict()``, or a pair ``(state_dict, config)``.

    The config is Hugging Face's (an object with ``to_dict()``, or the fields of ``config.json``) or a :class:`Config`. The
    names of the tensors are Hugging Face's or msrnn's.

    Raises:
        Error: an object of another kind, or another kind of model.
    """
    model = _without_wrapper(model)
    state, config, generation = _parts(model)
    if not isinstance(config, Config):
        config = config_from_hf(config, generation)
    tensors = check_plain_tensors(inner_state_dict(state, "the state dict"), "the state dict")
    bare = {split_wrappers(name)[1]: x for name, x in tensors.items()}
    if not bare.keys().isdisjoint(("embed.weight", "embed.codes")):
        if len(bare) < len(tensors):
            raise Error("names in the state dict differ only by a prefix; expected the tensors of one model")
        tensors = bare
    else:
        tensors = tensors_from_hf(tensors, config)
    files = getattr(model, "extra_files", None)
    return Source(config, tensors, _generation(generation) if files is None else dict(files))


def read_config(model: Any) -> Config:
    """Return the config of such a model; raises as :func:`open_checkpoint`."""
    _, config, generation = _parts(_without_wrapper(model))
    return config if isinstance(config, Config) else config_from_hf(config, generation)


def _without_wrapper(model: Any) -> Any:
    """Return the model in DataParallel and the like, which have no config of their own."""
    while not hasattr(model, "config") and isinstance(inner := getattr(model, "module", None), nn.Module):
        model = inner
    return model


def _parts(model: Any) -> tuple[Mapping[str, Any], Any, Mapping[str, Any]]:
    """Return state dict, config (msrnn's, or Hugging Face's as a dict) and generation config."""
    if isinstance(model, tuple) and len(model) == 2:
        state, config = model
    elif hasattr(model, "config") and callable(getattr(model, "state_dict", None)):
        state, config = model.state_dict(), model.config
    else:
        state, config = None, None
    config = config if isinstance(config, Config) else _dict(config)
    if not isinstance(state, Mapping) or config is None:
        expected = (
            "a hub id (owner/name), a folder, a .gguf file, a model with .config and .state_dict(), or (state_dict, config)"
        )
        raise Error(f"source is {model!r:.60}; expected {expected}")
    return state, config, _dict(getattr(model, "generation_config", None)) or {}


def _generation(fields: Mapping[str, Any]) -> dict[str, bytes]:
    """Return ``generation_config.json``, without fields that have no value or are private to transformers."""
    used = {name: value for name, value in fields.items() if value is not None and not name.startswith("_")}
    return {GENERATION: to_json(used)} if used else {}


def _dict(config: Any) -> dict[str, Any] | None:
    fields = config.to_dict() if callable(getattr(config, "to_dict", None)) else config
    return dict(fields) if isinstance(fields, Mapping) else None
