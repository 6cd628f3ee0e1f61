"""Write a page that shows what the KV cache holds, token by token.

The page (--out) is one HTML file that loads nothing from the network. For each operator it shows the text, the tokens that H
holds in each layer, the scores and attention weights that decide which row is evicted, and the next-token distribution. Each
operator continues the prompt greedily. --json writes the data of the page. --live shows the steps in the terminal meanwhile.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from ..argtypes import positive_int, seed_int
from ..errors import Error
from ..reporting.progress import progress_bar
from ..storage.atomic import atomic_file
from ..storage.output_paths import check_output_file
from ..watch.codes import Precision
from ..watch.document import build_document
from ..watch.live import LiveSteps
from ..watch.page import MAX_PAGE_BYTES, render_within_limit
from ..watch.run import ObservedRun, check_observable, observe_run, predictions_differ, texts_differ
from .loading import encode, load_model
from .options import add_model_arguments, add_prompt_arguments, add_reduction_argument, check_distinct, read_prompt


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``msrnn watch``."""
    add_model_arguments(parser)
    add_reduction_argument(parser, repeated=True)
    parser.add_argument(
        "--max-tokens", metavar="N", type=positive_int, default=512, help="read the first N tokens of the prompt (default: 512)"
    )
    parser.add_argument(
        "--max-new-tokens",
        metavar="N",
        type=seed_int,
        default=64,
        help="then generate at most N tokens, 0 for none (default: 64)",
    )
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="the page, an HTML file")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the data of the page (docs/watch.md)")
    parser.add_argument("--live", action="store_true", help="show each step of the generation in the terminal")
    parser.add_argument(
        "--layer", type=int, metavar="N", default=0, help="the layer that --live shows; -1 is the last (default: 0)"
    )
    add_prompt_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Read and continue the prompt under each operator, and write the page and the data."""
    text = read_prompt(args)
    check_distinct(args.reduction)
    _check_outputs(args)
    cell, tokenizer = load_model(args)
    for operator in args.reduction:
        check_observable(cell, operator)
    ids = encode(tokenizer, text, args)[0, : args.max_tokens].tolist()
    layers = cell.config.n_layers
    if not -layers <= args.layer < layers:
        raise Error(f"--layer is {args.layer}; expected a layer from 0 to {layers - 1}, or from -{layers} to -1")
    runs, live = [], LiveSteps(tokenizer, args.layer % layers) if args.live else None
    with progress_bar(len(args.reduction), "operator", enabled=live is None) as bar:
        for operator in args.reduction:
            if live is not None:
                live.end()
                print(f"── {operator} {'─' * (76 - len(str(operator)))}")
            runs.append(observe_run(cell, ids, operator, args.max_new_tokens, live))
            bar.update()

    model = (
        Path(args.model).name if Path(args.model).exists() else args.model
    )  # others may get the page, so it has no local path

    def build(precision: Precision) -> dict[str, Any]:
        return build_document(runs, tokenizer, model, len(ids), cell.config.n_heads, precision)

    if args.out is not None or args.json is not None:
        _write(args, *render_within_limit(build))
    for other in runs[1:]:
        print(_differences(runs[0], other))


def _write(args: argparse.Namespace, page: str, document: dict[str, Any]) -> None:
    """Write the page and its data, and print the sizes of the files."""
    for path, content in ((args.out, page), (args.json, json.dumps(document))):
        if path is not None:
            with atomic_file(path) as staged:
                staged.write_text(content, "utf-8")
            print(f"{path} ({len(content.encode()) / 1e6:.2f} MB)")
    if args.out is not None and len(page.encode()) > MAX_PAGE_BYTES:
        print(f"the page is larger than {MAX_PAGE_BYTES / 1e6:.0f} MB; --max-tokens and smaller operators give a smaller page")


def _differences(one: ObservedRun, other: ObservedRun) -> str:
    first, text = predictions_differ(one, other), texts_differ(one, other)
    predictions = "the same predictions" if first is None else f"predictions differ first after token {first}"
    return (
        f"{one.operator} and {other.operator}: {predictions}, {'the same text' if text is None else f'texts from token {text}'}"
    )


def _check_outputs(args: argparse.Namespace) -> None:
    """Refuse, before the model is loaded, outputs that cannot be written.

    Raises:
        Error: no output is given, both are one file, the page is not called .html, or a file cannot be written.
    """
    if args.out is None and args.json is None and not args.live:
        raise Error("none of --out, --json and --live is given; expected at least one of them")
    if args.out is not None and args.out.suffix.lower() not in (".html", ".htm"):
        raise Error(f"cannot write {args.out}; expected a name that ends in .html")
    for path in (args.out, args.json):
        if path is not None:
            check_output_file(path)
    if args.out is not None and args.json is not None and args.out.resolve() == args.json.resolve():
        raise Error(f"--out and --json are both {args.out}; expected two files")
