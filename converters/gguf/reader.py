"""Read a GGUF file (llama.cpp's format) of the ``llama`` architecture: LLaMA, Mistral, Yi and their kin.

Values are what the file means, dequantised to float32. GGUF rotates interleaved pairs; the rows of q and k are put
back into half-split order here, so nothing downstream knows.
"""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from msrnn.errors import Error
from msrnn.layers.rotary import Linear, Llama3, Rope, Yarn
from msrnn.models import Config
from msrnn.storage.lazy_tensors import LazyTensor

from ..formats.meta_layout import half_split
from .header import File, open_file

# The name table, GGUF <-> ours, with the shape of each tensor: V vocabulary, E width, F feed-forward width, Q and K
# all query and all key/value heads side by side.
TOP = {"token_embd": ("embed", "VE"), "output_norm": ("norm", "E"), "output": ("head", "VE")}
LAYER = {
    "attn_norm": ("attention_norm", "E"),
    "attn_q": ("q", "QE"),
    "attn_k": ("k", "KE"),
    "attn_v": ("v", "KE"),
    "attn_output": ("o", "EQ"),
    "ffn_norm": ("ffn_norm", "E"),
    "ffn_gate": ("gate", "FE"),
    "ffn_up": ("up", "FE"),
    "ffn_down": ("down", "EF"),
}
ROPE_FREQS = "rope_freqs.weight"  # not a parameter: what llama3 scaling divides the frequency of each pair by
KINDS = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
SCALING = ("type", "factor", "original_context_length", "attn_factor", "finetuned", "yarn_beta_fast", "yarn_beta_slow")
ROWS = 2**22
"""Numbers dequantised at a time."""
EOS = ("eos_token_id", "eot_token_id", "eom_token_id")


def read(path: Path) -> tuple[Config, dict[str, LazyTensor]]:
    """The config, and the tensors by our names: float32, a fresh copy whenever one is read.

    Whatever can be refused is refused with :class:`msrnn.Error` before the first tensor is read: other architectures,
    experts, pieces of a split file, unknown or missing tensors, wrong shapes, quantisations outside ``KINDS``.
    """
    library, file = _library(), open_file(path)
    config = _config(_Facts(file), library)
    expected = _expected(config)
    for name in file.tensors:
        if name not in expected and name != ROPE_FREQS:
            known = f"{', '.join(TOP)} and blk.N.({'|'.join(LAYER)}) for {config.n_layers} layers, .weight each"
            raise Error(f"{path}: tensor {name} has no place in msrnn's LLaMA cell; expected {known}")
    for name, (_, shape) in expected.items():
        if name not in file.tensors:
            raise Error(f"{path}: tensor {name} is missing; expected one of shape {shape}")
        if file.tensors[name].shape != shape:
            raise Error(f"{path}: tensor {name} has shape {file.tensors[name].shape}; expected {shape}")
        _n_bytes(file, name, library)
    _check_places(file, library)
    heads = {"attn_q": config.n_heads, "attn_k": config.n_kv_heads}
    return config, {
        ours: LazyTensor(shape, torch.float32, partial(_fetch, file, name, heads.get(name.split(".")[-2]), library))
        for name, (ours, shape) in expected.items()
    }


def _library() -> ModuleType:
    try:
        import gguf
    except ImportError as fault:
        raise Error('the package gguf is missing; expected it to read GGUF files: pip install "msrnn[gguf]"') from fault
    return gguf


def _expected(config: Config) -> dict[str, tuple[str, tuple[int, ...]]]:
    """GGUF name -> (our name, shape), of every tensor a file of this config has."""
    c = config
    sizes = {"V": c.vocab_size, "E": c.width, "F": c.ffn_width, "Q": c.n_heads * c.head_dim, "K": c.n_kv_heads * c.head_dim}
    table = {f"{theirs}.weight": (f"{ours}.weight", axes) for theirs, (ours, axes) in TOP.items()}
    if c.tied:
        del table["output.weight"]
    for n in range(c.n_layers):
        for theirs, (ours, axes) in LAYER.items():
            table[f"blk.{n}.{theirs}.weight"] = (f"layers.{n}.{ours}.weight", axes)
    return {theirs: (ours, tuple(sizes[axis] for axis in axes)) for theirs, (ours, axes) in table.items()}


def _fetch(file: File, name: str, n_heads: int | None, library: ModuleType) -> Tensor:
    x = _tensor(file, name, library)
    return x if n_heads is None else half_split(x, n_heads)


def _tensor(file: File, name: str, library: ModuleType) -> Tensor:
    """One tensor, dequantised to float32 in memory of its own; some rows at a time, as the package needs room for several
    copies."""
    stored, n_bytes = file.tensors[name], _n_bytes(file, name, library)
    kind = library.GGMLQuantizationType(stored.kind)
    values = np.empty((math.prod(stored.shape[:-1]), stored.shape[-1]), np.float32)
    row, some = n_bytes // len(values), max(1, ROWS // stored.shape[-1])
    for start in range(0, len(values), some):
        rows = values[start : start + some]
        data = np.fromfile(file.path, np.uint8, rows.shape[0] * row, offset=stored.offset + start * row)
        rows[:] = library.quants.dequantize(data.reshape(-1, row), kind)
    return torch.from_numpy(values.reshape(stored.shape))


def _n_bytes(file: File, name: str, library: ModuleType) -> int:
    """How many bytes a tensor takes, or why it cannot be read."""
    stored = file.tensors[name]
    kind = {int(kind): kind for kind in library.GGMLQuantizationType}.get(stored.kind)
    if kind is None or kind.name not in KINDS:
        label = stored.kind if kind is None else kind.name
        raise Error(f"{file.path}: tensor {name} is quantised as {label}; expected one of {', '.join(KINDS)}")
    block, size = library.GGML_QUANT_SIZES[kind]
    if stored.shape[-1] % block:
        raise Error(f"{file.path}: tensor {name} has rows of {stored.shape[-1]}; {kind.name} expects a multiple of {block}")
    count = math.prod(stored.shape) // block * size
    if stored.offset + count > file.size:
        raise Error(f"{file.path}: ends inside tensor {name}, at {file.size} bytes; expected {stored.offset + count}")
    return count


def _check_places(file: File, library: ModuleType) -> None:
    """What llama.cpp asks too: one tensor after the other, each at the next aligned place, and none beyond the last."""
    at = end = file.start
    for name, stored in sorted(file.tensors.items(), key=lambda item: item[1].offset):
        if stored.offset != at:
            raise Error(f"{file.path}: tensor {name} lies at byte {stored.offset}; expected {at}, after the one before it")
        end = at + _n_bytes(file, name, library)
        at = -(-end // file.alignment) * file.alignment
    if not end <= file.size <= at:
        raise Error(f"{file.path} has {file.size} bytes; expected {at}, where its last tensor ends")


@dataclass(frozen=True)
class _Facts:
    """The metadata, asked for by key and type; ``default`` None: the key must be there."""

    file: File

    def whole(self, key: str, default: int | None = None, least: int = 1) -> int:
        value = self.file.metadata.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.wrong(key, f"a whole number of at least {least}")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        value = self.file.metadata.get(key, default)
        if not isinstance(value, float):
            raise self.wrong(key, "a real number")
        return value

    def wrong(self, key: str, expected: str) -> Error:
        found = self.file.metadata.get(key)
        said = "is absent" if key not in self.file.metadata else f"is {found!r:.60}"
        return Error(f"{self.file.path}: metadata {key} {said}; expected {expected}")


def _config(facts: _Facts, library: ModuleType) -> Config:
    file, meta = facts.file, facts.file.metadata
    if meta.get("general.architecture") != "llama":
        raise facts.wrong("general.architecture", "'llama'")
    if facts.whole("split.count", 1, least=0) > 1:
        raise facts.wrong("split.count", "one whole file (`llama-gguf-split --merge` joins the pieces)")
    if facts.whole("llama.expert_count", 0, least=0):
        raise facts.wrong("llama.expert_count", "0: msrnn's cell has one feed-forward, no mixture of experts")
    n_layers, width = facts.whole("llama.block_count"), facts.whole("llama.embedding_length")
    if n_layers > len(file.tensors):  # before names are made for layers that a damaged number invents
        raise facts.wrong("llama.block_count", f"at most {len(file.tensors)}, the number of tensors")
    n_heads = facts.whole("llama.attention.head_count")
    head_dim = facts.whole("llama.attention.key_length", width // n_heads)
    for key in ("llama.rope.dimension_count", "llama.attention.value_length"):
        if facts.whole(key, head_dim) != head_dim:
            raise facts.wrong(key, f"{head_dim}, the head dimension")
    embedding = file.tensors.get("token_embd.weight")
    tokens = meta.get("tokenizer.ggml.tokens")
    rows = len(tokens) if isinstance(tokens, list) else 0 if embedding is None else embedding.shape[0]
    eos = dict.fromkeys(facts.whole(f"tokenizer.ggml.{name}", least=0) for name in EOS if f"tokenizer.ggml.{name}" in meta)
    bos = "tokenizer.ggml.bos_token_id"
    return Config(
        family="llama",  # Mistral and Yi files say llama too
        vocab_size=facts.whole("llama.vocab_size", rows),
        width=width,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=facts.whole("llama.attention.head_count_kv", n_heads),
        head_dim=head_dim,
        ffn_width=facts.whole("llama.feed_forward_length"),
        norm_eps=facts.real("llama.attention.layer_norm_rms_epsilon"),
        rope=_rope(facts, head_dim, library),
        length=facts.whole("llama.context_length"),
        tied="output.weight" not in file.tensors,
        window=facts.whole("llama.attention.sliding_window", 0, least=0) or None,
        bos_token_id=facts.whole(bos, least=0) if bos in meta else None,
        eos_token_ids=tuple(eos),
    )


def _rope(facts: _Facts, head_dim: int, library: ModuleType) -> Rope:
    prefix = "llama.rope.scaling."
    for key in facts.file.metadata:
        if key.startswith(prefix) and key.removeprefix(prefix) not in SCALING:
            raise facts.wrong(key, f"no scaling but {', '.join(SCALING)}")
    theta, factor = facts.real("llama.rope.freq_base", 10000.0), facts.real(prefix + "factor", 0.0)
    # as in llama.cpp a factor of 0 is none, and one without a type is linear
    kind = facts.file.metadata.get(prefix + "type", "linear" if factor else "none")
    if ROPE_FREQS in facts.file.tensors:
        if kind != "none":
            raise facts.wrong(prefix + "type", f"'none' beside {ROPE_FREQS}")
        return _llama3(facts.file, theta, head_dim, library)
    if kind == "none" or (kind == "linear" and not factor):
        return Rope(theta)
    if kind == "linear":
        return Linear(theta, factor)
    if kind != "yarn":
        raise facts.wrong(prefix + "type", "'none', 'linear' or 'yarn'")
    if not 1 <= factor < math.inf:
        raise facts.wrong(prefix + "factor", "at least 1 for yarn")
    return Yarn(
        theta,
        factor,
        length=facts.whole(prefix + "original_context_length", facts.whole("llama.context_length")),
        attention_factor=(0.1 * math.log(factor) + 1) * facts.real(prefix + "attn_factor", 1.0),  # llama.cpp's product
        beta_fast=facts.real(prefix + "yarn_beta_fast", 32.0),
        beta_slow=facts.real(prefix + "yarn_beta_slow", 1.0),
    )


def _llama3(file: File, theta: float, head_dim: int, library: ModuleType) -> Rope:
    """Llama 3's scaling from the divisors it leads to, ``(D/2,)``: GGUF keeps these and drops the four facts.

    All released models share low 1, high 4 and length 8192; factor is the largest divisor. Checked, not assumed.
    """
    if file.tensors[ROPE_FREQS].shape != (head_dim // 2,):
        raise Error(f"{file.path}: {ROPE_FREQS} has shape {file.tensors[ROPE_FREQS].shape}; expected {(head_dim // 2,)}")
    divisors = _tensor(file, ROPE_FREQS, library).double()
    plain, start = Rope(theta), torch.zeros(1, dtype=torch.int64)
    if bool((divisors == 1).all()):
        return plain
    rope = Llama3(theta, divisors.max().item(), low=1.0, high=4.0, length=8192)
    ratio = plain.frequencies(start, head_dim, torch.float64) / rope.frequencies(start, head_dim, torch.float64)
    if not torch.allclose(divisors, ratio, rtol=1e-5, atol=0):
        raise Error(f"{file.path}: {ROPE_FREQS} holds {divisors.tolist()!s:.60}…; expected Llama 3's scaling (1, 4, 8192)")
    return rope
