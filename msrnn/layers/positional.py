r"""Position encodings of attention with one interface: none, rotary, ALiBi; and the sinusoids that are added to embeddings.

ALiBi (arXiv:2108.12409) subtracts $m_h (t - p)$ from the logit of head h between a query at position t and a key at position p.
This is a product of two query features and two key features, $(m_h, -m_h t) \cdot (p, 1)$. They are appended to the D elements
of each head, so attention itself does not change. Key features $(0, 0)$ give a zero bias. Only differences of positions
matter, and the bias is as exact as $m_h t$ in float32.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..errors import Error
from .rotary import Rope, apply_rotary

PositionTensors = tuple[Tensor, ...]
"""The result of :meth:`PositionEncoding.prepare`, the same for all layers with one encoding."""
ALIBI_DIMS = 2
"""Number of elements that ALiBi appends to a head."""


class PositionEncoding:
    """No position encoding in attention, and the base class of the others."""

    rope: Rope | None = None
    """The rotary embedding, if this is one."""
    extra_dims = 0
    """Number of elements that are appended to each key and value."""

    def prepare(self, position: Tensor, dtype: torch.dtype) -> PositionTensors | None:
        """Return the tensors that :meth:`apply` needs for tokens at ``position (…,)`` int64."""
        return None

    def apply(self, qk: Tensor, v: Tensor, n_heads: int, tensors: PositionTensors | None) -> tuple[Tensor, Tensor, Tensor]:
        """Apply the encoding in one layer.

        Args:
            qk: queries and keys, ``(…, N + K, D)``.
            v: ``(…, K, D)``.
            n_heads: N.
            tensors: the result of :meth:`prepare`; None: tokens without a position, such as memory tokens, or keys that are
                encoded when a query attends to them.

        Returns:
            Query ``(…, N, D')``, key and value ``(…, K, D')``, with D' = D + ``extra_dims``.
        """
        q, k = qk.split_with_sizes((n_heads, qk.shape[-2] - n_heads), dim=-2)
        return q, k, v

    def check(self, dtype: torch.dtype, reads_keys: bool = False) -> None:
        """Refuse an H that the encoding does not allow.

        Args:
            dtype: of keys and values.
            reads_keys: True if the operator reads keys or queries.

        Raises:
            Error: the encoding needs another dtype, or another operator.
        """


@dataclass(frozen=True)
class RotaryEncoding(PositionEncoding):
    """Rotation of queries and keys by their position (:mod:`msrnn.layers.rotary`)."""

    rope: Rope = field()
    head_dim: int = field()

    def prepare(self, position: Tensor, dtype: torch.dtype) -> PositionTensors | None:
        return self.rope.cos_sin(position, self.head_dim, dtype)

    def apply(self, qk: Tensor, v: Tensor, n_heads: int, tensors: PositionTensors | None) -> tuple[Tensor, Tensor, Tensor]:
        return super().apply(qk if tensors is None else apply_rotary(qk, (tensors[0], tensors[1])), v, n_heads, tensors)


@dataclass(frozen=True)
class AlibiEncoding(PositionEncoding):
    """Two more features in queries and keys, and two zeros in values, because keys and values have one width."""

    n_heads: int
    head_dim: int
    extra_dims = ALIBI_DIMS

    def prepare(self, position: Tensor, dtype: torch.dtype) -> PositionTensors | None:
        """Return the query features ``(…, N, 2)`` and key features ``(…, 1, 2)``."""
        t = position[..., None].to(dtype)  # (…, 1)
        m = alibi_slopes(self.n_heads, dtype, t.device) * (self.head_dim + ALIBI_DIMS) ** 0.5  # attention divides by this root
        return torch.stack((m.expand(*t.shape[:-1], -1), -m * t), dim=-1), torch.stack((t, torch.ones_like(t)), dim=-1)

    def apply(self, qk: Tensor, v: Tensor, n_heads: int, tensors: PositionTensors | None) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().apply(qk, v, n_heads, tensors)
        q = q * ((self.head_dim + ALIBI_DIMS) / self.head_dim) ** 0.5  # attention divides by the root of D + 2 instead of D
        if tensors is None:
            return pad(q, (0, ALIBI_DIMS)), pad(k, (0, ALIBI_DIMS)), pad(v, (0, ALIBI_DIMS))
        q, k = (torch.cat((x, more.expand(*x.shape[:-1], -1)), dim=-1) for x, more in zip((q, k), tensors, strict=True))
        return q, k, pad(v, (0, ALIBI_DIMS))

    def check(self, dtype: torch.dtype, reads_keys: bool = False) -> None:
        if reads_keys:
            raise Error("the operator needs keys or queries, to which alibi appends positions; expected another operator")
        if dtype.itemsize < 4:
            raise Error(f"dtype is {dtype}, too coarse for the positions that alibi appends; expected float32 or float64")


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
