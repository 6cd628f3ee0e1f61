"""Open a GGUF file as a source: config, tensors under our names, row order of q and k, tokenizer files."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from msrnn.errors import Error
from msrnn.models import Config
from msrnn.storage.files import to_json
from msrnn.storage.lazy_tensors import LazyTensor

from ..extra_files import count_ids
from ..fields import Fields
from ..names import is_buffer
from ..row_order import half_split_packed, half_split_qk
from ..source import Source
from ..tokenization import bpe, templates
from ..tokenization.folder import NoTokenizer
from ..tokenization.settings import CONFIG
from .architectures import find_architecture
from .config import config_from_gguf
from .header import read_header
from .packed import packed_matrices
from .rope import ROPE_FREQS
from .tensors import check_offsets, is_scale, read_offset_norm, read_scaled

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def open_checkpoint(path: Path) -> Source:
    """Open a file. Its tensors are dequantised to float32 when they are read.

    Raises:
        Error: the file is damaged, of another architecture or quantised in an unknown way.
    """
    header = read_header(path)
    config = config_from_gguf(header)
    architecture = find_architecture(Fields(header.metadata, path))
    check_offsets(header)
    names = {
        name: architecture.names.to_msrnn(name)
        for name in header.tensors
        if name != ROPE_FREQS and not is_buffer(name) and not is_scale(header, name)
    }
    tensors = {}
    for name, own in names.items():
        offset = architecture.offset_norms and own.endswith("norm.weight")
        read = partial(read_offset_norm if offset else read_scaled, header, name)
        tensors[own] = LazyTensor(header.tensors[name].shape, torch.float32, read)
    matrices = {name: own.removesuffix(".weight") for name, own in names.items() if own != "embed.weight"}
    packed = packed_matrices(header, matrices)
    if architecture.interleaved:
        tensors, packed = half_split_qk(tensors, config), half_split_packed(packed, config)
    template = bpe.chat_template(header.metadata, path)
    files = {} if template is None else {templates.FILE: template.encode()}
    try:
        tokenizer = bpe.build_tokenizer(header.metadata, path)
    except Error as error:  # as if it had none: convert writes the weights, because many files have an unknown word rule
        return Source(config, tensors, files, 0, NoTokenizer(str(error)), packed)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"} | bpe.special_tokens(header.metadata, path)
    files |= {"tokenizer.json": tokenizer.to_str().encode(), CONFIG: to_json(settings)}
    return Source(config, tensors, files, count_ids(tokenizer), None, packed)


def read_config(path: Path) -> Config:
    """Return the config of a file; raises as :func:`open_checkpoint` does for header and config."""
    return config_from_gguf(read_header(path))


def read_tokenizer(path: Path) -> "Tokenizer":
    """Return the tokenizer of a file; raises as :func:`converters.tokenization.bpe.build_tokenizer`."""
    return bpe.build_tokenizer(read_header(path).metadata, path)
