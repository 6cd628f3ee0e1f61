"""What was asked for on the command line, once it is read: texts, and how tokens are chosen; each refused in one sentence."""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from .. import errors
from ..errors import Error
from ..reductions.contract import Reduction


def choice(args: argparse.Namespace) -> dict[str, Any]:
    """How tokens are chosen, as ``stream`` takes it."""
    shaping = {"--temperature": args.temperature, "--top-k": args.top_k, "--top-p": args.top_p, "--seed": args.seed}
    if not args.sample and (given := [name for name, value in shaping.items() if value is not None]):
        raise Error(f"{given[0]} is about drawing tokens; it needs --sample")
    generator = None
    if args.sample:
        check_device(args)
        generator = torch.Generator(args.device)
        generator.seed() if args.seed is None else generator.manual_seed(args.seed)
    temperature = 1.0 if args.temperature is None else args.temperature
    top = {"top_k": args.top_k, "top_p": args.top_p}
    return {"do_sample": args.sample, "temperature": temperature, **top, "generator": generator}


def check_device(args: argparse.Namespace) -> None:
    """Refuse a ``--device`` that is not there, or where nothing is computed."""
    errors.check_device(args.device)
    if args.device == "meta":
        raise Error("--device is 'meta'; nothing is computed there")


def prompt(args: argparse.Namespace) -> str:
    """``--prompt``, ``--prompt-file`` or standard input."""
    if args.stdin and sys.stdin is None:
        raise Error("cannot read the prompt (standard input is closed)")
    try:
        text = args.prompt if args.prompt is not None else sys.stdin.read() if args.stdin else read_text(args.prompt_file)
        text.encode()  # bytes that were no text come in as lone surrogates
    except (OSError, UnicodeError) as wrong:
        raise Error(f"cannot read the prompt ({wrong})") from None
    if not text:
        raise Error("the prompt is empty")
    return text


def once(reductions: list[Reduction]) -> None:
    """Refuse a ``--reduction`` that is given twice."""
    for i, reduction in enumerate(reductions):
        if reduction in reductions[:i]:
            raise Error(f"--reduction {reduction} is given twice; expected each once")


def read_text(path: Path) -> str:
    """A text file.

    Raises:
        Error: it cannot be read, or is no UTF-8.
    """
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError) as wrong:
        raise Error(f"cannot read {path} ({getattr(wrong, 'strerror', None) or wrong})") from None
