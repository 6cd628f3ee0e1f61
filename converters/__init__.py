"""Pretrained checkpoints of other formats: load them into a cell, or convert them to a folder.

Converters import msrnn; of msrnn only the command line imports converters.
"""

import msrnn  # noqa: F401  (first, because it handles ctrl-C during the import of torch)

# isort: split
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from msrnn import Cell, Error
from msrnn.distributed.ranks import Ranks
from msrnn.errors import check_device, check_dtype
from msrnn.models import Config, DecoderConfig
from msrnn.models.loading import build_frozen, check_tensors, part_of_rank, tensor_shapes
from msrnn.models.packing import packed_names
from msrnn.storage.atomic import atomic_dir
from msrnn.storage.lazy_tensors import LazyTensor, Location
from msrnn.storage.model_folder import write_model_folder
from msrnn.storage.output_paths import check_new_folder

from . import detect
from .formats import huggingface
from .source import Source
from .tokenization import folder as tokenizer_folder
from .tokenization.folder import NoTokenizer
from .weights import check_weights, choose_weights, return_freed_memory

if TYPE_CHECKING:
    import tokenizers

__all__ = ["config", "convert", "load", "tokenizer"]


def load(
    source: Any,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    revision: str | None = None,
    weights: str | None = None,
    group: Any = None,
) -> Cell:
    """Load a pretrained cell in eval mode with frozen parameters.

    The parameters are views of the mapped file where it has their dtype and layout (docs/converting.md), otherwise copies. They
    are held once, except that a live model keeps its own: delete it to free the memory.

    Args:
        source: one of

            - a hub id (``owner/name``), or one GGUF file of it (``owner/name:Q4_K_M``, ``owner/name/file.gguf``)
            - a folder of this library, of Hugging Face (safetensors or ``pytorch_model*.bin``), of Mistral or of Meta
              (``params.json`` and ``consolidated.*``)
            - a ``.gguf`` file, or a folder with only one
            - a model of transformers, or another object with such a ``.config`` and ``.state_dict()``
            - ``(state_dict, config)`` with a config object of transformers, a dict of the fields of ``config.json``, or a
              :class:`msrnn.models.Config`
            - a :class:`converters.source.Source` (docs/converting.md)
        dtype: dtype of the parameters; None keeps that of the source (float32 for GGUF, which is dequantised). With packed
            weights it is the dtype of norms, scales and activations, and None is bfloat16.
        device: device of the parameters; None is the CPU.
        revision: branch, tag or commit of a hub id.
        weights: None, the weights as they are; ``"int4"``, the matrices of the layers in 4 bits, embedding and LM head in 8;
            ``"int8"``, all matrices in 8 bits; ``"packed"``, the matrices of type Q4_0 and Q4_1 of a GGUF file in their own 4
            bits, the others in 8 (docs/packed.md).
        group: a process group of ``torch.distributed``: each process holds its slices of the model, as
            :func:`msrnn.distribute` describes. From safetensors it reads only these. None: the whole model.

    Warns:
        UserWarning: the source is a folder or file without a tokenizer that can be read, or its tokenizer has more ids than
            the embedding has rows.

    Raises:
        Error: the source cannot be read, or has a model of another kind; ``weights`` is unknown or does not fit the source;
            as :func:`msrnn.distribute` with a ``group``.
    """
    check_dtype(dtype)
    check_device(device)
    check_weights(weights)
    opened = detect.open_source(source, revision)
    rank_part = None if group is None else part_of_rank(opened.config, Ranks.of(group))
    chosen, dtype = choose_weights(opened, weights, dtype)
    _report_tokenizer(opened)
    with _with_progress(chosen, "reading") as tensors:
        cell = build_frozen(opened.config, tensors, dtype=dtype, device=device, rank_part=rank_part)
    cell.extra_files = opened.extra_files
    if weights is not None:
        del opened, chosen, tensors  # they hold the last tensor
        return_freed_memory()
    return cell


def convert(
    source: Any,
    target: str | Path,
    *,
    to: str = "msrnn",
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    weights: str | None = None,
) -> None:
    """Write ``source`` as a new folder, one tensor at a time and without building a cell.

    The folder is complete or absent. Staging files of a killed run are removed by the next run for the same target.

    Args:
        source: as in :func:`load`.
        target: a path that does not exist yet, or an empty folder.
        to: ``msrnn``, the library's own format, or ``hf``, which transformers loads.
        dtype: dtype of the parameters; None keeps that of the source (for ``hf``, float32 if the source has packed weights).
        revision: branch, tag or commit of a hub id.
        weights: as in :func:`load`; None for ``hf``. Packed weights of a source are dequantised for ``hf``.

    Warns:
        UserWarning: as in :func:`load`.

    Raises:
        Error: as in :func:`load`; another ``to``, or ``hf`` for a ``Decoder``; the target exists and is not empty; a
            folder has a tokenizer that cannot be read.
    """
    if to not in ("msrnn", "hf"):
        raise Error(f"to is {to!r}; expected 'msrnn' or 'hf'")
    if to == "hf" and weights is not None:
        raise Error(f"weights is {weights!r:.60}, but to is 'hf', which has float weights; expected None or to='msrnn'")
    check_weights(weights)
    check_new_folder(target)
    opened = detect.open_source(source, revision)
    config = opened.config
    if to == "hf" and isinstance(config, DecoderConfig):
        raise Error("to is 'hf', but the source is a Decoder, which transformers does not support; expected 'msrnn'")
    chosen, dtype = choose_weights(opened, weights, dtype, dequantise=to == "hf")
    dtype = check_tensors(config, chosen, dtype)
    if opened.tokenizer_error is not None and not isinstance(opened.tokenizer_error, NoTokenizer):
        raise opened.tokenizer_error
    _report_tokenizer(opened)
    with atomic_dir(target) as folder, _with_progress(chosen, "converting") as tensors:
        stored = packed_names(tensors)
        order = tensor_shapes(config, tensors)
        cast = {name: tensors[name] if name in stored else tensors[name].to(dtype) for name in order}
        if isinstance(config, DecoderConfig) or to == "msrnn":
            write_model_folder(folder, config.to_dict(), cast, opened.extra_files)
        else:
            huggingface.write(config, cast, opened.extra_files, folder)


def config(source: Any, *, revision: str | None = None) -> Config | DecoderConfig:
    """Return the config of ``source`` (as in :func:`load`) without loading its weights.

    Raises:
        Error: as in :func:`load`.
    """
    return detect.read_config(source, revision)


def tokenizer(source: Any, *, revision: str | None = None) -> "tokenizers.Tokenizer":
    """Return the tokenizer of a hub id, a folder or a ``.gguf`` file.

    Raises:
        Error: the source has no tokenizer, or one that this library cannot read.
    """
    if not isinstance(source, str | Path):
        raise Error(
            f"source is a {type(source).__name__}, which has no tokenizer file; expected a hub id, a folder or a .gguf file"
        )
    path = detect.locate(source, revision, weights=False)
    if path.is_dir():
        return tokenizer_folder.read_tokenizer(path)
    from .gguf import reader  # deferred, because most sources need no gguf package

    return reader.read_tokenizer(path)


def _report_tokenizer(source: Source) -> None:
    """Warn about a language model without a usable tokenizer, or with token ids that have no row in the embedding."""
    rows = source.config.vocab_size
    if source.tokenizer_error is not None and isinstance(source.config, Config):
        warnings.warn(f"the model has no tokenizer: {source.tokenizer_error}", stacklevel=3)
    elif source.n_token_ids > rows:
        found = f"the tokenizer has ids up to {source.n_token_ids - 1}, but the embedding has {rows} rows"
        warnings.warn(f"{found}; texts with a token of a larger id than {rows - 1} are refused", stacklevel=3)


@contextmanager
def _with_progress(tensors: Mapping[str, LazyTensor], what: str) -> Iterator[dict[str, LazyTensor]]:
    """Yield ``tensors``; a progress bar counts those that are read and appears after two seconds."""
    with tqdm(total=len(tensors), desc=what, unit="tensor", delay=2, leave=False, disable=None) as bar:
        yield {name: replace(x, load=_Counted(x, bar)) for name, x in tensors.items()}


@dataclass(frozen=True)
class _Counted:
    """Reads a tensor and counts it in a progress bar."""

    x: LazyTensor
    bar: Any

    @property
    def location(self) -> Location | None:
        """As of the tensor: one that is mapped is not read."""
        return self.x.location

    def __call__(self) -> Tensor:
        self.bar.update()
        return self.x.read()
