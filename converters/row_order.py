"""The order of the rows of q and k, which follows from the pairs that rotary positions rotate.

Hugging Face and this library pair number i of a head with number i + D/2 (half-split). Meta, Mistral and the GGUF files of
LLaMA and SmolLM3 pair 2i with 2i + 1 (interleaved); GGUF files of other architectures are half-split. The models are equal, but
the rows of the weights of q and k are permuted.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from einops import rearrange
from torch import Tensor

from msrnn.layers.packed.matrix import PackedMatrix, pack_codes, unpack_codes
from msrnn.models import Config
from msrnn.models.packing import LazyMatrix
from msrnn.storage.lazy_tensors import LazyTensor


def half_split(x: Tensor, n_heads: int) -> Tensor:
    """Reorder the rows of each head from interleaved pairs to half-split pairs.

    Args:
        x: the weight of q or k, ``(n_heads · D, E)``, interleaved.
        n_heads: number of heads of this weight; fewer for k than for q under grouped queries.

    Returns:
        A copy of the same shape, half-split.
    """
    return rearrange(x, "(n pair half) e -> (n half pair) e", n=n_heads, half=2)


def half_split_qk(tensors: Mapping[str, LazyTensor], config: Config) -> dict[str, LazyTensor]:
    """Return ``tensors`` (under msrnn's names) with all weights of q and k half-split when they are read."""
    heads = {"q": config.n_heads, "k": config.n_kv_heads}
    parts = {name: name.split(".")[-2] for name in tensors}
    return {name: _lazily(x, heads[parts[name]]) if parts[name] in heads else x for name, x in tensors.items()}


def half_split_packed(matrices: Mapping[str, LazyMatrix], config: Config) -> dict[str, LazyMatrix]:
    """Return int4 ``matrices`` (under msrnn's names of their modules) with those of q and k half-split when they are read."""
    heads = {"q": config.n_heads, "k": config.n_kv_heads}

    def load(x: LazyMatrix, n_heads: int) -> PackedMatrix:
        codes, scales, zeros = x.load()
        codes = pack_codes(half_split(unpack_codes(codes), n_heads))
        return PackedMatrix(codes, half_split(scales, n_heads), None if zeros is None else half_split(zeros, n_heads))

    parts = {stem: heads.get(stem.rpartition(".")[2]) for stem in matrices}
    return {stem: replace(x, load=partial(load, x, n)) if (n := parts[stem]) else x for stem, x in matrices.items()}


def _lazily(x: LazyTensor, n_heads: int) -> LazyTensor:
    return LazyTensor(x.shape, x.dtype, lambda: half_split(x.read(), n_heads))
