"""Read many tokens with a bounded KV cache and check the cache at intervals.

In every interval the rows of H are checked, and the many-token path is compared with the step loop on 16 tokens. The
result shows whether time per token and memory depend on the position. A killed run resumes from the last saved state.
"""

import argparse
import sys
from pathlib import Path

from torch import Tensor

from ..argtypes import positive_int, read_text, seed_int
from ..cell.cell import Cell
from ..diagnostics.soak import draw_soak, soak
from ..errors import Error
from ..reductions.per_layer import format_operators
from ..reporting.figures import check_figure_folder
from ..reporting.report import markdown_table
from .loading import encode, load_cell, load_model
from .options import add_model_arguments, add_reduction_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``msrnn soak``."""
    add_model_arguments(parser)
    add_reduction_argument(parser)
    parser.add_argument("--tokens", metavar="N", type=positive_int, required=True, help="number of tokens to read in total")
    parser.add_argument("--text", metavar="FILE", type=Path, help="UTF-8 text, repeated as needed (default: random ids)")
    parser.add_argument(
        "--seed",
        metavar="N",
        type=seed_int,
        default=1,
        help="seed of the random ids and of the positions of the checks (default: 1)",
    )
    parser.add_argument(
        "--interval", metavar="N", type=positive_int, default=2048, help="number of tokens between two saves (default: 2048)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="state, record and plot; resumes from it")


def run(args: argparse.Namespace) -> None:
    """Read the tokens, print first and last interval, and plot."""
    check_figure_folder(args.out)
    cell, text = _cell_and_text(args)
    settings = {"text": text, "seed": args.seed, "interval": args.interval}
    try:
        rows = soak(cell, args.out, args.tokens, args.reduction, **settings, progress=True)
    except KeyboardInterrupt:
        print(f"\nthe same command resumes from the last saved state in {args.out}", file=sys.stderr)
        raise
    first, last = rows[0], rows[-1]
    operator = format_operators([H.reduction for H in cell.initial_state(1, args.reduction)])
    draw_soak(rows, args.out / "soak.png", title=f"{Path(args.model).name} under {operator}")
    source = "random ids" if text is None else f"{args.text}, {len(text):,} tokens, {last.read / len(text):.2f} times"
    print(f"{args.model} under {operator}: {last.read:,} tokens read ({source})\n")
    table = []
    columns = [("unroll, ms/token", "unroll_ms", 1), ("step, ms/token", "step_ms", 1), ("H, MB", "nbytes", 1e6)]
    for name, field, unit in [*columns, ("process, MB", "rss_bytes", 1e6)]:
        start, end = getattr(first, field) / unit, getattr(last, field) / unit
        table.append([name, f"{start:.2f}", f"{end:.2f}", f"{end / start:.3f}"])
    print(markdown_table([f"of {len(rows)} intervals", "first", "last", "ratio"], table))
    difference, ties = max(row.difference for row in rows), sum(row.near_ties for row in rows)
    print(f"\nunroll and step loop compared {len(rows)} times: logits differ by {difference:.1e} at most, {ties} near-ties")
    print(args.out / "soak.png")


def _cell_and_text(args: argparse.Namespace) -> tuple[Cell, Tensor | None]:
    if args.text is None:
        return load_cell(args), None
    words = read_text(args.text)
    if not words:
        raise Error(f"{args.text} is empty")
    cell, tokenizer = load_model(args)
    return cell, encode(tokenizer, words, args)[0]
