"""The config of a GGUF file of the ``llama`` architecture, which covers LLaMA, Mistral and Yi."""

import math

import torch

from msrnn.errors import Error
from msrnn.layers.rotary import LinearRope, Llama3Rope, Rope, YarnRope
from msrnn.models import Config

from ..fields import Fields
from .header import Header
from .tensors import read_tensor

ROPE_FREQS = "rope_freqs.weight"
"""The divisors of the rotary frequencies under Llama 3's scaling; a tensor that is no parameter."""
SCALING = ("type", "factor", "original_context_length", "attn_factor", "finetuned", "yarn_beta_fast", "yarn_beta_slow")
EOS = ("eos_token_id", "eot_token_id", "eom_token_id")


def config_from_gguf(header: Header) -> Config:
    """Return the config of a file. Missing keys have llama.cpp's defaults.

    Raises:
        Error: another architecture, experts, a part of a split file, a required key is missing or has a wrong value.
    """
    meta = Fields(header.metadata, header.path)
    if meta.values.get("general.architecture") != "llama":
        raise meta.error("general.architecture", "'llama'")
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
        rope=_rope(meta, header, head_dim),
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


def _rope(meta: Fields, header: Header, head_dim: int) -> Rope:
    prefix = "llama.rope.scaling."
    for key in meta.values:
        if key.startswith(prefix) and key.removeprefix(prefix) not in SCALING:
            raise meta.error(key, f"no scaling key except {', '.join(SCALING)}")
    theta, factor = meta.get_float("llama.rope.freq_base", 10000.0), meta.get_float(prefix + "factor", 0.0)
    # as in llama.cpp, a factor of 0 means no scaling and a factor without a type means linear
    rope_type = meta.values.get(prefix + "type", "linear" if factor else "none")
    if ROPE_FREQS in header.tensors:
        if rope_type != "none":
            raise meta.error(prefix + "type", f"'none' in a file with {ROPE_FREQS}")
        return _llama3(header, theta, head_dim)
    if rope_type == "none" or (rope_type == "linear" and not factor):
        return Rope(theta)
    if rope_type == "linear":
        return LinearRope(theta, factor)
    if rope_type != "yarn":
        raise meta.error(prefix + "type", "'none', 'linear' or 'yarn'")
    if factor < 1:
        raise meta.error(prefix + "factor", "at least 1 for yarn")
    return YarnRope(
        theta,
        factor,
        original_length=meta.get_int(prefix + "original_context_length", meta.get_int("llama.context_length")),
        attention_factor=(0.1 * math.log(factor) + 1) * meta.get_float(prefix + "attn_factor", 1.0),  # llama.cpp's product
        beta_fast=meta.get_float(prefix + "yarn_beta_fast", 32.0),
        beta_slow=meta.get_float(prefix + "yarn_beta_slow", 1.0),
    )


def _llama3(header: Header, theta: float, head_dim: int) -> Rope:
    """Return Llama 3's scaling, recovered from its frequency divisors ``(D/2,)``, because GGUF drops its four numbers.

    All released models share low 1, high 4 and length 8192; the factor is the largest divisor. The result is compared with
    the divisors.
    """
    shape = header.tensors[ROPE_FREQS].shape
    if shape != (head_dim // 2,):
        raise Error(f"{header.path}: {ROPE_FREQS} has shape {shape}; expected {(head_dim // 2,)}")
    divisors = read_tensor(header, ROPE_FREQS).double()
    plain, start = Rope(theta), torch.zeros(1, dtype=torch.int64)
    if bool((divisors == 1).all()):
        return plain
    rope = Llama3Rope(theta, divisors.max().item(), low_freq_factor=1.0, high_freq_factor=4.0, original_length=8192)
    ratio = plain.frequencies(start, head_dim, torch.float64) / rope.frequencies(start, head_dim, torch.float64)
    if not torch.allclose(divisors, ratio, rtol=1e-5, atol=0):
        raise Error(f"{header.path}: {ROPE_FREQS} is {divisors.tolist()!s:.60}…; expected Llama 3's scaling (1, 4, 8192)")
    return rope
