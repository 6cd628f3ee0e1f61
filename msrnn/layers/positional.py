r"""Positions that are not rotary: sinusoids, which are added to what enters, and ALiBi, which is added to the logits.

ALiBi (arXiv:2108.12409) lets head h see the row of position p from position t with a logit lower by $m_h (t - p)$. That is a
product of two numbers of the query's with two of the key's, $(m_h, -m_h t) \cdot (p, 1)$. So they are carried there, behind
the D numbers of the head, and whatever meets queries with keys needs not know of it; a key $(0, 0)$ is near to every query.
Nothing but their difference counts, and it is as exact as float32 has $m_h t$.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from .rotary import Rotation

MORE = 2
"""Numbers that ALiBi adds to a head."""


def sinusoids(position: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    r"""``(…,) -> (…, E)``: $\sin(p / 10000^{2i/E})$ at 2i, the cosine at 2i + 1 (arXiv:1706.03762, sec. 3.5); E even."""
    wide = torch.promote_types(dtype, torch.float32)
    index = torch.arange(0, width, 2, dtype=wide, device=position.device)
    angle = position[..., None].to(wide) * 10000.0 ** (-index / width)  # (…, E/2)
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2).to(dtype)


def slopes(n_heads: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    r"""The $m_h$ of ALiBi, ``(N,)``: of N heads, a power of 2, $2^{-8/N}, 2^{-16/N}, … 2^{-8}$. Of another number: those of the
    next lower power, and then every other one of the next higher (as the authors' code has it)."""
    power, h = 2 ** (n_heads.bit_length() - 1), torch.arange(n_heads, dtype=dtype, device=device)
    return 2.0 ** (-4 / power * torch.where(h < power, 2 * (h + 1), 2 * (h - power) + 1))


def slope(position: Tensor, n_heads: int, head_dim: int, dtype: torch.dtype) -> Rotation:
    """What ALiBi adds to queries, ``(…, N, 2)``, and to keys, ``(…, 1, 2)``, of tokens at ``position (…,)``."""
    t = position[..., None].to(dtype)  # (…, 1)
    m = slopes(n_heads, dtype, t.device) * (head_dim + MORE) ** 0.5  # the root is divided by later
    return torch.stack((m.expand(*t.shape[:-1], -1), -m * t), dim=-1), torch.stack((t, torch.ones_like(t)), dim=-1)


def lean(q: Tensor, k: Tensor, v: Tensor, by: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
    """Query ``(…, N, D)``, key and value ``(…, K, D)`` with two numbers more: by :func:`slope`; None: near to all. The values
    get zeros, as rows have one width."""
    D = q.shape[-1]
    q = q * ((D + MORE) / D) ** 0.5  # the logits are divided by the root of the whole width
    if by is None:
        return pad(q, (0, MORE)), pad(k, (0, MORE)), pad(v, (0, MORE))
    q, k = (torch.cat((x, more.expand(*x.shape[:-1], -1)), dim=-1) for x, more in zip((q, k), by, strict=True))
    return q, k, pad(v, (0, MORE))
