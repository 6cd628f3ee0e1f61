"""A faster step for bounded states: one buffer and one reduction for all layers.

The input of a layer does not depend on the eviction in the previous layer. So all layers write into one buffer
``(L B, K, S + 1, D)``, and one call of :func:`reduce` evicts a row in every layer. The result equals the loop over
``layer.step`` (``tests/cell/test_stacked_step.py``).
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..layers.positional import PositionTensors
from ..recurrence.transition import Attended, Writes, reduce
from ..reductions.contract import Reduction
from ..state.multistate import MultiState
from ..state.stacking import unstack
from ..state.state import State
from .layer import RecurrentLayer


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
        The output of the last layer ``(B, E)`` and the new state; None if :func:`~msrnn.state.stacking.can_stack` is False for
        the layers of ``state``.
    """
    stacked, copied = state.stacked()
    if stacked is None:
        return None
    L, clock = len(layers), state.clock
    after = clock + (1 if active is None else active)
    grown = replace(stacked, clock=clock.repeat(L)).extended(in_place=in_place or copied)  # (L B, K, S + 1, …)
    stored = {name: x.unflatten(0, (L, -1)).unbind() for name, x in grown.stored.items() if name != "positions"}
    visible = [None] * L if grown.no_empty_rows else (~grown.empty).unflatten(0, (L, -1)).unbind()
    attended: list[Attended] = []
    for i, layer in enumerate(layers):
        q, k, v = layer.project_qkv(x, position_tensors[i])
        if q.requires_grad or k.requires_grad or v.requires_grad:  # autograd has to record this layer and the next ones
            done = _reduce_first(grown, attended, len(x), after, active)
            return _continue_layerwise(layers, x, state, position_tensors, active, done)
        x, seen = layer.attend_in_place(x, q, k, v, {name: rows[i] for name, rows in stored.items()}, visible[i])
        attended.append(seen)
    active = None if active is None else active.repeat(L)
    H = reduce(grown, _stack_attended(attended, grown.reduction), after.repeat(L), active, writes=writes)
    return x, state.from_stacked(replace(H, clock=after))


def _stack_attended(layers: Sequence[Attended], operator: Reduction) -> Attended:
    """Return what the reduction of all layers reads, with the batches of the layers one after the other."""
    needed = {"weights": True, "output": operator.needs_output, "query": operator.needs_queries, "x": operator.needs_input}
    return Attended(**{name: torch.cat([getattr(a, name) for a in layers]) for name in needed if needed[name]})


def _reduce_first(
    grown: MultiState, attended: list[Attended], B: int, after: Tensor, active: Tensor | None
) -> tuple[MultiState, ...]:
    """Return H of the first layers of ``grown``, one for each of ``attended``, after their reduction."""
    n = len(attended)
    if not n:
        return ()
    first = grown.map(lambda x: x[: n * B].clone())
    H = reduce(first, _stack_attended(attended, grown.reduction), after.repeat(n), None if active is None else active.repeat(n))
    return unstack(replace(H, clock=after), n)


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
