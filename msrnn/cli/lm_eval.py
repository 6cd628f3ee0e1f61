"""Run the lm-evaluation-harness with a model called msrnn.

The arguments are those of lm_eval: run --model msrnn --model_args pretrained=MODEL,reduction=tova:512 --tasks TASK. The option
--operators-from FILE also imports a Python file that defines operators.
"""

import argparse
import sys
from functools import cache

import torch

from ..errors import Error, missing_package


@cache
def register() -> None:
    """Register the model ``msrnn`` with the harness.

    Its arguments are ``pretrained``, ``reduction``, ``dtype``, ``device``, ``revision``, ``batch_size`` and ``max_length``.

    Raises:
        Error: the package lm-eval is not installed.
    """
    try:
        from lm_eval.api.registry import register_model
    except ImportError:
        raise missing_package("lm-eval", "harness") from None
    import converters

    from ..eval.harness import HarnessLM

    @register_model("msrnn")
    class PretrainedLM(HarnessLM):
        def __init__(
            self,
            pretrained: str,
            reduction: str | None = None,
            dtype: str | None = None,
            device: str | None = None,
            revision: str | None = None,
            batch_size: int = 1,
            max_length: int | None = None,
            max_batch_size: int | None = None,  # the harness passes it, for automatic batch sizes, which are not supported
        ):
            number = getattr(torch, dtype, None) if dtype else None
            if dtype and not isinstance(number, torch.dtype):
                raise Error(f"dtype is {dtype!r}; expected float32, bfloat16 or float16")
            # The default device of the harness is cuda:0; its own models use the CPU where there is no GPU.
            device = None if device == "cuda:0" and not torch.cuda.is_available() else device
            cell = converters.load(pretrained, dtype=number, device=device, revision=revision)
            tokenizer = converters.tokenizer(pretrained, revision=revision)
            super().__init__(cell, tokenizer, reduction, batch_size, max_length)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all words as arguments of the harness."""
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGUMENT", help="arguments of lm_eval")


def run(args: argparse.Namespace) -> None:
    """Run the command line of the harness. Without the package, ``--help`` prints the help text of this module.

    Raises:
        Error: as :func:`register`; an argument of the model is invalid.
    """
    try:
        register()
    except Error as error:
        if {"-h", "--help"}.isdisjoint(args.arguments):
            raise
        print(f"usage: msrnn lm-eval [ARGUMENT ...]\n\n{(__doc__ or '').strip()}\n\nFor the list of arguments: {error}")
        return
    from lm_eval.__main__ import cli_evaluate

    before = sys.argv
    sys.argv = ["msrnn lm-eval", *args.arguments]
    try:
        cli_evaluate()
    finally:
        sys.argv = before
