"""One query against the rows of H, its own among them: what it reads, and the weights it reads with."""

import torch
from torch import Tensor


def attend(query: Tensor, keys: Tensor, values: Tensor, empty: Tensor) -> tuple[Tensor, Tensor]:
    r"""$\mathrm{softmax}(q K^\top / \sqrt D)\,V$ for one token, heads grouped (arXiv:2401.06104, eq. 7).

    Args:
        query: ``(B, N, D)``, rotated.
        keys, values: ``(B, K, R, D)``, the rows carried over and the current token's own.
        empty: ``(B, K, R)`` bool, rows that hold nothing and are not seen.

    Returns:
        What was read, ``(B, N, D)`` in the dtype of ``query``, and the weights ``(B, K, G, R)`` in at least float32;
        ``G = N // K`` query heads share a key head.
    """
    B, N, D = query.shape
    logits = query.view(B, keys.shape[1], -1, D) @ keys.mT  # (B, K, G, R)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * D**-0.5
    weights = logits.masked_fill(empty[:, :, None], -torch.inf).softmax(dim=-1)
    read = weights.to(values.dtype) @ values  # (B, K, G, D)
    return read.view(B, N, D), weights
