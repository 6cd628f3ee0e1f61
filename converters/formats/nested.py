"""The text part of checkpoints with text and images: Gemma 3 and Mistral 3 (Ministral 3).

``config.json`` nests the fields of the text model in ``text_config``. The tensors of the text model have the prefix
``language_model.model.`` (files on the hub) or ``model.language_model.`` (models of transformers in memory). The tensors of the
image encoder are left out, so a prompt with images cannot be read.
"""

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from msrnn import Error

from ..names import INNER_WRAPPERS, split_wrappers

T = TypeVar("T")

TEXT_TYPES = {"gemma3": "gemma3_text", "mistral3": "mistral"}
"""The default of ``model_type`` in ``text_config``, by the ``model_type`` outside."""
CLASSES = {"gemma3": "Gemma3", "mistral3": "Mistral3"}
"""The prefix of the class names in transformers, by the ``model_type`` outside."""
FAMILIES = ("gemma3", "ministral3", "mistral")
"""Families of msrnn that the text part of a checkpoint can have."""
OUTER_FIELDS = ("bos_token_id", "eos_token_id", "pad_token_id", "quantization_config", "compression_config")
"""Fields that are taken from outside ``text_config`` where both places have them."""
IMAGE_PARTS = re.compile(r"(?:^|\.)(?:vision_tower|multi_modal_projector)\.")
TEXT_PART = re.compile(r"^(?:.*\.)?language_model\.(?:model\.)?")


def text_fields(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the fields of the text model, or ``config`` if it is one.

    Raises:
        Error: ``text_config`` is missing, or the class is not one of a model with text and images.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in TEXT_TYPES:
        return config
    text, architectures = config.get("text_config"), config.get("architectures") or []
    if not isinstance(text, Mapping):
        raise Error(f"config.json: text_config is {text!r:.60}; expected an object, because model_type is {kind!r}")
    known = (f"{CLASSES[kind]}ForConditionalGeneration", f"{CLASSES[kind]}Model")
    for name in architectures if isinstance(architectures, list) else [architectures]:
        if name not in known:
            raise Error(f"config.json: architecture {name!r:.60} is not supported; expected {known[0]}")
    fields = {"model_type": TEXT_TYPES[kind], **text}
    fields |= {name: config[name] for name in OUTER_FIELDS if config.get(name) is not None}
    # transformers ties the head by the outer field, which is true where it is missing
    fields["tie_word_embeddings"] = config.get("tie_word_embeddings", True)
    fields.pop("architectures", None)
    return fields


def text_tensors(tensors: Mapping[str, T]) -> dict[str, T]:
    """Return the tensors of the text model, under the names of a text model; all of them if the model is one.

    Raises:
        Error: two names become one.
    """
    bare = {name: INNER_WRAPPERS.sub("", name) for name in tensors}
    if not any(TEXT_PART.match(name) for name in bare.values()):
        return dict(tensors)
    found: dict[str, T] = {}
    for name, x in tensors.items():
        if IMAGE_PARTS.search(bare[name]):
            continue
        is_text = TEXT_PART.match(bare[name])
        rest = bare[name][is_text.end() :] if is_text else split_wrappers(name)[1]  # without the prefix: the head
        plain = f"model.{rest}" if is_text and not rest.startswith("lm_head.") else rest
        if plain in found:
            raise Error(f"tensor {name!r} and another are both {plain!r}; expected the tensors of one model")
        found[plain] = x
    return found
