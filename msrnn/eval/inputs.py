"""Inputs of an experiment: model, tokenizer and texts. The weights are loaded last, so that other errors are found early."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from ..argtypes import positive_int
from ..cell.cell import Cell
from ..diagnostics.state_memory import layer_token_bytes, rows_per_head
from ..distributed.launch import Launch, check_same_on_all, from_all, from_first
from ..errors import Error
from ..recurrence.unroll import is_called_per_token
from ..reductions.contract import Reduction
from ..reporting.sweep import Sweep
from .conditions import Condition
from .digests import model_digest, tokenizer_digest
from .texts import Chunk, read_dataset, read_texts, split_into_chunks

if TYPE_CHECKING:
    import tokenizers

Row = TypeVar("Row")
Item = TypeVar("Item")
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
"""Id of a data set on the hub: owner/name."""


class EvalInputs:
    """A tokenizer and a cell, each loaded on first use, whether progress bars are shown, and the processes of the run."""

    def __init__(
        self,
        tokenizer: "Callable[[], tokenizers.Tokenizer]",
        cell: Callable[[], Cell],
        progress: bool = False,
        launch: Launch | None = None,
    ):
        self._tokenizer, self._cell, self.progress, self.launch = tokenizer, cell, progress, launch or Launch()

    @cached_property
    def tokenizer(self) -> "tokenizers.Tokenizer":
        """The tokenizer of the model."""
        return self._tokenizer()

    @cached_property
    def cell(self) -> Cell:
        """The model."""
        return self._cell()

    def chunks(self, args: argparse.Namespace) -> list[Chunk]:
        """Return the chunks that the arguments of :func:`add_text_arguments` select.

        Raises:
            Error: as :func:`~msrnn.eval.texts.split_into_chunks`; a text cannot be read.
        """
        may_be_hub = not args.text.suffix and HUB_ID.fullmatch(str(args.text))
        is_hub = may_be_hub and not args.text.exists() and not args.text.parent.exists()  # in a folder: a misspelt path
        texts = read_dataset(str(args.text), args.split) if is_hub else read_texts(args.text)
        return split_into_chunks(texts, self.tokenizer, args.chunk, args.chunks)

    def sweep(self, folder: Path | None, experiment: str, **settings: Any) -> Sweep:
        """Return the finished entries in ``folder``, the same ones on every rank. Collective.

        Raises:
            Error: the folder belongs to another experiment, model, tokenizer, text, device or setting, or the ranks differ in
                one of these.
        """
        model = {"model": model_digest(self.cell), "device": self.cell.device.type}
        if "tokenizer" in vars(self):  # an experiment without text loads none
            model["tokenizer"] = tokenizer_digest(self.tokenizer)
        settings = {"experiment": experiment, **model, **settings}
        if self.launch.size == 1:
            return Sweep(folder, settings)
        check_same_on_all(settings)
        first = Sweep(folder, settings) if self.launch.is_first else None
        finished = from_first(None if first is None else first.finished)
        return first or Sweep(folder, settings, finished)

    def pending(
        self,
        sweep: Sweep,
        rows: Mapping[Row, Mapping[str, Item]],
        batch_size: int,
        together: Callable[[Row], Hashable] | None = None,
    ) -> Iterator[tuple[Row, dict[str, Item]]]:
        """Yield the part of :meth:`Sweep.pending` of this rank; at the end, take over what the other ranks have measured.

        With ``progress``, print first what is taken from the folder and what is slow.

        Args:
            sweep: the finished entries.
            rows: by row, the entries by key; a row is a condition or a tuple that starts with a condition.
            batch_size: maximum number of entries at a time.
            together: rows with the same value are measured by the same rank.
        """
        if self.progress:
            unfinished = [row for row, entries in rows.items() if any(key not in sweep for key in entries)]
            conditions = [row[0] if isinstance(row, tuple) else row for row in unfinished]
            slow = [c.operator for c in conditions if isinstance(c, Condition) and is_called_per_token(c.reduction)]
            notes = [sweep.reused(key for entries in rows.values() for key in entries)]
            if slow:
                names = ", ".join(dict.fromkeys(slow))
                notes.append(f"called once per token and layer, which is slow: {names} (docs/own-operator.md, Flags)")
            for note in filter(None, notes):
                print(note, file=sys.stderr)
        yield from sweep.pending(rows, batch_size, self.progress, (self.launch.rank, self.launch.size), together)
        if self.launch.size > 1:
            for measured in from_all(sweep.measured):
                sweep.add(measured, save=self.launch.is_first)

    def check_memory(self, batch_size: int, operators: Sequence[Reduction | str], length: int) -> None:
        """Refuse states that the machine cannot hold.

        Args:
            batch_size: number of sequences.
            operators: as for ``cell.initial_state``. The largest state counts.
            length: tokens per sequence.

        Raises:
            Error: an operator does not fit the cell; the states need more memory than the machine has.
        """
        cell, needed, rows = self.cell, 0, 0
        heads = [(H.positions.shape[1], layer_token_bytes(H)) for H in cell.initial_state(1, "full")]
        for operator in operators:
            held = [
                rows_per_head(one, K, length) for one, (K, _) in zip(cell.operators_per_layer(operator), heads, strict=True)
            ]
            nbytes = sum(sum(of_heads) * of_row // K for of_heads, (K, of_row) in zip(held, heads, strict=True))
            needed, rows = max(needed, batch_size * nbytes), max(rows, *(max(of_heads) for of_heads in held))
        memory = total_memory(cell.device) // (1 if cell.device.type == "cuda" else self.launch.local_size)
        if needed > memory:
            found = f"{batch_size} states of {rows} rows need {needed / 1e9:,.1f} GB"
            has = "the machine has" if self.launch.local_size == 1 else "the machine has for each rank"
            raise Error(f"{found}; {has} {memory / 1e9:,.1f} GB (reduce --batch, --sizes or the length of the text)")


def total_memory(device: torch.device) -> int:
    """Return the bytes of memory of the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def add_text_arguments(parser: argparse.ArgumentParser, chunk: int | None = None) -> None:
    """Add ``--text`` and ``--split``; with a default length ``chunk`` also ``--chunk`` and ``--chunks``."""
    source = "a text file, a folder of .txt and .md files, or the hub id of a data set"
    parser.add_argument("--text", metavar="PATH", type=Path, required=True, help=source)
    parser.add_argument("--split", metavar="NAME", default="test", help="split of a data set on the hub (default: test)")
    if chunk is None:
        return
    parser.add_argument("--chunk", metavar="N", type=positive_int, default=chunk, help=f"tokens per chunk (default: {chunk})")
    parser.add_argument("--chunks", metavar="N", type=positive_int, help="chunks per text, from its start (default: all)")
