"""Sampling: the next token from logits, greedily or by temperature, top-k and top-p."""

import sys
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from ..errors import Error, check_bool, check_int, check_number

Sampler = Callable[[Tensor], Tensor]
"""``logits (B, V) -> token (B,)``."""


def make_sampler(
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    *,
    checked: bool = True,
) -> Sampler:
    """Return the sampler for these settings, which are those of :func:`msrnn.generate`.

    The sampler raises :class:`Error` for NaN (:func:`check_finite`). With ``checked=False`` it does not, which avoids a
    synchronisation with the device.

    Raises:
        Error: a setting is out of range or of another type, or is set without ``do_sample``.
    """
    temperature, top_k, top_p = map(as_python_number, (temperature, top_k, top_p))
    check_bool("do_sample", do_sample)
    check_number("temperature", temperature, above=0, at_most=sys.float_info.max)
    if top_k is not None:
        check_int("top_k", top_k)
    if top_p is not None:
        check_number("top_p", top_p, above=0, at_most=1)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise Error(f"generator is {generator!r:.60}; expected a torch.Generator")
    if not do_sample:
        for name, value, default in (("temperature", temperature, 1), ("top_k", top_k, None), ("top_p", top_p, None)):
            if value != default:
                raise Error(f"{name} is {value!r}, but do_sample is False; expected do_sample=True")

    def choose(logits: Tensor) -> Tensor:
        if checked:
            check_finite(logits)
        if not do_sample:
            return logits.argmax(-1)
        return torch.multinomial(sampling_probs(logits, temperature, top_k, top_p), 1, generator=generator)[:, 0]

    return choose


def sampling_probs(logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Return the distribution that sampling uses: logits ``(B, V)`` -> probabilities ``(B, V)`` in at least float32.

    The settings apply in this order. ``temperature`` divides the logits. ``top_k`` retains the k most likely tokens, and all
    tokens as likely as the last of them. ``top_p`` retains the smallest set of most likely tokens with a sum of at least
    ``top_p``.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    limits = torch.finfo(logits.dtype)  # a temperature beyond them is 0 or infinite in this dtype, and 0 / 0 is NaN
    temperature = min(max(temperature, limits.tiny), limits.max)
    logits = (logits - logits.amax(-1, keepdim=True)) / temperature  # at most 0, so that a small temperature cannot overflow
    if top_k is not None and top_k < logits.shape[-1]:
        lowest = logits.topk(top_k, dim=-1).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < lowest, -torch.inf)
    probs = logits.softmax(-1)
    if top_p is not None and top_p < 1:
        ordered, index = probs.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered  # sum of the more likely tokens
        probs = torch.zeros_like(probs).scatter(-1, index, ordered.masked_fill(before >= top_p, 0))
        probs = probs / probs.sum(-1, keepdim=True)
    return probs


def check_finite(logits: Tensor) -> None:
    """Refuse logits ``(B, V)`` from which no token can be chosen: the largest of a row is NaN or infinite. This synchronises.

    Raises:
        Error: NaN or infinite numbers in a row; −inf is accepted, unless the whole row is −inf.
    """
    valid = logits.detach().amax(-1).isfinite()
    if not valid.all():
        row = int((~valid).nonzero()[0])
        value = float(logits[row].amax())
        raise Error(
            f"the largest logit of row {row} is {value}; expected a finite number. Check the parameters for NaN; "
            "a model of bfloat16 can overflow in float16"
        )


def as_python_number(value: Any) -> Any:
    """Return a NumPy integer or float as an int or float, and any other value unchanged."""
    if isinstance(value, bool):
        return value
    return int(value) if isinstance(value, Integral) else float(value) if isinstance(value, Real) else value
