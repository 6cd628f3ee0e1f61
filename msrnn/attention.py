"""One query against the rows of H and its own: what it reads, and the weights it reads with."""

import torch
from einops import rearrange
from torch import Tensor


def attend(query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, empty: Tensor) -> tuple[Tensor, Tensor]:
    r"""$\mathrm{softmax}(q [K; k]^\top / \sqrt D)\,[V; v]$ for one token, heads grouped (arXiv:2401.06104, eq. 7).

    Args:
        query: ``(B, N, D)``, rotated.
        key, value: ``(B, K, D)``, the current token's own row.
        keys, values: ``(B, K, S, D)``, the rows carried over.
        empty: ``(B, K, S)`` bool, rows that hold nothing and are not seen.

    Returns:
        What was read, ``(B, N, D)`` in the dtype of ``query``, and the weights ``(B, K, G, S + 1)`` in at least
        float32, the current token's own last; ``G = N // K`` query heads share a key head.
    """
    q = rearrange(query, "b (k g) d -> b k g d", k=key.shape[1])
    carried = (q @ keys.mT).masked_fill(empty[:, :, None], -torch.inf)  # (B, K, G, S)
    logits = torch.cat((carried, q @ key[..., None]), dim=-1)  # (B, K, G, S + 1)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * q.shape[-1] ** -0.5
    weights = logits.softmax(dim=-1)
    narrow = weights.to(value.dtype)
    read = narrow[..., :-1] @ values + narrow[..., -1:] * value[:, :, None]  # (B, K, G, D)
    return rearrange(read, "b k g d -> b (k g) d"), weights
