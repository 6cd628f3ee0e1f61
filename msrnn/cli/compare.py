"""Continue one prompt under several eviction operators.

Each operator continues the prompt greedily, with the same weights. The output shows texts, tokens per second and bytes of H.
"""

import argparse
from pathlib import Path

from torch import Tensor

from ..argtypes import positive_int
from ..diagnostics.comparison import continue_prompt
from ..diagnostics.retention import share_label
from ..diagnostics.state_memory import memory_summary
from ..reporting.figures import check_figure_file, draw_retention
from .loading import encode, load_model
from .options import add_model_arguments, add_prompt_arguments, add_reduction_argument, check_distinct, read_prompt


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``msrnn compare``."""
    add_model_arguments(parser)
    add_reduction_argument(parser, repeated=True)
    parser.add_argument(
        "--max-new-tokens",
        metavar="N",
        type=positive_int,
        default=64,
        help="generate at most N tokens per operator (default: 64)",
    )
    parser.add_argument("--picture", type=Path, metavar="FILE", help="also plot the positions that H holds after each step")
    add_prompt_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Continue the prompt greedily under each operator in turn."""
    text = read_prompt(args)
    check_distinct(args.reduction)
    if args.picture:
        check_figure_file(args.picture)
    cell, tokenizer = load_model(args)
    for operator in args.reduction:
        cell.operators_per_layer(operator)  # refuses an operator that the model cannot use
    ids = encode(tokenizer, text, args)[0].tolist()
    print(f"{args.model}: {len(ids)} prompt tokens, up to {args.max_new_tokens} new\n\n{text}\n")
    panels, agree = dict[str, Tensor](), True
    for operator in args.reduction:
        print(f"── {operator} {'─' * (76 - len(str(operator)))}")
        result = continue_prompt(cell, tokenizer, ids, operator, args.max_new_tokens)
        print(f"\n   {result.tokens_per_second:.1f} tokens/s; {memory_summary(result.state, cell)}\n")
        panels[str(operator)] = result.retained
        agree = agree and result.heads_agree
    if args.picture:
        label = share_label(cell.config.n_layers, 1 if agree else cell.config.n_kv_heads)
        draw_retention(panels, args.picture, prompt=len(ids), title="positions in H after each step", label=label)
        print(f"positions in H after each step: {args.picture}")
