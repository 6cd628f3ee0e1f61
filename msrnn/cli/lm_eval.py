"""``python -m msrnn.cli.lm_eval``: the lm-evaluation-harness's own command line, with a model called ``msrnn``.

python -m msrnn.cli.lm_eval --model msrnn --model_args pretrained=MODEL,reduction=tova:512 --tasks TASK
"""

import sys
from functools import cache

import torch

import converters

from ..errors import Error


@cache
def register() -> None:
    """Tell the harness of the model ``msrnn``, which takes ``pretrained``, ``reduction``, ``dtype``, ``device``, ``revision``,
    ``batch_size`` and ``max_length``.

    Raises:
        Error: the package is not there.
    """
    try:
        from lm_eval.api.registry import register_model
    except ImportError:
        raise Error("the package lm-eval is not installed; pip install 'msrnn[harness]'") from None
    from ..eval.harness import HarnessLM

    @register_model("msrnn")
    class Named(HarnessLM):
        def __init__(
            self,
            pretrained: str,
            reduction: str | None = None,
            dtype: str | None = None,
            device: str | None = None,
            revision: str | None = None,
            batch_size: int = 1,
            max_length: int | None = None,
            max_batch_size: int | None = None,  # of the harness's automatic batches, which there are none of
        ):
            number = getattr(torch, dtype, None) if dtype else None
            if dtype and not isinstance(number, torch.dtype):
                raise Error(f"dtype is {dtype!r}; expected float32, bfloat16 or float16")
            # The harness says cuda:0 where nobody said anything; its own models then take what there is.
            device = None if device == "cuda:0" and not torch.cuda.is_available() else device
            cell = converters.load(pretrained, dtype=number, device=device, revision=revision)
            tokenizer = converters.tokenizer(pretrained, revision=revision)
            super().__init__(cell, tokenizer, reduction, batch_size, max_length)


def main() -> int:
    """The harness's command line; 1 after a refusal."""
    try:
        register()
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
    except Error as refused:
        print(f"msrnn: {refused}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
