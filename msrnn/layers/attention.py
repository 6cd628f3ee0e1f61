"""Scaled dot-product attention of one query per sequence over the rows of H, with its weights."""

import torch
from torch import Tensor

from .emulation import upcast_if_emulated


def attend(query: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None) -> tuple[Tensor, Tensor]:
    r"""Return $\mathrm{softmax}(q K^\top / \sqrt D)\,V$ for one token, and the weights (arXiv:2401.06104, eq. 7).

    Args:
        query: ``(B, N, D)``, with the position encoding applied.
        keys, values: ``(B, K, R, D)``, the cached rows and the current token's own row; ``G = N // K`` query heads share a
            key head.
        visible: ``(B, K, R)`` bool, False for empty rows; None: all rows are visible.

    Returns:
        The attention output ``(B, N, D)`` in the dtype of ``query``, and the weights ``(B, K, G, R)`` in at least float32.
    """
    (B, K), (N, D) = keys.shape[:2], query.shape[1:]
    logits = attention_logits(query.reshape(B * K, N // K, D), keys.flatten(0, 1))  # (B K, G, R)
    weights = (logits if visible is None else mask_logits(logits, visible.flatten(0, 1)[:, None])).softmax(dim=-1)
    wide = upcast_if_emulated(values.flatten(0, 1))
    output = (weights.to(wide.dtype) @ wide).to(values.dtype)  # (B K, G, D)
    return output.view(B, N, D), weights.view(B, K, N // K, keys.shape[2])


def attention_logits(queries: Tensor, keys: Tensor) -> Tensor:
    r"""Return $q K^\top / \sqrt D$, ``(…, M, D), (…, R, D) -> (…, M, R)``, in at least float32.

    In 16 bits the product is scaled, because scaled queries would be rounded. In float32 and wider the queries are scaled,
    because they have fewer elements.
    """
    dtype, scale = torch.promote_types(queries.dtype, torch.float32), queries.shape[-1] ** -0.5
    if queries.dtype == dtype:
        return (queries * scale) @ keys.mT
    queries, keys = upcast_if_emulated(queries), upcast_if_emulated(keys)
    return (queries @ keys.mT).to(dtype) * scale


def mask_logits(logits: Tensor, visible: Tensor) -> Tensor:
    """Return ``logits`` with −inf where ``visible``, which is broadcast, is False.

    Implemented as an addition, which is several times as fast as ``masked_fill``.
    """
    zero = torch.zeros(1, dtype=logits.dtype, device=logits.device)
    return logits + torch.where(visible, zero, -torch.inf)
