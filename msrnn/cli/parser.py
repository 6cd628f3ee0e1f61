"""What may be said on the command line, and how it is checked before any work starts."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..argtypes import positive_int
from ..bench.sections import GUESSING, SECTIONS
from ..decoding.methods import WAYS
from ..errors import Error
from ..reductions.contract import Reduction
from ..reductions.registry import parse_reduction

EXAMPLES = """examples:
  msrnn info ~/models/SmolLM2-135M-Instruct
  msrnn generate HuggingFaceTB/SmolLM2-135M-Instruct --prompt "The sea was" --reduction tova:128 --max-new-tokens 200
  msrnn generate model.gguf --prompt-file story.txt --reduction sinks:512:4 --sample --temperature 0.8 --seed 1
  msrnn generate model.gguf --prompt-file code.py --decode lookahead
  msrnn compare model.gguf --prompt-file story.txt --reduction full --reduction tova:48 --picture kept.png
  msrnn retention model.gguf --prompt-file story.txt --reduction tova:64 --reduction h2o:64 --out kept.png
  msrnn soak model.gguf --text book.txt --reduction tova:512 --tokens 200000 --out soak
  msrnn bench model.gguf --text book.txt --only fold,step --json bench.json
  msrnn eval lm model.gguf --text book.txt --operators full tova sinks:SIZE:4 --sizes 64 256 --chunks 8 --out lm
  msrnn train book.txt --config tiny-bounded --out small
  msrnn chat model.gguf --reduction tova:512 --system "Answer in one sentence."

MODEL is a hub id (owner/name), a folder (Hugging Face's or the library's own) or one .gguf file.
A reduction bounds the state H: full, window:SIZE, sinks:SIZE:FIRST, h2o:SIZE, h2o-layer:SIZE, tova:SIZE, tova-head:SIZE;
SIZE is the number of tokens carried from step to step. Without one, H is the family's own (Mistral v0.1: its window).
Others: random, last-queries, morphkv, morphkv-max, scissorhands, keyformer, keydiff, knorm, cam (docs/operators.md)."""


Family = Callable[[Any, list[argparse.ArgumentParser]], None]
"""Adds commands to the others, given the parsers that say how a model is named."""


def parser(*families: Family) -> argparse.ArgumentParser:
    """Every command with its arguments, those of ``families`` too; the one chosen is ``command``."""
    plain = argparse.RawDescriptionHelpFormatter
    whole = argparse.ArgumentParser(
        prog="msrnn",
        description="Pretrained LLMs as multi-state RNNs with a bounded state.",
        epilog=EXAMPLES,
        formatter_class=plain,
    )
    commands = whole.add_subparsers(dest="command", metavar="COMMAND", required=True)

    model = argparse.ArgumentParser(add_help=False)
    model.add_argument("model", metavar="MODEL", help="a hub id (owner/name), a folder, or one .gguf file")
    model.add_argument("--revision", help="branch, tag or commit of a hub id")

    cell = argparse.ArgumentParser(add_help=False)
    cell.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the parameters (default: the file's)")
    cell.add_argument("--device", default="cpu", help="where to compute (default: cpu)")

    text = argparse.ArgumentParser(add_help=False)
    prompt = text.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT", help="the text to read")
    prompt.add_argument("--prompt-file", metavar="FILE", type=Path, help="a file with the text to read (UTF-8)")
    prompt.add_argument("--stdin", action="store_true", help="take the text from standard input")

    choice = argparse.ArgumentParser(add_help=False)
    choice.add_argument("--sample", action="store_true", help="draw tokens; otherwise the likeliest is taken")
    choice.add_argument("--temperature", type=float, help="flattens (> 1) or sharpens (< 1) what is drawn from")
    choice.add_argument("--top-k", type=int, metavar="K", help="draw among the K likeliest")
    choice.add_argument("--top-p", type=float, metavar="P", help="draw among the fewest that together reach P")
    choice.add_argument("--seed", type=positive_int, help="makes the drawing repeatable")
    choice.add_argument(
        "--decode", choices=WAYS, default="plain", help="the same tokens, in another way several a pass (default: plain)"
    )

    generate = commands.add_parser(
        "generate", parents=[model, cell, text, choice], help="continue a prompt, text as it streams"
    )
    generate.add_argument("--reduction", type=_reduction, help="what bounds H (default: the family's own)")
    generate.add_argument(
        "--max-new-tokens", metavar="N", type=positive_int, default=128, help="at most so many tokens (default: 128)"
    )
    generate.add_argument("--ignore-eos", action="store_true", help="go on past the model's end-of-text tokens")

    compare = commands.add_parser("compare", parents=[model, cell, text], help="one prompt under several operators")
    compare.add_argument("--reduction", type=_reduction, action="append", required=True, help="may be given several times")
    compare.add_argument("--max-new-tokens", metavar="N", type=positive_int, default=64, help="tokens under each (default: 64)")
    compare.add_argument("--picture", type=Path, metavar="FILE", help="also draw what each step kept")

    kept = commands.add_parser("retention", parents=[model, cell, text], help="draw which positions each step of a text kept")
    kept.add_argument("--reduction", type=_reduction, action="append", required=True, help="one panel each")
    kept.add_argument("--max-tokens", metavar="N", type=positive_int, default=256, help="read at most N tokens (default: 256)")
    kept.add_argument("--layer", type=int, help="of this layer only, negative from the end (default: the mean over all)")
    kept.add_argument("--out", type=Path, required=True, metavar="FILE", help="the picture: .png, .svg or .pdf")

    soak = commands.add_parser("soak", parents=[model, cell], help="run a bounded state for long, checked, killed and resumed")
    soak.add_argument("--tokens", metavar="N", type=positive_int, required=True, help="tokens to read in all")
    soak.add_argument("--reduction", type=_reduction, help="what bounds H (default: the family's own)")
    soak.add_argument("--text", metavar="FILE", type=Path, help="what is read, over and over (UTF-8; default: random ids)")
    soak.add_argument("--seed", type=positive_int, default=1, help="seed of token ids and of checks (default: 1)")
    soak.add_argument("--interval", metavar="N", type=positive_int, default=2048, help="tokens between saves (default: 2048)")
    soak.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="state, record and picture; it goes on from there"
    )
    chat = commands.add_parser("chat", parents=[model, cell, choice], help="talk with a model; its state is the conversation")
    chat.add_argument(
        "--reduction", type=_reduction, default="tova:1024", help="what bounds H (default: tova:1024, so that H never grows)"
    )
    chat.add_argument("--system", metavar="TEXT", help="instructions for the whole conversation")
    chat.add_argument("--max-new-tokens", metavar="N", type=positive_int, default=512, help="the longest answer (default: 512)")

    bench = commands.add_parser("bench", parents=[model], help="times and bytes on this machine, beside transformers")
    bench.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="(default: float32)")
    bench.add_argument("--device", default="cpu", help="where to compute (default: cpu)")
    some = bench.add_mutually_exclusive_group()
    every = ", ".join([*SECTIONS, *GUESSING])
    some.add_argument("--only", type=_sections, metavar="NAME,…", help=f"of {every} (default: all up to {list(SECTIONS)[-1]})")
    some.add_argument(
        "--decode",
        action="store_const",
        const=list(GUESSING),
        dest="only",
        help="what guessing gains, as --only with its sections",
    )
    bench.add_argument("--text", metavar="FILE", type=Path, help="what is read (UTF-8; default: random ids)")
    bench.add_argument("--tokens", metavar="N", type=positive_int, default=2048, help="length of a text (default: 2048)")
    bench.add_argument("--size", metavar="N", type=positive_int, default=512, help="rows that H holds (default: 512)")
    bench.add_argument(
        "--rounds", metavar="N", type=positive_int, default=3, help="N rounds of texts, 5 N of steps (default: 3)"
    )
    bench.add_argument("--threads", metavar="N", type=positive_int, help="on a CPU (default: as many as PyTorch takes)")
    bench.add_argument("--kvpress-python", metavar="PYTHON", type=Path, help="one that has kvpress, to be measured beside")
    bench.add_argument("--json", metavar="FILE", type=Path, help="also write all figures")
    bench.add_argument("--picture", metavar="FILE", type=Path, help="also measure and draw time and bytes against position")

    for add_commands in families:
        add_commands(commands, [model, cell])
    commands.add_parser("info", parents=[model], help="what a model is, and what its state costs")
    return whole


def _reduction(text: str) -> Reduction:
    try:
        return parse_reduction(text)
    except Error as refused:
        raise argparse.ArgumentTypeError(str(refused)) from None


def _sections(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in SECTIONS and name not in GUESSING]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is no section; expected some of {', '.join([*SECTIONS, *GUESSING])}")
    return list(dict.fromkeys(names))
