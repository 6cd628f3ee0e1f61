"""Fine-tune a pretrained model on a text by LoRA adapters, with a bounded KV cache.

The adapter is written in PEFT's format, and --lora FOLDER of other commands reads it. A stopped run resumes from the last
checkpoint.
"""

import argparse
import sys
from pathlib import Path

from ..argtypes import positive_int, read_text, seed_int
from ..reporting.figures import check_figure_folder
from ..train.finetune import FinetuneConfig, finetune
from ..train.report import draw_training
from .loading import load_model
from .options import add_model_arguments, add_reduction_argument

DEFAULTS = FinetuneConfig()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``msrnn finetune``."""
    add_model_arguments(parser, lora=False)
    parser.add_argument(
        "--text", metavar="FILE", type=Path, required=True, help="UTF-8 training text; its end is held out for validation"
    )
    add_reduction_argument(parser)
    text = "adapter, training state and loss.png; resumes from it"
    parser.add_argument("-o", "--out", metavar="FOLDER", type=Path, required=True, help=text)
    group = parser.add_argument_group("adapter")
    text = f"rank of the LoRA matrices A and B (default: {DEFAULTS.r})"
    group.add_argument("--lora-rank", metavar="R", type=positive_int, default=DEFAULTS.r, help=text)
    text = f"the output of an adapter is multiplied by X / R (default: {DEFAULTS.lora_alpha:g})"
    group.add_argument("--lora-alpha", metavar="X", type=float, default=DEFAULTS.lora_alpha, help=text)
    text = f"linear maps with an adapter: q k v o gate up down, or all-linear (default: {' '.join(DEFAULTS.target_modules)})"
    group.add_argument("--target-modules", metavar="NAME", nargs="+", default=list(DEFAULTS.target_modules), help=text)
    group = parser.add_argument_group("training")
    for name, what in {
        "steps": "number of optimizer steps",
        "batch_size": "number of streams that are read in parallel",
        "chunk_length": "tokens of a stream per step, through which it backpropagates",
        "chunks_per_state": "H is carried over this number of chunks",
        "eval_every": "steps between two validations and checkpoints",
    }.items():
        default = getattr(DEFAULTS, name)
        option = f"--{name.replace('_', '-')}"
        group.add_argument(option, metavar="N", type=positive_int, default=default, help=f"{what} (default: {default})")
    group.add_argument("--lr", metavar="X", type=float, default=DEFAULTS.lr, help=f"learning rate (default: {DEFAULTS.lr:g})")
    group.add_argument("--seed", metavar="N", type=seed_int, default=0, help="default: 0")


def run(args: argparse.Namespace) -> None:
    """Fine-tune, plot the losses, and print the held-out loss before and after."""
    targets = args.target_modules[0] if args.target_modules == ["all-linear"] else tuple(args.target_modules)
    config = FinetuneConfig(
        reduction=None if args.reduction is None else str(args.reduction),
        r=args.lora_rank,
        lora_alpha=args.lora_alpha,
        target_modules=targets,
        lr=args.lr,
        seed=args.seed,
        **{name: getattr(args, name) for name in ("steps", "batch_size", "chunk_length", "chunks_per_state", "eval_every")},
    )
    check_figure_folder(args.out)
    text = read_text(args.text)
    cell, tokenizer = load_model(args)

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text).ids

    try:
        done = finetune(cell, text, encode, config, args.out, base_model=args.model, progress=True)
    except KeyboardInterrupt:
        print(f"\nthe same command resumes from the last checkpoint in {args.out}", file=sys.stderr)
        raise
    if not args.launch.is_first:
        return
    under = f"under {config.reduction or 'the operator of the model'}"
    title = f"{args.text.name}, {under}"
    draw_training(done.losses, done.validation, args.out / "loss.png", title=title, validation_label="held out, nats per token")
    steps = max(done.validation)
    before, after = done.validation[0], done.validation[steps]
    print(f"{args.out}: {done.n_parameters / 1e6:.2f} million parameters in {len(cell.adapters)} adapters, {steps} steps")
    print(f"held-out loss {under}: {before:.4f} nats/token before, {after:.4f} after")
    print(args.out / "loss.png")
