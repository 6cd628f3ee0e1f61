"""The choice ``weights=``: the tensors of a source as they are, or packed in 4 or 8 bits."""

import ctypes
import warnings
from collections.abc import Mapping
from contextlib import suppress

import torch

from msrnn import Error
from msrnn.models.loading import check_tensors
from msrnn.models.packing import (
    COMPUTE_DTYPE,
    KEPT_WEIGHTS,
    QUANTISED_WEIGHTS,
    WEIGHT_CHOICES,
    check_packable,
    dequantise_tensors,
    matrix_tensors,
    pack_tensors,
    packed_names,
)
from msrnn.storage.lazy_tensors import LazyTensor

from .source import Source

NAMED = 3
"""Number of modules that a warning names."""


def check_weights(weights: object) -> None:
    """Refuse an unknown value of ``weights=``.

    Raises:
        Error: ``weights`` is neither None nor one of the kinds.
    """
    if weights is not None and not (isinstance(weights, str) and weights in WEIGHT_CHOICES):
        raise Error(f"weights is {weights!r:.60}; expected None, {', '.join(map(repr, WEIGHT_CHOICES))}")


def choose_weights(
    source: Source, weights: str | None, dtype: torch.dtype | None, *, dequantise: bool = False
) -> tuple[Mapping[str, LazyTensor], torch.dtype | None]:
    """Return the tensors of ``source`` for one value of ``weights=``, and the dtype of the cell.

    Args:
        source: of the tensors.
        weights: None, ``int4``, ``int8`` or ``packed`` (:func:`converters.load`).
        dtype: as given by the user; None: bfloat16 if ``weights`` is given, float32 if packed tensors are dequantised.
        dequantise: True for the float matrices of packed tensors of the source; then ``weights`` is None.

    Warns:
        UserWarning: ``packed`` could not keep some matrices; they have 8 bits.

    Raises:
        Error: a model that cannot be packed, ``packed`` for a source without matrices that can be kept, or damaged packed
            tensors in the source.
    """
    packed = packed_names(source.tensors)
    if packed and (dequantise or weights is not None):
        check_tensors(source.config, source.tensors, dtype or COMPUTE_DTYPE)
    if dequantise and packed:
        return dequantise_tensors(source.tensors), torch.float32 if dtype is None else dtype
    if weights is None:
        return source.tensors, dtype
    dtype = COMPUTE_DTYPE if dtype is None else dtype
    if weights != KEPT_WEIGHTS:
        return pack_tensors(source.config, source.tensors, weights), dtype
    check_packable(source.config)
    if packed:
        raise Error("weights is 'packed', but the weights of the source are packed already; expected None")
    return _keep_packed(source), dtype


def return_freed_memory() -> None:
    """Give memory that quantisation has freed back to the system; does nothing without glibc.

    Otherwise the process keeps it: 120 MB after packing a model of 95 MB.
    """
    with suppress(OSError, AttributeError):  # another system or another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _keep_packed(source: Source) -> dict[str, LazyTensor]:
    """Return the tensors of ``source`` for ``packed``; warns and raises as :func:`choose_weights`."""
    if not source.packed:
        choices = " or ".join(map(repr, QUANTISED_WEIGHTS))
        raise Error(f"weights is 'packed', but the source has no matrices of type Q4_0 or Q4_1; expected {choices}")
    packed = {f"{stem}.weight" for stem in source.packed}
    rest = {name: x for name, x in source.tensors.items() if name not in packed}
    if others := [name.removesuffix(".weight") for name, x in rest.items() if len(x.shape) == 2]:
        named = ", ".join(others[:NAMED]) + (f" and {len(others) - NAMED} more" if len(others) > NAMED else "")
        total = len(others) + len(packed)
        warnings.warn(
            f"{len(packed)} of {total} matrices keep their own 4 bits; quantised again, to 8 bits: {named}", stacklevel=4
        )
    return pack_tensors(source.config, rest, "int8") | matrix_tensors(source.packed)
