"""One query against the rows of H, its own among them: what it reads, and the weights it reads with."""

import torch
from torch import Tensor


def attend(query: Tensor, keys: Tensor, values: Tensor, empty: Tensor | None) -> tuple[Tensor, Tensor]:
    r"""$\mathrm{softmax}(q K^\top / \sqrt D)\,V$ for one token, heads grouped (arXiv:2401.06104, eq. 7).

    Args:
        query: ``(B, N, D)``, rotated.
        keys, values: ``(B, K, R, D)``, the rows carried over and the current token's own.
        empty: ``(B, K, R)`` bool, rows that hold nothing and are not seen. None: all hold something.

    Returns:
        What was read, ``(B, N, D)`` in the dtype of ``query``, and the weights ``(B, K, G, R)`` in at least float32;
        ``G = N // K`` query heads share a key head.
    """
    (B, K), (N, D) = keys.shape[:2], query.shape[1:]
    logits = meet(query.reshape(B * K, N // K, D), keys.flatten(0, 1))  # (B K, G, R)
    weights = (logits if empty is None else mask(logits, empty.flatten(0, 1)[:, None])).softmax(dim=-1)
    read = weights.to(values.dtype) @ values.flatten(0, 1)  # (B K, G, D)
    return read.view(B, N, D), weights.view(B, K, N // K, -1)


def meet(queries: Tensor, keys: Tensor) -> Tensor:
    r"""The logits $q K^\top / \sqrt D$, ``(…, M, D), (…, R, D) -> (…, M, R)`` in at least float32."""
    dtype, scale = torch.promote_types(queries.dtype, torch.float32), queries.shape[-1] ** -0.5
    if queries.dtype == dtype:  # fewer numbers to scale; in 16 bits they would be rounded
        return (queries * scale) @ keys.mT
    return (queries @ keys.mT).to(dtype) * scale


def mask(logits: Tensor, hidden: Tensor) -> Tensor:
    """``logits`` with −inf where ``hidden``, which is broadcast: an addition, several times as fast as ``masked_fill``."""
    nothing = torch.zeros(1, dtype=logits.dtype, device=logits.device)
    return logits + torch.where(hidden, -torch.inf, nothing)
