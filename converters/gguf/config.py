"""The config of a GGUF file of the ``llama`` architecture, which covers LLaMA, Mistral and Yi."""

from msrnn.errors import Error
from msrnn.models import Config

from ..fields import Fields
from .header import Header
from .keys import check_keys
from .rope import rope_from_gguf

EOS = ("eos_token_id", "eot_token_id", "eom_token_id")


def config_from_gguf(header: Header) -> Config:
    """Return the config of a file. Missing keys have llama.cpp's defaults.

    Raises:
        Error: another architecture, experts, a part of a split file, a required key is missing or has a wrong value.
    """
    meta = Fields(header.metadata, header.path)
    if meta.values.get("general.architecture") != "llama":
        raise meta.error("general.architecture", "'llama', which LLaMA, Mistral and Yi have; others are not supported")
    if "adapter.type" in meta.values or meta.values.get("general.type") == "adapter":
        expected = "a model with the adapter merged into it (`llama-export-lora` merges them)"
        raise Error(f"{header.path} is an adapter (LoRA); expected {expected}")
    if meta.get_int("split.count", 1, at_least=0) > 1:
        raise meta.error("split.count", "one whole file (`llama-gguf-split --merge` joins the parts)")
    if meta.get_int("llama.expert_count", 0, at_least=0):
        raise meta.error("llama.expert_count", "0, because msrnn's cell has one MLP, no mixture of experts")
    n_layers, width = meta.get_int("llama.block_count"), meta.get_int("llama.embedding_length")
    if n_layers > len(header.tensors):  # refused before a model with that number of layers is built
        raise meta.error("llama.block_count", f"at most {len(header.tensors)}, the number of tensors")
    n_heads = meta.get_int("llama.attention.head_count")
    head_dim = meta.get_int("llama.attention.key_length", width // n_heads)
    for key in ("llama.rope.dimension_count", "llama.attention.value_length"):
        if meta.get_int(key, head_dim) != head_dim:
            raise meta.error(key, f"{head_dim}, the head dimension")
    check_keys(meta, head_dim)
    bos = "tokenizer.ggml.bos_token_id"
    eos = [f"tokenizer.ggml.{name}" for name in EOS if f"tokenizer.ggml.{name}" in meta.values]
    return Config(
        family="llama",  # also in the files of Mistral and Yi
        vocab_size=meta.get_int("llama.vocab_size", _vocab_size(header)),
        width=width,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=meta.get_int("llama.attention.head_count_kv", n_heads),
        head_dim=head_dim,
        ffn_width=meta.get_int("llama.feed_forward_length"),
        norm_eps=meta.get_float("llama.attention.layer_norm_rms_epsilon"),
        rope=rope_from_gguf(meta, header, head_dim),
        context_length=meta.get_int("llama.context_length"),
        tied="output.weight" not in header.tensors,
        sliding_window=meta.get_int("llama.attention.sliding_window", 0, at_least=0) or None,
        bos_token_id=meta.get_int(bos, at_least=0) if bos in meta.values else None,
        eos_token_ids=tuple(dict.fromkeys(meta.get_int(key, at_least=0) for key in eos)),
    )


def _vocab_size(header: Header) -> int:
    """Return the number of tokens, or of rows of the embedding where the file has no tokens."""
    tokens, embedding = header.metadata.get("tokenizer.ggml.tokens"), header.tensors.get("token_embd.weight")
    if isinstance(tokens, list):
        return len(tokens)
    return 0 if embedding is None else embedding.shape[0]
