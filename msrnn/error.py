"""The one exception of the library, and the refusals that many calls share."""

import torch


class Error(ValueError):
    """Something was refused: one sentence names the thing, what was found and what was expected."""


def check_dtype(dtype: object) -> None:
    """Refuse what is neither None nor a floating-point dtype.

    Raises:
        Error: it is something else.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
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
