"""Where an experiment gets its model and its text from: what is cheap to refuse is looked at before the weights are read."""

import argparse
import os
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..argtypes import positive_int
from ..cell.cell import Cell
from ..diagnostics.state_memory import token_bytes
from ..errors import Error
from .texts import Chunk, chunks, read_dataset, read_texts

if TYPE_CHECKING:
    import tokenizers


HUB = re.compile(r"[\w-][\w.-]*/[\w.-]+")
"""The id of a data set: owner/name."""


class Source:
    """A tokenizer and a cell, each loaded when first asked for; whether bars are shown."""

    def __init__(self, tokenizer: "Callable[[], tokenizers.Tokenizer]", cell: Callable[[], Cell], progress: bool = False):
        self._tokenizer, self._cell, self.progress = tokenizer, cell, progress

    @cached_property
    def tokenizer(self) -> "tokenizers.Tokenizer":
        """The model's own."""
        return self._tokenizer()

    @cached_property
    def cell(self) -> Cell:
        """The model."""
        return self._cell()

    def chunks(self, args: argparse.Namespace) -> list[Chunk]:
        """What :func:`add_text_arguments` asked for; raises as :func:`~msrnn.eval.texts.chunks`."""
        hub = not args.text.exists() and HUB.fullmatch(str(args.text)) and not args.text.suffix
        texts = read_dataset(str(args.text), args.split) if hub else read_texts(args.text)
        return chunks(texts, self.tokenizer, args.chunk, args.chunks)

    def check_memory(self, batch_size: int, sizes: Sequence[int | None], length: int) -> None:
        """Refuse what no machine like this one holds: ``batch_size`` states of the largest of ``sizes`` (None: unbounded) over
        texts of ``length`` tokens.

        Raises:
            Error: as said.
        """
        rows = max(length if size is None else min(size, length) for size in sizes)
        needed, memory = batch_size * rows * token_bytes(self.cell.initial_state(1, "full")), total_memory(self.cell.device)
        if needed > memory:
            found = f"{batch_size} states of {rows} rows take {needed / 1e9:,.1f} GB"
            raise Error(f"{found}; the machine has {memory / 1e9:,.1f} GB (--batch, --sizes and the text's length decide)")


def total_memory(device: torch.device) -> int:
    """Bytes of memory that there are where a model computes."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def add_text_arguments(parser: argparse.ArgumentParser, chunk: int | None = None) -> None:
    """``--text``, ``--split``; where texts are read in chunks, ``--chunk``, ``--chunks``."""
    where = "a text file, a folder of .txt and .md files, or the hub id of a data set"
    parser.add_argument("--text", metavar="PATH", type=Path, required=True, help=where)
    parser.add_argument("--split", metavar="NAME", default="test", help="of a data set on the hub (default: test)")
    if chunk is None:
        return
    parser.add_argument("--chunk", metavar="N", type=positive_int, default=chunk, help=f"tokens of a chunk (default: {chunk})")
    parser.add_argument("--chunks", metavar="N", type=positive_int, help="the first so many of each text (default: all)")
