"""Hugging Face names and configs of the LLaMA family. Rotary is half-split on both sides, so conversion is a rename."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msrnn import Error
from msrnn.models import Config
from msrnn.models.loading import write_extra_files
from msrnn.storage.files import parse_json, read_json, write_json
from msrnn.storage.lazy_tensors import LazyTensor
from msrnn.storage.safetensors_io import write_tensors

from ..files import shards
from ..json_fields import number, whole
from ..sidecar_files import in_folder
from ..source import Names, Source
from .rope import rope_from_hf, rope_to_hf

NAMES = Names(
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
EARLY_YI = {"ln1": "attention_norm", "ln2": "ffn_norm"}
"""How the first Yi checkpoints (model_type ``Yi``, November 2023) called the two norms."""

SAFE, PICKLED = "model.safetensors", "pytorch_model.bin"
FAMILIES = {"llama": "llama", "mistral": "mistral", "Yi": "yi", "yi": "yi"}
ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "YiForCausalLM")


def open_folder(folder: Path) -> Source:
    """A folder of ``config.json`` and tensors, single or sharded, as safetensors or, where there are none, PyTorch's files.

    Raises:
        Error: whatever the config, the index or a tensor's name says that this library is not.
    """
    config = read_config(folder)
    stored = shards.open_shards(folder, SAFE if shards.has(folder, SAFE) else PICKLED)
    return Source(config, from_hf(stored, config.family == "yi", config.tied), in_folder(folder))


def read_config(folder: Path) -> Config:
    """The facts of a folder; ``generation_config.json``, where there is one, knows all eos ids."""
    generation = folder / "generation_config.json"
    return config_from_hf(read_json(folder / "config.json"), read_json(generation) if generation.exists() else {})


def from_hf(tensors: Mapping[str, LazyTensor], early_yi: bool, tied: bool) -> dict[str, LazyTensor]:
    """The same tensors under our names. Stored rotary tables are left out; a tied head stored all the same has to be the
    embedding.

    Raises:
        Error: a name that no LLaMA has, or two names for one tensor.
    """
    names = replace(NAMES, layer={**NAMES.layer, **EARLY_YI}) if early_yi else NAMES
    ours: dict[str, LazyTensor] = {}
    for name, x in tensors.items():
        if name.endswith("rotary_emb.inv_freq"):
            continue
        if names.ours(name) in ours:
            raise Error(f"tensor {name!r} is there under another name too")
        ours[names.ours(name)] = x
    if tied and "head.weight" in ours and (embed := ours.get("embed.weight")):
        ours["embed.weight"] = LazyTensor(embed.shape, embed.dtype, partial(_tied, embed, ours.pop("head.weight")))
    return ours


def _tied(embed: LazyTensor, head: LazyTensor) -> Tensor:
    x = embed.read()
    if head.shape != embed.shape or not torch.equal(x, head.read()):
        raise Error("config.json ties the head to the embedding, but 'lm_head.weight' differs from it")
    return x


def write(config: Config, tensors: Mapping[str, LazyTensor], extra_files: Mapping[str, bytes], target: Path) -> None:
    """A folder that transformers loads, into one that is there and empty; ``config.json`` comes last."""
    write_tensors(target / SAFE, {NAMES.theirs(name): x for name, x in tensors.items()}, {"format": "pt"})
    write_extra_files(extra_files, target)
    if "tokenizer.json" in extra_files:
        write_json(target / "tokenizer_config.json", tokenizer_config(config, extra_files["tokenizer.json"]))
    facts = config_to_hf(config, tensors["norm.weight"].dtype)
    write_json(target / "generation_config.json", {name: facts[name] for name in ("bos_token_id", "eos_token_id")})
    write_json(target / "config.json", facts)


def config_from_hf(facts: Mapping[str, Any], generation: Mapping[str, Any]) -> Config:
    """``config.json`` (and ``generation_config.json``, which knows all eos ids) -> :class:`Config`.

    Raises:
        Error: another model type, architecture, activation or rope type, biases, quantised weights, a missing field.
    """
    family = FAMILIES.get(str(facts.get("model_type")))
    if family is None:
        raise Error(f"config.json: model_type is {facts.get('model_type')!r}; expected llama, mistral or Yi")
    architectures = facts.get("architectures") or []
    for name in architectures if isinstance(architectures, list) else [architectures]:
        if name not in ARCHITECTURES:
            raise Error(f"config.json: architecture {name!r} is not supported; expected one of {', '.join(ARCHITECTURES)}")
    plain = {"hidden_act": ("silu", "swish"), "attention_bias": (False,), "mlp_bias": (False,), "quantization_config": ()}
    for name, known in plain.items():
        if facts.get(name) not in (None, *known):
            raise Error(f"config.json: {name} is {facts[name]!r:.60}; expected {known[0] if known else None!r}")
    width, heads = whole(facts, "hidden_size"), whole(facts, "num_attention_heads")
    head_dim = facts.get("head_dim")
    if head_dim is None and width % heads:
        raise Error(
            f"config.json: hidden_size {width} is no multiple of num_attention_heads {heads}, and head_dim is not given"
        )
    if family == "mistral" or facts.get("num_key_value_heads") is not None:
        kv_heads = whole(facts, "num_key_value_heads")
    else:
        kv_heads = heads  # LLaMA 1: no grouping
    length = whole(facts, "max_position_embeddings")
    eos = generation.get("eos_token_id", facts.get("eos_token_id"))
    eos = [] if eos is None else eos if isinstance(eos, list) else [eos]
    return Config(
        family=family,
        vocab_size=whole(facts, "vocab_size"),
        width=width,
        n_layers=whole(facts, "num_hidden_layers"),
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=width // heads if head_dim is None else head_dim,
        ffn_width=whole(facts, "intermediate_size"),
        norm_eps=number(facts, "rms_norm_eps"),
        rope=rope_from_hf(facts, length),
        length=length,
        tied=facts.get("tie_word_embeddings") or False,
        # an absent key is transformers' default, 4096, which v0.1 has; later versions say null
        window=facts.get("sliding_window", 4096) if family == "mistral" else None,
        bos_token_id=facts.get("bos_token_id"),
        eos_token_ids=tuple(eos),
    )


def config_to_hf(config: Config, dtype: torch.dtype) -> dict[str, Any]:
    """:class:`Config` -> what transformers, before and from version 5, reads from ``config.json``.

    transformers has no Yi: it is a LLaMA there; and what has a window (a GGUF of Mistral says llama) is a Mistral.
    """
    family = "mistral" if config.family == "mistral" or config.window is not None else "llama"
    facts = {
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
        "max_position_embeddings": config.length,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope.theta,
        "rope_scaling": rope_to_hf(config.rope),
        "tie_word_embeddings": config.tied,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_ids) if len(config.eos_token_ids) > 1 else next(iter(config.eos_token_ids), None),
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    return facts | ({"sliding_window": config.window} if family == "mistral" else {"attention_bias": False, "mlp_bias": False})


def tokenizer_config(config: Config, tokenizer: bytes) -> dict[str, Any]:
    """A ``tokenizer_config.json`` under which transformers takes ``tokenizer``, the file beside it, as it is."""
    facts: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config.length}
    added = parse_json(tokenizer, "tokenizer.json").get("added_tokens") or []
    try:
        texts = {token["id"]: str(token["content"]) for token in added}
    except (TypeError, KeyError):
        raise Error("tokenizer.json: added_tokens is no list of tokens with an id and a content each") from None
    special = {"bos_token": config.bos_token_id, "eos_token": next(iter(config.eos_token_ids), None)}
    return facts | {name: texts[i] for name, i in special.items() if i in texts}
