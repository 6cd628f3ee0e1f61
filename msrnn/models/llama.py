r"""LLaMA as a cell: its facts, one layer's transition, the network.

Pre-norm residual layers, grouped queries, half-split rotary positions, a gated feed-forward (SiLU), no biases:
arXiv:2302.13971; grouped queries arXiv:2307.09288; llama3 rope scaling arXiv:2407.21783. Mistral and Yi are the same
cell with other facts (``mistral.py``, ``yi.py``).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from ..attention import attend
from ..cell import Cell
from ..fold import Before, Events, fold
from ..linear import Linear, lay_together, product, side_by_side
from ..multistate import MultiState
from ..norm import RMSNorm
from ..reduction import Full, Reduction, Window
from ..rotary import Rotation, rotate
from ..state import State
from ..transition import reduce
from .config import Config


class Layer(nn.Module):
    """One layer: ``(x_t^l, H_{t-1}^l) -> (x_t^{l+1}, H_t^l)``."""

    def __init__(self, config: Config):
        super().__init__()
        E, F, D = config.width, config.ffn_width, config.head_dim
        self.config = config
        self.attention_norm = RMSNorm(E, config.norm_eps)
        self.q = Linear(E, config.n_heads * D)
        self.k = Linear(E, config.n_kv_heads * D)
        self.v = Linear(E, config.n_kv_heads * D)
        self.o = Linear(config.n_heads * D, E)
        self.ffn_norm = RMSNorm(E, config.norm_eps)
        self.gate = Linear(E, F)
        self.up = Linear(E, F)
        self.down = Linear(F, E)
        self._lay_together()

    def _lay_together(self) -> None:
        lay_together(self.q, self.k, self.v)
        lay_together(self.gate, self.up)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Layer":
        """What ``to``, ``half``, ``to_empty`` … do."""
        super()._apply(fn, recurse)
        self._lay_together()
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        """What ``deepcopy`` ends with."""
        super().__setstate__(state)
        self._lay_together()

    def step(self, x: Tensor, H: MultiState, *, active: Tensor | None = None) -> tuple[Tensor, MultiState]:
        """``(B, E), H_{t-1} -> (B, E), H_t``; pure. ``active (B,)`` bool: rows where it is false stand still."""
        rotation = self.config.rope.rotation(H.clock, self.config.head_dim, x.dtype)
        clock = H.clock + 1 if active is None else H.clock + active
        return self.transition(x, H, rotation, clock, active, in_place=False)

    def transition(
        self, x: Tensor, H: MultiState, rotation: Rotation, clock: Tensor, active: Tensor | None, in_place: bool
    ) -> tuple[Tensor, MultiState]:
        """:meth:`step`, given what all layers of a token share: the rotation of its position and the clock after it."""
        q, k, v = self._look(x, rotation)  # (B, N, D), (B, K, D), (B, K, D)
        seen = H.append(k, v, in_place=in_place)  # S + 1 rows
        read, weights = attend(q, seen.keys, seen.values, None if seen.gapless else seen.empty)
        return self._think(x, read), reduce(seen, weights, clock, active)

    def read(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, empty: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """:meth:`transition` without its last part, reduce: the token's own row is written last into ``keys, values
        (B, K, S + 1, D)``; what leaves the layer, and the weights."""
        keys[:, :, -1], values[:, :, -1] = k, v
        read, weights = attend(q, keys, values, empty)
        return self._think(x, read), weights

    def fold(
        self,
        x: Tensor,
        H: MultiState,
        rotation: Rotation,
        active: Tensor | None,
        events: Events | None,
        before: Before,
    ) -> tuple[Tensor, MultiState]:
        """T transitions at once: ``(B, T, E)`` and the H before them -> ``(B, T, E)`` and the H after them."""
        q, k, v = (heads.transpose(1, 2) for heads in self._look(x, rotation))  # (B, N or K, T, D)
        read, H = fold(q, k, v, H, active, events, before)
        return self._think(x, read.transpose(1, 2)), H

    def _look(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """``(…, E)`` -> query ``(…, N, D)``, key and value ``(…, K, D)``; query and key rotated."""
        N, K, D = self.config.n_heads, self.config.n_kv_heads, self.config.head_dim
        normed = self.attention_norm(x)
        qk, v = side_by_side(normed, self.q, self.k, self.v).unflatten(-1, (-1, D)).split((N + K, K), dim=-2)
        q, k = rotate(qk, rotation).split((N, K), dim=-2)
        return q, k, v

    def _think(self, x: Tensor, read: Tensor) -> Tensor:
        """``(…, E)`` and what was read, ``(…, N, D)`` -> ``(…, E)``, what leaves the layer."""
        x = x + self.o(read.flatten(-2))
        normed = self.ffn_norm(x)
        gate, up = side_by_side(normed, self.gate, self.up).chunk(2, dim=-1)
        return x + self.down(silu(gate) * up)


class Embedding(nn.Embedding):
    """``nn.Embedding`` that draws no numbers on the meta device: PyTorch would load its compiler for them."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class Llama(Cell):
    """The network: embedding, layers, final norm, vocabulary product. Freshly built it is random and trainable."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.embed = Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        if not config.tied:
            self.head = Linear(config.width, config.vocab_size)

    @property
    def default_reduction(self) -> Reduction:
        """:class:`Full`, or for a sliding window W ``Window(W - 1)``: W counts the current token, ``size`` does not."""
        return Full() if self.config.window is None else Window(self.config.window - 1)

    @property
    def facts(self) -> str:
        c = self.config
        sizes = (c.vocab_size, c.width, c.n_layers, c.n_heads, c.n_kv_heads, c.head_dim, c.ffn_width)
        return f"llama {sizes} tied={c.tied} eps={c.norm_eps:.6g} {c.rope}"

    @property
    def marks(self) -> list[Tensor]:
        some = ("embed.weight", "layers.0.q.weight", f"layers.{len(self.layers) - 1}.down.weight", "norm.weight")
        return [self.get_parameter(name) for name in some]

    def empty_layer(self, batch_size: int, reduction: Reduction, clock: Tensor, dtype: torch.dtype) -> MultiState:
        shape = (batch_size, self.config.n_kv_heads, 0)
        keys = torch.empty(*shape, self.config.head_dim, dtype=dtype, device=clock.device)
        positions = torch.empty(shape, dtype=torch.int64, device=clock.device)
        wide = torch.promote_types(dtype, torch.float32)
        numbers = {name: keys.new_empty(*shape, *reduction.shape(name), dtype=wide) for name in reduction.numbers}
        return MultiState(keys, keys.clone(), positions, clock, reduction, numbers, gapless=True)

    def transition(self, token: Tensor, state: State, active: Tensor | None, in_place: bool) -> tuple[Tensor, State]:
        clock, L = state.clock, len(self.layers)
        x = self.embed(token)  # (B, E)
        rotation = self.config.rope.rotation(clock, self.config.head_dim, x.dtype)
        whole, copied = (None, False) if self.builds_graph(state) else state.whole()
        if whole is None:
            return self._one_by_one(x, state, rotation, active, in_place)
        # No layer's reduction changes what the next one reads: all of them are made at once.
        after = clock + (1 if active is None else active)
        seen = replace(whole, clock=clock.repeat(L)).opened(in_place=in_place or copied)  # (L B, K, S + 1, …)
        weights = []
        keys, values = (rows.unflatten(0, (L, -1)).unbind() for rows in (seen.keys, seen.values))
        empty = [None] * L if seen.gapless else seen.empty.unflatten(0, (L, -1)).unbind()
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            q, k, v = layer._look(x, rotation)
            if q.requires_grad or k.requires_grad or v.requires_grad:  # of what a hook brought in; nothing was overwritten yet
                return self._one_by_one(self.embed(token), state, rotation, active, in_place=False)
            x, w = layer.read(x, q, k, v, keys[i], values[i], empty[i])
            weights.append(w)
        H = reduce(seen, torch.cat(weights), after.repeat(L), None if active is None else active.repeat(L))
        return x, state.with_whole(replace(H, clock=after))

    def _one_by_one(
        self, x: Tensor, state: State, rotation: Rotation, active: Tensor | None, in_place: bool
    ) -> tuple[Tensor, State]:
        """The layers' transitions as they are defined, where a graph is built or operators differ."""
        clock, layers = state.clock + (1 if active is None else active), []
        for layer, H in zip(self.layers, state, strict=True):
            assert isinstance(layer, Layer)
            x, H = layer.transition(x, H, rotation, clock, active, in_place)
            layers.append(H)
        return x, state.with_layers(layers)

    def fold(
        self,
        tokens: Tensor,
        layers: Iterable[MultiState],
        active: Tensor | None,
        events: Sequence[Events] | None = None,
    ) -> tuple[Tensor, list[MultiState]]:
        layers = list(layers)
        position = layers[0].clock[:, None] + torch.arange(tokens.shape[1], device=tokens.device)  # (B, T)
        x = self.embed(tokens)  # (B, T, E)
        rotation = self.config.rope.rotation(position, self.config.head_dim, x.dtype)
        after: list[MultiState] = []
        before = Before()
        for i, (layer, H) in enumerate(zip(self.layers, layers, strict=True)):
            assert isinstance(layer, Layer)
            x, H = layer.fold(x, H, rotation, active, None if events is None else events[i], before)
            after.append(H)
        return x, after

    def read_out(self, x: Tensor) -> Tensor:
        head = self.embed if self.config.tied else self.head
        return product(self.norm(x), head.weight)
