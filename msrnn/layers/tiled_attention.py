r"""Exact attention as an RNN over the rows of H: FlashAttention's online softmax (arXiv:2205.14135), in plain PyTorch.

Over time, H is the state of a recurrence and the tokens are its input. Within one token there is a second recurrence, whose
input are the rows of H, one tile of them after the other, and whose state is three numbers' worth: the largest logit seen so
far, m; the sum $l = \sum_r e^{s_r - m}$; and the same sum of values, $o = \sum_r e^{s_r - m} v_r$. :func:`step` is its
transition. In the end $o / l$ is what softmax attention reads, to the last bit but for rounding, and no matrix of all tokens by
all rows has ever been there. Backward, $L = m + \log l$ is enough to make the weights of any tile again, $e^{s_r - L}$.

On a GPU the tiles are made to fit into the fast memory, and that is where the speed comes from; here they only save memory.
PyTorch's fused kernel (``scaled_dot_product_attention``) is what ``fold.py`` uses; this is the same thing to be read.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..errors import Error
from .attention import meet


class Carried(NamedTuple):
    """The state of M queries between two tiles of rows, in at least float32."""

    m: Tensor
    """``(…, M, 1)``, the largest logit; −inf where no row has been seen."""
    l: Tensor
    """``(…, M, 1)``, the sum of what the weights will be proportional to."""
    o: Tensor
    """``(…, M, D)``, the same sum of values."""


def start(query: Tensor, width: int) -> Carried:
    """Before the first row, of ``query (…, M, D)`` and values that are ``width`` wide."""
    none = query.new_zeros(*query.shape[:-1], 1, dtype=torch.promote_types(query.dtype, torch.float32))
    return Carried(none - torch.inf, none, none.expand(*query.shape[:-1], width))


def step(carried: Carried, query: Tensor, keys: Tensor, values: Tensor, hidden: Tensor | None = None) -> Carried:
    """The transition: what the queries ``(…, M, D)`` carry once they have seen C rows more, ``keys, values (…, C, D)``.

    ``hidden``: bool, broadcast to ``(…, M, C)``, the rows that a query does not see.
    """
    logits = _logits(query, keys, hidden)  # (…, M, C)
    m = torch.maximum(carried.m, logits.amax(-1, keepdim=True))
    base = m.masked_fill(m.isneginf(), 0)  # no row yet: e^(−inf − 0) is 0, where −inf − (−inf) would be no number
    shrink, weights = (carried.m - base).exp(), (logits - base).exp()
    l = shrink * carried.l + weights.sum(-1, keepdim=True)
    return Carried(m, l, shrink * carried.o + weights @ values.to(weights.dtype))


def end(carried: Carried) -> tuple[Tensor, Tensor]:
    """After the last row: what is read, ``(…, M, D)``, zeros by a query that saw none; and L ``(…, M, 1)``, there −inf."""
    return carried.o / carried.l.masked_fill(carried.l == 0, 1), carried.m + carried.l.log()


def attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    hidden: Tensor | None = None,
    *,
    causal: bool = False,
    tile: tuple[int, int] = (64, 64),
) -> Tensor:
    r"""$\mathrm{softmax}(q K^\top / \sqrt D)\,V$, heads grouped, a tile at a time; differentiable once, likewise by tiles.

    Args:
        query: ``(B, N, T, D)``.
        keys, values: ``(B, K, R, D)``; N // K query heads share a key head.
        hidden: bool, broadcast to ``(B, N, T, R)``, the rows that a token does not see. None: none.
        causal: whether the last T of the rows are the tokens' own, and none sees those after its own.
        tile: how many tokens meet how many rows at once; neither needs to divide T or R.

    Returns:
        ``(B, N, T, D)`` in the dtype of ``query``; zeros where a token sees no row at all.

    Raises:
        Error: shapes or types that do not fit together.
    """
    _check(query, keys, values, hidden)
    N, K = query.shape[1], keys.shape[1]
    if not isinstance(tile, tuple) or len(tile) != 2 or not all(isinstance(n, int) and n > 0 for n in tile):
        raise Error(f"tiled attention: tile is {tile!r:.60}; expected two whole numbers of at least 1")
    if hidden is not None:
        hidden = hidden.view((1,) * (4 - hidden.ndim) + hidden.shape)
        hidden = hidden.unflatten(1, (K, N // K)) if hidden.shape[1] == N else hidden[:, :, None]  # (…, t, r), each 1 or all
    queries = query.unflatten(1, (K, N // K))  # (B, K, G, T, D)
    return _Tiled.apply(queries, keys[:, :, None], values[:, :, None], hidden, causal, tile).flatten(1, 2)


class _Tiled(torch.autograd.Function):
    """``(B, K, G, T, D), (B, K, 1, R, D) -> (B, K, G, T, D)``, keeping what came in and L ``(B, K, G, T, 1)``."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None, causal: bool, tile: tuple[int, int]
    ) -> Tensor:
        T, R = q.shape[-2], k.shape[-2]
        read = q.new_empty(*q.shape[:-1], v.shape[-1])
        L = q.new_empty(*q.shape[:-1], 1, dtype=torch.promote_types(q.dtype, torch.float32))
        for tokens in _tiles(T, tile[0]):
            carried = start(q[..., tokens, :], v.shape[-1])
            for rows in _tiles(R, tile[1]):
                if not causal or rows.start <= tokens.stop - 1 + R - T:  # otherwise all of it is still to come
                    unseen = _unseen(hidden, causal, tokens, rows, R - T, q.device)
                    carried = step(carried, q[..., tokens, :], k[..., rows, :], v[..., rows, :], unseen)
            read[..., tokens, :], L[..., tokens, :] = end(carried)
        ctx.save_for_backward(q, k, v, hidden, read, L)
        ctx.causal, ctx.tile = causal, tile
        return read

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_read: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, hidden, read, L = ctx.saved_tensors
        T, R, wide, scale = q.shape[-2], k.shape[-2], L.dtype, q.shape[-1] ** -0.5
        dq, dk, dv = (torch.zeros_like(x, dtype=wide) for x in (q, k, v))
        back = (d_read.to(wide) * read.to(wide)).sum(-1, keepdim=True)  # what all weights of a token have in common
        base = L.masked_fill(L.isneginf(), 0)
        for rows, tokens in product(_tiles(R, ctx.tile[1]), _tiles(T, ctx.tile[0])):
            if ctx.causal and rows.start > tokens.stop - 1 + R - T:
                continue
            query, key, value, d = (
                x.to(wide) for x in (q[..., tokens, :], k[..., rows, :], v[..., rows, :], d_read[..., tokens, :])
            )
            unseen = _unseen(hidden, ctx.causal, tokens, rows, R - T, q.device)
            weights = (_logits(query, key, unseen) - base[..., tokens, :]).exp()  # (B, K, G, t, r), made again
            d_logits = weights * (d @ value.mT - back[..., tokens, :]) * scale
            dv[..., rows, :] += (weights.mT @ d).sum(2, keepdim=True)
            dk[..., rows, :] += (d_logits.mT @ query).sum(2, keepdim=True)
            dq[..., tokens, :] += d_logits @ key
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), None, None, None


def _tiles(n: int, length: int) -> Iterator[slice]:
    return (slice(i, min(i + length, n)) for i in range(0, n, length))


def _logits(query: Tensor, keys: Tensor, hidden: Tensor | None) -> Tensor:
    logits = meet(query, keys)
    return logits if hidden is None else logits.masked_fill(hidden, -torch.inf)


def _unseen(
    hidden: Tensor | None, causal: bool, tokens: slice, rows: slice, before: int, device: torch.device
) -> Tensor | None:
    """The tile of the mask, made here where it is only causal; ``before`` rows come before the first token's own."""
    if hidden is not None:
        hidden = hidden[..., tokens if hidden.shape[-2] > 1 else slice(None), rows if hidden.shape[-1] > 1 else slice(None)]
    if not causal or rows.stop - 1 <= tokens.start + before:
        return hidden
    own = torch.arange(tokens.start, tokens.stop, device=device)[:, None] + before
    later = torch.arange(rows.start, rows.stop, device=device) > own  # (t, r)
    return later if hidden is None else later | hidden


def _check(query: Tensor, keys: Tensor, values: Tensor, hidden: Tensor | None) -> None:
    shapes = f"{tuple(query.shape)}, {tuple(keys.shape)} and {tuple(values.shape)}"
    fit = query.ndim == keys.ndim == values.ndim == 4 and query.shape[0] == keys.shape[0] and query.shape[3] == keys.shape[3]
    if not fit or keys.shape[:3] != values.shape[:3] or not keys.shape[1] or query.shape[1] % keys.shape[1]:
        raise Error(f"tiled attention: query, keys and values are {shapes}; expected (B, N, T, D) and twice (B, K, R, D)")
    if not query.is_floating_point() or not query.dtype == keys.dtype == values.dtype:
        raise Error(f"tiled attention: the types are {query.dtype}, {keys.dtype} and {values.dtype}; expected one of floats")
    if hidden is not None:
        whole = (*query.shape[:3], keys.shape[2])
        fits = hidden.ndim <= 4 and all(a in (1, b) for a, b in zip(hidden.shape[::-1], whole[::-1], strict=False))
        if hidden.dtype != torch.bool or not fits:
            found = f"{hidden.dtype} of shape {tuple(hidden.shape)}"
            raise Error(f"tiled attention: hidden is {found}; expected bool that is broadcast to {whole}")
