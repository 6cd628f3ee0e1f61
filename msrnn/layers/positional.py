r"""Position encodings other than RoPE: sinusoids, which are added to embeddings, and ALiBi, which is added to logits.

ALiBi (arXiv:2108.12409) subtracts $m_h (t - p)$ from the logit of head h between a query at position t and a key at position p.
This is a product of two query features and two key features, $(m_h, -m_h t) \cdot (p, 1)$. They are appended to the D elements
of each head, so attention itself does not change. Key features $(0, 0)$ give a zero bias. Only differences of positions
matter, and the bias is as exact as $m_h t$ in float32.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from .rotary import CosSin

ALIBI_DIMS = 2
"""Number of elements that ALiBi appends to a head."""


def sinusoidal_encoding(position: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    r"""Return the sinusoidal encoding, ``(…,) -> (…, E)`` (arXiv:1706.03762, sec. 3.5); E is even.

    Element 2i is $\sin(p / 10000^{2i/E})$, element 2i + 1 the cosine.
    """
    wide = torch.promote_types(dtype, torch.float32)
    index = torch.arange(0, width, 2, dtype=wide, device=position.device)
    angle = position[..., None].to(wide) * 10000.0 ** (-index / width)  # (…, E/2)
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2).to(dtype)


def alibi_slopes(n_heads: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    r"""Return the slopes $m_h$ of ALiBi, ``(N,)``: $2^{-8/N}, 2^{-16/N}, … 2^{-8}$ for N a power of 2.

    For another N: the slopes of the next lower power of 2, then every second slope of the next higher one, as in the code of
    the authors.
    """
    power, h = 2 ** (n_heads.bit_length() - 1), torch.arange(n_heads, dtype=dtype, device=device)
    return 2.0 ** (-4 / power * torch.where(h < power, 2 * (h + 1), 2 * (h - power) + 1))


def alibi_features(position: Tensor, n_heads: int, head_dim: int, dtype: torch.dtype) -> CosSin:
    """Return the query features ``(…, N, 2)`` and key features ``(…, 1, 2)`` of tokens at ``position (…,)``."""
    t = position[..., None].to(dtype)  # (…, 1)
    m = alibi_slopes(n_heads, dtype, t.device) * (head_dim + ALIBI_DIMS) ** 0.5  # attention divides by this root
    return torch.stack((m.expand(*t.shape[:-1], -1), -m * t), dim=-1), torch.stack((t, torch.ones_like(t)), dim=-1)


def append_alibi(q: Tensor, k: Tensor, v: Tensor, features: CosSin | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return query ``(…, N, D + 2)``, key and value ``(…, K, D + 2)`` with the features appended.

    ``features`` of None give a zero bias. Values get zeros, because keys and values have one width.
    """
    D = q.shape[-1]
    q = q * ((D + ALIBI_DIMS) / D) ** 0.5  # attention divides by the root of D + 2 instead of D
    if features is None:
        return pad(q, (0, ALIBI_DIMS)), pad(k, (0, ALIBI_DIMS)), pad(v, (0, ALIBI_DIMS))
    q, k = (torch.cat((x, more.expand(*x.shape[:-1], -1)), dim=-1) for x, more in zip((q, k), features, strict=True))
    return q, k, pad(v, (0, ALIBI_DIMS))
