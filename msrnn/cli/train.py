"""Train a small model on a text.

The settings choose the model and the operator that bounds its KV cache during training. A killed run resumes from the last
checkpoint.
"""

import argparse
import sys
from pathlib import Path

from ..argtypes import read_text
from ..reporting.figures import check_figure_folder
from ..train.config import PRESETS, read_train_config
from ..train.loop import train
from ..train.report import draw_training
from .operator_files import add_operator_file_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``msrnn train``."""
    parser.add_argument("text", metavar="TEXT", type=Path, help="UTF-8 training text; its end is held out for validation")
    parser.add_argument(
        "--config",
        default="tiny",
        help=f"a preset ({', '.join(PRESETS)}) or a JSON file of training settings (docs/train.md; default: tiny)",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="model, training state and loss.png; resumes from it"
    )
    add_operator_file_argument(parser)


def run(args: argparse.Namespace) -> None:
    """Train, plot the losses, and print the validation loss."""
    config = read_train_config(args.config)
    check_figure_folder(args.out)
    text = read_text(args.text)
    try:
        done = train(config, text, args.out, group=args.group, progress=True)
    except KeyboardInterrupt:
        print(f"\nthe same command resumes from the last checkpoint in {args.out}", file=sys.stderr)
        raise
    if not args.launch.is_first:
        return
    draw_training(done.losses, done.validation, args.out / "loss.png", title=f"{args.text.name}, under {config.reduction}")
    step, bits = max(done.validation.items())
    print(f"{args.out}: {done.n_parameters / 1e6:.2f} million parameters, {step} steps, validation {bits:.4f} bits/byte")
    print(args.out / "loss.png")
