"""What the networks of all families share: how a token, or many, pass layers that append, attend, reduce.

A family says how one token looks at H and what it makes of what it read (:class:`Block`), how a token enters and leaves
(:class:`Network`). The loops between are the same for all, and know no family.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..cell.cell import Cell
from ..layers.attention import attend
from ..layers.linear import lay_together, side_by_side
from ..layers.rotary import Rotation, rotate
from ..recurrence.transition import advance, reduce
from ..recurrence.unroll import Before, Events, fold
from ..reductions.contract import Reduction
from ..state.multistate import MultiState
from ..state.state import State

PIECE = 256
"""Tokens that a CPU takes through the feed-forward at once: it is wide, and more are no faster."""


class Block(nn.Module):
    """One layer: ``(x_t^l, H_{t-1}^l) -> (x_t^{l+1}, H_t^l)``."""

    config: Any
    q: nn.Module
    k: nn.Module
    v: nn.Module

    # What a family says.

    def rotation(self, position: Tensor, dtype: torch.dtype) -> Rotation | None:
        """What all layers need of tokens at ``position (…,)`` to turn query and key by; None: nothing."""
        return self.config.rope.rotation(position, self.config.head_dim, dtype)

    @abstractmethod
    def look(self, x: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """``(…, E)`` -> query ``(…, N, D)``, key and value ``(…, K, D)``; query and key turned. None, which a cell
        without a ``rope`` never meets: turned when they are read."""

    @abstractmethod
    def think(self, x: Tensor, read: Tensor) -> Tensor:
        """``(…, E)`` and what was read, ``(…, N, D)`` -> ``(…, E)``, what leaves the layer."""

    @property
    def neighbours(self) -> tuple[tuple[nn.Module, ...], ...]:
        """Products of the same x, which are to lie one after the other (:mod:`msrnn.layers.linear`)."""
        return ((self.q, self.k, self.v),)

    # What all share.

    def heads(self, x: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of ``x``, which is normed; query and key turned, where there is a rotation."""
        N, K, D = self.config.n_heads, self.config.n_kv_heads, self.config.head_dim
        qk, v = side_by_side(x, self.q, self.k, self.v).unflatten(-1, (-1, D)).split((N + K, K), dim=-2)
        q, k = (qk if rotation is None else rotate(qk, rotation)).split((N, K), dim=-2)
        return q, k, v

    def lay_together(self) -> None:
        for some in self.neighbours:
            lay_together(*some)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Block":
        """What ``to``, ``half``, ``to_empty`` … do."""
        super()._apply(fn, recurse)
        self.lay_together()
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        """What ``deepcopy`` ends with."""
        super().__setstate__(state)
        self.lay_together()

    def step(self, x: Tensor, H: MultiState, *, active: Tensor | None = None) -> tuple[Tensor, MultiState]:
        """``(B, E), H_{t-1} -> (B, E), H_t``; pure. ``active (B,)`` bool: rows where it is false stand still."""
        rotation = None if H.places else self.rotation(H.clock, x.dtype)
        clock = H.clock + 1 if active is None else H.clock + active
        return self.transition(x, H, rotation, clock, active, in_place=False)

    def transition(
        self, x: Tensor, H: MultiState, rotation: Rotation | None, clock: Tensor, active: Tensor | None, in_place: bool
    ) -> tuple[Tensor, MultiState]:
        """:meth:`step`, given what all layers of a token share: the rotation of its position and the clock after it."""
        q, k, v = self.look(x, rotation)  # (B, N, D), (B, K, D), (B, K, D)
        read, H = advance(q, k, v, H, clock, active, in_place)
        return self.think(x, read), H

    def read(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, empty: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """:meth:`transition` without its last part, reduce: the token's own row is written last into ``keys, values
        (B, K, S + 1, D)``; what leaves the layer, and the weights."""
        keys[:, :, -1], values[:, :, -1] = k, v
        read, weights = attend(q, keys, values, empty)
        return self.think(x, read), weights

    def fold(
        self,
        x: Tensor,
        H: MultiState,
        rotation: Rotation | None,
        active: Tensor | None,
        events: Events | None,
        before: Before,
    ) -> tuple[Tensor, MultiState]:
        """T transitions at once: ``(B, T, E)`` and the H before them -> ``(B, T, E)`` and the H after them."""
        q, k, v = (heads.transpose(1, 2) for heads in self.look(x, rotation))  # (B, N or K, T, D)
        read, H = fold(q, k, v, H, active, events, before)
        read = read.transpose(1, 2)  # (B, T, N, D)
        if x.device.type != "cpu" or x.requires_grad:  # a graph keeps all of it anyway
            return self.think(x, read), H
        length = max(1, PIECE // len(x))
        pieces = zip(x.split(length, dim=1), read.split(length, dim=1), strict=True)
        return torch.cat([self.think(*some) for some in pieces], dim=1), H


class Embedding(nn.Embedding):
    """``nn.Embedding`` that draws no numbers on the meta device: PyTorch would load its compiler for them."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


class Network(Cell):
    """Embedding, layers that are each a :class:`Block`, and whatever leads from the last one to the vocabulary."""

    embed: Embedding

    @property
    def row_width(self) -> int:
        """How many numbers a key has, and a value."""
        return self.config.head_dim

    def enter(self, token: Tensor, position: Tensor) -> Tensor:
        """``(…,)`` ids at ``position (…,)`` -> ``(…, E)``, what the first layer is given."""
        return self.embed(token)

    def empty_layer(self, batch_size: int, reduction: Reduction, clock: Tensor, dtype: torch.dtype) -> MultiState:
        shape = (batch_size, self.config.n_kv_heads, 0)
        keys = torch.empty(*shape, self.row_width, dtype=dtype, device=clock.device)
        positions = torch.empty(shape, dtype=torch.int64, device=clock.device)
        wide = torch.promote_types(dtype, torch.float32)
        row_stats = {name: keys.new_empty(*shape, *reduction.stat_shape(name), dtype=wide) for name in reduction.stat_names}
        return MultiState(keys, keys.clone(), positions, clock, reduction, row_stats, gapless=True)

    def rotation(self, position: Tensor, dtype: torch.dtype) -> Rotation | None:
        """That of every layer."""
        first = self.layers[0]
        assert isinstance(first, Block)
        return first.rotation(position, dtype)

    def transition(self, token: Tensor, state: State, active: Tensor | None, in_place: bool) -> tuple[Tensor, State]:
        clock, L = state.clock, len(self.layers)
        x = self.enter(token, clock)  # (B, E)
        if state.places:
            return self._one_by_one(x, state, None, active, in_place)
        rotation = self.rotation(clock, x.dtype)
        whole, copied = (None, False) if self.builds_graph(state) else state.whole()
        if whole is None:
            return self._one_by_one(x, state, rotation, active, in_place)
        # No layer's reduction changes what the next one reads: all of them are made at once.
        after = clock + (1 if active is None else active)
        seen = replace(whole, clock=clock.repeat(L)).opened(in_place=in_place or copied)  # (L B, K, S + 1, …)
        first, weights = x, []
        keys, values = (rows.unflatten(0, (L, -1)).unbind() for rows in (seen.keys, seen.values))
        empty = [None] * L if seen.gapless else seen.empty.unflatten(0, (L, -1)).unbind()
        for i, layer in enumerate(self.layers):
            assert isinstance(layer, Block)
            q, k, v = layer.look(x, rotation)
            if q.requires_grad or k.requires_grad or v.requires_grad:  # of what a hook brought in; nothing was overwritten yet
                return self._one_by_one(first, state, rotation, active, in_place=False)
            x, w = layer.read(x, q, k, v, keys[i], values[i], empty[i])
            weights.append(w)
        H = reduce(seen, torch.cat(weights), after.repeat(L), None if active is None else active.repeat(L))
        return x, state.with_whole(replace(H, clock=after))

    def _one_by_one(
        self, x: Tensor, state: State, rotation: Rotation | None, active: Tensor | None, in_place: bool
    ) -> tuple[Tensor, State]:
        """The layers' transitions as they are defined, where a graph is built, operators differ, or places are counted."""
        clock, layers = state.clock + (1 if active is None else active), []
        for layer, H in zip(self.layers, state, strict=True):
            assert isinstance(layer, Block)
            x, H = layer.transition(x, H, rotation, clock, active, in_place)
            layers.append(H)
        return x, state.with_layers(layers)

    def fold(
        self,
        tokens: Tensor,
        layers: Iterable[MultiState],
        active: Tensor | None,
        events: Sequence[Events] | None = None,
        own: bool = False,
    ) -> tuple[Tensor, list[MultiState]]:
        layers = list(layers)
        position = layers[0].clock[:, None] + torch.arange(tokens.shape[1], device=tokens.device)  # (B, T)
        x = self.enter(tokens, position)  # (B, T, E)
        return self.through(x, None if layers[0].places else self.rotation(position, x.dtype), layers, active, events, own)

    def through(
        self,
        x: Tensor,
        rotation: Rotation | None,
        layers: Iterable[MultiState],
        active: Tensor | None,
        events: Sequence[Events] | None = None,
        own: bool = False,
    ) -> tuple[Tensor, list[MultiState]]:
        """:meth:`fold` of what has entered, ``(B, T, E)``."""
        after: list[MultiState] = []
        before = Before(own=own)
        for i, (layer, H) in enumerate(zip(self.layers, layers, strict=True)):
            assert isinstance(layer, Block)
            x, H = layer.fold(x, H, rotation, active, None if events is None else events[i], before)
            after.append(H)
        return x, after
