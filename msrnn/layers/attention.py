"""Scaled dot-product attention of one query per sequence over the rows of H, with its weights."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .emulation import upcast_if_emulated


@dataclass(frozen=True)
class LogitRule:
    r"""The rule by which a layer computes attention logits from the products of queries and keys.

    Attributes:
        scale: the factor on the products; None is $D^{-1/2}$.
        softcap: c of $c \tanh(x / c)$, which bounds the scaled products to (−c, c) (Gemma 2, arXiv:2408.00118, sec. 2); None:
            they are not bounded.
    """

    scale: float | None = None
    softcap: float | None = None

    def scale_for(self, head_dim: int) -> float:
        """Return the factor on the products of queries and keys of ``head_dim`` elements."""
        return head_dim**-0.5 if self.scale is None else self.scale

    def cap(self, logits: Tensor) -> Tensor:
        """Apply the softcap to scaled products."""
        return logits if self.softcap is None else (logits / self.softcap).tanh() * self.softcap


SCALED_PRODUCT = LogitRule()
"""The rule of LLaMA and most other families."""


def attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    visible: Tensor | None,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
    rule: LogitRule = SCALED_PRODUCT,
) -> tuple[Tensor, Tensor]:
    r"""Return $\mathrm{softmax}(q K^\top / \sqrt D)\,V$ for one token, and the weights (arXiv:2401.06104, eq. 7).

    Args:
        query: ``(B, N, D)``, with the position encoding applied.
        keys, values: ``(B, K, R, D)``, the cached rows and the current token's own row; ``G = N // K`` query heads share a
            key head.
        visible: ``(B, K, R)`` bool, False for empty rows; None: all rows are visible.
        key_scales, value_scales: ``(B, K, R)``, factors of int8 keys and values; None: keys and values are floating-point.
        rule: scale and softcap of the logits; the formula above has the default.

    Returns:
        The attention output ``(B, N, D)`` in the dtype of ``query``, and the weights ``(B, K, G, R)`` in at least float32.
    """
    (B, K), (N, D) = keys.shape[:2], query.shape[1:]
    flat_scales = None if key_scales is None else key_scales.flatten(0, 1)
    logits = attention_logits(query.reshape(B * K, N // K, D), keys.flatten(0, 1), flat_scales, rule)  # (B K, G, R)
    weights = (logits if visible is None else mask_logits(logits, visible.flatten(0, 1)[:, None])).softmax(dim=-1)
    flat_scales = None if value_scales is None else value_scales.flatten(0, 1)
    output = weighted_values(weights, values.flatten(0, 1), flat_scales, query.dtype)  # (B K, G, D)
    return output.view(B, N, D), weights.view(B, K, N // K, keys.shape[2])


def attention_logits(queries: Tensor, keys: Tensor, scales: Tensor | None = None, rule: LogitRule = SCALED_PRODUCT) -> Tensor:
    r"""Return $q K^\top / \sqrt D$, or the logits of another ``rule``: ``(…, M, D), (…, R, D) -> (…, M, R)``, float32 or wider.

    ``scales (…, R)`` are factors of int8 keys. They are applied to the product, which has fewer elements than the keys. It is
    computed in at least float32. int8 is converted to it faster than to 16 bits, and float16 overflows.

    In 16 bits the product is scaled, because scaled queries would be rounded. In float32 and wider the queries are scaled,
    because they have fewer elements.
    """
    dtype, scale = torch.promote_types(queries.dtype, torch.float32), rule.scale_for(queries.shape[-1])
    if scales is not None:
        return rule.cap(((queries.to(dtype) * scale) @ keys.to(dtype).mT) * scales[..., None, :])
    if queries.dtype == dtype:
        return rule.cap((queries * scale) @ keys.mT)
    queries, keys = upcast_if_emulated(queries), upcast_if_emulated(keys)
    return rule.cap((queries @ keys.mT).to(dtype) * scale)


def weighted_values(weights: Tensor, values: Tensor, scales: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return the sum of the values by their weights, ``(…, M, R), (…, R, D) -> (…, M, D)``, in ``dtype``.

    ``scales (…, R)`` are factors of int8 values. They are applied to the weights.
    """
    if scales is not None:
        return ((weights * scales[..., None, :]) @ values.to(weights.dtype)).to(dtype)
    wide = upcast_if_emulated(values)
    return (weights.to(wide.dtype) @ wide).to(dtype)


def mask_logits(logits: Tensor, visible: Tensor) -> Tensor:
    """Return ``logits`` with −inf where ``visible``, which is broadcast, is False.

    Implemented as an addition, which is several times as fast as ``masked_fill``.
    """
    zero = torch.zeros(1, dtype=logits.dtype, device=logits.device)
    return logits + torch.where(visible, zero, -torch.inf)
