r"""Multi-head attention of many queries under a mask (arXiv:1706.03762, sec. 3.2), with its weights.

This is the form of encoders, where all tokens attend at once. ``attention.py`` has the form of a step: one query and the rows
of H.
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from ..errors import Error
from .attention import attention_logits


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    r"""Return $\mathrm{softmax}(Q K^\top / \sqrt D)\,V$ over the visible rows, and the weights (arXiv:1706.03762, eq. 1).

    Args:
        query: ``(…, T, D)``.
        key, value: ``(…, S, D)``.
        mask: bool, broadcast to ``(…, T, S)``, True where a row is visible; None: all rows are visible.
        dropout: probability of setting a weight to 0 before it multiplies the values; the other weights are scaled up.

    Returns:
        The output ``(…, T, D)`` in the dtype of ``value``, and the weights before dropout, ``(…, T, S)`` in at least float32.
        Both are zero for a query without a visible row.

    Raises:
        Error: the mask has another shape or dtype, or the shapes of query, key and value do not match.
    """
    if any(not isinstance(x, Tensor) or x.ndim < 2 for x in (query, key, value)):
        raise Error("attention: expected tensors (…, T, D) as query, (…, S, D) as key and value")
    (T, D), S = query.shape[-2:], key.shape[-2]
    if key.shape[-1] != D or value.shape[-2] != S:
        shapes = ", ".join(str(tuple(x.shape)) for x in (query, key, value))
        raise Error(f"attention: query, key and value are {shapes}; expected (…, {T}, {D}), (…, S, {D}) and (…, S, D)")
    logits = attention_logits(query, key)  # (…, T, S)
    if mask is None:
        weights = logits.softmax(dim=-1)
    else:
        _check_mask(mask, logits)
        hidden, lowest = ~mask, torch.finfo(logits.dtype).min  # −inf would give NaN gradients without a visible row
        weights = logits.masked_fill(hidden, lowest).softmax(dim=-1).masked_fill(hidden, 0)
    return functional.dropout(weights, dropout).to(value.dtype) @ value, weights


class MultiheadAttention(nn.Module):
    """Attention with N heads of D = E / N elements each (arXiv:1706.03762, sec. 3.2.2)."""

    def __init__(self, width: int, n_heads: int, dropout: float = 0.0):
        super().__init__()
        if n_heads < 1 or width % n_heads:
            raise Error(f"width is {width}; expected a multiple of n_heads, {n_heads}")
        self.n_heads, self.dropout = n_heads, dropout
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the attention output of ``x`` over ``context``, and the weights. Self-attention: both are the same tensor.

        Args:
            x: ``(B, T, E)``, the source of the queries.
            context: ``(B, S, E)``, the source of the keys and values.
            mask: ``(T, S)`` or ``(B, 1 or T, S)`` bool, True where a row is visible; the same for all heads.

        Returns:
            ``(B, T, E)``, and the weights ``(B, N, T, S)``.

        Raises:
            Error: as :func:`attention`; ``x`` or ``context`` has another shape.
        """
        if isinstance(mask, Tensor) and mask.ndim == 3:
            mask = mask[:, None]  # (B, 1, 1 or T, S)
        keys, values = self.project_kv(context)
        output, weights = attention(self.project_q(x), keys, values, mask, self.dropout if self.training else 0.0)
        return self.project_out(output), weights

    def project_q(self, x: Tensor) -> Tensor:
        """Return the queries, ``(B, T, E) -> (B, N, T, D)``."""
        self._check(x)
        return rearrange(self.q(x), "B T (N D) -> B N T D", N=self.n_heads)

    def project_kv(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return the keys and values of the context, ``(B, S, E) -> (B, N, S, D)`` each.

        Attention needs nothing else of the context, so an H stores these two.
        """
        self._check(context)
        keys, values = (rearrange(f(context), "B S (N D) -> B N S D", N=self.n_heads) for f in (self.k, self.v))
        return keys, values

    def project_out(self, output: Tensor) -> Tensor:
        """Return the output projection of all heads, ``(B, N, T, D) -> (B, T, E)``."""
        return self.o(rearrange(output, "B N T D -> B T (N D)"))

    def _check(self, x: Tensor) -> None:
        if not isinstance(x, Tensor) or x.ndim != 3 or x.shape[2] != self.q.in_features:
            found = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise Error(f"multi-head attention: the input is {found}; expected (B, T, {self.q.in_features})")


def _check_mask(mask: Tensor, logits: Tensor) -> None:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise Error(f"attention: the mask is {mask!r:.60}; expected bool, True where a row is visible")
    shape = (1,) * (logits.ndim - mask.ndim) + tuple(mask.shape)
    if len(shape) != logits.ndim or any(m not in (1, n) for m, n in zip(shape, logits.shape, strict=True)):
        raise Error(
            f"attention: the mask has shape {tuple(mask.shape)}; expected a shape that broadcasts to {tuple(logits.shape)}"
        )
