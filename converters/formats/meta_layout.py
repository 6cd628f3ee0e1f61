"""The layout that Meta's and Mistral's own checkpoints share (``params.json``, ``consolidated.*``): names and files.

Meta splits its larger models for several devices (model parallelism). Every file then has all names and a part of most tensors.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msrnn import Error
from msrnn.models import Config
from msrnn.storage.files import read_json
from msrnn.storage.lazy_tensors import LazyTensor

from ..fields import Fields
from ..files.shards import has, open_shards
from ..files.torch_files import open_pickle
from ..row_order import half_split_qk
from ..source import NameTable
from .hf_fields import check_quantisation

PARAMS = "params.json"
SAFETENSORS, PICKLE = "consolidated.safetensors", "consolidated.00.pth"
NAMES = NameTable(
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
ModelParallelShards = Sequence[Mapping[str, LazyTensor]]
"""The tensors of each model-parallel file by the format's names."""


def read_params(folder: Path, known: set[str], neutral: Mapping[str, tuple[Any, ...]] | None = None) -> Fields:
    """Return the fields of ``params.json``.

    Args:
        folder: has the file.
        known: names of fields that are read.
        neutral: values of other fields that mean a plain decoder.

    Raises:
        Error: the file is damaged or has another field that is not null or false, which means another kind of model.
    """
    params = read_json(folder / PARAMS)
    check_quantisation(params, PARAMS)
    for name, value in params.items():
        off = (None, *(neutral or {}).get(name, (False,)))
        if name not in known and value not in off:
            raise Error(f"{PARAMS}: {name} is {value!r:.60}, which this library does not support; expected a plain decoder")
    return Fields(params, PARAMS)


def open_model_parallel(folder: Path) -> ModelParallelShards:
    """Open ``consolidated.safetensors`` (with its shards, if any) or ``consolidated.00.pth``, ``consolidated.01.pth``, ….

    Raises:
        Error: no such file, a number is left out, a file is damaged, a name that LLaMA does not have, or the files have
            different tensors.
    """
    if has(folder, SAFETENSORS):
        return [NAMES.unwrap(open_shards(folder, SAFETENSORS))]
    files = sorted(path for path in folder.glob("consolidated.*.pth") if re.fullmatch(r"\d\d", path.suffixes[0][1:]))
    if not files:
        raise Error(f"{folder} has neither {SAFETENSORS} nor {PICKLE}")
    for n, path in enumerate(files):
        if path.name != f"consolidated.{n:02}.pth":
            raise Error(f"{folder}: consolidated.{n:02}.pth is missing; expected it because {files[-1].name} exists")
    shards = [NAMES.unwrap(open_pickle(path)) for path in files]
    for path, shard in zip(files, shards, strict=True):
        if wrong := shard.keys() ^ shards[0].keys():
            raise Error(f"{path} and {files[0].name} disagree about tensor {min(wrong)!r}; expected a part of it in each file")
    return shards


def read_tensors(shards: ModelParallelShards, config: Config) -> dict[str, LazyTensor]:
    """Return the joined tensors under msrnn's names, q and k half-split, without a tied head.

    Raises:
        Error: a name that LLaMA does not have, or shards that do not fit together.
    """
    tensors = {}
    for name in shards[0]:
        if config.tied and name == "output.weight":
            continue
        ours = NAMES.to_msrnn(name)
        tensors[ours] = join_shards(name, [shard[name] for shard in shards], ours.split(".")[-2], config.width)
    return half_split_qk(tensors, config)


def join_shards(name: str, parts: Sequence[LazyTensor], part: str, width: int) -> LazyTensor:
    """Return one tensor from its parts in all shards. Matrices are split along one axis; norms are equal in all shards.

    Llama 3 splits the embedding along the vocabulary (axis 0), the models before it along the width (axis 1).

    Args:
        name: name in the format, for error messages.
        parts: this tensor in each shard.
        part: msrnn's name within the layer.
        width: E of the model.

    Raises:
        Error: the parts have different shapes or types; the result raises it for norms that differ.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    if any(x.dtype != first.dtype or x.shape != first.shape for x in parts):
        raise Error(f"the parts of tensor {name!r} are {[(*x.shape,) for x in parts]}; expected equal shapes and types")
    if len(first.shape) < 2:
        return LazyTensor(first.shape, first.dtype, lambda: _equal_in_all(name, parts))
    axis = 1 if part in ("o", "down") or (part == "embed" and first.shape[1] != width) else 0
    shape = tuple(n * len(parts) if i == axis else n for i, n in enumerate(first.shape))
    return LazyTensor(shape, first.dtype, lambda: torch.cat([x.read() for x in parts], dim=axis))


def _equal_in_all(name: str, parts: Sequence[LazyTensor]) -> Tensor:
    first = parts[0].read()
    if not all(torch.equal(first, x.read()) for x in parts[1:]):
        raise Error(f"the parts of tensor {name!r} differ; expected the same in each")
    return first
