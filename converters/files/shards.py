"""The tensors of a checkpoint in one file, or in several files with an index; safetensors or PyTorch files."""

from pathlib import Path

from msrnn import Error
from msrnn.storage.files import read_json
from msrnn.storage.lazy_tensors import LazyTensor
from msrnn.storage.safetensors_io import open_tensors

from ..names import is_buffer
from .torch_files import open_pickle

TIED = "lm_head.weight"
"""An index may list the head of a tied model, which is not stored. Whether it is missing is checked with the config."""


def has(folder: Path, single: str) -> bool:
    """Return True if ``folder`` has the file ``single`` or an index of its shards."""
    return (folder / single).is_file() or (folder / f"{single}.index.json").is_file()


def open_shards(folder: Path, single: str) -> dict[str, LazyTensor]:
    """Open the tensors of the file ``single`` of ``folder``, or of its shards.

    Raises:
        Error: neither a single file nor an index; an index with files outside the folder, or with tensors that are not in
            the named file.
    """
    path, index = folder / single, folder / f"{single}.index.json"
    open_file = open_tensors if path.suffix == ".safetensors" else open_pickle
    if path.is_file():
        return open_file(path)
    if not index.is_file():
        raise Error(f"{folder} has neither {path.name} nor {index.name}")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise Error(f"{index}: weight_map is {weight_map!r:.60}; expected an object of tensor names and file names")
    shards = sorted(set(weight_map.values()))
    for file in shards:
        if Path(file).name != file or not file.endswith(path.suffix):
            raise Error(f"{index}: shard is {file!r}; expected the name of a {path.suffix} file in the folder")
        if not (folder / file).is_file():
            raise Error(f"{index}: shard {file!r} is missing")
    tensors: dict[str, LazyTensor] = {}
    for file in shards:
        indexed, stored = {name for name, f in weight_map.items() if f == file}, open_file(folder / file)
        wrong = {name for name in indexed ^ stored.keys() if not is_buffer(name)}
        wrong -= {name for name in indexed - stored.keys() if name.endswith(TIED)}
        if wrong:
            raise Error(f"{folder / file}: the index and the shard disagree about tensor {min(wrong)!r}")
        tensors |= stored
    return tensors
