"""The rope of a GGUF file: keys of llama.cpp, old and new, or Llama 3's divisors of the frequencies."""

import math

import torch

from msrnn.errors import Error
from msrnn.layers.rotary import LinearRope, Llama3Rope, Rope, YarnRope

from ..fields import Fields
from .header import Header
from .tensors import read_tensor

ROPE_FREQS = "rope_freqs.weight"
"""The divisors of the rotary frequencies under Llama 3's scaling; a tensor that is no parameter."""


def rope_from_gguf(meta: Fields, header: Header, prefix: str, head_dim: int) -> Rope:
    """Return the rope of a file; ``prefix`` begins the keys of its architecture.

    As in llama.cpp, a factor of 0 means no scaling, a factor without a type means linear, and ``rope.scale_linear`` (2023) is
    the factor if ``rope.scaling.factor`` is missing.

    Raises:
        Error: another type, or values that do not fit together.
    """
    scaling, old_key = prefix + "rope.scaling.", prefix + "rope.scale_linear"
    theta = meta.get_float(prefix + "rope.freq_base", 10000.0)
    factor = meta.get_float(scaling + "factor", meta.get_float(old_key, 0.0))
    rope_type = meta.values.get(scaling + "type", "linear" if factor else "none")
    if rope_type == "linear" and factor in (0.0, 1.0):
        rope_type = "none"
    if rope_type != "yarn" and meta.get_float(scaling + "attn_factor", 1.0) != 1:
        raise meta.error(scaling + "attn_factor", f"1 for the type {rope_type!r}")
    if ROPE_FREQS in header.tensors:
        if rope_type != "none":
            name = scaling + "type" if scaling + "type" in meta.values else scaling + "factor"
            name = name if name in meta.values else old_key
            raise meta.error(name, f"'none' in a file with {ROPE_FREQS}")
        return _llama3(header, theta, head_dim)
    if rope_type == "none":
        return Rope(theta)
    if rope_type == "linear":
        return LinearRope(theta, factor)
    if rope_type != "yarn":
        raise meta.error(scaling + "type", "'none', 'linear' or 'yarn'")
    if factor < 1:
        raise meta.error(scaling + "factor", "at least 1 for yarn")
    return YarnRope(
        theta,
        factor,
        original_length=meta.get_int(scaling + "original_context_length", meta.get_int(prefix + "context_length")),
        attention_factor=(0.1 * math.log(factor) + 1) * meta.get_float(scaling + "attn_factor", 1.0),  # llama.cpp's product
        beta_fast=meta.get_float(scaling + "yarn_beta_fast", 32.0),
        beta_slow=meta.get_float(scaling + "yarn_beta_slow", 1.0),
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
