"""The command line of the lm-evaluation-harness with a model called ``msrnn``.

python -m msrnn.cli.lm_eval --model msrnn --model_args pretrained=MODEL,reduction=tova:512 --tasks TASK

``--operators-from FILE`` imports a Python file that defines operators.
"""

import sys
from functools import cache

import torch

import converters

from ..errors import Error
from .operator_files import load_operator_files


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
        raise Error("the package lm-eval is not installed; pip install 'msrnn[harness]'") from None
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


def main() -> int:
    """Run the harness; return 0, or 1 after an error, which is printed as one sentence."""
    try:
        register()
        sys.argv[1:] = load_operator_files(sys.argv[1:])
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
    except Error as error:
        print(f"msrnn: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
