"""Convert a checkpoint into a new model folder.

The folder is written one tensor at a time, and is complete or absent. ``python -m converters`` is the same command. With --lora
FOLDER the adapter is merged into the weights first.
"""

import argparse
from pathlib import Path
from typing import Any

import torch

from ..lora import load_adapter, merge
from ..storage.lazy_tensors import LazyTensor
from ..storage.output_paths import check_new_folder
from .options import DTYPES, add_source_arguments, add_weights_argument
from .streams import print_warnings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``msrnn convert``."""
    add_source_arguments(parser)
    parser.add_argument("target", metavar="FOLDER", help="folder to write; new or empty")
    parser.add_argument(
        "--to", choices=("msrnn", "hf"), default="msrnn", help="format of this library, or of Hugging Face (default: msrnn)"
    )
    add_weights_argument(parser)
    parser.add_argument("--lora", metavar="FOLDER", type=Path, help="LoRA adapter of MODEL, in PEFT's format, to be merged")
    parser.add_argument("--dtype", choices=DTYPES, help="dtype of the parameters (default: as stored)")


def run(args: argparse.Namespace) -> None:
    """Convert MODEL and print FOLDER."""
    import converters

    dtype = getattr(torch, args.dtype) if args.dtype else None
    with print_warnings():
        options = {"to": args.to, "dtype": dtype, "revision": args.revision, "weights": args.weights}
        source = args.model
        if args.lora is not None:
            check_new_folder(args.target)
            source, options["revision"] = merged_source(args), None
        converters.convert(source, args.target, **options)
    print(args.target)


def merged_source(args: argparse.Namespace) -> Any:
    """Return MODEL with the adapter of ``--lora`` merged into its weights, as a :class:`converters.source.Source`.

    Raises:
        Error: as :func:`converters.load`, :func:`msrnn.lora.load_adapter` and :func:`msrnn.lora.merge`.
    """
    import converters
    from converters.source import Source

    cell = merge(load_adapter(converters.load(args.model, revision=args.revision), args.lora))
    return Source(cell.config, {name: LazyTensor.of(x) for name, x in cell.state_dict().items()}, cell.extra_files)
