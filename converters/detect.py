"""Find a source on this machine or on the hub, and detect its format."""

import re
from pathlib import Path
from types import ModuleType
from typing import Any

from msrnn import Error
from msrnn.models import Config, DecoderConfig
from msrnn.storage.files import read_json

from . import hub
from .files import shards
from .formats import huggingface, in_memory, meta, meta_layout, mistral, own
from .source import Source

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")


def open_source(source: Any, revision: str | None) -> Source:
    """Open a source of any kind (see :func:`converters.load`) without reading its tensors.

    Raises:
        Error: the source does not exist, is damaged, or has an unknown format or another kind of model.
    """
    if not isinstance(source, str | Path):
        _check_no_revision(source, revision)
        return source if isinstance(source, Source) else in_memory.open_checkpoint(source)
    path = locate(source, revision)
    return _format(path).open_checkpoint(path)


def read_config(source: Any, revision: str | None) -> Config | DecoderConfig:
    """Return the config of a source of any kind; its weights are not needed. Raises as :func:`open_source`."""
    if not isinstance(source, str | Path):
        _check_no_revision(source, revision)
        return source.config if isinstance(source, Source) else in_memory.read_config(source)
    path = locate(source, revision, weights=False)
    return _format(path, weights=False).read_config(path)


def locate(source: str | Path, revision: str | None, *, weights: bool = True) -> Path:
    """Return the folder or the GGUF file of ``source`` on this machine, after a download if it is a hub id.

    A folder or a hub id without other weights stands for its only GGUF file.

    Args:
        source: a path, a hub id, or a hub id with a GGUF file (``owner/name:Q4_K_M``, ``owner/name/file.gguf``).
        revision: branch, tag or commit of a hub id.
        weights: download the weights too, not only the small files.

    Raises:
        Error: no such path and no hub id, a path with a revision, a failed download, or several GGUF files and no choice.
    """
    if not str(source):
        raise Error("source is empty; expected a hub id (owner/name), a folder or a .gguf file")
    path = Path(source)
    try:
        path.exists()
    except OSError as error:  # a name that is too long, or a part without permission
        raise Error(f"cannot read {source} ({error.strerror})") from None
    if path.is_dir() or _is_gguf(path):
        if revision is not None:
            raise Error(f"revision is {revision!r}, but {path} is a local path; expected a revision with a hub id only")
        return _only_gguf(path) if path.is_dir() else path
    if not path.exists() and (hub_id := hub.split_id(str(source))):
        return hub.fetch(hub_id[0], revision, gguf=hub_id[1], weights=weights)
    found = "is neither a folder nor a GGUF file" if path.exists() else "does not exist, and is no hub id (owner/name) either"
    raise Error(f"{source} {found}")


def _only_gguf(folder: Path) -> Path:
    """Return the only GGUF file of a folder without other weights, or else the folder."""
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError as error:
        raise Error(f"cannot read {folder} ({error.strerror})") from None
    kinds = (huggingface.SAFETENSORS, huggingface.PICKLE, meta_layout.SAFETENSORS, meta_layout.PICKLE)
    if not any(name.lower().endswith(".gguf") for name in names) or any(shards.has(folder, name) for name in kinds):
        return folder
    file = hub.choose_gguf(names, None, str(folder))
    return folder if file is None else folder / file


def _check_no_revision(source: Any, revision: str | None) -> None:
    if revision is not None:
        kind = type(source).__name__
        raise Error(f"revision is {revision!r}, but the source is a {kind}; expected a revision with a hub id only")


def _is_gguf(path: Path) -> bool:
    """Return True for the magic bytes or the suffix, because a damaged file needs an error message of the GGUF reader."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(4) == b"GGUF" or path.suffix.lower() == ".gguf"
    except OSError as error:
        raise Error(f"cannot read {path} ({error.strerror})") from None


def _format(path: Path, *, weights: bool = True) -> ModuleType:
    """Return the module that reads ``path``; it has the functions ``open_checkpoint`` and ``read_config``.

    Safetensors are preferred to pickles, and then Hugging Face's files to others.

    Args:
        path: a folder or a GGUF file.
        weights: the files of the weights must be present.

    Raises:
        Error: the format is unknown.
    """
    if path.is_file():
        from .gguf import reader as gguf  # deferred, because most sources need no gguf package

        return gguf
    _check_no_adapter(path)
    if own.matches(path):
        return own
    params = path / meta_layout.PARAMS
    config = path / "config.json"
    for name, needed in (
        (huggingface.SAFETENSORS, config),
        (meta_layout.SAFETENSORS, params),
        (huggingface.PICKLE, config),
        (meta_layout.PICKLE, params),
    ):
        if needed.is_file() and (shards.has(path, name) or not weights):
            if needed is config:
                return huggingface
            return mistral if "hidden_dim" in read_json(params) else meta
    files = sorted(file.name for file in path.iterdir())
    found = f"{', '.join(files[:6])}{', …' if len(files) > 6 else ''}" if files else "nothing"
    expected = f"config.json and {huggingface.SAFETENSORS} or {huggingface.PICKLE} (or an index of shards)"
    expected += f", or {meta_layout.PARAMS} and {meta_layout.SAFETENSORS} or {meta_layout.PICKLE}"
    raise Error(f"{path} holds {found}; expected {expected}{_did_you_mean(path)}")


def _check_no_adapter(folder: Path) -> None:
    """Refuse a folder with an adapter, also one that has full weights: transformers would add the adapter to them.

    Raises:
        Error: the folder has one of peft's files; the message names the base model if the adapter does.
    """
    names = [name for name in ADAPTER_FILES if (folder / name).exists()]
    if not names:
        return
    try:
        base = read_json(folder / names[0]).get("base_model_name_or_path") if names[0].endswith(".json") else None
    except Error:
        base = None
    model = f" of {base!r:.80}" if isinstance(base, str) and base else ""
    raise Error(
        f"{folder} has {names[0]}, so it is an adapter (LoRA){model}; expected a model without one; load the base and then "
        "the adapter by msrnn.lora.load_adapter or --lora, or merge both by merge_and_unload() of peft"
    )


def _did_you_mean(folder: Path) -> str:
    """Return the end of a message: a subfolder that looks like a model. Of ``checkpoint-N`` it is the last one."""
    marks = ("config.json", meta_layout.PARAMS, *ADAPTER_FILES)
    try:
        inner = [path for path in sorted(folder.iterdir()) if any((path / name).is_file() for name in marks)]
    except OSError:  # a hint does not replace the message
        return ""
    if not inner:
        return ""
    number = [int(found[1]) if (found := re.search(r"(\d+)$", path.name)) else -1 for path in inner]
    return f"; did you mean {inner[number.index(max(number))]}?"
