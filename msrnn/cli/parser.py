"""The argparse parser of ``msrnn``: one subcommand per module of ``COMMANDS``."""

import argparse
from types import ModuleType

from . import bench, chat, compare, eval, generate, info, retention, soak, train

COMMANDS: dict[str, ModuleType] = {
    "generate": generate,
    "chat": chat,
    "compare": compare,
    "retention": retention,
    "soak": soak,
    "bench": bench,
    "eval": eval,
    "train": train,
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
  msrnn chat model.gguf --reduction tova:512 --system "Answer in one sentence."
  msrnn compare model.gguf --prompt-file story.txt --reduction full --reduction tova:48 --picture retained.png
  msrnn retention model.gguf --prompt-file story.txt --reduction tova:64 --reduction h2o:64 --out retained.png
  msrnn retention model.gguf --prompt-file story.txt --reduction tova:64 --words
  msrnn soak model.gguf --text book.txt --reduction tova:512 --tokens 200000 --out soak
  msrnn bench model.gguf --text book.txt --only unroll,step --json bench.json
  msrnn eval lm model.gguf --text book.txt --operators full tova sinks:SIZE:4 --sizes 64 256 --chunks 8 --out lm
  msrnn train book.txt --config tiny-bounded --out small

MODEL is a hub id (owner/name), a folder (Hugging Face's or the library's own format), or one .gguf file.

--reduction selects the operator that evicts rows from the KV cache H after every token: full (no eviction), window:SIZE,
sinks:SIZE:FIRST, h2o:SIZE, h2o-layer:SIZE, tova:SIZE, tova-head:SIZE, random, last-queries, morphkv, morphkv-max, scissorhands,
keyformer, keydiff, knorm, cam (docs/operators.md). SIZE is the maximum number of tokens that H holds between two steps.
Default: the operator of the model family (full; for Mistral v0.1 its sliding window)."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; the parsed ``command`` is a key of ``COMMANDS``."""
    parser = argparse.ArgumentParser(
        prog="msrnn",
        description="Run pretrained LLMs as multi-state RNNs, with a KV cache of bounded size.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        summary, _, _ = (module.__doc__ or "").partition("\n\n")
        summary = summary.replace("\n", " ").rstrip(".")
        module.add_arguments(commands.add_parser(name, help=summary[:1].lower() + summary[1:], description=module.__doc__))
    return parser
