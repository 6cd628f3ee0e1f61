"""Weights of other people's formats: read into a cell, written back. Converters know the cells; no cell knows them."""

import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from msrnn import Error, checkpoint
from msrnn.error import check_device, check_dtype
from msrnn.files import check_new_folder, new_folder, read_json, read_tensors, write_json, write_tensors
from msrnn.models import Config, Llama

from . import hub, huggingface
from .source import Source

if TYPE_CHECKING:
    import tokenizers

__all__ = ["config", "convert", "load", "tokenizer"]


def load(
    source: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    revision: str | None = None,
) -> Llama:
    """A pretrained cell, in eval mode with frozen parameters.

    Args:
        source: a hub id (``owner/name``), a folder (Hugging Face's or the library's own) or one ``.gguf`` file.
        dtype: of the parameters; None keeps the source's (float32 for GGUF, which is dequantised).
        device: where to; None is the CPU.
        revision: a branch, tag or commit of a hub id.

    Raises:
        Error: a source that cannot be read, or is no LLaMA, Mistral or Yi; one sentence says why.
    """
    check_dtype(dtype)
    check_device(device)
    return _build(_open(source, revision), dtype, device)


def convert(
    source: str | Path, target: str | Path, *, to: str = "msrnn", dtype: torch.dtype | None = None, revision: str | None = None
) -> None:
    """Write ``source`` (as :func:`load` takes it) as a new folder.

    Args:
        target: a path that does not exist yet, or an empty folder.
        to: ``msrnn``, the library's own folder, or ``hf``, one that transformers loads.

    Raises:
        Error: as :func:`load`; another ``to``; a target that exists. Nothing half-written is left.
    """
    if to not in ("msrnn", "hf"):
        raise Error(f"to is {to!r}; expected 'msrnn' or 'hf'")
    check_new_folder(target)
    cell = load(source, dtype=dtype, revision=revision)
    with new_folder(target) as folder:
        if to == "msrnn":
            checkpoint.write(cell, folder)
            return
        write_tensors(folder / "model.safetensors", huggingface.to_hf(cell.state_dict()), {"format": "pt"})
        facts = huggingface.config_to_hf(cell.config, cell.norm.weight.dtype)
        write_json(folder / "config.json", facts)
        write_json(folder / "generation_config.json", {k: facts[k] for k in ("bos_token_id", "eos_token_id")})
        carried = cell.carried()
        for name, content in carried.items():
            (folder / name).write_bytes(content)
        if "tokenizer.json" in carried:
            write_json(folder / "tokenizer_config.json", huggingface.tokenizer_config(cell.config, carried["tokenizer.json"]))


def config(source: str | Path, *, revision: str | None = None) -> Config:
    """The facts of ``source`` (as :func:`load` takes it), without its weights.

    Raises:
        Error: as :func:`load`.
    """
    path = _locate(source, revision, weights=False)
    if path.is_file():
        from . import gguf

        return gguf.read(path)[0]
    return checkpoint.read_config(path) if _is_own(path) else huggingface.read_config(path)


def tokenizer(source: str | Path, *, revision: str | None = None) -> "tokenizers.Tokenizer":
    """The tokenizer that belongs to ``source`` (as :func:`load` takes it); the extra ``text`` is needed.

    Raises:
        Error: no tokenizer there, or one this library cannot rebuild.
    """
    try:
        import tokenizers
    except ImportError:
        raise Error("the package tokenizers is not installed; pip install 'msrnn[text]'") from None
    path = _locate(source, revision, weights=False)
    if path.is_file():
        from . import gguf_tokenizer

        return gguf_tokenizer.tokenizer(path)
    if not (path / "tokenizer.json").is_file():
        raise Error(f"{path} has no tokenizer.json")
    try:
        return tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    except Exception as wrong:  # tokenizers raises nothing narrower
        raise Error(f"{path / 'tokenizer.json'} is not a tokenizer ({wrong})") from None


def _locate(source: str | Path, revision: str | None, *, weights: bool = True) -> Path:
    """A folder or a ``.gguf`` file on this machine."""
    if not isinstance(source, str | Path) or not str(source):
        raise Error(f"source is {source!r:.60}; expected a hub id (owner/name), a folder or a .gguf file")
    path = Path(source)
    if path.is_dir() or _is_gguf(path):
        if revision is not None:
            raise Error(f"revision {revision!r} belongs to a hub id; {path} lies on this machine")
        return path
    if not path.exists() and hub.is_id(str(source)):
        return hub.fetch(str(source), revision, weights=weights)
    what = "is neither a folder nor a GGUF file" if path.exists() else "does not exist, and is no hub id (owner/name) either"
    raise Error(f"{source} {what}")


def _is_gguf(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"GGUF" or path.suffix.lower() == ".gguf"  # a damaged one is told what is wrong with it


def _open(source: str | Path, revision: str | None) -> Source:
    path = _locate(source, revision)
    if path.is_file():
        from . import gguf  # deferred, as its package is an extra

        return Source(*gguf.read(path), partial(_carried_in_gguf, path))
    if not _is_own(path):
        return huggingface.open_folder(path)
    config, files = checkpoint.read_config(path), checkpoint.read_carried(path)
    return Source(config, read_tensors(path / "model.safetensors"), lambda: files)


def _is_own(folder: Path) -> bool:
    return read_json(folder / "config.json").get("format") == checkpoint.FORMAT


def _carried_in_gguf(path: Path) -> dict[str, bytes]:
    """What a GGUF's metadata says of tokenizer and chat template, as files; a warning where the tokenizer is unknown."""
    from . import gguf_tokenizer

    files = {}
    try:
        files["tokenizer.json"] = gguf_tokenizer.tokenizer(path).to_str().encode()
    except Error as refused:
        warnings.warn(f"no tokenizer goes along: {refused}", stacklevel=2)
    if template := gguf_tokenizer.chat_template(path):
        files["chat_template.jinja"] = template.encode()
    return files


def _build(source: Source, dtype: torch.dtype | None, device: torch.device | str | None) -> Llama:
    n_tensors = 9 * source.config.n_layers + 2 + (not source.config.tied)
    bar = tqdm(source.tensors, total=n_tensors, desc="reading", unit="tensor", delay=2, leave=False, disable=None)
    cell = checkpoint.build(source.config, bar, dtype=dtype, device=device)
    cell.carried = source.carried
    return cell
