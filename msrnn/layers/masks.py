"""Masks: who may look at whom, as a table of booleans.

A mask has a row for each of T queries and a column for each of S rows that they could see, ``(T, S)``, or one such table per
sequence, ``(B, 1 or T, S)``; true is *may be seen*, as in ``torch.nn.functional.scaled_dot_product_attention``
(``torch.nn.Transformer`` means the opposite). Masks are combined by ``&``. This is the vocabulary of the Annotated Transformer
(harvardnlp, 2018), which is a text about arXiv:1706.03762.
"""

import torch
from torch import Tensor

from ..errors import Error


def subsequent_mask(T: int, *, device: torch.device | None = None) -> Tensor:
    """``(T, T)`` bool: each token sees itself and those before it, none that is subsequent. What a decoder reads with, and what
    makes a step possible: the rows of H are exactly those that the token being read may see.

    Raises:
        Error: T is no whole number of at least 0.
    """
    return _apart(T, device) >= 0


def window_mask(T: int, window: int, *, device: torch.device | None = None) -> Tensor:
    """``(T, T)`` bool: each token sees the tokens fewer than ``window`` places away, itself among them.

    To both sides, as an encoder looks; ``window_mask(T, W) & subsequent_mask(T)`` is Mistral's sliding window, which is what a
    cell sees under ``Window(W - 1)``.

    Raises:
        Error: T is no whole number of at least 0, or ``window`` none of at least 1.
    """
    _check_whole("window", window, at_least=1)
    return _apart(T, device).abs() < window


def padding_mask(lengths: Tensor, S: int) -> Tensor:
    """``(B, 1, S)`` bool: all queries of sequence b see its first ``lengths[b]`` rows; the rest is padding, and nobody's.

    Args:
        lengths: ``(B,)`` int64, each 0 … S.
        S: rows, padding included.

    Raises:
        Error: lengths of another shape, type or range.
    """
    _check_whole("S", S, at_least=0)
    if not isinstance(lengths, Tensor) or lengths.ndim != 1 or lengths.dtype != torch.int64:
        raise Error(f"padding_mask: lengths are {lengths!r:.60}; expected int64 of shape (B,)")
    if ((lengths < 0) | (lengths > S)).any():
        raise Error(f"padding_mask: lengths are {lengths.tolist()}; expected 0 to {S}")
    return torch.arange(S, device=lengths.device) < lengths[:, None, None]


def picture(mask: Tensor) -> str:
    """A mask ``(T, S)`` as text: a line for each query, ``■`` where it sees a row and ``·`` where it does not.

    Raises:
        Error: it is no table of booleans.
    """
    if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.dtype != torch.bool:
        raise Error(f"picture: the mask is {mask!r:.60}; expected bool of shape (T, S)")
    return "\n".join(" ".join("■" if seen else "·" for seen in row) for row in mask.tolist())


def _apart(T: int, device: torch.device | None) -> Tensor:
    """``(T, T)``: how many places a row stands before the query."""
    _check_whole("T", T, at_least=0)
    place = torch.arange(T, device=device)
    return place[:, None] - place


def _check_whole(name: str, value: object, at_least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise Error(f"mask: {name} is {value!r:.60}; expected a whole number of at least {at_least}")
