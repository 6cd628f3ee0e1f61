"""``msrnn train``: a small model, trained on one text through whatever state its recipe says."""

import argparse
import sys
from pathlib import Path
from typing import Any

from ..train.config import PRESETS, read_recipe
from ..train.loop import train
from .options import read_text


def add_arguments(commands: Any, _: list[argparse.ArgumentParser]) -> None:
    """Add ``train`` to the command line's ``commands``; it names no model, it makes one."""
    parser = commands.add_parser("train", help="train a small model on a text, through a bounded state too; resumable")
    parser.add_argument("text", metavar="TEXT", type=Path, help="what it learns from (UTF-8); its end is held out")
    parser.add_argument(
        "--config",
        metavar="CONFIG",
        default="tiny",
        help=f"a preset ({', '.join(PRESETS)}) or a JSON file with a recipe's fields (docs/train.md; default: tiny)",
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="the model, the run and loss.png; it goes on from there"
    )


def run(args: argparse.Namespace) -> None:
    """Train, draw the losses, and say where it ended.

    Raises:
        Error: what is refused, before the first step.
    """
    from ..reporting.figures import check_picture, draw_training

    recipe = read_recipe(args.config)
    check_picture(args.out.parent / "loss.png")  # beside the folder: nothing is left of a run that is refused
    text = read_text(args.text)
    try:
        done = train(recipe, text, args.out, progress=True)
    except KeyboardInterrupt:
        print(f"\nthe same command goes on from what was saved last in {args.out}", file=sys.stderr)
        raise
    draw_training(done.losses, done.validation, args.out / "loss.png", title=f"{args.text.name}, under {recipe.reduction}")
    step, bits = max(done.validation.items())
    parameters = sum(x.numel() for x in done.cell.parameters())
    print(f"{args.out}: {parameters / 1e6:.2f} million parameters, {step} steps, held out {bits:.4f} bits/byte")
    print(args.out / "loss.png")
