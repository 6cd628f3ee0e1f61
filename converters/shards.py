"""Tensors one by one out of safetensors, single or sharded."""

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from msrnn import Error
from msrnn.files import read_json, read_names, read_tensors

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def find(folder: Path) -> dict[str, Path]:
    """Which file each tensor lies in.

    Raises:
        Error: neither a single file nor an index; an index that names files outside the folder, or that lies about
            what is in them.
    """
    if (folder / SINGLE).is_file():
        return dict.fromkeys(read_names(folder / SINGLE), folder / SINGLE)
    if not (folder / INDEX).is_file():
        raise Error(f"{folder} has neither {SINGLE} nor {INDEX}")
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise Error(f"{folder / INDEX}: weight_map is not an object of tensor and file names")
    shards = sorted(set(weight_map.values()))
    for file in shards:
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise Error(f"{folder / INDEX}: shard {file!r} is not the name of a safetensors file in the folder")
        if not (folder / file).is_file():
            raise Error(f"{folder / INDEX}: shard {file!r} is missing")
    for file in shards:
        said, held = {name for name, f in weight_map.items() if f == file}, set(read_names(folder / file))
        if said != held:
            raise Error(f"{folder / file}: the index and the shard disagree about tensor {min(said ^ held)!r}")
    return {name: folder / file for name, file in weight_map.items()}


def read(files: dict[str, Path]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of :func:`find`, shard by shard."""
    for file in sorted(set(files.values())):
        yield from read_tensors(file)
