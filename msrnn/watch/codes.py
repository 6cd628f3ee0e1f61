"""Compact arrays for JSON: numbers in 8 bits, compressed, as base64; and how to read them back.

A code c of an attention weight is 0 below the threshold, and otherwise stands for 2^((c − 255) / steps). Codes of scores are
253 for −inf, 255 for +inf, and otherwise 0 to 252: ``log`` for ``high`` · 2^((c − 252) / steps), with 0 for 0; ``linear`` for
``low`` + c · ``unit``.
"""

import base64
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import Error

TOP, MINUS_INFINITY, PLUS_INFINITY = 252, 253, 255
MANTISSA_BITS = 12
"""Bits of the mantissa that float arrays keep: a relative error of at most 2^−13."""


@dataclass(frozen=True)
class Precision:
    """How exactly weights and scores are stored.

    Attributes:
        steps: codes for each factor of two; a stored number is off by a factor of at most 2^(1 / (2 steps)).
        threshold: weights below it are stored as 0.
    """

    steps: int
    threshold: float


PRECISIONS = (
    Precision(16, 2.0**-15),
    Precision(8, 2.0**-13),
    Precision(8, 2.0**-11),
    Precision(4, 2.0**-11),
    Precision(4, 2.0**-9),
    Precision(2, 2.0**-7),
)
"""From fine to coarse."""


def encode_weights(weights: np.ndarray, precision: Precision) -> np.ndarray:
    """Return the codes of attention weights, uint8."""
    logs = np.log2(np.maximum(weights, precision.threshold), dtype=np.float64)
    codes = np.clip(np.rint(255 + precision.steps * logs), 1, 255).astype(np.uint8)
    codes[weights < precision.threshold] = 0
    return codes


def decode_weights(codes: np.ndarray, precision: Precision) -> np.ndarray:
    """Return the weights of codes, float64."""
    return np.where(codes > 0, 2.0 ** ((codes.astype(float) - 255) / precision.steps), 0.0)


def encode_scores(scores: np.ndarray, precision: Precision) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the codes of scores, uint8, and the fields with which :func:`decode_scores` reads them."""
    finite = scores[np.isfinite(scores)].astype(float)
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)
    fields: dict[str, Any]
    if low >= 0 and high > 0 and low < high and not (finite == np.rint(finite)).all():
        fields = {"kind": "log", "high": high}
        with np.errstate(divide="ignore", invalid="ignore"):
            codes = TOP + precision.steps * np.log2(scores.astype(float) / high)
        codes = np.where(scores <= 0, 0, np.maximum(codes, 1))
    else:
        span = high - low
        whole = span <= TOP and bool((finite == np.rint(finite)).all())
        fields = {"kind": "linear", "low": low, "unit": 1.0 if whole else span / TOP}
        codes = (scores.astype(float) - low) / (fields["unit"] or 1.0)
    codes = np.where(np.isfinite(scores), codes, 0)
    codes = np.clip(np.rint(codes), 0, TOP).astype(np.uint8)
    codes[np.isneginf(scores)] = MINUS_INFINITY
    codes[np.isposinf(scores)] = PLUS_INFINITY
    return codes, fields


def decode_scores(codes: np.ndarray, fields: dict[str, Any], precision: Precision) -> np.ndarray:
    """Return the scores of codes, float64."""
    numbers = codes.astype(float)
    if fields["kind"] == "log":
        scores = np.where(codes > 0, fields["high"] * 2.0 ** ((numbers - TOP) / precision.steps), 0.0)
    else:
        scores = fields["low"] + numbers * fields["unit"]
    scores[codes == MINUS_INFINITY] = -np.inf
    scores[codes == PLUS_INFINITY] = np.inf
    return scores


def rounded(x: np.ndarray) -> np.ndarray:
    """Return float32 numbers with ``MANTISSA_BITS`` bits of mantissa, because the zero bits compress well."""
    bits, drop = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32), 23 - MANTISSA_BITS
    finite = np.isfinite(x)
    return np.where(finite, (bits + (1 << (drop - 1))) >> drop << drop, bits).astype(np.uint32).view(np.float32)


def pack(x: np.ndarray, *, delta: bool = False) -> dict[str, Any]:
    """Return an array as JSON: dtype, shape, and base64 of the zlib-compressed little-endian bytes.

    ``delta``: for uint8, store the differences of consecutive elements modulo 256, where neighbours are nearly equal.
    """
    flat = x.reshape(-1)
    stored = np.diff(flat, prepend=np.zeros(1, np.uint8)) if delta else flat
    data = zlib.compress(stored.astype(x.dtype.newbyteorder("<")).tobytes(), 9)
    fields = {"dtype": x.dtype.name, "shape": list(x.shape), "data": base64.b64encode(data).decode()}
    return {**fields, "delta": True} if delta else fields


def unpack(fields: dict[str, Any]) -> np.ndarray:
    """Return the array of :func:`pack`.

    Raises:
        Error: the fields are not those of an array.
    """
    try:
        stored = np.frombuffer(zlib.decompress(base64.b64decode(fields["data"])), np.dtype(fields["dtype"]).newbyteorder("<"))
        x = stored.astype(fields["dtype"])
        return (np.cumsum(x, dtype=np.uint8) if fields.get("delta") else x).reshape(fields["shape"])
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise Error(f"an array of the page's data cannot be read ({error})") from None
