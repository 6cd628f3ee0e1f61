"""A faster step for bounded states: one buffer and one reduction for all layers.

The input of a layer does not depend on the eviction in the previous layer. So all layers write into one buffer
``(L B, K, S + 1, D)``, and one call of :func:`reduce` evicts a row in every layer. With sizes per head there is one buffer and
one call for each group of heads with the same size. Under a shared budget the rows of all heads are in one dimension
(``msrnn/state/pooled_rows.py``). The result equals the loop over ``layer.step``
(``tests/cell/test_stacked_step.py``).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..layers.positional import PositionTensors
from ..recurrence.pooled_step import attend_pooled, reduce_pooled
from ..recurrence.transition import Attended, Writes, reduce
from ..reductions.head_budgets import HeadSizes, of_heads
from ..state.head_groups import StackedLayers
from ..state.multistate import MultiState
from ..state.pooled_rows import PooledMultiState
from ..state.state import State
from .layer import RecurrentLayer, without_autocast


def stacked_step(
    layers: Sequence[RecurrentLayer],
    x: Tensor,
    state: State,
    position_tensors: Sequence[PositionTensors | None],
    active: Tensor | None,
    in_place: bool,
    writes: Writes | None = None,
) -> tuple[Tensor, State] | None:
    """Run all layers on one token.

    Args:
        layers: L layers.
        x: embedded tokens, ``(B, E)``.
        state: the state before the token, with absolute positions (``places`` is None) and without gradients.
        position_tensors: of each layer; active, in_place, writes: as in :meth:`RecurrentLayer.step`.

    Returns:
        The output of the last layer ``(B, E)`` and the new state; None if the layers of ``state`` cannot be stacked
        (:meth:`~msrnn.state.head_groups.StackedLayers.copy_of`).
    """
    stacked, copied = state.stacked()
    if stacked is None:
        return None
    L, clock = len(layers), state.clock
    after, head_sizes = clock + (1 if active is None else active), stacked.head_sizes
    parts = [_Part.of(H, L, in_place or copied) for H in stacked.parts]
    for i, layer in enumerate(layers):
        q, k, v = layer.project_qkv(x, position_tensors[i])
        if q.requires_grad or k.requires_grad or v.requires_grad:  # autograd has to record this layer and the next ones
            done = _reduce_first(parts, stacked, i, len(x), after, active)
            return _continue_layerwise(layers, x, state, position_tensors, active, done)
        if head_sizes is None:
            attn_output = parts[0].attend(layer, i, x, q, k, v)
        else:
            attn_output = _attend_groups(parts, head_sizes, layer, i, x, q, k, v)
        x = layer.post_attention(x, attn_output)
    active = None if active is None else active.repeat(L)
    reduced = (part.reduce(part.grown, after.repeat(L), active, writes) for part in parts)
    return x, state.from_stacked(stacked.with_parts(replace(H, clock=after) for H in reduced))


@dataclass
class _Part:
    """The stacked rows of all heads, pooled or not, or of a group of heads, in one step.

    Attributes:
        grown: of all layers, with a row for the token; its key and value are written when a layer attends.
        stored: by name, the rows of each layer.
        visible: of each layer, ``(B, K, S + 1)`` bool, the rows that each head attends to; None for all.
        attended: of the layers so far.
    """

    grown: MultiState
    stored: dict[str, tuple[Tensor, ...]]
    visible: Sequence[Tensor | None]
    attended: list[Attended] = field(default_factory=list)

    @classmethod
    def of(cls, stacked: MultiState, L: int, in_place: bool) -> "_Part":
        # an unbounded H never overwrites a row, so that states can share a buffer
        in_place = in_place or stacked.reduction.size is None
        grown = replace(stacked, clock=stacked.clock.repeat(L)).extended(in_place=in_place)  # (L B, K, S + 1, …)
        stored = {name: x.unflatten(0, (L, -1)).unbind() for name, x in grown.stored.items() if name != "positions"}
        visible = grown.visible
        return cls(grown, stored, [None] * L if visible is None else visible.unflatten(0, (L, -1)).unbind())

    def attend(self, layer: RecurrentLayer, i: int, x: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Write the row of the token in layer i, and return the attention output ``(B, N, D)``."""
        rows, visible = {name: of_layers[i] for name, of_layers in self.stored.items()}, self.visible[i]
        if isinstance(self.grown, PooledMultiState):
            assert visible is not None
            with without_autocast(q.device):
                output, weights = attend_pooled(q, k, v, rows, visible, layer.logit_rule)
        else:
            output, weights = layer.attend_in_place(q, k, v, rows, visible)
        self.attended.append(Attended(weights, output, q, x))
        return output

    def reduce(self, grown: MultiState, clock: Tensor, active: Tensor | None, writes: Writes | None = None) -> MultiState:
        """Return the rows after the reduction of the layers that have attended; ``grown``: the rows of these layers."""
        if isinstance(grown, PooledMultiState):
            return reduce_pooled(grown, self.all_attended(), clock, active, writes)
        return reduce(grown, self.all_attended(), clock, active, writes)

    def all_attended(self) -> Attended:
        """Return what the reduction of all layers reads, with the batches of the layers one after the other."""
        operator = self.grown.reduction
        needed = {"weights": True, "output": operator.needs_output, "query": operator.needs_queries, "x": operator.needs_input}
        return Attended(**{name: torch.cat([getattr(a, name) for a in self.attended]) for name in needed if needed[name]})


def _attend_groups(
    parts: Sequence[_Part], head_sizes: HeadSizes, layer: RecurrentLayer, i: int, x: Tensor, q: Tensor, k: Tensor, v: Tensor
) -> Tensor:
    """Return the attention output ``(B, N, D)`` of layer i. The heads of each group attend to the rows of their part."""
    q, outputs = q.unflatten(1, (k.shape[1], -1)), []  # (B, K, G, D)
    for part, (_, heads) in zip(parts, head_sizes.groups, strict=True):
        output = part.attend(layer, i, x, of_heads(q, heads).flatten(1, 2), of_heads(k, heads), of_heads(v, heads))
        outputs.append(output.unflatten(1, (len(heads), -1)))  # (B, n, G, D)
    return head_sizes.in_order(outputs).flatten(1, 2)


def _reduce_first(
    parts: Sequence[_Part], stacked: StackedLayers, n: int, B: int, after: Tensor, active: Tensor | None
) -> tuple[MultiState, ...]:
    """Return H of the first n layers after their reduction."""
    if not n:
        return ()
    first_active, reduced = None if active is None else active.repeat(n), []
    for part in parts:
        H = part.reduce(part.grown.map(lambda x: x[: n * B].clone()), after.repeat(n), first_active)
        reduced.append(replace(H, clock=after))
    return stacked.with_parts(reduced).unstack(n)


def _continue_layerwise(
    layers: Sequence[RecurrentLayer],
    x: Tensor,
    state: State,
    position_tensors: Sequence[PositionTensors | None],
    active: Tensor | None,
    done: tuple[MultiState, ...],
) -> tuple[Tensor, State]:
    """Run the remaining layers one by one; ``done`` contains H after the token for the first layers."""
    after, n = list(done), len(done)
    for layer, H, tensors in zip(layers[n:], list(state)[n:], position_tensors[n:], strict=True):
        x, H = layer.step(x, H, active=active, position_tensors=tensors)
        after.append(H)
    return x, state.with_layers(after)
