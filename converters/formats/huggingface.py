"""Folders of Hugging Face. Both sides have half-split rows, so the tensors are only renamed; Phi-3's are also split."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msrnn import Error
from msrnn.models import Config
from msrnn.storage.files import parse_json, read_json, write_json
from msrnn.storage.lazy_tensors import LazyTensor
from msrnn.storage.model_folder import write_extra_files
from msrnn.storage.safetensors_io import write_tensors

from ..extra_files import GENERATION, open_folder
from ..files import shards
from ..source import Source
from ..tied_head import compare_with_head
from ..tokenization.settings import CONFIG as TOKENIZER_CONFIG
from . import nested
from .fused import join_matrices, split_matrices
from .hf_config import config_from_hf, config_to_hf
from .hf_families import BY_FAMILY

SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"


def open_checkpoint(folder: Path) -> Source:
    """Open a folder of ``config.json`` and one or several files of safetensors or, without these, PyTorch files.

    Raises:
        Error: the folder is damaged or has another kind of model.
    """
    config = read_config(folder)
    stored = shards.open_shards(folder, SAFETENSORS if shards.has(folder, SAFETENSORS) else PICKLE)
    return open_folder(config, tensors_from_hf(stored, config), folder)


def read_config(folder: Path) -> Config:
    """Return the config of a folder, with all eos ids of ``generation_config.json`` if it exists."""
    generation = folder / "generation_config.json"
    return config_from_hf(read_json(folder / "config.json"), read_json(generation) if generation.exists() else {})


def tensors_from_hf(tensors: Mapping[str, LazyTensor], config: Config) -> dict[str, LazyTensor]:
    """Return the tensors under msrnn's names, without stored buffers and without the prefixes of wrappers.

    A tied head that is stored nevertheless is compared with the embedding when the embedding is read.

    Raises:
        Error: a name that the family does not have, two names of one tensor, or a fused matrix of another shape.
    """
    family = BY_FAMILY[config.family]
    if config.family in nested.FAMILIES:
        tensors = nested.text_tensors(tensors)
    renamed: dict[str, LazyTensor] = {}
    for name, x in family.names.unwrap(tensors).items():
        if family.names.to_msrnn(name) in renamed:
            raise Error(f"tensor {name!r} occurs under two names; expected one")
        renamed[family.names.to_msrnn(name)] = x
    renamed = split_matrices(renamed, family.fused, config)
    if config.tied and "head.weight" in renamed and (embed := renamed.get("embed.weight")):
        head = renamed.pop("head.weight")
        renamed["embed.weight"] = compare_with_head(embed, head, "config.json", "lm_head.weight")
    return renamed


def write(config: Config, tensors: Mapping[str, LazyTensor], extra_files: Mapping[str, bytes], target: Path) -> None:
    """Write files that transformers loads into the empty folder ``target``; ``config.json`` is written last.

    Raises:
        Error: as :func:`config_to_hf`, before a file is written.
    """
    fields, family = config_to_hf(config, tensors["norm.weight"].dtype), BY_FAMILY[config.family]
    names = BY_FAMILY["llama"].names if config.family == "yi" else family.names
    stored = join_matrices(tensors, family.fused)
    write_tensors(target / SAFETENSORS, {names.from_msrnn(name): x for name, x in stored.items()}, {"format": "pt"})
    unchanged = {name: data for name, data in extra_files.items() if name not in (TOKENIZER_CONFIG, GENERATION)}
    write_extra_files(unchanged, target)
    settings = _fields_of(extra_files, TOKENIZER_CONFIG)
    if "tokenizer.json" in extra_files:
        settings = settings or tokenizer_config(config, extra_files["tokenizer.json"])
        settings = {"model_max_length": config.context_length} | settings
    if settings:
        write_json(target / TOKENIZER_CONFIG, settings)
    given = {name: value for name, value in _fields_of(extra_files, GENERATION).items() if value is not None}
    generation = {name: fields[name] for name in ("bos_token_id", "eos_token_id")} | given
    write_json(target / GENERATION, generation)
    if "pad_token_id" in given:
        fields["pad_token_id"] = given["pad_token_id"]
    write_json(target / "config.json", fields)


def _fields_of(extra_files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    return parse_json(extra_files[name], name) if name in extra_files else {}


def tokenizer_config(config: Config, tokenizer: bytes) -> dict[str, Any]:
    """Return ``tokenizer_config.json`` for a model without this file: its special tokens are those of the config.

    Args:
        config: has the ids of the begin and end tokens.
        tokenizer: the content of ``tokenizer.json``.

    Raises:
        Error: ``tokenizer`` is no JSON, or its added tokens have no id or content.
    """
    fields: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    added = parse_json(tokenizer, "tokenizer.json").get("added_tokens") or []
    try:
        texts = {token["id"]: str(token["content"]) for token in added}
    except (TypeError, KeyError):
        raise Error("tokenizer.json: added_tokens is malformed; expected a list of tokens with an id and a content") from None
    special = {"bos_token": config.bos_token_id, "eos_token": next(iter(config.eos_token_ids), None)}
    return fields | {name: texts[i] for name, i in special.items() if i in texts}
