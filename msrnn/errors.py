"""The exception of the library, and the argument checks that many modules share."""

import math
import sys
from collections.abc import Iterable
from difflib import get_close_matches

import torch

MAX_MESSAGE_CHARACTERS = 800


class Error(ValueError):
    """An invalid argument or file. The message names the thing, the value that was found and the values that are expected.

    Messages may quote damaged files. Unprintable characters are escaped, and a long message is shortened in the middle.
    """

    def __init__(self, message: str):
        printed = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message)
        if len(printed) > MAX_MESSAGE_CHARACTERS:
            printed = f"{printed[: MAX_MESSAGE_CHARACTERS // 2]} … {printed[-MAX_MESSAGE_CHARACTERS // 2 + 3 :]}"
        super().__init__(printed)


def describe(x: object) -> str:
    """Return a value for an error message: dtype and shape of a tensor, type and value of anything else."""
    if isinstance(x, torch.Tensor):
        return f"{str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape)}"
    return f"{type(x).__name__} {x!r:.40}"


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return `` (did you mean 'tova'?)`` with at most two of ``names`` that are spelt like ``name``; "" if none is."""
    close = get_close_matches(name[:60].lower(), list(names), n=2)
    return f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""


def counted(n: int, noun: str) -> str:
    """Return a number with its noun for a message: ``1 word``, ``1200 words``."""
    return f"{n} {noun}{'s' * (n != 1)}"


def missing_package(name: str, extra: str) -> Error:
    """Return the error for a package of the extra ``extra`` of msrnn that is not installed."""
    return Error(f"the package {name} is not installed; pip install 'msrnn[{extra}]'")


def is_int(value: object) -> bool:
    """Return True for an int that is not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_int(name: str, value: object, at_least: int = 1, at_most: int | None = None) -> None:
    """Refuse a value that is not an int within the bounds.

    Raises:
        Error: ``value`` is of another type (bool included) or out of bounds; the message begins with ``name``.
    """
    if not isinstance(value, int) or not is_int(value) or value < at_least or (at_most is not None and value > at_most):
        bounds = f"of at least {at_least}" if at_most is None else f"from {at_least} to {at_most}"
        raise Error(f"{name} is {value!r:.60}; expected an int {bounds}")


def check_number(name: str, value: object, above: float, at_most: float = math.inf, *, or_equal: bool = False) -> None:
    """Refuse a value that is not a finite int or float in the interval (``above``, ``at_most``].

    With ``or_equal`` the interval contains ``above`` too.

    Raises:
        Error: ``value`` is of another type (bool included), not finite or out of bounds; the message begins with ``name``.
    """
    inside = (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and -sys.float_info.max <= value <= sys.float_info.max  # no int beyond a float
        and (above < value <= at_most or (or_equal and value == above))
    )
    if not inside:
        least = f"of at least {above:g}" if or_equal else f"above {above:g}"
        bounds = least + (f" and at most {at_most:g}" if at_most < math.inf else "")
        raise Error(f"{name} is {value!r:.60}; expected a number {bounds}")


def check_bool(name: str, value: object) -> None:
    """Refuse a value that is not a bool.

    Raises:
        Error: ``value`` is of another type; the message begins with ``name``.
    """
    if not isinstance(value, bool):
        raise Error(f"{name} is {value!r:.60}; expected a bool")


def can_compute(dtype: torch.dtype) -> bool:
    """Return True for float64, float32, float16 and bfloat16. Smaller floating-point dtypes have no arithmetic."""
    return dtype.is_floating_point and dtype.itemsize > 1


def check_dtype(dtype: object) -> None:
    """Refuse a value that is neither None nor a floating-point dtype with arithmetic.

    Raises:
        Error: ``dtype`` is another value.
    """
    if dtype is not None and not (isinstance(dtype, torch.dtype) and can_compute(dtype)):
        raise Error(f"dtype is {dtype!r}; expected a floating-point torch.dtype")


def check_device(device: torch.device | str | None) -> None:
    """Refuse a device that torch does not know or this machine does not have; None is accepted.

    Raises:
        Error: ``device`` is not available.
    """
    try:
        if device is not None:
            torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        raise Error(f"device is {device!r}; {str(error).splitlines()[0]}") from None
