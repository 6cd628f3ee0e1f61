"""Convert a checkpoint into a new model folder.

The folder is written one tensor at a time, and is complete or absent. ``python -m converters`` is the same command.
"""

import argparse
import sys
import warnings

import torch

from .options import DTYPES, add_source_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``msrnn convert``."""
    add_source_arguments(parser)
    parser.add_argument("target", metavar="FOLDER", help="folder to write; new or empty")
    parser.add_argument(
        "--to", choices=("msrnn", "hf"), default="msrnn", help="format of this library, or of Hugging Face (default: msrnn)"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="dtype of the parameters (default: as stored)")


def run(args: argparse.Namespace) -> None:
    """Convert MODEL and print FOLDER."""
    import converters

    dtype = getattr(torch, args.dtype) if args.dtype else None
    with warnings.catch_warnings(record=True) as reports:  # printed as one line each
        converters.convert(args.model, args.target, to=args.to, dtype=dtype, revision=args.revision)
    for report in reports:
        print(report.message, file=sys.stderr)
    print(args.target)
