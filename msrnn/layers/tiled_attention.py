r"""Teaching code, not used by the library: exact attention in tiles of rows, as in FlashAttention (arXiv:2205.14135).

Over time, H is the state of a recurrence and the tokens are its input. Within one token there is a second recurrence over the
rows of H, the online softmax. Its input is one tile of rows after the other. Its state has three parts: the largest logit so
far, m; the sum $l = \sum_r e^{s_r - m}$; and the sum $o = \sum_r e^{s_r - m} v_r$. :func:`update` is the transition. At the
end $o / l$ equals softmax attention up to rounding, although no matrix of all tokens by all rows is stored. In the backward
pass, $L = m + \log l$ suffices to recompute the weights of a tile, $e^{s_r - L}$.

On a GPU the tiles fit into the fast memory, which makes attention faster. This implementation only saves memory. The library
itself calls PyTorch's fused kernel (``scaled_dot_product_attention``).
"""

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..errors import Error, is_int
from .attention import attention_logits


class SoftmaxState(NamedTuple):
    """The online-softmax state of M queries, in at least float32."""

    m: Tensor
    """``(…, M, 1)``, the largest logit; −inf before the first visible row."""
    l: Tensor
    """``(…, M, 1)``, the sum of the unnormalized weights."""
    o: Tensor
    """``(…, M, D)``, the sum of the values with these weights."""


def init(query: Tensor, value_dim: int) -> SoftmaxState:
    """Return the state before the first row, for ``query (…, M, D)`` and values ``(…, R, value_dim)``."""
    zero = query.new_zeros(*query.shape[:-1], 1, dtype=torch.promote_types(query.dtype, torch.float32))
    return SoftmaxState(zero - torch.inf, zero, zero.expand(*query.shape[:-1], value_dim))


def update(state: SoftmaxState, query: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None = None) -> SoftmaxState:
    """Return the state of ``query (…, M, D)`` after C more rows, ``keys, values (…, C, D)``.

    ``visible``: bool, broadcast to ``(…, M, C)``, True where a query can attend to a row; None: all rows are visible.
    """
    logits = _logits(query, keys, visible)  # (…, M, C)
    m = torch.maximum(state.m, logits.amax(-1, keepdim=True))
    base = m.masked_fill(m.isneginf(), 0)  # without a visible row, −inf − (−inf) would be NaN
    shrink, weights = (state.m - base).exp(), (logits - base).exp()
    l = shrink * state.l + weights.sum(-1, keepdim=True)
    return SoftmaxState(m, l, shrink * state.o + weights @ values.to(weights.dtype))


def finalize(state: SoftmaxState) -> tuple[Tensor, Tensor]:
    """Return the attention output ``(…, M, D)`` and L ``(…, M, 1)``; 0 and −inf for a query without a visible row."""
    return state.o / state.l.masked_fill(state.l == 0, 1), state.m + state.l.log()


def attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    visible: Tensor | None = None,
    *,
    causal: bool = False,
    tile: tuple[int, int] = (64, 64),
) -> Tensor:
    r"""Return $\mathrm{softmax}(q K^\top / \sqrt D)\,V$, computed in tiles; differentiable once, also in tiles.

    Args:
        query: ``(B, N, T, D)``.
        keys, values: ``(B, K, R, D)``; N // K query heads share a key head.
        visible: bool, broadcast to ``(B, N, T, R)``, True where a token can attend to a row. None: all rows are visible.
        causal: True: the last T rows belong to the T tokens, and no token attends to the row of a later token.
        tile: number of tokens and of rows in a tile; they need not divide T and R.

    Returns:
        ``(B, N, T, D)`` in the dtype of ``query``; zeros for a token without a visible row.

    Raises:
        Error: shapes or dtypes do not match.
    """
    _check(query, keys, values, visible)
    N, K = query.shape[1], keys.shape[1]
    if not isinstance(tile, tuple) or len(tile) != 2 or not all(is_int(n) and n > 0 for n in tile):
        raise Error(f"tiled attention: tile is {tile!r:.60}; expected two ints of at least 1")
    if visible is not None:
        visible = visible.view((1,) * (4 - visible.ndim) + visible.shape)
        visible = visible.unflatten(1, (K, N // K)) if visible.shape[1] == N else visible[:, :, None]  # (…, 1 or T, 1 or R)
    queries = rearrange(query, "B (K G) T D -> B K G T D", K=K)
    return _Tiled.apply(queries, keys[:, :, None], values[:, :, None], visible, causal, tile).flatten(1, 2)


class _Tiled(torch.autograd.Function):
    """``(B, K, G, T, D), (B, K, 1, R, D) -> (B, K, G, T, D)``; keeps the inputs, the output and L ``(B, K, G, T, 1)``."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, causal: bool, tile: tuple[int, int]
    ) -> Tensor:
        T, R = q.shape[-2], k.shape[-2]
        output = q.new_empty(*q.shape[:-1], v.shape[-1])
        L = q.new_empty(*q.shape[:-1], 1, dtype=torch.promote_types(q.dtype, torch.float32))
        for tokens in _tiles(T, tile[0]):
            state = init(q[..., tokens, :], v.shape[-1])
            for rows in _tiles(R, tile[1]):
                if not causal or rows.start <= tokens.stop - 1 + R - T:  # later tiles have only rows of later tokens
                    mask = _tile_mask(visible, causal, tokens, rows, R - T, q.device)
                    state = update(state, q[..., tokens, :], k[..., rows, :], v[..., rows, :], mask)
            output[..., tokens, :], L[..., tokens, :] = finalize(state)
        ctx.save_for_backward(q, k, v, visible, output, L)
        ctx.causal, ctx.tile = causal, tile
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_output: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, visible, output, L = ctx.saved_tensors
        T, R, wide, scale = q.shape[-2], k.shape[-2], L.dtype, q.shape[-1] ** -0.5
        dq, dk, dv = (torch.zeros_like(x, dtype=wide) for x in (q, k, v))
        common = (d_output.to(wide) * output.to(wide)).sum(-1, keepdim=True)  # the same for all weights of a token
        base = L.masked_fill(L.isneginf(), 0)
        for rows, tokens in product(_tiles(R, ctx.tile[1]), _tiles(T, ctx.tile[0])):
            if ctx.causal and rows.start > tokens.stop - 1 + R - T:
                continue
            query, key, value, d = (
                x.to(wide) for x in (q[..., tokens, :], k[..., rows, :], v[..., rows, :], d_output[..., tokens, :])
            )
            mask = _tile_mask(visible, ctx.causal, tokens, rows, R - T, q.device)
            weights = (_logits(query, key, mask) - base[..., tokens, :]).exp()  # (B, K, G, t, r), recomputed
            d_logits = weights * (d @ value.mT - common[..., tokens, :]) * scale
            dv[..., rows, :] += (weights.mT @ d).sum(2, keepdim=True)
            dk[..., rows, :] += (d_logits.mT @ query).sum(2, keepdim=True)
            dq[..., tokens, :] += d_logits @ key
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None, None


def _tiles(n: int, length: int) -> Iterator[slice]:
    return (slice(i, min(i + length, n)) for i in range(0, n, length))


def _logits(query: Tensor, keys: Tensor, visible: Tensor | None) -> Tensor:
    logits = attention_logits(query, keys)
    return logits if visible is None else logits.masked_fill(~visible, -torch.inf)


def _tile_mask(
    visible: Tensor | None, causal: bool, tokens: slice, rows: slice, before: int, device: torch.device
) -> Tensor | None:
    """Return one tile of the mask, True where visible; ``before`` rows precede the row of the first token."""
    if visible is not None:
        token_index = tokens if visible.shape[-2] > 1 else slice(None)
        visible = visible[..., token_index, rows if visible.shape[-1] > 1 else slice(None)]
    if not causal or rows.stop - 1 <= tokens.start + before:
        return visible
    own = torch.arange(tokens.start, tokens.stop, device=device)[:, None] + before
    reached = torch.arange(rows.start, rows.stop, device=device) <= own  # (t, r)
    return reached if visible is None else reached & visible


def _check(query: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None) -> None:
    shapes = f"{tuple(query.shape)}, {tuple(keys.shape)} and {tuple(values.shape)}"
    fit = query.ndim == keys.ndim == values.ndim == 4 and query.shape[0] == keys.shape[0] and query.shape[3] == keys.shape[3]
    if not fit or keys.shape[:3] != values.shape[:3] or not keys.shape[1] or query.shape[1] % keys.shape[1]:
        raise Error(f"tiled attention: query, keys and values are {shapes}; expected (B, N, T, D) and twice (B, K, R, D)")
    if not query.is_floating_point() or not query.dtype == keys.dtype == values.dtype:
        dtypes = f"{query.dtype}, {keys.dtype} and {values.dtype}"
        raise Error(f"tiled attention: the dtypes are {dtypes}; expected the same floating-point dtype")
    if visible is not None:
        whole = (*query.shape[:3], keys.shape[2])
        fits = visible.ndim <= 4 and all(a in (1, b) for a, b in zip(visible.shape[::-1], whole[::-1], strict=False))
        if visible.dtype != torch.bool or not fits:
            found = f"{visible.dtype} of shape {tuple(visible.shape)}"
            raise Error(f"tiled attention: visible is {found}; expected bool that broadcasts to {whole}")
