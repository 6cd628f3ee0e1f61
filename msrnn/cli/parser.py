"""The argparse parser of ``msrnn``: one subcommand per module of ``COMMANDS``."""

import argparse
import platform
from importlib import metadata
from types import ModuleType
from typing import Any

import torch

from . import (
    bench,
    calibrate,
    chat,
    compare,
    convert,
    eval,
    finetune,
    generate,
    info,
    lm_eval,
    read,
    retention,
    soak,
    train,
    variants,
    watch,
)

COMMANDS: dict[str, ModuleType] = {
    "generate": generate,
    "read": read,
    "chat": chat,
    "compare": compare,
    "retention": retention,
    "watch": watch,
    "soak": soak,
    "bench": bench,
    "eval": eval,
    "train": train,
    "finetune": finetune,
    "calibrate": calibrate,
    "variants": variants,
    "lm-eval": lm_eval,
    "convert": convert,
    "info": info,
}
"""Modules with ``add_arguments(parser)`` and ``run(args)``. The module docstring is the help text; its first sentence is listed
by ``msrnn --help``."""

EXAMPLES = """examples:
  msrnn info ~/models/SmolLM2-135M-Instruct
  msrnn generate HuggingFaceTB/SmolLM2-135M-Instruct --prompt "The sea was" --reduction tova:128 --max-new-tokens 200
  msrnn generate model.gguf --prompt-file story.txt --reduction sinks:512:4 --sample --temperature 0.8 --seed 1
  msrnn generate model.gguf --prompt-file code.py --decode lookahead --stop "def "
  msrnn generate model.gguf --prompt "Once upon" --state tale.state --max-new-tokens 10
  msrnn generate model.gguf --state tale.state --max-new-tokens 10
  msrnn read model.gguf --prompt-file book.txt --reduction tova:512 --state book.state
  msrnn generate model.gguf --state book.state --keep-state --prompt " In short, the book is about"
  msrnn chat model.gguf --reduction tova:512 --system "Answer in one sentence."
  msrnn compare model.gguf --prompt-file story.txt --reduction full --reduction tova:48 --picture retained.png
  msrnn retention model.gguf --prompt-file story.txt --reduction tova:64 --reduction h2o:64 --out retained.png
  msrnn retention model.gguf --prompt-file story.txt --reduction tova:64 --words
  msrnn watch model.gguf --prompt-file story.txt --reduction tova:32 --reduction window:32 -o page.html
  msrnn soak model.gguf --text book.txt --reduction tova:512 --tokens 200000 --out soak
  msrnn bench model.gguf --text book.txt --only unroll,step --json bench.json
  msrnn eval lm model.gguf --text book.txt --operators full tova sinks:SIZE:4 --sizes 64 256 --chunks 8 --out lm
  msrnn calibrate model.gguf --text book.txt --reduction q-filters -o filters.safetensors
  msrnn train book.txt --config tiny-bounded --out small
  msrnn finetune MODEL --text book.txt --reduction tova:128 --steps 200 -o adapter
  msrnn generate MODEL --lora adapter --prompt "The sea was" --reduction tova:128
  msrnn convert model.gguf FOLDER --to hf

MODEL is a hub id (owner/name), a folder (Hugging Face's or the library's own format), or one .gguf file.

--reduction selects the operator that evicts rows from the KV cache H after every token: full (no eviction), window:SIZE,
sinks:SIZE:FIRST, h2o:SIZE, h2o-layer:SIZE, tova:SIZE, tova-head:SIZE, random, last-queries, morphkv, morphkv-max, scissorhands,
keyformer, keydiff, knorm, cam, caote, caote-layer, dropkv, vatp, vase, a2sf, r-kv, lagkv, and with the file of msrnn calibrate
q-filters, expected-attention, learned-score (docs/operators.md). SIZE is the maximum number of tokens that H holds between two
steps. Default: the operator of the model family (full; for Mistral v0.1 its sliding window). In a model with windows in some
layers (Gemma, Ministral) an operator bounds the other layers; all-layers:tova:SIZE bounds all of them (docs/families.md)."""


class Parser(argparse.ArgumentParser):
    """A parser that raises OSError if its help text cannot be written; argparse ignores that."""

    def print_help(self, file: Any = None) -> None:
        """Print the help text."""
        print(self.format_help(), end="", file=file)


class PrintVersion(argparse.Action):
    """The option ``--version``."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Print the versions and end the program."""
        print(version())
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; the parsed ``command`` is a key of ``COMMANDS``."""
    parser = Parser(
        prog="msrnn",
        description="Run pretrained LLMs as multi-state RNNs, with a KV cache of bounded size.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=PrintVersion, nargs=0, help="print the versions of msrnn, torch and Python")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        summary, _, _ = (module.__doc__ or "").partition("\n\n")
        summary = summary.replace("\n", " ").rstrip(".")
        texts: dict[str, Any] = {"help": summary[:1].lower() + summary[1:], "description": module.__doc__}
        # The options of lm-eval are those of the harness. No argument contains the prefix NUL, so that all are passed on.
        settings: dict[str, Any] = {"prefix_chars": "\0", "add_help": False} if module is lm_eval else {}
        module.add_arguments(commands.add_parser(name, **texts, **settings))
    return parser


def version() -> str:
    """Return the versions of msrnn, torch and Python."""
    try:
        own = metadata.version("msrnn")
    except metadata.PackageNotFoundError:
        own = "(not installed)"
    return f"msrnn {own}, torch {torch.__version__}, Python {platform.python_version()}"
