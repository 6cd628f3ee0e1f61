"""The model folder of msrnn: ``config.json``, ``model.safetensors`` and small extra files. Nothing is unpickled.

The tensors have the names of the parameters. The extra files are those of :data:`EXTRA_FILES` that the model has.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import Error
from .files import read_bytes, read_json, write_json
from .lazy_tensors import LazyTensor
from .safetensors_io import open_tensors, write_tensors

FORMAT, VERSION = "msrnn", 2
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
EXTRA_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
"""Names of the small files that are stored with a model, as Hugging Face names them."""


def write_model_folder(
    target: Path, config: Mapping[str, Any], tensors: Mapping[str, LazyTensor], extra_files: Mapping[str, bytes]
) -> None:
    """Write a model into the empty folder ``target``, loading one tensor at a time. ``config.json`` is written last.

    Raises:
        Error: a file cannot be written, or an extra file has a name that is not allowed.
    """
    write_tensors(target / WEIGHTS_FILE, tensors, {"format": "pt"})
    write_extra_files(extra_files, target)
    write_json(target / CONFIG_FILE, {"format": FORMAT, "version": VERSION, **config})


def write_extra_files(extra_files: Mapping[str, bytes], target: Path) -> None:
    """Write the small files of a model into the folder ``target``.

    Raises:
        Error: a name contains a folder, or is the name of another file of the model.
    """
    for name, content in extra_files.items():
        if Path(name).name != name or (target / name).exists() or name == CONFIG_FILE:
            raise Error(f"extra file is named {name!r:.60}; expected a name such as {', '.join(EXTRA_FILES)}")
        (target / name).write_bytes(content)


def read_config_fields(folder: Path) -> dict[str, Any]:
    """Return the fields of ``config.json``, without ``format`` and ``version``.

    Raises:
        Error: the folder has another format or version, or the file is damaged.
    """
    fields = read_json(folder / CONFIG_FILE)
    if fields.pop("format", None) != FORMAT:
        raise Error(
            f"{folder} is not a folder of this library (config.json: no format 'msrnn'); converters.load reads other kinds"
        )
    if (version := fields.pop("version", None)) != VERSION:
        hint = "convert the model again from its source, or train it again"
        raise Error(f"{folder}/config.json: version is {version!r}; expected {VERSION} ({hint})")
    return fields


def open_weights(folder: Path) -> dict[str, LazyTensor]:
    """Return the parameters in a model folder, none of them loaded.

    Raises:
        Error: as :func:`msrnn.storage.safetensors_io.open_tensors`.
    """
    return open_tensors(folder / WEIGHTS_FILE)


def read_extra_files(folder: Path) -> dict[str, bytes]:
    """Return the files of :data:`EXTRA_FILES` that exist in a folder and are not empty.

    Raises:
        Error: a file cannot be read.
    """
    paths = [folder / name for name in EXTRA_FILES]
    return {path.name: read_bytes(path) for path in paths if path.is_file() and path.stat().st_size}
