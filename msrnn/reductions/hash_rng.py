"""Random numbers without a generator, as hashes of the place at which they are used.

A stochastic operator has no memory and no global generator. Its number for a row is a hash of the seed, the layer, the head,
the row's position and the clock. So the step, the many-token path and a state loaded from disk use the same numbers.
"""

import torch
from torch import Tensor

_GOLDEN, _FIRST, _SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


def uniform(seed: int, layer: int, head: Tensor, position: Tensor, clock: Tensor) -> Tensor:
    """Return float32 numbers in the open interval (0, 1) with 23 random bits, one per element of the broadcast tensors."""
    x = torch.full((), seed, dtype=torch.int64, device=position.device)
    for part in (layer, clock, head, position):  # the largest tensor last
        x = _splitmix(x + part)
    return (_shift_right(x, 41).float() + 0.5) * 2**-23


def _splitmix(x: Tensor) -> Tensor:
    """Apply one round of splitmix64 (Steele, Lea and Flood, 2014), in signed integers that wrap."""
    x = x + _GOLDEN
    x = (x ^ _shift_right(x, 30)) * _FIRST
    x = (x ^ _shift_right(x, 27)) * _SECOND
    return x ^ _shift_right(x, 31)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
