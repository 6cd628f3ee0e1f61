"""Weights of other people's formats: read into a cell, written back. Converters know the cells; no cell knows them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from msrnn import Error
from msrnn.errors import check_device, check_dtype
from msrnn.models import Config, DecoderConfig, EncoderDecoderConfig, loading
from msrnn.models.network import Network
from msrnn.storage.files import atomic_dir, check_new_folder, read_bytes, read_json
from msrnn.storage.lazy_tensors import LazyTensor
from msrnn.storage.safetensors_io import open_tensors

from . import hub, sidecar_files
from .files import shards
from .formats import huggingface, in_memory, meta, meta_layout, mistral
from .source import Source

if TYPE_CHECKING:
    import tokenizers

__all__ = ["config", "convert", "load", "tokenizer"]


def load(
    source: Any,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    revision: str | None = None,
) -> Network:
    """A pretrained cell, in eval mode with frozen parameters.

    Args:
        source: a hub id (``owner/name``); a folder: the library's own, Hugging Face's (safetensors or ``pytorch_model*.bin``),
            Mistral's or Meta's (``params.json`` and ``consolidated.*``); one ``.gguf`` file; a live model of transformers, or
            anything with such a ``.config`` and ``.state_dict()``; ``(state_dict, config)``, the config an object of
            transformers, a dict of what ``config.json`` says, or a :class:`msrnn.models.Config`; or a :class:`Source` of one's
            own making (docs/converting.md).
        dtype: of the parameters; None keeps the source's (float32 for GGUF, which is dequantised).
        device: where to; None is the CPU.
        revision: a branch, tag or commit of a hub id.

    The cell's parameters are its own: what is read from disk is held once, what is taken from a live model is copied, so
    that training that model later does not change the cell. Delete the model to hold the numbers once.

    Raises:
        Error: a source that cannot be read, or is no LLaMA, Mistral or Yi; one sentence says why.
    """
    check_dtype(dtype)
    check_device(device)
    opened = _open(source, revision)
    with _counted(opened, "reading") as tensors:
        cell = loading.build(opened.config, tensors, dtype=dtype, device=device)
    cell.extra_files = opened.extra_files
    return cell


def convert(
    source: Any, target: str | Path, *, to: str = "msrnn", dtype: torch.dtype | None = None, revision: str | None = None
) -> None:
    """Write ``source`` (as :func:`load` takes it) as a new folder. Tensors pass one by one; no cell is built.

    Args:
        target: a path that does not exist yet, or an empty folder.
        to: ``msrnn``, the library's own folder, or ``hf``, one that transformers loads.

    Raises:
        Error: as :func:`load`; another ``to``, or ``hf`` for a :class:`Decoder`; a target that exists. Nothing half-written
            is left; what a killed run left beside the target goes with the next.
    """
    if to not in ("msrnn", "hf"):
        raise Error(f"to is {to!r}; expected 'msrnn' or 'hf'")
    check_new_folder(target)
    opened = _open(source, revision)
    config = opened.config
    if to == "hf" and isinstance(config, DecoderConfig):
        raise Error("to is 'hf', but the source is a Decoder, which transformers does not know; expected 'msrnn'")
    kind = loading.check(config, opened.tensors, dtype)
    extra_files = dict(opened.extra_files)
    with atomic_dir(target) as folder, _counted(opened, "converting") as tensors:
        cast = {name: x.to(kind) for name, x in tensors.items()}
        if isinstance(config, DecoderConfig) or to == "msrnn":
            loading.write(config, cast, extra_files, folder)
        else:
            huggingface.write(config, cast, extra_files, folder)


def config(source: Any, *, revision: str | None = None) -> Config | DecoderConfig:
    """The facts of ``source`` (as :func:`load` takes it), without its weights.

    Raises:
        Error: as :func:`load`.
    """
    if not isinstance(source, str | Path):
        return source.config if isinstance(source, Source) else in_memory.config_of(source)
    path = _locate(source, revision, weights=False)
    if path.is_file():
        from .gguf import reader

        return reader.read(path)[0]
    return _own_config(path) if _is_own(path) else _format(path, weights=False).read_config(path)


def tokenizer(source: Any, *, revision: str | None = None) -> "tokenizers.Tokenizer":
    """The tokenizer that belongs to ``source`` (as :func:`load` takes it); the extra ``text`` is needed.

    Raises:
        Error: no tokenizer there, or one this library cannot rebuild.
    """
    try:
        import tokenizers
    except ImportError:
        raise Error("the package tokenizers is not installed; pip install 'msrnn[text]'") from None
    if not isinstance(source, str | Path):
        raise Error(f"a live {type(source).__name__} carries no tokenizer; expected a hub id, a folder or a .gguf file")
    path = _locate(source, revision, weights=False)
    if path.is_file():
        from .gguf import tokenizer

        return tokenizer.tokenizer(path)
    if not (path / "tokenizer.json").is_file():
        if not (path / sidecar_files.SENTENCEPIECE).is_file():
            raise Error(f"{path} has neither tokenizer.json nor {sidecar_files.SENTENCEPIECE}")
        from .files import sentencepiece

        return sentencepiece.tokenizer(path / sidecar_files.SENTENCEPIECE)
    text = read_bytes(path / "tokenizer.json")
    try:
        found = tokenizers.Tokenizer.from_buffer(text)
    except KeyboardInterrupt:
        raise
    except BaseException as wrong:  # tokenizers raises nothing narrower, and where it panics not even an Exception
        raise Error(f"{path / 'tokenizer.json'} is not a tokenizer ({wrong})") from None
    found.no_truncation()  # what a text becomes is for the caller to say
    found.no_padding()
    return found


def _locate(source: str | Path, revision: str | None, *, weights: bool = True) -> Path:
    """A folder or a ``.gguf`` file on this machine."""
    if not str(source):
        raise Error("source is empty; expected a hub id (owner/name), a folder or a .gguf file")
    path = Path(source)
    try:
        path.exists()
    except OSError as wrong:  # too long a name, or a part of it that may not be looked at
        raise Error(f"cannot read {source} ({wrong.strerror})") from None
    if path.is_dir() or _is_gguf(path):
        if revision is not None:
            raise Error(f"revision {revision!r} belongs to a hub id; {path} lies on this machine")
        return path
    if not path.exists() and hub.is_id(str(source)):
        return hub.fetch(str(source), revision, weights=weights)
    what = "is neither a folder nor a GGUF file" if path.exists() else "does not exist, and is no hub id (owner/name) either"
    raise Error(f"{source} {what}")


def _is_gguf(path: Path) -> bool:
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(4) == b"GGUF" or path.suffix.lower() == ".gguf"  # a damaged one is told what is wrong with it
    except OSError as wrong:
        raise Error(f"cannot read {path} ({wrong.strerror})") from None


def _open(source: Any, revision: str | None) -> Source:
    if not isinstance(source, str | Path):
        if revision is not None:
            raise Error(f"revision {revision!r} belongs to a hub id; the source is a {type(source).__name__}")
        return source if isinstance(source, Source) else in_memory.open_live(source)
    path = _locate(source, revision)
    if path.is_file():
        from .gguf import reader  # deferred, as its package is an extra

        return Source(*reader.read(path), sidecar_files.in_gguf(path))
    if not _is_own(path):
        return _format(path).open_folder(path)
    return Source(_own_config(path), open_tensors(path / "model.safetensors"), loading.read_extra_files(path))


def _format(folder: Path, *, weights: bool = True) -> ModuleType:
    """Whose folder it is, by what lies in it; safetensors are preferred to pickles, and then Hugging Face's to others.

    Raises:
        Error: nobody's that is known.
    """
    facts, params = (folder / "config.json").is_file(), (folder / "params.json").is_file()
    native = (mistral if "hidden_dim" in read_json(folder / "params.json") else meta) if params else None
    for name, kind in (
        (huggingface.SAFE, huggingface if facts else None),
        (meta_layout.SINGLE, native),
        (huggingface.PICKLED, huggingface if facts else None),
        ("consolidated.00.pth", native),
    ):
        if kind is not None and (shards.has(folder, name) or not weights):
            return kind
    files = sorted(path.name for path in folder.iterdir())
    if "adapter_config.json" in files:
        raise Error(f"{folder} is an adapter (LoRA), a change to a model; expected the model that it was merged into")
    found = f"{', '.join(files[:6])}{', …' if len(files) > 6 else ''}" if files else "nothing"
    wanted = f"config.json and {huggingface.SAFE} or {huggingface.PICKLED} (or an index of shards)"
    raise Error(f"{folder} holds {found}; expected {wanted}, or params.json and {meta_layout.SINGLE} or consolidated.00.pth")


def _is_own(folder: Path) -> bool:
    path = folder / "config.json"
    return path.is_file() and read_json(path).get("format") == loading.FORMAT


def _own_config(folder: Path) -> Config | DecoderConfig:
    """Of a folder of the library's own, for all who load a model without asking which."""
    config = loading.read_config(folder)
    if isinstance(config, EncoderDecoderConfig):
        raise Error(
            f"{folder} is an encoder-decoder, which reads a source first; expected a decoder alone (msrnn.load reads both)"
        )
    return config


@contextmanager
def _counted(source: Source, what: str) -> Iterator[dict[str, LazyTensor]]:
    """The tensors of ``source``, with a bar that counts those read and shows after two seconds."""
    with tqdm(total=len(source.tensors), desc=what, unit="tensor", delay=2, leave=False, disable=None) as bar:

        def read(x: LazyTensor) -> Tensor:
            bar.update()
            return x.read()

        yield {name: replace(x, load=partial(read, x)) for name, x in source.tensors.items()}
