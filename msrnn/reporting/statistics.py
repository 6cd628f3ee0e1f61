"""Means over chunks and their errors. Chunks of one book are not independent, so the errors are lower bounds."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

MIN_EQUAL = 6
"""Number of equal values from which the error of their mean is 0. Fewer values have the same sign by chance in more than 5 % of
the cases (two-sided sign test), so the error of fewer equal values is not known."""


class Mean(NamedTuple):
    """A mean and its error; the error is NaN if it is not known."""

    value: float
    error: float

    def __format__(self, spec: str) -> str:
        """Return ``value ± error``, both in the format ``spec``; the error has no sign and is omitted if it is NaN."""
        error = "" if math.isnan(self.error) else f" ± {self.error:{spec.lstrip('+')}}"
        return f"{self.value:{spec}}{error}"


def mean(values: Sequence[float]) -> Mean:
    """Return the mean of at least one value and its standard error (sample standard deviation / √n).

    The error is NaN for one value, and for fewer than ``MIN_EQUAL`` equal ones.
    """
    value, deviation = mean_and_deviation(values)
    is_known = deviation > 0 or len(values) >= MIN_EQUAL
    return Mean(value, deviation / math.sqrt(len(values)) if is_known else math.nan)


def mean_and_deviation(values: Sequence[float]) -> Mean:
    """Return the mean of at least one value and the sample standard deviation."""
    x = torch.tensor(values, dtype=torch.float64)
    return Mean(float(x.mean()), float(x.std()) if len(x) > 1 else math.nan)


def paired(values: Sequence[float], others: Sequence[float]) -> Mean:
    """Return the mean of ``values − others`` and its standard error. Both sequences are measured on the same chunks, so
    differences between chunks cancel."""
    return mean([a - b for a, b in zip(values, others, strict=True)])
