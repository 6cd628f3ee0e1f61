"""A check that logits are finite, without a synchronisation per step on an accelerator."""

import math

import torch
from torch import Tensor

from ..errors import Error


class FiniteLogits:
    """Whether the highest logit of each row was finite so far. A logit of −inf is accepted, unless the whole row is −inf."""

    def __init__(self) -> None:
        self._highest: Tensor | None = None  # (B,), the first highest logit that is not finite, otherwise the newest

    def add(self, highest: Tensor) -> Tensor:
        """Record the highest logit of each row, ``(B,)``; return ``(B,)`` bool, True where it is finite.

        Raises:
            Error: on the CPU, a logit is not finite. Another device is only read by :meth:`verify`.
        """
        finite, before = highest.isfinite(), self._highest
        self._highest = highest if before is None else torch.where(before.isfinite(), highest, before)
        if highest.device.type == "cpu":
            self.verify()
        return finite

    def verify(self) -> None:
        """Refuse logits from which no token can be chosen. This synchronises with the device.

        Raises:
            Error: a recorded logit is NaN or infinite.
        """
        highest, self._highest = self._highest, None
        if highest is not None and not bool(highest.isfinite().all()):
            row, value = next((b, x) for b, x in enumerate(highest.tolist()) if not math.isfinite(x))
            raise Error(
                f"the largest logit of row {row} is {value}; expected a finite number. Check the parameters for NaN; "
                "a model of bfloat16 can overflow in float16"
            )
