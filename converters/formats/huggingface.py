"""Hugging Face's folders of the LLaMA family. Both sides have half-split rows, so the tensors are only renamed."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from msrnn import Error
from msrnn.models import Config
from msrnn.storage.files import parse_json, read_json, write_json
from msrnn.storage.lazy_tensors import LazyTensor
from msrnn.storage.model_folder import write_extra_files
from msrnn.storage.safetensors_io import write_tensors

from ..extra_files import GENERATION, open_folder
from ..files import shards
from ..source import NameTable, Source
from ..tied_head import compare_with_head
from ..tokenization.settings import CONFIG as TOKENIZER_CONFIG
from .hf_config import config_from_hf
from .rope import rope_to_hf

NAMES = NameTable(
    outer={"model.embed_tokens": "embed", "model.norm": "norm", "lm_head": "head"},
    layer={
        "input_layernorm": "attention_norm",
        "self_attn.q_proj": "q",
        "self_attn.k_proj": "k",
        "self_attn.v_proj": "v",
        "self_attn.o_proj": "o",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "gate",
        "mlp.up_proj": "up",
        "mlp.down_proj": "down",
    },
    layers="model.layers",
)
EARLY_YI_NORMS = {"ln1": "attention_norm", "ln2": "ffn_norm"}
"""Names of the two norms in the first Yi checkpoints (model_type ``Yi``, November 2023)."""

SAFETENSORS, PICKLE = "model.safetensors", "pytorch_model.bin"


def open_checkpoint(folder: Path) -> Source:
    """Open a folder of ``config.json`` and one or several files of safetensors or, without these, PyTorch files.

    Raises:
        Error: the folder is damaged or has another kind of model.
    """
    config = read_config(folder)
    stored = shards.open_shards(folder, SAFETENSORS if shards.has(folder, SAFETENSORS) else PICKLE)
    return open_folder(config, tensors_from_hf(stored, config.family == "yi", config.tied), folder)


def read_config(folder: Path) -> Config:
    """Return the config of a folder, with all eos ids of ``generation_config.json`` if it exists."""
    generation = folder / "generation_config.json"
    return config_from_hf(read_json(folder / "config.json"), read_json(generation) if generation.exists() else {})


def tensors_from_hf(tensors: Mapping[str, LazyTensor], early_yi: bool, tied: bool) -> dict[str, LazyTensor]:
    """Return the tensors under msrnn's names, without stored buffers and without the prefixes of wrappers.

    A tied head that is stored nevertheless is compared with the embedding when the embedding is read.

    Raises:
        Error: a name that LLaMA does not have, or two names of one tensor.
    """
    names = replace(NAMES, layer={**NAMES.layer, **EARLY_YI_NORMS}) if early_yi else NAMES
    renamed: dict[str, LazyTensor] = {}
    for name, x in names.unwrap(tensors).items():
        if names.to_msrnn(name) in renamed:
            raise Error(f"tensor {name!r} occurs under two names; expected one")
        renamed[names.to_msrnn(name)] = x
    if tied and "head.weight" in renamed and (embed := renamed.get("embed.weight")):
        head = renamed.pop("head.weight")
        renamed["embed.weight"] = compare_with_head(embed, head, "config.json", "lm_head.weight")
    return renamed


def write(config: Config, tensors: Mapping[str, LazyTensor], extra_files: Mapping[str, bytes], target: Path) -> None:
    """Write files that transformers loads into the empty folder ``target``; ``config.json`` is written last."""
    write_tensors(target / SAFETENSORS, {NAMES.from_msrnn(name): x for name, x in tensors.items()}, {"format": "pt"})
    fields = config_to_hf(config, tensors["norm.weight"].dtype)
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


def config_to_hf(config: Config, dtype: torch.dtype) -> dict[str, Any]:
    """Return the fields of ``config.json`` that transformers reads, before and from version 5.

    transformers has no Yi, which is written as a LLaMA. A model with a window is written as a Mistral, because the family in
    a GGUF of Mistral is llama.
    """
    family = "mistral" if config.family == "mistral" or config.sliding_window is not None else "llama"
    fields = {
        "architectures": ["MistralForCausalLM" if family == "mistral" else "LlamaForCausalLM"],
        "model_type": family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.ffn_width,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope.theta,
        "rope_scaling": rope_to_hf(config.rope),
        "tie_word_embeddings": config.tied,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_ids) if len(config.eos_token_ids) > 1 else next(iter(config.eos_token_ids), None),
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    return fields | (
        {"sliding_window": config.sliding_window} if family == "mistral" else {"attention_bias": False, "mlp_bias": False}
    )


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
