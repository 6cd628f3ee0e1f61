"""Show which tokens of a text the KV cache retains: as a plot over all steps, or as the text with evicted words struck out.

The plot (--out) has one panel per operator: time from top to bottom, position from left to right. --words prints the text for
each operator. A token is struck out if more than half of the heads, of all layers or of --layer, have evicted it at the end.
"""

import argparse
import sys
from pathlib import Path

from ..argtypes import positive_int
from ..diagnostics.retention import heads_agree, retention, share_label
from ..errors import Error
from ..reporting.figures import check_figure_file, draw_retention
from ..text.evicted_words import strike_out
from .loading import encode, load_model
from .options import add_model_arguments, add_prompt_arguments, add_reduction_argument, check_distinct, read_prompt


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``msrnn retention``."""
    add_model_arguments(parser)
    add_reduction_argument(parser, repeated=True)
    parser.add_argument("--max-tokens", metavar="N", type=positive_int, default=256, help="read the first N (default: 256)")
    parser.add_argument("--layer", type=int, metavar="N", help="one layer; -1 is the last (default: mean over all layers)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the plot: .png, .svg or .pdf")
    parser.add_argument("--words", action="store_true", help="print the text, with evicted words struck out")
    add_prompt_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Read the text under each operator, print the share of positions in H at the end or the text, and plot."""
    text = read_prompt(args)
    check_distinct(args.reduction)
    if args.out is None and not args.words:
        raise Error("neither --out nor --words is given; expected at least one of them")
    if args.out is not None:
        check_figure_file(args.out)
    cell, tokenizer = load_model(args)
    for operator in args.reduction:
        cell.operators_per_layer(operator)  # refuses an operator that the model cannot use
    layers = cell.config.n_layers
    if args.layer is not None and not -layers <= args.layer < layers:
        raise Error(f"--layer is {args.layer}; expected a layer from 0 to {layers - 1}, or from -{layers} to -1")
    tokens = encode(tokenizer, text, args)[:, : args.max_tokens]
    spans = tokenizer.encode(text).offsets[: args.max_tokens]
    panels, agree = {}, True
    for operator in args.reduction:
        retained = retention(cell, tokens, operator)[0]  # (L, T, T)
        agree = agree and heads_agree(retained)
        panels[str(operator)] = retained.mean(0) if args.layer is None else retained[args.layer]
        share = panels[str(operator)][-1].sum() / tokens.shape[1]
        print(f"{operator!s:16} holds {share:.1%} of {tokens.shape[1]} positions at the end")
        if args.words:
            evicted = (panels[str(operator)][-1] < 0.5).tolist()
            print(f"{strike_out(text, spans, evicted, ansi=sys.stdout.isatty())}\n")
    title = "positions in H after each step" + ("" if args.layer is None else f", layer {args.layer % layers}")
    if args.out is not None:
        label = share_label(layers if args.layer is None else 1, 1 if agree else cell.config.n_kv_heads)
        draw_retention(panels, args.out, title=title, label=label)
        print(args.out)
