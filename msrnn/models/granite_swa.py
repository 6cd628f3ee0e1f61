r"""Granite with sliding windows and learned attention sinks (``granite_swa`` of transformers).

A sink is one learned number $s_h$ per query head. It is one more logit in the softmax over the rows, and has no value:
$\mathrm{softmax}(m\, q_h K^\top, s_h)$ without its last column, where m is ``attention_multiplier``. This equals one more row
of H, which is never evicted and has position −2 like other learned rows (:mod:`.learned_rows`):

- keys and values have one more element. It is 0 in the rows of tokens and 1 in the key of the sink row. The other elements
  of this key, and the value, are 0.
- queries have one more element, $s_h / m$. So the logit of the sink row is $s_h$, and the other
  logits do not change.

The number of rows that an operator retains (``size``) does not count the sink row. Operators see the weights of the softmax, so
the weights of the other rows add up to less than 1. TOVA compares rows of one query, so its choice does not depend on the sink
within a head; in the mean over heads, a head with a large sink counts less. H2O adds up the weights that rows have received, so
a query that gives the sink a large weight adds little to each of them.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ..cell.cell import Cell
from ..errors import Error
from ..layers.positional import PositionEncoding, PositionTensors
from ..state.position_remapping import ABSOLUTE
from ..state.state import State
from .granite import Granite, GraniteConfig, GraniteLayer
from .learned_rows import prepend_learned_rows


class GraniteSwaLayer(GraniteLayer):
    """A layer of Granite with ``sinks (N,)``."""

    def __init__(self, config: GraniteConfig, position_encoding: PositionEncoding):
        super().__init__(config, position_encoding)
        self.sinks = nn.Parameter(torch.zeros(config.n_heads))

    def project_qkv(self, x: Tensor, position_tensors: PositionTensors | None) -> tuple[Tensor, Tensor, Tensor]:
        """Project ``x (…, E)`` to query ``(…, N, D + 1)``, key and value ``(…, K, D + 1)``."""
        q, k, v = super().project_qkv(x, position_tensors)
        sinks = (self.sinks / self.config.attention_multiplier).to(q.dtype)[:, None]  # (N, 1)
        return torch.cat((q, sinks.expand(*q.shape[:-1], 1)), dim=-1), pad(k, (0, 1)), pad(v, (0, 1))

    def post_attention(self, x: Tensor, attn_output: Tensor) -> Tensor:
        return super().post_attention(x, attn_output[..., :-1])


class GraniteSwa(Granite):
    """The network of a Granite with sinks."""

    arithmetic = "granite_swa"
    layer_class = GraniteSwaLayer

    @property
    def kv_dim(self) -> int:
        return self.config.head_dim + 1

    def initial_state(self, batch_size: int = 1, reduction: Any = None, *, places: str = ABSOLUTE, **options: Any) -> State:
        if places != ABSOLUTE:  # the keys have an element that is not rotated
            raise Error(f"places are {places!r:.60}; expected {ABSOLUTE!r}, because this cell has learned sinks")
        state = super().initial_state(batch_size, reduction, **options)
        key = torch.zeros(1, self.n_kv_heads, 1, self.kv_dim, device=state.device)
        key[..., -1] = 1
        return state.with_layers(prepend_learned_rows(state, [(key, torch.zeros_like(key))] * len(state)))

    initial_state.__doc__ = Cell.initial_state.__doc__
