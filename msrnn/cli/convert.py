"""Convert a checkpoint into a new model folder.

The folder is written one tensor at a time, and is complete or absent. ``python -m converters`` is the same command.
"""

import argparse

import torch

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
    parser.add_argument("--dtype", choices=DTYPES, help="dtype of the parameters (default: as stored)")


def run(args: argparse.Namespace) -> None:
    """Convert MODEL and print FOLDER."""
    import converters

    dtype = getattr(torch, args.dtype) if args.dtype else None
    with print_warnings():
        options = {"to": args.to, "dtype": dtype, "revision": args.revision, "weights": args.weights}
        converters.convert(args.model, args.target, **options)
    print(args.target)
