"""How a token is chosen from logits: the likeliest, or one that is drawn."""

import operator
import sys
from collections.abc import Callable
from numbers import Real
from typing import TypeGuard

import torch
from torch import Tensor

from ..errors import Error


def is_whole(value: object) -> TypeGuard[int]:
    """Whether ``value`` counts: an int or one of numpy's, no bool."""
    try:
        operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return False
    return not isinstance(value, bool | Tensor)


def chooser(
    do_sample: bool, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator | None
) -> Callable[[Tensor], Tensor]:
    """``logits (B, V) -> token (B,)``."""
    for name, value in {"temperature": temperature, "top_k": top_k, "top_p": top_p}.items():
        if value is None and name != "temperature":
            continue
        if not (is_whole(value) if name == "top_k" else isinstance(value, Real) and not isinstance(value, bool)):
            raise Error(f"{name} is {value!r}; expected a {'whole ' if name == 'top_k' else ''}number")
        if not do_sample and (name != "temperature" or value != 1):
            raise Error(f"{name} shapes sampling; it needs do_sample=True")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise Error(f"generator is {generator!r:.60}; expected a torch.Generator")
    if not do_sample:
        return lambda logits: logits.argmax(-1)
    if not 0 < temperature <= sys.float_info.max:
        raise Error(f"temperature is {temperature!r}; expected a number above 0")
    if top_k is not None and top_k < 1:
        raise Error(f"top_k is {top_k!r}; expected a whole number of at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise Error(f"top_p is {top_p!r}; expected a number above 0 and up to 1")

    def draw(logits: Tensor) -> Tensor:
        return torch.multinomial(distribution(logits, temperature, top_k, top_p), 1, generator=generator)[:, 0]

    return draw


def distribution(logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """What sampling draws from: ``(B, V)`` logits -> ``(B, V)`` probabilities in at least float32.

    Temperature first; of that the ``top_k`` likeliest (and those as likely as the last of them); of those the fewest
    that together reach ``top_p``.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logits = (logits - logits.amax(-1, keepdim=True)) / temperature  # 0 at most, however small the temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < least, -torch.inf)
    probs = logits.softmax(-1)
    if top_p is not None and top_p < 1:
        ordered, index = probs.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered  # what the likelier ones reach without this one
        probs = torch.zeros_like(probs).scatter(-1, index, ordered.masked_fill(before >= top_p, 0))
        probs = probs / probs.sum(-1, keepdim=True)
    return probs
