"""Attention masks as boolean tensors.

A mask has one row per query and one column per key: ``(T, S)``, or one mask per sequence, ``(B, 1 or T, S)``. True means
*visible*, as in ``torch.nn.functional.scaled_dot_product_attention`` (``torch.nn.Transformer`` uses the opposite meaning).
Masks are combined with ``&``. The names are those of the Annotated Transformer (harvardnlp, 2018), a commentary on
arXiv:1706.03762.
"""

import torch
from torch import Tensor

from ..errors import Error, check_int


def subsequent_mask(T: int, *, device: torch.device | None = None) -> Tensor:
    """Return the causal mask ``(T, T)`` bool: each token attends to itself and to earlier tokens.

    A decoder uses this mask. It makes a step possible, because the visible rows are exactly the rows of H.

    Raises:
        Error: T is not an int of at least 0.
    """
    return _distances(T, device) >= 0


def window_mask(T: int, window: int, *, device: torch.device | None = None) -> Tensor:
    """Return the mask ``(T, T)`` bool of the tokens at a distance below ``window``, on both sides.

    ``window_mask(T, W) & subsequent_mask(T)`` is the sliding window of Mistral, equal to the visible rows of a cell under
    ``Window(W - 1)``.

    Raises:
        Error: T is not an int of at least 0, or ``window`` is not an int of at least 1.
    """
    check_int("mask: window", window)
    return _distances(T, device).abs() < window


def padding_mask(lengths: Tensor, S: int) -> Tensor:
    """Return the mask ``(B, 1, S)`` bool of the first ``lengths[b]`` rows of each sequence b; the other rows are padding.

    Args:
        lengths: ``(B,)`` int64, each 0 … S.
        S: number of rows, padding included.

    Raises:
        Error: ``lengths`` has another shape, dtype or range.
    """
    check_int("mask: S", S, at_least=0)
    if not isinstance(lengths, Tensor) or lengths.ndim != 1 or lengths.dtype != torch.int64:
        raise Error(f"padding_mask: lengths are {lengths!r:.60}; expected int64 of shape (B,)")
    if ((lengths < 0) | (lengths > S)).any():
        raise Error(f"padding_mask: lengths are {lengths.tolist()}; expected 0 to {S}")
    return torch.arange(S, device=lengths.device) < lengths[:, None, None]


def format_mask(mask: Tensor) -> str:
    """Return a mask ``(T, S)`` as text: one line per query, ``■`` for a visible row and ``·`` for a hidden one.

    Raises:
        Error: ``mask`` is not a boolean matrix.
    """
    if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.dtype != torch.bool:
        raise Error(f"format_mask: the mask is {mask!r:.60}; expected bool of shape (T, S)")
    return "\n".join(" ".join("■" if visible else "·" for visible in row) for row in mask.tolist())


def _distances(T: int, device: torch.device | None) -> Tensor:
    """Return the position of each query minus the position of each key, ``(T, T)``."""
    check_int("mask: T", T, at_least=0)
    position = torch.arange(T, device=device)
    return position[:, None] - position
