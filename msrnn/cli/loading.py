"""Model, tokenizer and token ids for the options of a command.

Only this package imports :mod:`converters`, and only when a command needs a model: ``msrnn --help`` imports no reader.
"""

import argparse
import sys
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..cell.cell import Cell
from ..lora import load_adapter
from ..models import Config, DecoderConfig
from ..threads import use_idle_cpus
from .options import check_device
from .streams import print_warnings

if TYPE_CHECKING:
    import tokenizers


def load_model(args: argparse.Namespace) -> tuple[Cell, "tokenizers.Tokenizer"]:
    """Load the tokenizer and the cell of MODEL. Raises as :func:`converters.load`."""
    tokenizer = load_tokenizer(args)  # first, because a missing tokenizer is found before the weights are read
    return load_cell(args), tokenizer


def load_tokenizer(args: argparse.Namespace) -> "tokenizers.Tokenizer":
    """Load the tokenizer of MODEL. Raises as :func:`converters.tokenizer`."""
    import converters

    check_device(args)
    return converters.tokenizer(args.model, revision=args.revision)


def load_config(args: argparse.Namespace) -> Config | DecoderConfig:
    """Read the config of MODEL. Raises as :func:`converters.config`."""
    import converters

    return converters.config(args.model, revision=args.revision)


def load_cell(args: argparse.Namespace, dtype: torch.dtype | None = None) -> Cell:
    """Load the cell of MODEL in ``dtype`` (default: ``--dtype``) on ``--device``, with the adapter of ``--lora``.

    With ``args.group`` this is the part of the cell that this rank holds.

    Raises:
        Error: as :func:`converters.load` and :func:`msrnn.lora.load_adapter`.
    """
    import converters

    check_device(args)
    folder = getattr(args, "lora", None)
    if dtype is None and args.dtype:
        dtype = getattr(torch, args.dtype)
    with print_warnings():
        where = {"device": args.device, "group": args.group}
        cell = converters.load(args.model, dtype=dtype, revision=args.revision, weights=args.weights, **where)
    return cell if folder is None else load_adapter(cell, folder)


def load_model_for_steps(args: argparse.Namespace) -> tuple[Cell, "tokenizers.Tokenizer"]:
    """Load as :func:`load_model`, and use no more threads than there are idle CPUs. A smaller number is printed."""
    model, threads = load_model(args), torch.get_num_threads()
    if args.device == "cpu" and args.launch.size == 1 and (fewer := use_idle_cpus()) < threads:
        reason = "no more CPUs are idle; OMP_NUM_THREADS sets another number"
        print(f"msrnn: {fewer} of {threads} threads, because {reason}", file=sys.stderr)
    return model


def encode(tokenizer: "tokenizers.Tokenizer", text: str, args: argparse.Namespace) -> Tensor:
    """Return the ids of ``text``, ``(1, T)`` int64 on ``--device``."""
    return torch.tensor([tokenizer.encode(text).ids], device=args.device)
