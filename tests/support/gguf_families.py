"""Tiny random models of transformers, and GGUF files of them, with the tensor names of the gguf package."""

import gguf
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from .gguf_files import write

CLASSES = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM),
    "gemma3": (Gemma3TextConfig, Gemma3ForCausalLM),
    "smollm3": (SmolLM3Config, SmolLM3ForCausalLM),
}
SHARED = {
    **{"vocab_size": 61, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "tie_word_embeddings": False},
    **{"pad_token_id": None, "bos_token_id": None, "eos_token_id": None},
}
FAMILIES = {
    "qwen2": {"rope_theta": 500.0},
    "qwen3": {"rope_theta": 500.0, "head_dim": 128, "tie_word_embeddings": True},
    "gemma2": {"sliding_window": 8, "head_dim": 256, "tie_word_embeddings": True},
    "gemma3": {"sliding_window": 8, "head_dim": 256, "tie_word_embeddings": True, "num_hidden_layers": 7},
    "smollm3": {"rope_theta": 500.0, "num_hidden_layers": 9},
}
"""Fields of the tiny models. transformers' GGUF reader assumes these head dimensions, and 256 for Gemma's scale of queries."""


def tiny_model(family, **fields):
    """Return a random model in float32; ``fields`` are those of its config, which are read back."""
    make_config, make = CLASSES[family]
    fields = SHARED | FAMILIES[family] | fields
    config = make_config(**fields, attn_implementation="eager")
    for name, value in fields.items():
        assert name == "rope_theta" or getattr(config, name) == value or name == "rope_parameters", name
    torch.manual_seed(0)
    model = make(config).eval()
    with torch.no_grad():
        for name, x in model.named_parameters():  # far from the uniform attention of a fresh model
            if "norm" in name:
                x.uniform_(-0.5, 0.5) if family.startswith("gemma") else x.uniform_(0.5, 1.5)
            else:
                x.normal_(0, 0.2)
    return model.requires_grad_(False)


def write_family(path, model, family, **changes):
    """Write ``model`` as llama.cpp's converter does; return the path.

    ``changes`` are keys without the prefix, with ``__`` for a dot; None removes one.
    """
    config = model.config
    keys = {
        "block_count": config.num_hidden_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "context_length": config.max_position_embeddings,
        "vocab_size": config.vocab_size,
    }
    if family in ("qwen3", "gemma2", "gemma3"):
        keys |= {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
    if family.startswith("gemma"):
        keys |= {"attention.sliding_window": config.sliding_window}
    else:
        keys |= {"rope.freq_base": config.rope_parameters["rope_theta"]}
    if family == "gemma2":
        keys |= {"attn_logit_softcapping": config.attn_logit_softcapping}
        keys |= {"final_logit_softcapping": config.final_logit_softcapping}
    if family == "gemma3":
        keys |= {"rope.freq_base": config.rope_parameters["full_attention"]["rope_theta"]}
    keys |= {key.replace("__", "."): value for key, value in changes.items()}
    metadata = {f"{family}.{key}": value for key, value in keys.items() if value is not None}
    return write(path, {"general.architecture": family, "general.name": "tiny", **metadata}, tensors_of(model, family))


def tensors_of(model, family):
    """Return the tensors of the file: named by the gguf package, q and k of SmolLM3 reordered, 1 added to Gemma's norms."""
    config, architecture = model.config, {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[family]
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    tensors = {}
    for name, x in model.state_dict().items():
        stem, _, suffix = name.rpartition(".")
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if family.startswith("gemma") and stem.endswith("norm"):
            x = x + 1
        if family == "smollm3" and (n := heads.get(stem.rpartition(".")[2])):
            x = x.reshape(n, 2, -1, x.shape[1]).swapaxes(1, 2).reshape(x.shape)
        tensors[f"{names.get_name(stem)}.{suffix}"] = x.numpy()
    return tensors
