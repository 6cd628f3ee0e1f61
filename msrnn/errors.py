"""The one exception of the library, and the refusals that many calls share."""

import torch

LONGEST = 800
"""Characters of a sentence."""


class Error(ValueError):
    """Something was refused: one sentence names the thing, what was found and what was expected.

    What it quotes may come from a damaged file: whatever does not print is escaped, and a long quotation loses its middle.
    """

    def __init__(self, sentence: str):
        printed = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in sentence)
        super().__init__(printed if len(printed) <= LONGEST else f"{printed[: LONGEST // 2]} … {printed[-LONGEST // 2 + 3 :]}")


def can_compute(dtype: torch.dtype) -> bool:
    """Whether it is float64, float32, float16 or bfloat16: smaller ones are for storage, and have no arithmetic."""
    return dtype.is_floating_point and dtype.itemsize > 1


def check_dtype(dtype: object) -> None:
    """Refuse what is neither None nor a floating-point dtype.

    Raises:
        Error: it is something else.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and can_compute(dtype)):
        raise Error(f"dtype is {dtype!r}; expected a floating-point torch.dtype")


def check_device(device: torch.device | str | None) -> None:
    """Refuse a device that torch does not know or this machine does not have; None is any.

    Raises:
        Error: no such device.
    """
    try:
        if device is not None:
            torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError, ValueError) as wrong:
        raise Error(f"device is {device!r}; {str(wrong).splitlines()[0]}") from None
