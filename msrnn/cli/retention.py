"""Plot which positions of a text the KV cache retains after each step.

The plot has one panel per operator: time from top to bottom, position from left to right.
"""

import argparse
from pathlib import Path

from ..argtypes import positive_int
from ..diagnostics.retention import retention
from ..errors import Error
from ..reporting.figures import check_output_path, draw_retention
from .loading import encode, load_model
from .options import add_model_arguments, add_prompt_arguments, add_reduction_argument, check_distinct, read_prompt


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``msrnn retention``."""
    add_model_arguments(parser)
    add_reduction_argument(parser, repeated=True)
    parser.add_argument("--max-tokens", metavar="N", type=positive_int, default=256, help="read the first N (default: 256)")
    parser.add_argument("--layer", type=int, metavar="N", help="one layer; -1 is the last (default: mean over all layers)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the plot: .png, .svg or .pdf")
    add_prompt_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Read the text under each operator, print the share of positions in H at the end, and plot."""
    text = read_prompt(args)
    check_distinct(args.reduction)
    check_output_path(args.out)
    cell, tokenizer = load_model(args)
    layers = cell.config.n_layers
    if args.layer is not None and not -layers <= args.layer < layers:
        raise Error(f"--layer is {args.layer}; expected a layer from 0 to {layers - 1}, or from -{layers} to -1")
    tokens = encode(tokenizer, text, args)[:, : args.max_tokens]
    panels = {}
    for operator in args.reduction:
        retained = retention(cell, tokens, operator)[0]  # (L, T, T)
        panels[str(operator)] = retained.mean(0) if args.layer is None else retained[args.layer]
        share = panels[str(operator)][-1].sum() / tokens.shape[1]
        print(f"{operator!s:16} holds {share:.1%} of {tokens.shape[1]} positions at the end")
    title = "positions in H after each step" + ("" if args.layer is None else f", layer {args.layer % layers}")
    draw_retention(panels, args.out, title=title)
    print(args.out)
