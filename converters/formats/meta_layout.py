"""Meta's and Mistral's own checkpoints (``params.json``, ``consolidated.*``): names, pieces, rotary.

Rotary positions turn pairs of a head's numbers. We and Hugging Face pair number i with number i + D/2; Meta, Mistral and GGUF
pair 2i with 2i + 1. The same model then has the rows of q and k in another order: it is undone here and nowhere else.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from msrnn import Error
from msrnn.models import Config
from msrnn.storage.lazy_tensors import LazyTensor

from ..files.shards import has, open_shards
from ..files.torch_files import open_pickle
from ..source import Names

NAMES = Names(
    outer={"tok_embeddings": "embed", "norm": "norm", "output": "head"},
    layer={
        "attention_norm": "attention_norm",
        "attention.wq": "q",
        "attention.wk": "k",
        "attention.wv": "v",
        "attention.wo": "o",
        "ffn_norm": "ffn_norm",
        "feed_forward.w1": "gate",
        "feed_forward.w3": "up",
        "feed_forward.w2": "down",
    },
    layers="layers",
)
SINGLE = "consolidated.safetensors"
Pieces = Sequence[Mapping[str, LazyTensor]]


def half_split(x: Tensor, n_heads: int) -> Tensor:
    """``(heads · D, E)``, rows of a head interleaved -> the same rows half-split; a copy."""
    return rearrange(x, "(n pair half) e -> (n half pair) e", n=n_heads, half=2)


def open_pieces(folder: Path) -> Pieces:
    """The tensors of a folder by their own names, once for every piece: a model cut for several devices has all names in
    every one of ``consolidated.00.pth``, ``consolidated.01.pth``, …, and a part of most tensors.

    Raises:
        Error: no such files, one missing among them, whatever is wrong in one; pieces with different tensors.
    """
    if has(folder, SINGLE):
        return [open_shards(folder, SINGLE)]
    files = sorted(path for path in folder.glob("consolidated.*.pth") if re.fullmatch(r"\d\d", path.suffixes[0][1:]))
    if not files:
        raise Error(f"{folder} has neither {SINGLE} nor consolidated.00.pth")
    for n, path in enumerate(files):
        if path.name != f"consolidated.{n:02}.pth":
            raise Error(f"{folder}: consolidated.{n:02}.pth is missing; {files[-1].name} is there")
    pieces = [open_pickle(path) for path in files]
    for path, piece in zip(files, pieces, strict=True):
        if wrong := piece.keys() ^ pieces[0].keys():
            raise Error(f"{path} and {files[0].name} disagree about tensor {min(wrong)!r}; every piece has a part of each")
    return pieces


def read_tensors(pieces: Pieces, config: Config) -> dict[str, LazyTensor]:
    """The same tensors under our names, pieces joined, rotary half-split. Stored rotary tables are left out, and so is a
    head that is tied.

    Raises:
        Error: a name that no LLaMA has; pieces that do not fit together.
    """
    heads = {"q": config.n_heads, "k": config.n_kv_heads}
    tensors = {}
    for name in pieces[0]:
        if name == "rope.freqs" or (config.tied and name == "output.weight"):
            continue
        ours = NAMES.ours(name)
        part = ours.split(".")[-2]
        whole = join(name, [piece[name] for piece in pieces], part, config.width)
        tensors[ours] = _rows_moved(whole, heads[part]) if part in heads else whole
    return tensors


def _rows_moved(x: LazyTensor, n_heads: int) -> LazyTensor:
    return LazyTensor(x.shape, x.dtype, lambda: half_split(x.read(), n_heads))


def join(name: str, parts: Sequence[LazyTensor], part: str, width: int) -> LazyTensor:
    """One tensor of its pieces: heads, feed-forward and vocabulary are cut, the norms are there in every piece.

    Llama 3 cuts the embedding along the vocabulary (axis 0), the models before it along the width (axis 1).
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    if any(x.dtype != first.dtype or x.shape != first.shape for x in parts):
        raise Error(f"the pieces of tensor {name!r} are {[(*x.shape,) for x in parts]}; expected equal shapes and types")
    if len(first.shape) < 2:
        return LazyTensor(first.shape, first.dtype, lambda: _equal(name, parts))
    axis = 1 if part in ("o", "down") or (part == "embed" and first.shape[1] != width) else 0
    shape = tuple(n * len(parts) if i == axis else n for i, n in enumerate(first.shape))
    return LazyTensor(shape, first.dtype, lambda: torch.cat([x.read() for x in parts], dim=axis))


def _equal(name: str, parts: Sequence[LazyTensor]) -> Tensor:
    first = parts[0].read()
    if not all(torch.equal(first, x.read()) for x in parts[1:]):
        raise Error(f"the pieces of tensor {name!r} differ; expected the same in each")
    return first


def check_known(params: Mapping[str, Any], known: set[str]) -> None:
    """Refuse what a ``params.json`` says beyond ``known``: another kind of model."""
    for name, value in params.items():
        if name not in known and value not in (None, False):
            raise Error(f"params.json: {name} is {value!r:.60}, which this library does not know; expected a plain decoder")
