"""The config of a GGUF file, for the architectures of :mod:`.architectures`."""

from collections.abc import Mapping
from typing import Any

from msrnn.errors import Error
from msrnn.models import Config
from msrnn.models.gemma2 import GemmaConfig

from ..fields import Fields
from ..tokenization.bpe import CONTROL, USER_DEFINED
from .architectures import WINDOW, find_architecture
from .gemma import gemma_fields, query_scalar
from .header import Header
from .keys import check_keys
from .rope import rope_from_gguf

EOS = ("eos_token_id", "eot_token_id", "eom_token_id")
END_OF_TURN = ("<end_of_turn>", "<|im_end|>", "<|eot_id|>", "<|end|>")
"""Tokens that end a turn of a chat. As llama.cpp does, they are found by their text where the file has no ``eot_token_id``."""
NO_ROPE_INTERVAL = 4
"""Of SmolLM3: every fourth layer has no positions. It is a constant of llama.cpp, and no key."""


def config_from_gguf(header: Header) -> Config:
    """Return the config of a file. Missing keys have llama.cpp's defaults.

    Raises:
        Error: another architecture, experts, a part of a split file, a required key is missing or has a wrong value.
    """
    meta = Fields(header.metadata, header.path)
    architecture = find_architecture(meta)
    prefix, gemma = architecture.prefix, architecture.name in GemmaConfig.families
    _check_kind(meta, prefix)
    n_layers, width = meta.get_int(prefix + "block_count"), meta.get_int(prefix + "embedding_length")
    if n_layers > len(header.tensors):  # refused before a model with that number of layers is built
        raise meta.error(prefix + "block_count", f"at most {len(header.tensors)}, the number of tensors")
    n_heads = meta.get_int(prefix + "attention.head_count")
    head_dim = meta.get_int(prefix + "attention.key_length", width // n_heads)
    for key in ("rope.dimension_count", "attention.value_length"):
        if meta.get_int(prefix + key, head_dim) != head_dim:
            raise meta.error(prefix + key, f"{head_dim}, the head dimension")
    scalar = query_scalar(architecture.name, n_layers, n_heads, width, head_dim) if gemma else head_dim
    check_keys(meta, architecture, scalar**-0.5)
    rope = rope_from_gguf(meta, header, prefix, head_dim)
    more: Mapping[str, Any] = {}
    if gemma:
        more = gemma_fields(meta, architecture.name, rope, n_layers, head_dim) | {"query_pre_attn_scalar": float(scalar)}
    elif architecture.name == "smollm3":
        more = {"layer_ropes": tuple(rope if n % NO_ROPE_INTERVAL else None for n in range(1, n_layers + 1))}
    elif WINDOW in architecture.keys:
        more = {"sliding_window": meta.get_int(prefix + WINDOW, 0, at_least=0) or None}
    bos = "tokenizer.ggml.bos_token_id"
    return (GemmaConfig if gemma else Config)(
        family=architecture.name,  # llama also in the files of Mistral and Yi
        vocab_size=meta.get_int(prefix + "vocab_size", _vocab_size(header)),
        width=width,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=meta.get_int(prefix + "attention.head_count_kv", n_heads),
        head_dim=head_dim,
        ffn_width=meta.get_int(prefix + "feed_forward_length"),
        norm_eps=meta.get_float(prefix + "attention.layer_norm_rms_epsilon"),
        rope=rope,
        context_length=meta.get_int(prefix + "context_length"),
        tied="output.weight" not in header.tensors,
        bos_token_id=meta.get_int(bos, at_least=0) if bos in meta.values else None,
        eos_token_ids=_eos_ids(meta),
        **more,
    )


def _check_kind(meta: Fields, prefix: str) -> None:
    """Refuse adapters, parts of a split file, and mixtures of experts."""
    if "adapter.type" in meta.values or meta.values.get("general.type") == "adapter":
        expected = "a model with the adapter merged into it (`llama-export-lora` merges them)"
        raise Error(f"{meta.where} is an adapter (LoRA); expected {expected}")
    if meta.get_int("split.count", 1, at_least=0) > 1:
        raise meta.error("split.count", "one whole file (`llama-gguf-split --merge` joins the parts)")
    if meta.get_int(prefix + "expert_count", 0, at_least=0):
        raise meta.error(prefix + "expert_count", "0, because msrnn's cell has one MLP, no mixture of experts")


def _eos_ids(meta: Fields) -> tuple[int, ...]:
    """Return the ids that end a text: those of the keys, and of a chat model's end of turn if it has no key."""
    keys = [f"tokenizer.ggml.{name}" for name in EOS if f"tokenizer.ggml.{name}" in meta.values]
    ids = [meta.get_int(key, at_least=0) for key in keys]
    tokens, types = (meta.values.get(f"tokenizer.ggml.{name}") for name in ("tokens", "token_type"))
    if "tokenizer.ggml.eot_token_id" in meta.values or "tokenizer.chat_template" not in meta.values:
        return tuple(dict.fromkeys(ids))
    if isinstance(tokens, list) and isinstance(types, list):
        found = [tokens.index(token) for token in END_OF_TURN if token in tokens]
        ids += [n for n in found if n < len(types) and types[n] in (CONTROL, USER_DEFINED)]
    return tuple(dict.fromkeys(ids))


def _vocab_size(header: Header) -> int:
    """Return the number of tokens, or of rows of the embedding where the file has no tokens."""
    tokens, embedding = header.metadata.get("tokenizer.ggml.tokens"), header.tensors.get("token_embd.weight")
    if isinstance(tokens, list):
        return len(tokens)
    return 0 if embedding is None else embedding.shape[0]
