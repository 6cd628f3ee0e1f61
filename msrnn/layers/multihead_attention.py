r"""Attention, the whole of it on one screen: many queries, many rows, a mask; then several heads of it side by side.

This is the classic form (arXiv:1706.03762, sec. 3.2), in which all tokens look at once. ``attention.py`` has one query against
the rows of H: the same sum, seen from a step.
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from ..errors import Error
from .attention import meet


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    r"""$\mathrm{softmax}(Q K^\top / \sqrt D)\,V$ over the rows that the mask allows (arXiv:1706.03762, eq. 1).

    Args:
        query: ``(…, T, D)``.
        key, value: ``(…, S, D)``.
        mask: bool, broadcast to ``(…, T, S)``, true where a row may be seen; None: all may.
        dropout: the probability with which a weight is set to 0 (and the others scaled up) on its way to the values.

    Returns:
        What was read, ``(…, T, D)`` in the dtype of ``value``, and the weights before dropout, ``(…, T, S)`` in at least
        float32. A query that may see nothing reads zeros.

    Raises:
        Error: a mask of other shape or type; keys and values that are not as many.
    """
    if any(not isinstance(x, Tensor) or x.ndim < 2 for x in (query, key, value)):
        raise Error("attention: expected tensors (…, T, D) as query, (…, S, D) as key and value")
    (T, D), S = query.shape[-2:], key.shape[-2]
    if key.shape[-1] != D or value.shape[-2] != S:
        shapes = ", ".join(str(tuple(x.shape)) for x in (query, key, value))
        raise Error(f"attention: query, key and value are {shapes}; expected (…, {T}, {D}), (…, S, {D}) and as many values")
    logits = meet(query, key)  # (…, T, S)
    if mask is None:
        weights = logits.softmax(dim=-1)
    else:
        _check_mask(mask, logits)
        hidden, lowest = ~mask, torch.finfo(logits.dtype).min  # where all are hidden, -inf would make NaN of the gradient too
        weights = logits.masked_fill(hidden, lowest).softmax(dim=-1).masked_fill(hidden, 0)
    return functional.dropout(weights, dropout).to(value.dtype) @ value, weights


class MultiHead(nn.Module):
    """N heads of attention side by side, each over D = E / N numbers of its own (arXiv:1706.03762, sec. 3.2.2)."""

    def __init__(self, width: int, n_heads: int, dropout: float = 0.0):
        super().__init__()
        if n_heads < 1 or width % n_heads:
            raise Error(f"a width of {width} cannot be shared by {n_heads} heads evenly")
        self.n_heads, self.dropout = n_heads, dropout
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, seen: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What each ``x`` learns from what it sees; self-attention where both are the same.

        Args:
            x: ``(B, T, E)``, who looks.
            seen: ``(B, S, E)``, who is looked at.
            mask: ``(T, S)`` or ``(B, 1 or T, S)`` bool, true where a row may be seen; the same for all heads.

        Returns:
            ``(B, T, E)``, and the weights ``(B, N, T, S)``.

        Raises:
            Error: as :func:`attention`; tokens of another shape.
        """
        if isinstance(mask, Tensor) and mask.ndim == 3:
            mask = mask[:, None]  # (B, 1, 1 or T, S)
        keys, values = self.rows(seen)
        read, weights = attention(self.query(x), keys, values, mask, self.dropout if self.training else 0.0)
        return self.out(read), weights

    def query(self, x: Tensor) -> Tensor:
        """What the tokens look for: ``(B, T, E) -> (B, N, T, D)``."""
        self._check(x)
        return rearrange(self.q(x), "B T (N D) -> B N T D", N=self.n_heads)

    def rows(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """By what they are found and what they then tell, keys and values: ``(B, S, E) -> (B, N, S, D)`` each. Nothing else is
        ever seen of them, so this is what an H has to remember."""
        self._check(seen)
        keys, values = (rearrange(f(seen), "B S (N D) -> B N S D", N=self.n_heads) for f in (self.k, self.v))
        return keys, values

    def _check(self, x: Tensor) -> None:
        if not isinstance(x, Tensor) or x.ndim != 3 or x.shape[2] != self.q.in_features:
            found = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise Error(f"attention over several heads: the tokens are {found}; expected (B, T, {self.q.in_features})")

    def out(self, read: Tensor) -> Tensor:
        """What all heads read, joined: ``(B, N, T, D) -> (B, T, E)``."""
        return self.o(rearrange(read, "B N T D -> B T (N D)"))


def _check_mask(mask: Tensor, logits: Tensor) -> None:
    """Whether ``mask`` says yes or no of each of ``logits (…, T, S)``."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise Error(f"attention: the mask is {mask!r:.60}; expected booleans, true where a row may be seen")
    own = (1,) * (logits.ndim - mask.ndim) + tuple(mask.shape)
    if len(own) != logits.ndim or any(m not in (1, n) for m, n in zip(own, logits.shape, strict=True)):
        raise Error(f"attention: the mask has shape {tuple(mask.shape)}; expected what broadcasts to {tuple(logits.shape)}")
