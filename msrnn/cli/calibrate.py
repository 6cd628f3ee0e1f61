"""Calibrate or train the constants of an operator on a text, and write them to a file.

The operators are q-filters, expected-attention and learned-score (docs/operators.md). Their spec strings name the file:
q-filters:512:FILE. The cell reads chunks of the text without eviction. Nothing is written before all chunks are read.
"""

import argparse
from pathlib import Path

from ..argtypes import positive_int, seed_int
from ..calibration.calibrate import KINDS, calibrate
from ..errors import Error
from ..eval.texts import read_texts, split_into_chunks
from ..reporting.progress import progress_bar
from ..storage.output_paths import check_output_file
from .loading import load_cell, load_tokenizer
from .options import add_model_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``msrnn calibrate``."""
    add_model_arguments(parser)
    parser.add_argument(
        "--text", type=Path, required=True, metavar="FILE", help="UTF-8 text, or a folder of .txt and .md files"
    )
    parser.add_argument("--reduction", choices=KINDS, required=True, help="the operator")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="the safetensors file to write")
    parser.add_argument("--chunk", type=positive_int, default=1024, metavar="T", help="tokens per chunk (default: 1024)")
    parser.add_argument("--chunks", type=positive_int, default=8, metavar="N", help="chunks per text (default: 8)")
    group = parser.add_argument_group("learned-score")
    group.add_argument("--hidden", type=positive_int, metavar="H", help="hidden units (default: none, a linear map)")
    group.add_argument("--epochs", type=positive_int, metavar="N", help="passes over the tokens (default: 10)")
    group.add_argument("--seed", type=seed_int, metavar="N", help="seed of the training (default: 0)")


def run(args: argparse.Namespace) -> None:
    """Calibrate, and print the spec string that uses the file."""
    given = {"--hidden": args.hidden, "--epochs": args.epochs, "--seed": args.seed}
    used = args.reduction == "learned-score"
    needs_hidden = [name for name in ("--epochs", "--seed") if given[name] is not None and args.hidden is None]
    if unused := [name for name, value in given.items() if value is not None and not used]:
        raise Error(f"{unused[0]} is an option of learned-score; expected --reduction learned-score")
    if needs_hidden:
        raise Error(f"{needs_hidden[0]} is an option of a network with hidden units; it needs --hidden")
    check_output_file(args.out)
    texts = read_texts(args.text)
    chunks = split_into_chunks(texts, load_tokenizer(args), args.chunk, args.chunks)
    cell = load_cell(args)
    tokens = [chunk.ids.to(cell.device) for chunk in chunks]
    with (
        progress_bar(len(tokens), "chunk", label="reading") as reading,
        progress_bar(len(cell.layers) if used else 0, "layer", label="training", enabled=used) as training,
    ):
        done = calibrate(
            cell,
            tokens,
            args.reduction,
            **{name: value for name, value in (("hidden", args.hidden), ("epochs", args.epochs), ("seed", args.seed)) if value},
            after_text=reading.update,
            after_layer=training.update,
        )
    done.constants.save(args.out)
    print(f"{args.out}: {sum(map(len, tokens))} tokens in {len(tokens)} chunks")
    if done.explained is not None:
        print(f"variance of the target explained on the last chunk, which was held out: {done.explained:.2f}")
    print(f"{args.reduction}:SIZE:{args.out}@{done.constants.digest[:8]}")
