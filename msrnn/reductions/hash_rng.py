"""Chance without a generator: numbers that look drawn and follow from what they are for.

A random operator has no memory of its own and no global generator; what it draws for a row is a hash of its seed, the layer,
the head, the row's position and the clock. So the step, the fold and a state read back from disk draw the same.
"""

import torch
from torch import Tensor

_GOLDEN, _FIRST, _SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


def uniform(seed: int, layer: int, head: Tensor, position: Tensor, clock: Tensor) -> Tensor:
    """For each element of the int64 tensors, broadcast, a number between 0 and 1, neither included: float32, 23 bits."""
    x = torch.full((), seed, dtype=torch.int64, device=position.device)
    for part in (layer, clock, head, position):  # the large one last
        x = _mixed(x + part)
    return (_shifted(x, 41).float() + 0.5) * 2**-23


def _mixed(x: Tensor) -> Tensor:
    """One round of splitmix64 (Steele, Lea and Flood, 2014), in signed numbers that wrap."""
    x = x + _GOLDEN
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    """To the right, zeros coming in."""
    return (x >> by) & ((1 << (64 - by)) - 1)
