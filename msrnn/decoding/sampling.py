"""Sampling: the next token from logits, greedily or by temperature, top-k and top-p."""

import sys
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from ..errors import Error, check_bool, check_int, check_number
from .finite_logits import FiniteLogits


class Sampler:
    """``logits (B, V) -> token (B,)``.

    Args:
        sample: draws a token per row from finite logits. None: the most likely token is taken.
    """

    def __init__(self, sample: Callable[[Tensor], Tensor] | None = None):
        self._sample, self._finite = sample, FiniteLogits()

    def __call__(self, logits: Tensor) -> Tensor:
        """Return the next token of each row.

        Raises:
            Error: on the CPU, logits are NaN or infinite. On another device :meth:`verify` raises it.
        """
        if self._sample is None:
            token = logits.argmax(-1)
            self._finite.add(logits.gather(-1, token[:, None])[:, 0])  # argmax takes NaN for the highest number
            return token
        finite = self._finite.add(logits.amax(-1))
        if logits.device.type != "cpu":  # a kernel that draws from NaN would stop the device
            logits = torch.where(finite[:, None], logits, 0)
        return self._sample(logits)

    def choose(self, logits: Tensor) -> list[int]:
        """Return the next tokens as ints, and :meth:`verify`."""
        tokens = self(logits).tolist()
        self.verify()
        return tokens

    def verify(self) -> None:
        """Refuse logits of earlier calls that were not finite. This synchronises with the device.

        Raises:
            Error: logits are NaN or infinite.
        """
        self._finite.verify()


def make_sampler(
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    synchronize: Callable[[Tensor], Tensor] = lambda token: token,
) -> Sampler:
    """Return the sampler for these settings, which are those of :func:`msrnn.generate`.

    ``synchronize`` changes drawn tokens ``(B,)`` to those that all ranks of a split cell take.

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
        return Sampler()

    def sample(logits: Tensor) -> Tensor:
        return synchronize(torch.multinomial(sampling_probs(logits, temperature, top_k, top_p), 1, generator=generator)[:, 0])

    return Sampler(sample)


def sampling_probs(logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Return the distribution that sampling uses: logits ``(B, V)`` -> probabilities ``(B, V)`` in at least float32.

    The settings apply in this order. ``temperature`` divides the logits. ``top_k`` retains the k most likely tokens, and all
    tokens as likely as the last of them. ``top_p`` retains the smallest set of most likely tokens with a sum of at least
    ``top_p``.
    """
    logits = apply_temperature(logits, temperature)
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


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Return the logits ``(…, V)``, shifted so that the highest is 0 and divided by ``temperature``, in at least float32."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    limits = torch.finfo(logits.dtype)  # a temperature beyond them is 0 or infinite in this dtype, and 0 / 0 is NaN
    temperature = min(max(temperature, limits.tiny), limits.max)
    highest = logits.detach().amax(-1, keepdim=True)  # its gradient would only add rounding
    return (logits - highest) / temperature  # at most 0, so that a small temperature cannot overflow


def as_python_number(value: Any) -> Any:
    """Return a NumPy integer or float as an int or float, and any other value unchanged."""
    if isinstance(value, bool):
        return value
    return int(value) if isinstance(value, Integral) else float(value) if isinstance(value, Real) else value
