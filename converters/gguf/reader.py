"""Open a GGUF file as a source: config, tensors under our names, row order of q and k, tokenizer files."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from msrnn.models import Config
from msrnn.storage.lazy_tensors import LazyTensor

from ..extra_files import LazyFiles, tokenizer_json
from ..names import is_buffer
from ..row_order import half_split_qk
from ..source import NameTable, Source
from ..tokenization import bpe
from .config import config_from_gguf
from .header import Header, read_header
from .rope import ROPE_FREQS
from .tensors import check_offsets, is_scale, read_scaled

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NAMES = NameTable(
    outer={"token_embd": "embed", "output_norm": "norm", "output": "head"},
    layer={
        "attn_norm": "attention_norm",
        "attn_q": "q",
        "attn_k": "k",
        "attn_v": "v",
        "attn_output": "o",
        "ffn_norm": "ffn_norm",
        "ffn_gate": "gate",
        "ffn_up": "up",
        "ffn_down": "down",
    },
    layers="blk",
)


def open_checkpoint(path: Path) -> Source:
    """Open a file. Its tensors are dequantised to float32 when they are read; its tokenizer is built at the first access.

    Raises:
        Error: the file is damaged, of another architecture or quantised in an unknown way.
    """
    header = read_header(path)
    config = config_from_gguf(header)
    check_offsets(header)
    tensors = {
        NAMES.to_msrnn(name): LazyTensor(info.shape, torch.float32, partial(read_scaled, header, name))
        for name, info in header.tensors.items()
        if name != ROPE_FREQS and not is_buffer(name) and not is_scale(header, name)
    }
    return Source(config, half_split_qk(tensors, config), LazyFiles(partial(_extra_files, header)))


def read_config(path: Path) -> Config:
    """Return the config of a file; raises as :func:`open_checkpoint` does for header and config."""
    return config_from_gguf(read_header(path))


def read_tokenizer(path: Path) -> "Tokenizer":
    """Return the tokenizer of a file; raises as :func:`converters.tokenization.bpe.build_tokenizer`."""
    return bpe.build_tokenizer(read_header(path).metadata, path)


def _extra_files(header: Header) -> dict[str, bytes]:
    files = tokenizer_json(lambda: bpe.build_tokenizer(header.metadata, header.path))
    if template := bpe.chat_template(header.metadata, header.path):
        files["chat_template.jinja"] = template.encode()
    return files
