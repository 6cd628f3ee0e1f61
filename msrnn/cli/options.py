"""Options that several commands share, and the values that the options stand for."""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from .. import errors
from ..argtypes import read_text, seed_int
from ..decoding.methods import DECODING_METHODS
from ..distributed.launch import from_first
from ..errors import Error
from ..models.packing import WEIGHT_CHOICES
from ..reductions.contract import Reduction
from ..reductions.registry import parse_reduction
from .operator_files import add_operator_file_argument
from .streams import decode_utf8

DTYPES = ("float32", "bfloat16", "float16")
"""Values of ``--dtype``."""


def add_model_arguments(parser: argparse.ArgumentParser, dtype: str | None = None, lora: bool = True) -> None:
    """Add MODEL, ``--revision``, ``--weights``, ``--dtype`` (default: ``dtype``), ``--device``, and ``--lora`` if wanted."""
    add_source_arguments(parser)
    add_weights_argument(parser)
    if lora:
        text = "LoRA adapter of MODEL, in PEFT's format (docs/train.md)"
        parser.add_argument("--lora", metavar="FOLDER", type=Path, help=text)
    parser.add_argument(
        "--dtype", choices=DTYPES, default=dtype, help=f"dtype of the parameters (default: {dtype or 'as stored'})"
    )
    parser.add_argument("--device", default="cpu", help="device, such as cuda or cuda:1 (default: cpu)")


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add MODEL and ``--revision``."""
    parser.add_argument("model", metavar="MODEL", help="hub id (owner/name, owner/name:Q4_K_M), model folder, or .gguf file")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a hub id")


def add_weights_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--weights``."""
    text = "weights in 4 or 8 bits; packed: a GGUF file's own 4 bits (default: as stored, GGUF in float32)"
    parser.add_argument("--weights", choices=WEIGHT_CHOICES, help=text)


def add_prompt_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add ``--prompt``, ``--prompt-file`` and ``--stdin``; at most one, and exactly one if ``required``."""
    prompt = parser.add_argument_group("prompt, one of").add_mutually_exclusive_group(required=required)
    prompt.add_argument("--prompt", metavar="TEXT", help="the prompt itself")
    prompt.add_argument("--prompt-file", metavar="FILE", type=Path, help="UTF-8 file that contains the prompt")
    prompt.add_argument("--stdin", action="store_true", help="read the prompt from standard input")


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--decode``, ``--sample`` and the parameters of sampling."""
    group = parser.add_argument_group("decoding")
    group.add_argument(
        "--decode",
        choices=DECODING_METHODS,
        default="plain",
        help="plain: one token per forward pass; jacobi, lookahead: the same tokens (in 16 bits up to rounding) by "
        "speculative decoding (default: plain)",
    )
    group.add_argument("--sample", action="store_true", help="sample; without this option decoding is greedy")
    group.add_argument("--temperature", type=float, metavar="X", help="sampling temperature (default: 1)")
    group.add_argument("--top-k", type=int, metavar="K", help="sample from the K most probable tokens")
    group.add_argument("--top-p", type=float, metavar="P", help="sample from the smallest set of tokens with probability P")
    group.add_argument("--seed", metavar="N", type=seed_int, help="seed of the sampling (default: random)")


def add_stop_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--stop``, a list."""
    text = "end the text before TEXT; may be repeated"
    parser.add_argument("--stop", metavar="TEXT", type=stop_string, action="append", default=[], help=text)


def stop_string(text: str) -> str:
    """Return a stop string, as an argparse type.

    Raises:
        ArgumentTypeError: ``text`` is empty, or not UTF-8.
    """
    if not text:
        raise argparse.ArgumentTypeError("the text is empty; expected at least one character")
    return utf8_text(text)


def utf8_text(text: str) -> str:
    """Return a text of the command line, as an argparse type.

    Raises:
        ArgumentTypeError: the bytes are not UTF-8.
    """
    try:
        return decode_text(text, "the text")
    except Error as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def has_prompt(args: argparse.Namespace) -> bool:
    """Return True if one of the options of :func:`add_prompt_arguments` is given."""
    return args.prompt is not None or args.prompt_file is not None or args.stdin


def add_reduction_argument(parser: argparse.ArgumentParser, default: str | None = None, repeated: bool = False) -> None:
    """Add ``--reduction``, a list of at least one operator if ``repeated``, and ``--operators-from``."""
    add_operator_file_argument(parser)
    if repeated:
        text = "eviction operator, such as tova:512; may be repeated"
        parser.add_argument("--reduction", type=reduction, metavar="SPEC", action="append", required=True, help=text)
    else:
        text = f"eviction operator, such as tova:512 (default: {default or 'that of the model family'})"
        parser.add_argument("--reduction", type=reduction, metavar="SPEC", default=default, help=text)


def reduction(text: str) -> Reduction:
    """Parse a spec string such as ``tova:512``, as an argparse type.

    Raises:
        ArgumentTypeError: no operator has this spec string.
    """
    try:
        return parse_reduction(text)
    except Error as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def sampling_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the sampling keywords of :func:`msrnn.stream`.

    Raises:
        Error: a sampling option without ``--sample``, or an unusable device.
    """
    given = {"--temperature": args.temperature, "--top-k": args.top_k, "--top-p": args.top_p, "--seed": args.seed}
    if not args.sample and (unused := [name for name, value in given.items() if value is not None]):
        raise Error(f"{unused[0]} is an option of sampling; it needs --sample")
    generator = None
    if args.sample:
        check_device(args)
        generator = torch.Generator(args.device)
        seed = generator.seed() if args.seed is None else args.seed
        generator.manual_seed(seed if args.launch.size == 1 else from_first(seed))
    temperature = 1.0 if args.temperature is None else args.temperature
    limits = {"top_k": args.top_k, "top_p": args.top_p}
    return {"do_sample": args.sample, "temperature": temperature, **limits, "generator": generator}


def check_device(args: argparse.Namespace) -> None:
    """Refuse an unusable ``--device``.

    Raises:
        Error: the device does not exist, or is ``meta``.
    """
    errors.check_device(args.device)
    if args.device == "meta":
        raise Error("--device is 'meta'; expected a device that computes")


def check_distinct(reductions: list[Reduction]) -> None:
    """Refuse repeated ``--reduction`` options.

    Raises:
        Error: two of ``reductions`` are equal.
    """
    for i, operator in enumerate(reductions):
        if operator in reductions[:i]:
            raise Error(f"--reduction {operator} is given twice; expected distinct operators")


def read_prompt(args: argparse.Namespace) -> str:
    """Return the prompt of ``--prompt``, ``--prompt-file`` or ``--stdin``.

    Raises:
        Error: the prompt is empty, cannot be read, or is not UTF-8.
    """
    if args.stdin and sys.stdin is None:
        raise Error("cannot read the prompt (standard input is closed)")
    try:
        text = args.prompt if args.prompt is not None else _read_stdin(args) if args.stdin else read_text(args.prompt_file)
    except (OSError, UnicodeError) as error:
        raise Error(f"cannot read the prompt ({error})") from None
    if not text:
        raise Error("the prompt is empty")
    return decode_text(text, "the prompt")


def _read_stdin(args: argparse.Namespace) -> str:
    """Return standard input. Over several ranks rank 0 reads it for all, because they have one standard input together."""
    if args.launch.size == 1:
        return sys.stdin.read()
    return from_first(sys.stdin.read() if args.launch.is_first else None)


def decode_text(text: str, name: str) -> str:
    """Return a text of the command line or of standard input, which are UTF-8 in any locale.

    Raises:
        Error: the bytes are not UTF-8; the message contains ``name``.
    """
    try:
        return decode_utf8(text)
    except UnicodeError as error:
        raise Error(f"cannot read {name} ({error})") from None
