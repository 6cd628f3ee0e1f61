"""One layer of a cell: append the token's row to H, attend to the rows of H, evict what exceeds the size.

A family defines how a layer projects its input to query, key and value, and what it computes from the attention output. Append,
attend and reduce are the same for all families (``msrnn/recurrence/transition.py``).
"""

from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..layers.attention import SCALED_PRODUCT, LogitRule, attend
from ..layers.linear import fuse_storage_, fused_linear, with_own_storage
from ..layers.packed.modules import fuse_packed_
from ..layers.positional import PositionEncoding, PositionTensors
from ..recurrence.records import LayerRecorder, SharedAcrossLayers
from ..recurrence.transition import Writes, append_attend_reduce
from ..recurrence.unroll import unroll_layer
from ..state.multistate import MultiState
from ..state.quantised_rows import encode_rows

MLP_CHUNK_TOKENS = 256
"""Number of tokens in one product of the MLP on a CPU. More tokens are not faster and need more memory."""
NO_CONTEXT = nullcontext()


class RecurrentLayer(nn.Module):
    """One layer: ``(x_t^l, H_{t-1}^l) -> (x_t^{l+1}, H_t^l)`` (arXiv:2401.06104, eq. 5)."""

    config: Any
    q: nn.Module
    k: nn.Module
    v: nn.Module
    position_encoding: PositionEncoding
    """The position encoding that :meth:`project_qkv` applies. Layers with the same encoding share one object."""
    logit_rule: LogitRule = SCALED_PRODUCT
    """The scale and the softcap of attention logits."""

    # Defined by a family.

    @abstractmethod
    def project_qkv(self, x: Tensor, position_tensors: PositionTensors | None) -> tuple[Tensor, Tensor, Tensor]:
        """Project ``x (…, E)`` to query ``(…, N, D)``, key and value ``(…, K, D)``, and apply the position encoding."""

    @abstractmethod
    def post_attention(self, x: Tensor, attn_output: Tensor) -> Tensor:
        """Return the output of the layer, ``(…, E)``: output projection, residual and MLP.

        Args:
            x: input of the layer, ``(…, E)``.
            attn_output: ``(…, N, D)``.
        """

    @property
    def fused_groups(self) -> tuple[tuple[nn.Module, ...], ...]:
        """Groups of projections of the same input. Each group shares one storage, so that one product computes all of it."""
        return ((self.q, self.k, self.v),)

    # The same for all families.

    def forward(self, x: Tensor, H: MultiState, **arguments: Any) -> tuple[Tensor, MultiState]:
        """Read one token ``(B, E)`` by :meth:`step` or many tokens ``(B, T, E)`` by :meth:`unroll`.

        The cell calls its layers in this way, so hooks of a layer see x and H, and a wrapper may take the place of a layer.
        """
        return (self.step if x.ndim == 2 else self.unroll)(x, H, **arguments)

    def step(
        self,
        x: Tensor,
        H: MultiState,
        *,
        active: Tensor | None = None,
        position_tensors: PositionTensors | None = None,
        in_place: bool = False,
        writes: Writes | None = None,
    ) -> tuple[Tensor, MultiState]:
        """Read one token: ``(B, E), H_{t-1} -> (B, E), H_t``. This is the definition of a layer.

        Args:
            x: input of the layer, ``(B, E)``.
            H: the state before the token; unchanged unless ``in_place``.
            active: ``(B,)`` bool, as in :meth:`Cell.step`. None: every sequence reads its token.
            position_tensors: ``position_encoding.prepare(H.clock, x.dtype)``, if the caller has it.
            in_place: True if the storage of ``H`` may be overwritten.
            writes: as of :func:`~msrnn.recurrence.transition.reduce`. None: ``H`` is overwritten at once.
        """
        if position_tensors is None and H.places is None:
            position_tensors = self.position_encoding.prepare(H.clock, x.dtype)
        clock = H.clock + (1 if active is None else active)
        q, k, v = self.project_qkv(x, position_tensors)  # (B, N, D), (B, K, D), (B, K, D)
        with without_autocast(x.device):
            attn_output, H = append_attend_reduce(x, q, k, v, H, clock, active, in_place, writes, self.logit_rule)
        return self.post_attention(x, attn_output), H

    def attend_in_place(
        self, q: Tensor, k: Tensor, v: Tensor, rows: dict[str, Tensor], visible: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Append and attend, without reduce: write ``k`` and ``v`` into the last row of ``rows``, of all heads or some.

        ``rows``: keys and values ``(B, K, S + 1, D)`` by name, and scales ``(B, K, S + 1)`` if they are int8.

        Returns:
            The attention output ``(B, N, D)``, and the weights ``(B, K, G, S + 1)``.
        """
        for name, row in encode_rows(k, v, "key_scales" in rows).items():
            rows[name][:, :, -1] = row
        with without_autocast(q.device):
            return attend(q, visible=visible, rule=self.logit_rule, **rows)

    def unroll(
        self,
        x: Tensor,
        H: MultiState,
        position_tensors: PositionTensors | None,
        active: Tensor | None,
        recorder: LayerRecorder | None,
        shared: SharedAcrossLayers,
    ) -> tuple[Tensor, MultiState]:
        """Read T tokens with the result of T steps: ``(B, T, E)`` and H before them -> ``(B, T, E)`` and H after them."""
        q, k, v = (heads.transpose(1, 2) for heads in self.project_qkv(x, position_tensors))  # (B, N or K, T, D)
        with without_autocast(x.device):
            attn_output, H = unroll_layer(x, q, k, v, H, active, recorder, shared, self.logit_rule)
        attn_output = attn_output.transpose(1, 2)  # (B, T, N, D)
        if x.device.type != "cpu" or x.requires_grad:  # autograd keeps the intermediate results of all tokens in any case
            return self.post_attention(x, attn_output), H
        length = max(1, MLP_CHUNK_TOKENS // max(1, len(x)))
        parts = zip(x.split(length, dim=1), attn_output.split(length, dim=1), strict=True)
        return torch.cat([self.post_attention(*part) for part in parts], dim=1), H

    def qkv_heads(self, x: Tensor, position_tensors: PositionTensors | None) -> tuple[Tensor, Tensor, Tensor]:
        """Project a normed ``x (…, E)`` by one fused product, split it into heads, and apply the position encoding.

        The results have the dtype of ``x``, also under ``torch.autocast``, because H is stored in one dtype.
        """
        N, K, D = self.config.n_heads, self.config.n_kv_heads, self.config.head_dim
        qkv = self.qkv_product(x)
        qk, v = (qkv if qkv.dtype == x.dtype else qkv.to(x.dtype)).unflatten(-1, (-1, D)).split_with_sizes((N + K, K), dim=-2)
        return self.position_encoding.apply(self.normalize_heads(qk), v, N, position_tensors)

    def qkv_product(self, x: Tensor) -> Tensor:
        """Project a normed ``x (…, E)`` to queries, keys and values of all heads, ``(…, (N + 2 K) D)``."""
        return fused_linear(x, self.q, self.k, self.v)

    def normalize_heads(self, qk: Tensor) -> Tensor:
        """Normalize queries and keys ``(…, N + K, D)`` before the position encoding, in families that do so."""
        return qk

    def fuse_storage_(self) -> None:
        """Move the weights of each fused group into one storage."""
        for group in self.fused_groups:
            if not fuse_packed_(*group):
                fuse_storage_(*group)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the parameters as ``nn.Module`` does, each with a storage of its own although the weights are fused.

        No memory is copied: the tensors are those of the parameters, so that an edit in place changes the parameters.
        """
        tensors, prefix = super().state_dict(*args, **kwargs), kwargs.get("prefix", "")
        for name, x in tensors.items():
            if name.startswith(prefix):
                tensors[name] = with_own_storage(x)
        return tensors

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RecurrentLayer":
        """Fuse the weights again after ``to``, ``half``, ``to_empty`` and the like have replaced them."""
        super()._apply(fn, recurse)
        self.fuse_storage_()
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Fuse the weights again after ``deepcopy`` or unpickling."""
        super().__setstate__(state)
        self.fuse_storage_()


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context without ``torch.autocast``: attention and operators compute in the dtype of H or a wider one.

    Step and many-token path then compute the same scores, so that they evict the same rows.
    """
    return torch.autocast(device.type, enabled=False) if torch._C._is_any_autocast_enabled() else NO_CONTEXT
