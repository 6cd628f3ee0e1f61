"""Means over chunks and how sure they are. Chunks of one book are not independent: read the errors as lower bounds."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch


class Mean(NamedTuple):
    """A mean over n numbers and its standard error, the sample's standard deviation / √n; NaN of fewer than two."""

    value: float
    error: float


def mean(values: Sequence[float]) -> Mean:
    """The mean of at least one number."""
    x = torch.tensor(values, dtype=torch.float64)
    return Mean(float(x.mean()), float(x.std() / math.sqrt(len(x))) if len(x) > 1 else math.nan)


def paired(values: Sequence[float], others: Sequence[float]) -> Mean:
    """The mean of ``values − others``, each of the same chunk: what chunks have in common falls out."""
    return mean([a - b for a, b in zip(values, others, strict=True)])
